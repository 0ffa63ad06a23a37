package image

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directFile is a diskFile whose large writes go to the disk past the page cache.
// Nobody reads a backup right after it was written: keeping it in memory costs
// more processor time than everything else that is done to it, and drives out
// what others need. Space is reserved ahead of such writes, so that they need not
// wait for each other to extend the file; the reservation is given back at Close.
//
// Where the file system has no direct I/O or no reservation it does without.
type directFile struct {
	diskFile
	direct *os.File
	broken atomic.Bool // direct I/O was refused

	mu       sync.Mutex // guards the fields below
	end      int64      // length of the file without what is reserved
	reserved int64      // length of the file
}

const (
	// directAlign is what memory, offset and length of a direct write are a
	// multiple of: enough for every disk with sectors of up to a page.
	directAlign = 4096
	// directMin is from how many bytes on a write goes past the page cache. Less
	// is better gathered there.
	directMin = 128 << 10
	// The reservation is as much as the file has already, within these bounds.
	minReserve, maxReserve = 1 << 20, 64 << 20
)

// openDirect opens the file behind f once more, for direct I/O. It returns f
// where there is no such thing.
func openDirect(f diskFile) storage {
	size, err := f.Size()
	if err != nil {
		return f
	}
	d, err := os.OpenFile(f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return f
	}
	if same, err := sameFile(f.File, d); err != nil || !same {
		d.Close()
		return f
	}
	return &directFile{diskFile: f, direct: d, end: size, reserved: size}
}

func sameFile(a, b *os.File) (bool, error) {
	x, xErr := a.Stat()
	y, yErr := b.Stat()
	if err := errors.Join(xErr, yErr); err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}

func (f *directFile) WriteAt(p []byte, off int64) (int, error) {
	n := int64(len(p))
	if n >= directMin && aligned(p, off) && !f.broken.Load() {
		f.reserve(off + n)
		written, err := f.direct.WriteAt(p, off)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			f.extend(off + int64(written))
			return written, err
		}
		f.broken.Store(true)
	}
	written, err := f.diskFile.WriteAt(p, off)
	f.extend(off + int64(written))
	return written, err
}

func aligned(p []byte, off int64) bool {
	return (uintptr(unsafe.Pointer(&p[0]))|uintptr(len(p))|uintptr(off))%directAlign == 0
}

// reserve has the file reach beyond end. It is an attempt: without room for what
// is reserved there may still be enough for what is written.
func (f *directFile) reserve(end int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if end <= f.reserved {
		return
	}
	to := end + min(max(f.reserved, minReserve), maxReserve)
	if unix.Fallocate(int(f.Fd()), 0, f.reserved, to-f.reserved) == nil {
		f.reserved = to
	}
}

func (f *directFile) extend(end int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end = max(f.end, end)
	f.reserved = max(f.reserved, end)
}

// Size returns the length of the file without what is reserved.
func (f *directFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.end, nil
}

// Truncate sets the length of the file. What is reserved reads as zeroes.
func (f *directFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if size < f.end || size > f.reserved {
		if err := f.diskFile.Truncate(size); err != nil {
			return err
		}
		f.reserved = size
	}
	f.end = size
	return nil
}

// Close gives back what is reserved and closes the file.
func (f *directFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.reserved > f.end {
		err = f.diskFile.Truncate(f.end)
	}
	return errors.Join(err, f.direct.Close(), f.diskFile.Close())
}
