package archive_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/archive"
	"github.com/sendense/sendense/internal/requires"
)

const gib = 1 << 30

func TestZipsOfMoreThan65535FilesOpen(t *testing.T) {
	files := []file{dir("many")}
	for i := range 70_000 {
		files = append(files, regular(fmt.Sprintf("many/%06d", i), "x"))
	}
	path := write(t, archive.Zip, files...)
	if out := good(t, t.TempDir(), "unzip", "-tq", path); !strings.Contains(out, "No errors") {
		t.Errorf("unzip: %s", out)
	}
	for _, argv := range [][]string{{"zipinfo", "-1", path}, {"bsdtar", "-tf", path},
		{"/usr/bin/python3", "-c", "import sys, zipfile\nfor n in zipfile.ZipFile(sys.argv[1]).namelist(): print(n)", path}} {
		if n := strings.Count(good(t, t.TempDir(), argv...), "\n"); n != 70_001 {
			t.Errorf("%s lists %d files, want 70001", argv[0], n)
		}
	}
}

func TestZipsOfMoreThan4GiBOpen(t *testing.T) {
	large := file{archive.Entry{Name: "large", Size: 4*gib + 5, Mode: 0o600}, &content{4*gib + 5, map[int64]string{4 * gib: "hello"}, 0}}
	path := write(t, archive.Zip, regular("first", "x"), large, regular("last", "x"))
	if out := good(t, t.TempDir(), "unzip", "-p", path, "last"); out != "x" {
		t.Errorf("unzip: got %q", out)
	}
	for _, argv := range [][]string{{"zipinfo", "-l", path}, {"bsdtar", "-tvf", path},
		{"/usr/bin/python3", "-m", "zipfile", "-l", path}} {
		if out := good(t, t.TempDir(), argv...); !strings.Contains(out, "4294967301") || !strings.Contains(out, "last") {
			t.Errorf("%s: got %s", argv[0], out)
		}
	}
	// Who reads a stream believes the headers in front.
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	c := exec.CommandContext(t.Context(), "bsdtar", "-xOf", "-", "last")
	c.Stdin = in
	if out, err := c.CombinedOutput(); err != nil || string(out) != "x" {
		t.Errorf("bsdtar from a pipe: got %q, %v", out, err)
	}
}

func TestZipsBehind4GiBOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "far.zip")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := archive.NewZipAt(out, 5*gib)
	if _, err := out.Seek(5*gib, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	for _, x := range []file{regular("first", "hello"), regular("last", "world")} {
		if err := w.Add(t.Context(), &x.Entry, x.c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"unzip", "-p", path}, {"bsdtar", "-xOf", path},
		{"/usr/bin/python3", "-c", "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nfor n in z.namelist(): print(z.read(n).decode(), end='')", path}} {
		if out := good(t, t.TempDir(), argv...); out != "helloworld" {
			t.Errorf("%s: got %q", argv[0], out)
		}
	}
}

func TestTarsOfMoreThan8GiBOpen(t *testing.T) {
	requires.Tool(t, "tar")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "tar", "-tvf", "-")
	var got bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = r, &got, &got
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	b := bufio.NewWriterSize(w, 1<<20)
	a, err := archive.New(b, archive.Tar)
	if err != nil {
		t.Fatal(err)
	}
	// All of it may be other than zeroes, and is not.
	large := file{archive.Entry{Name: "large", Size: 8*gib + 5, Mode: 0o600}, zeroes(8*gib + 5)}
	for _, x := range []file{large, regular("last", "x")} {
		if err := a.Add(t.Context(), &x.Entry, x.c); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := c.Wait(); err != nil || !strings.Contains(got.String(), "8589934597") || !strings.Contains(got.String(), "last") {
		t.Errorf("tar: got %s (%v)", got.String(), err)
	}
}

// zeroes are stored, and no hole.
type zeroes int64

func (z zeroes) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }
func (z zeroes) Data(_ context.Context, off int64) (from, to int64, err error) {
	return off, int64(z), nil
}

