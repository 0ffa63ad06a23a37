package ntfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// text makes n bytes that compress, more or less.
func text(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	var b bytes.Buffer
	for b.Len() < n {
		switch rng.IntN(40) {
		case 0:
			b.Write(make([]byte, rng.IntN(20000)))
		case 1:
			for range rng.IntN(9000) {
				b.WriteByte(byte(rng.Uint32()))
			}
		case 2:
			b.WriteString(strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(70000)))
		default:
			fmt.Fprintf(&b, "line %d is like line %d, but not the same\n", rng.IntN(1<<20), rng.IntN(1000))
		}
	}
	return b.Bytes()[:n]
}

// compressing makes a folder whose files are compressed.
func compressing(t testing.TB, dir string) string {
	t.Helper()
	dir = filepath.Join(dir, "compressed")
	must(t, os.Mkdir(dir, 0o755))
	must(t, unix.Setxattr(dir, "system.ntfs_attrib_be", []byte{0, 0, 0x08, 0x10}, 0))
	return dir
}

func TestCompressedFilesAgreeWithMount(t *testing.T) {
	for _, cluster := range []int{512, 1024, 2048, 4096} {
		t.Run(fmt.Sprintf("clusters of %d bytes", cluster), func(t *testing.T) {
			image := made(t, 128<<20, fmt.Sprintf("-c %d", cluster), "compression", func(dir string) {
				dir = compressing(t, dir)
				for i, n := range []int{0, 1, 100, 2000, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, 3<<20 + 77} {
					must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), text(uint64(i), n), 0o644))
				}
				must(t, os.WriteFile(filepath.Join(dir, "zeroes"), make([]byte, 1<<20), 0o644))
				changed(t, filepath.Join(dir, "changed"))
			})
			agrees(t, image, "compression")
			kinds(t, image)
		})
	}
}

// changed makes a file that was written in pieces, and in places twice.
func changed(t testing.TB, name string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	for i, at := range []int64{0, 3 << 20, 1 << 20, 1<<20 + 100000, 10 << 20, 3<<20 + 1000} {
		_, err := f.WriteAt(text(uint64(i), 150000), at)
		must(t, err)
		must(t, f.Sync())
	}
	must(t, f.Truncate(20<<20))
	must(t, f.Close())
}

// kinds sees that an image has files of all kinds of extents.
func kinds(t *testing.T, image string) {
	t.Helper()
	f, _ := opened(t, image)
	dir, err := f.Lookup(f.Root(), "compressed")
	must(t, err)
	id, err := f.Lookup(dir, "changed")
	must(t, err)
	list, err := f.Extents(id, 0, 1<<40)
	must(t, err)
	for _, kind := range []fsys.Kind{fsys.Hole, fsys.Data, fsys.Opaque} {
		if !slices.ContainsFunc(list, func(e fsys.Extent) bool { return e.Kind == kind }) {
			t.Errorf("extents: got %v, want one of kind %d among them", list, kind)
		}
	}
	if a, err := f.Stat(id); err != nil || !slices.Contains(a.Flags, "compressed") {
		t.Errorf("flags: got %q, %v, want compressed", a.Flags, err)
	}
}

// blobs are files in a WIM file: by size, where they are and how long.
var blobs = regexp.MustCompile(`(?s)Uncompressed size = (\d+) bytes\nCompressed size   = (\d+) bytes\nOffset in WIM     = (\d+) bytes`)

// packed has wimlib compress a file as WOF does, which keeps files as WIM does.
func packed(t testing.TB, content []byte, method, chunk string) []byte {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "in"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "in", "file"), content, 0o644))
	wim := filepath.Join(dir, "wim")
	fstest.Run(t, "wimcapture", filepath.Join(dir, "in"), wim, "--compress="+method, "--chunk-size="+chunk)
	b, err := os.ReadFile(wim)
	must(t, err)
	for _, m := range blobs.FindAllStringSubmatch(fstest.Run(t, "wiminfo", "--blobs", wim), -1) {
		n, _ := strconv.Atoi(m[2])
		at, _ := strconv.Atoi(m[3])
		if m[1] == fmt.Sprint(len(content)) {
			return b[at : at+n]
		}
	}
	t.Fatal("the file is not in the WIM file")
	return nil
}

