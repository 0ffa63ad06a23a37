package fusemount_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/requires"
	"golang.org/x/sys/unix"
)

// tempFile returns a file with random content.
func tempFile(t testing.TB, rnd *rand.Rand, n int) (*os.File, []byte) {
	t.Helper()
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32() >> 24)
	}
	path := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, b
}

// newFiled returns a device of runs in three files, between zeroes, and its
// content. Runs begin and end at multiples of grain.
func newFiled(t testing.TB, seed uint64, size, grain int64) (*blocktest.Filed, []byte) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 8))
	var files []*os.File
	var contents [][]byte
	for range 3 {
		f, b := tempFile(t, rnd, 4<<20)
		files, contents = append(files, f), append(contents, b)
	}
	d := new(blocktest.Filed)
	var content []byte
	for i := 0; d.Size() < size; i++ {
		n := (1 + rnd.Int64N(900<<10)/grain) * grain
		l := block.Location{Len: n, Kind: block.InNothing}
		b := make([]byte, n)
		if i%4 != 3 {
			k, off := rnd.IntN(3), rnd.Int64N((4<<20-n)/grain)*grain
			l.Kind, l.File, l.Off = block.InFile, files[k], off
			copy(b, contents[k][off:])
			if i%16 == 5 {
				l.Kind = block.Opaque
			}
		}
		d.Locations = append(d.Locations, l)
		content = append(content, b...)
	}
	return d, content
}

// bare has nothing but the core of a device.
type bare struct{ inner block.Device }

func (b bare) Size() int64 { return b.inner.Size() }
func (b bare) ReadAt(ctx context.Context, p []byte, off int64) error {
	return b.inner.ReadAt(ctx, p, off)
}

func TestReadsGiveWhatTheContentHolds(t *testing.T) {
	pages, pagesBytes := newFiled(t, 1, 12<<20, 4096)
	odd, oddBytes := newFiled(t, 2, 12<<20, 1)
	sectors, sectorBytes := newFiled(t, 3, 12<<20, 512)
	root := newFolder()
	contents := map[string][]byte{}
	for name, c := range map[string]struct {
		dev   block.Device
		bytes []byte
	}{
		"runs of pages":   {pages, pagesBytes},
		"runs of sectors": {sectors, sectorBytes},
		"runs of bytes":   {odd, oddBytes},
		"copied":          {bare{pages}, pagesBytes},
		"one byte":        {blocktest.NewMemory(1), []byte{0}},
	} {
		root.add(name, newDocument(c.dev))
		contents[name] = c.bytes
	}
	m := show(t, root, fusemount.Options{})
	for name, want := range contents {
		t.Run(name, func(t *testing.T) {
			got, err := os.ReadFile(m.dir + "/" + name)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("read from end to end: %d bytes, %v; want %d bytes as they are", len(got), err, len(want))
			}
			raw := filepath.Join(t.TempDir(), "raw")
			if err := os.WriteFile(raw, want, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := role(t, "compare", m.dir+"/"+name, raw, "400").CombinedOutput(); err != nil {
				t.Errorf("random reads: %v\n%s", err, out)
			}
		})
	}
}

func TestConcurrentReaders(t *testing.T) {
	d, want := newFiled(t, 5, 8<<20, 4096)
	root := newFolder()
	doc := newDocument(d)
	root.add("disk", doc)
	m := show(t, root, fusemount.Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f, err := os.Open(m.dir + "/disk")
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			buf := make([]byte, 1<<20)
			for range 60 {
				off := rnd.Int64N(int64(len(want)))
				n, err := f.ReadAt(buf[:1+rnd.IntN(len(buf)-1)], off)
				if err != nil && err != io.EOF || !bytes.Equal(buf[:n], want[off:off+int64(n)]) {
					t.Errorf("%d bytes at %d: %v, or other bytes", n, off, err)
				}
				if rnd.IntN(10) == 0 { // or the kernel would know all
					_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				}
			}
		}()
	}
	wg.Wait()
	if n := doc.opened.Load(); n != 1 {
		t.Errorf("opened %d times for eight readers at a time, want once", n)
	}
}