func TestHolesTakeNoRoom(t *testing.T) {
	const size = 2 << 40
	huge := file{archive.Entry{Name: "huge", Size: size, Mode: 0o600}, &content{size, map[int64]string{1: "begin", 1 << 40: "middle", size - 3: "end"}, 0}}
	hole := file{archive.Entry{Name: "only a hole", Size: 100 << 20, Mode: 0o600}, &content{100 << 20, nil, 0}}
	odd := file{archive.Entry{Name: "odd-\xff", Size: 1<<20 + 7, Mode: 0o600}, &content{1<<20 + 7, map[int64]string{5000: "x"}, 0}}
	path := write(t, archive.Tar, huge, hole, odd)
	if st, err := os.Stat(path); err != nil || st.Size() > 64<<10 {
		t.Errorf("archive: got %d bytes (%v), want less than 64 KiB", st.Size(), err)
	}
	for _, x := range extractors {
		if x.format != archive.Tar {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			in := t.TempDir()
			good(t, in, append(x.argv, path)...)
			for _, f := range []file{huge, hole, odd} {
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(in, f.Name), &st); err != nil || st.Size != f.Size || st.Blocks > 100 {
					t.Errorf("%s: got %d bytes, %d blocks (%v), want %d", f.Name, st.Size, st.Blocks, err, f.Size)
				}
				got, err := os.Open(filepath.Join(in, f.Name))
				if err != nil {
					t.Fatal(err)
				}
				for at, want := range f.c.(*content).parts {
					b := make([]byte, len(want))
					if _, err := got.ReadAt(b, at); err != nil || string(b) != want {
						t.Errorf("%s at %d: got %q (%v), want %q", f.Name, at, b, err, want)
					}
				}
				got.Close()
			}
		})
	}
}

// combed has data in every other unit.
type combed int64

func (c combed) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }
func (c combed) Data(_ context.Context, off int64) (from, to int64, err error) {
	const unit = 8 << 10
	from = max(off, off/unit*unit+unit/2)
	if from >= int64(c) {
		return int64(c), int64(c), nil
	}
	return from, min(from/unit*unit+unit, int64(c)), nil
}

func TestAFileOfManyHolesHasFewerInTheArchive(t *testing.T) {
	out := &counter{}
	w, err := archive.New(out, archive.Tar)
	if err != nil {
		t.Fatal(err)
	}
	const size = 2 * gib // 262144 runs
	if err := w.Add(t.Context(), &archive.Entry{Name: "combed", Size: size}, combed(size)); err != nil {
		t.Fatal(err)
	}
	if out.largest > 2<<20 {
		t.Errorf("map of the holes: got %d bytes in memory", out.largest)
	}
}

func TestManyFilesTakeLittleMemory(t *testing.T) {
	for _, f := range []archive.Format{archive.Tar, archive.Zip} {
		w, err := archive.New(io.Discard, f)
		if err != nil {
			t.Fatal(err)
		}
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		c := text("content")
		for d := range 200 {
			top := dir(fmt.Sprintf("dir-%04d with a name of some length", d))
			if err := w.Add(t.Context(), &top.Entry, nil); err != nil {
				t.Fatal(err)
			}
			for i := range 1000 {
				name := fmt.Sprintf("%s/%04d with a name that is as long as that of a directory", top.Name, i)
				e := archive.Entry{Name: name, Size: 7, Mode: 0o644, Modified: time.Unix(int64(d*i), int64(i))}
				if err := w.Add(t.Context(), &e, c); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := int64(heap() - before); got > 16<<20 {
			t.Errorf("%s of 200,000 files: got %d MiB of memory", f, got>>20)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

// counter counts.
type counter struct {
	n       int64
	largest int
}

func (c *counter) Write(p []byte) (int, error) {
	c.n, c.largest = c.n+int64(len(p)), max(c.largest, len(p))
	return len(p), nil
}
