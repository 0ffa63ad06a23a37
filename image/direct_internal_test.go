package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/requires"
)

// newDirect returns an empty file in dir whose large writes are direct.
func newDirect(t *testing.T, dir string) *directFile {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	d, ok := openDirect(diskFile{f}).(*directFile)
	if !ok {
		f.Close()
		requires.Missing(t, "direct I/O in "+dir)
	}
	return d
}

func mustWrite(t *testing.T, f *directFile, p []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write %d bytes at %d: got %d, %v", len(p), off, n, err)
	}
}

// cachedPages counts the pages of a file that are in page cache.
func cachedPages(t *testing.T, f *os.File, off, n int64) uint64 {
	t.Helper()
	var cs unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &cs, 0)
	if err != nil {
		requires.Missing(t, fmt.Sprintf("cachestat(2) (%v)", err))
	}
	return cs.Cache
}

func TestLargeWritesGoPastThePageCache(t *testing.T) {
	f := newDirect(t, t.TempDir())
	defer f.Close()
	p := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // a MiB, and as the runtime places it on a page
	small := p[:directMin/2]
	mustWrite(t, f, p, 0)
	mustWrite(t, f, small, 4<<20)
	mustWrite(t, f, p[:directMin+1], 8<<20)  // odd length
	mustWrite(t, f, p[1:], 16<<20)           // odd memory
	mustWrite(t, f, p[:directMin], 32<<20+8) // odd offset
	if n := cachedPages(t, f.File, 0, 1<<20); n != 0 {
		t.Errorf("pages of a large write in page cache: got %d, want 0", n)
	}
	for _, at := range []int64{4 << 20, 8 << 20, 16 << 20, 32<<20 + 8} {
		if n := cachedPages(t, f.File, at, directMin/2); n == 0 {
			t.Errorf("pages at %d in page cache: got none", at)
		}
	}
	got := make([]byte, len(p))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("read: got other bytes than written (%v)", err)
	}
}

func TestReservedSpaceIsGivenBack(t *testing.T) {
	f := newDirect(t, t.TempDir())
	p := make([]byte, 1<<20)
	for i := range int64(3) {
		mustWrite(t, f, p, i<<20)
	}
	mustWrite(t, f, []byte("end"), 3<<20)
	const want = 3<<20 + 3
	if st, err := f.Stat(); err != nil || st.Size() <= want {
		t.Fatalf("length with a reservation: got %d, %v, want more than %d", st.Size(), err, want)
	}
	if n, err := f.Size(); n != want || err != nil {
		t.Errorf("size: got %d, %v, want %d", n, err, want)
	}
	if err := f.Truncate(want + 4096); err != nil { // within what is reserved
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != want+4096 {
		t.Errorf("length after close: got %d, want %d", st.Size(), want+4096)
	}
	if held := st.Sys().(*syscall.Stat_t).Blocks * 512; held > want+128<<10 {
		t.Errorf("space held after close: got %d bytes", held)
	}
}

func TestTruncateBelowWhatIsReserved(t *testing.T) {
	f := newDirect(t, t.TempDir())
	p := bytes.Repeat([]byte{7}, 1<<20)
	mustWrite(t, f, p, 0)
	for _, size := range []int64{100, 1 << 20} {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 1<<20)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got[:100], p[:100]) || !isZero(got[100:]) {
		t.Errorf("read of a file cut and extended: got other bytes than zeroes behind the cut (%v)", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReservationLeavesTheLastBytesOfAFileSystemUsable(t *testing.T) {
	requires.Root(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=5m"); err != nil {
		requires.Missing(t, fmt.Sprintf("mounts (%v)", err))
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	f := newDirect(t, dir)
	p := make([]byte, 1<<20)
	for i := range int64(5) {
		mustWrite(t, f, p, i<<20)
	}
	if _, err := f.WriteAt(p, 5<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write beyond the file system: got %v, want ENOSPC", err)
	}
	if n, _ := f.Size(); n != 5<<20 {
		t.Errorf("size: got %d, want %d", n, 5<<20)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