func TestContentIsOpenedWhenTheFileIsAndClosedAWhileLater(t *testing.T) {
	root := newFolder()
	doc, quick := newDocument(blocktest.NewMemory(1<<20)), newDocument(blocktest.NewMemory(1<<20))
	root.add("disk", doc)
	m := show(t, root, fusemount.Options{Linger: time.Hour})
	lstat(t, m.dir+"/disk")
	if n := doc.opened.Load(); n != 0 {
		t.Fatalf("opened %d times before anybody did, want 0", n)
	}
	for range 3 { // each closes before the next opens
		if _, err := os.ReadFile(m.dir + "/disk"); err != nil {
			t.Fatal(err)
		}
	}
	if o, c := doc.opened.Load(), doc.closed.Load(); o != 1 || c != 0 {
		t.Errorf("within the while: opened %d and closed %d times, want 1 and 0", o, c)
	}
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	m.gone(t)
	if c := doc.closed.Load(); c != 1 {
		t.Errorf("closed %d times when the mount was gone, want 1", c)
	}

	root.add("quick", quick)
	m = show(t, root, fusemount.Options{Linger: -1})
	for i := range int32(3) {
		f, err := os.Open(m.dir + "/quick")
		if err != nil {
			t.Fatal(err)
		}
		if o, c := quick.opened.Load(), quick.closed.Load(); o != i+1 || c != i {
			t.Errorf("open: opened %d and closed %d times, want %d and %d", o, c, i+1, i)
		}
		f.Close()
		requires.Until(t, "the content is closed", func() bool { return quick.closed.Load() == i+1 })
	}

	quick.opened.Store(0)
	quick.closed.Store(0)
	m = show(t, root, fusemount.Options{Linger: time.Millisecond})
	if _, err := os.ReadFile(m.dir + "/quick"); err != nil {
		t.Fatal(err)
	}
	requires.Until(t, "the content is closed", func() bool { return quick.closed.Load() == quick.opened.Load() })
	if _, err := os.ReadFile(m.dir + "/quick"); err != nil {
		t.Fatal(err)
	}
}

// failing is a device that cannot be read, or panics.
type failing struct {
	bare
	err error
}

func (d failing) ReadAt(context.Context, []byte, int64) error {
	if d.err == nil {
		panic("a mistake")
	}
	return d.err
}

func TestErrorsAreTold(t *testing.T) {
	corrupt := errors.New("cluster 17 of base.qcow2 has a wrong checksum")
	for _, c := range []struct {
		name   string
		err    error
		want   error
		logged bool
	}{
		{"damage", corrupt, unix.EIO, true},
		{"a part that does not exist", fmt.Errorf("read: %w", fs.ErrNotExist), unix.EIO, true},
		{"no permission", fs.ErrPermission, unix.EACCES, true},
		{"behind the end", block.ErrOutOfRange, unix.EIO, true},
		{"a full disk", &fs.PathError{Op: "read", Path: "x", Err: unix.ENOSPC}, unix.ENOSPC, true},
		{"an error that means another thing to the kernel", unix.ENOSYS, unix.EIO, true},
		{"and another", unix.ENOTCONN, unix.EIO, true},
		{"a panic", nil, unix.EIO, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := failing{bare{blocktest.NewMemory(1 << 20)}, c.err}
			root := newFolder()
			root.add("disk", newDocument(dev))
			var j journal
			m := show(t, root, fusemount.Options{Log: j.log()})
			f, err := os.Open(m.dir + "/disk")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range 3 {
				if _, err := f.ReadAt(make([]byte, 512), 0); !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			}
			if c.err == nil {
				c.err = errors.New("a mistake")
			} else if n := strings.Count(j.String(), "level="); n != 1 {
				t.Errorf("logged %d times, want once", n)
			}
			if said := j.String(); !strings.Contains(said, c.err.Error()) {
				t.Errorf("the log lacks the error: %s", said)
			}
		})
	}
	t.Run("opening", func(t *testing.T) {
		for err, want := range map[error]error{corrupt: unix.EIO, fs.ErrNotExist: unix.ENOENT, fs.ErrPermission: unix.EACCES, unix.EMFILE: unix.EMFILE} {
			root := newFolder()
			doc := newDocument(blocktest.NewMemory(10))
			doc.err = err
			root.add("disk", doc)
			m := show(t, root, fusemount.Options{})
			if _, got := os.Open(m.dir + "/disk"); !errors.Is(got, want) {
				t.Errorf("%v: got %v, want %v", err, got, want)
			}
		}
	})
	t.Run("a size that is not that of the content", func(t *testing.T) {
		root := newFolder()
		doc := newDocument(blocktest.NewMemory(4096))
		doc.attr.Size = 8192
		root.add("disk", doc)
		m := show(t, root, fusemount.Options{})
		if _, got := os.Open(m.dir + "/disk"); !errors.Is(got, unix.EIO) || doc.closed.Load() != 1 {
			t.Errorf("got %v, closed %d times, want EIO, once", got, doc.closed.Load())
		}
	})
}