// wofPoint returns the reparse point of a file that WOF compressed.
func wofPoint(provider, algorithm byte) []byte {
	return []byte{0x17, 0, 0, 0x80, 16, 0, 0, 0, 1, 0, 0, 0, provider, 0, 0, 0, 1, 0, 0, 0, algorithm, 0, 0, 0}
}

func TestFilesThatWOFCompressedAreRead(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	contents := map[string][]byte{
		"text": text(1, 300000), "program": program[:2<<20], "small": text(2, 5000), "chunk": text(3, 32768), "zeroes": make([]byte, 100000),
		"mixed": slices.Concat(text(4, 40000), program[500000:600001], make([]byte, 70000), text(5, 1)),
	}
	methods := []struct {
		name, chunk string
	}{{"xpress", "4K"}, {"lzx", "32K"}, {"xpress", "8K"}, {"xpress", "16K"}}
	image := made(t, 128<<20, "", "streams_interface=windows", func(dir string) {
		for algorithm, m := range methods {
			for name, content := range contents {
				at := filepath.Join(dir, fmt.Sprintf("%s-%s-%s", m.name, m.chunk, name))
				must(t, os.WriteFile(at, nil, 0o644))
				must(t, os.Truncate(at, int64(len(content))))
				must(t, os.WriteFile(at+":WofCompressedData", packed(t, content, m.name, m.chunk), 0o644))
				must(t, unix.Setxattr(at, "system.ntfs_reparse_data", wofPoint(2, byte(algorithm)), 0))
			}
		}
		for name, point := range map[string][]byte{"wim": wofPoint(1, 0), "unknown": wofPoint(2, 4)} {
			at := filepath.Join(dir, name)
			must(t, os.WriteFile(at, []byte("not this"), 0o644))
			must(t, unix.Setxattr(at, "system.ntfs_reparse_data", point, 0))
		}
	})
	f, _ := opened(t, image)
	for _, m := range methods {
		for name, content := range contents {
			reads(t, f, fmt.Sprintf("%s-%s-%s", m.name, m.chunk, name), content)
		}
	}
	for _, name := range []string{"wim", "unknown"} {
		refuses(t, f, name, "WOF")
	}
}

// reads compares a file of the root directory, as a whole and in pieces.
func reads(t *testing.T, f fsys.FileSystem, name string, want []byte) {
	t.Helper()
	id, err := f.Lookup(f.Root(), name)
	must(t, err)
	a, err := f.Stat(id)
	if err != nil || a.Size != int64(len(want)) || !a.Mode.IsRegular() {
		t.Errorf("%s: got %+v, %v, want a file of %d bytes", name, a, err, len(want))
	}
	got := make([]byte, len(want)+1)
	if n, err := f.ReadAt(id, got, 0); !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("content of %s: got %d bytes, %v, or others", name, n, err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		off := rng.IntN(len(want))
		p := got[:1+rng.IntN(len(want)-off)]
		if n, err := f.ReadAt(id, p, int64(off)); err != nil || n != len(p) || !bytes.Equal(p, want[off:off+n]) {
			t.Errorf("%s, %d bytes at %d: got %d, %v, or others", name, len(p), off, n, err)
		}
	}
	if list, err := f.Xattrs(id); err != nil || len(list) != 2 {
		t.Errorf("extended attributes of %s: got %d, %v, want the attributes and the reparse point", name, len(list), err)
	}
}

// refuses sees that the content of a file of the root directory is not read, and
// that the reason names what it is.
func refuses(t *testing.T, f fsys.FileSystem, name, reason string) {
	t.Helper()
	id, err := f.Lookup(f.Root(), name)
	must(t, err)
	a, err := f.Stat(id)
	must(t, err)
	if _, err := f.ReadAt(id, make([]byte, 1), 0); !errors.Is(err, fsys.ErrUnsupported) || !strings.Contains(err.Error(), reason) {
		t.Errorf("read %s: got %v, want fsys.ErrUnsupported, because of %s", name, err, reason)
	}
	list, err := f.Extents(id, 0, a.Size)
	if err != nil || len(list) != 1 || list[0].Kind != fsys.Opaque || list[0].Len != a.Size {
		t.Errorf("extents of %s: got %v, %v, want one that is opaque", name, list, err)
	}
}