func TestAFileThatLostItsEndGivesAnErrorAndNoZeroes(t *testing.T) {
	f, b := tempFile(t, rand.New(rand.NewPCG(1, 1)), 4<<20)
	root := newFolder()
	root.add("disk", newDocument(&blocktest.Filed{Locations: []block.Location{{Len: int64(len(b)), Kind: block.InFile, File: f}}}))
	m := show(t, root, fusemount.Options{})
	if err := f.Truncate(2<<20 + 100); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(m.dir + "/disk")
	if !errors.Is(err, unix.EIO) || !bytes.Equal(got, b[:len(got)]) || len(got) > 2<<20+100 {
		t.Errorf("got %d bytes, %v, want EIO where the file ends", len(got), err)
	}
	f.Close()
	if got, err := os.ReadFile(m.dir + "/disk"); !errors.Is(err, unix.EIO) || !bytes.Equal(got, b[:len(got)]) {
		t.Errorf("from a closed file: got %d bytes, %v, want EIO", len(got), err)
	}
}

func TestHolesAreFound(t *testing.T) {
	d, _ := newFiled(t, 9, 8<<20, 4096)
	root := newFolder()
	root.add("disk", newDocument(d))
	root.add("bare", newDocument(bare{blocktest.NewMemory(100)}))
	m := show(t, root, fusemount.Options{})
	fd, err := unix.Open(m.dir+"/disk", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	seek := func(fd int, off int64, whence int, want int64, wantErr error) {
		t.Helper()
		if got, err := unix.Seek(fd, off, whence); !errors.Is(err, wantErr) || err == nil && got != want {
			t.Errorf("seek %d from %d: got %d, %v, want %d, %v", whence, off, got, err, want, wantErr)
		}
	}
	at := int64(0)
	for i := 0; i < len(d.Locations); i++ {
		end, kind := at+d.Locations[i].Len, d.Locations[i].Kind
		for i+1 < len(d.Locations) && (d.Locations[i+1].Kind == block.InNothing) == (kind == block.InNothing) {
			i++
			end += d.Locations[i].Len
		}
		other, same, miss := unix.SEEK_HOLE, unix.SEEK_DATA, error(nil)
		if kind == block.InNothing {
			other, same = same, other
			if end == d.Size() {
				miss = unix.ENXIO
			}
		}
		seek(fd, at, same, at, nil)
		seek(fd, at+1, same, at+1, nil)
		seek(fd, at, other, end, miss)
		seek(fd, end-1, other, end, miss)
		at = end
	}
	for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
		seek(fd, d.Size(), whence, 0, unix.ENXIO)
		seek(fd, d.Size()+1, whence, 0, unix.ENXIO)
	}
	plain, err := unix.Open(m.dir+"/bare", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(plain)
	seek(plain, 50, unix.SEEK_HOLE, 100, nil)
	seek(plain, 50, unix.SEEK_DATA, 50, nil)
}

// slow is a device whose reads wait until they are let go, or their reader is gone.
func slow() (dev *blocktest.Faulty, waits chan context.Context, letGo chan struct{}) {
	waits, letGo = make(chan context.Context, 100), make(chan struct{})
	return blocktest.NewFaulty(blocktest.NewMemory(1<<20), func(ctx context.Context, op string, _, _ int64) error {
		if op != "read" {
			return nil
		}
		waits <- ctx
		select {
		case <-letGo:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}), waits, letGo
}

func TestAKilledReaderIsNotWaitedFor(t *testing.T) {
	dev, waits, _ := slow()
	root := newFolder()
	root.add("disk", newDocument(dev))
	m := show(t, root, fusemount.Options{})
	cmd := role(t, "read", m.dir+"/disk")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-waits
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // was killed; the test is that it returns
}

func TestASignalDoesNotMakeAReadFail(t *testing.T) {
	dev, waits, letGo := slow()
	root := newFolder()
	root.add("disk", newDocument(dev))
	m := show(t, root, fusemount.Options{})
	cmd := role(t, "read", m.dir+"/disk")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx := <-waits
	for range 20 { // it handles them
		if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	if err := ctx.Err(); err != nil {
		t.Errorf("right after a signal: got %v, want nil", err)
	}
	close(letGo)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the reader: %v", err)
	}
}
