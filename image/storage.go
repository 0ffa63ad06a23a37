package image

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// storage is the file behind a Writer: bytes that are volatile until Sync.
type storage interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes every write and truncation that returned before it durable.
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

// diskFile is storage in a file of the operating system.
type diskFile struct {
	*os.File
}

func (f diskFile) Sync() error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (f diskFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// onDisk returns the file that a storage is, or nil.
func onDisk(s storage) *os.File {
	switch f := s.(type) {
	case diskFile:
		return f.File
	case *directFile:
		return f.File
	}
	return nil
}

// startWriteback asks the kernel to begin writing out a range, so that a later
// Sync has less to wait for. It is advice: errors show up in Sync.
func startWriteback(s storage, off, n int64) {
	if f := onDisk(s); f != nil {
		_ = syscall.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// readPadded fills p with the bytes at off; those beyond the end of r are zero.
func readPadded(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) || err == io.EOF {
		clear(p[n:])
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// writeAll writes p at off.
func writeAll(w io.WriterAt, p []byte, off int64) error {
	if _, err := w.WriteAt(p, off); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// copyRange copies n bytes from one file to another, inside the kernel where
// both are files and it can, through buf otherwise.
func copyRange(dst storage, dstOff int64, src storage, srcOff, n int64, buf []byte) error {
	d, s := onDisk(dst), onDisk(src)
	for d != nil && s != nil && n > 0 {
		from, to := srcOff, dstOff
		c, err := unix.CopyFileRange(int(s.Fd()), &from, int(d.Fd()), &to, int(min(n, 1<<30)), 0)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO {
			return fmt.Errorf("copy %d bytes to %d: %w", n, dstOff, err)
		}
		if err != nil || c <= 0 {
			break // not between these file systems, or at the end of src
		}
		srcOff, dstOff, n = srcOff+int64(c), dstOff+int64(c), n-int64(c)
		if f, ok := dst.(*directFile); ok {
			f.extend(dstOff)
		}
	}
	for n > 0 {
		l := min(n, int64(len(buf)))
		if err := readPadded(src, buf[:l], srcOff); err != nil {
			return err
		}
		if err := writeAll(dst, buf[:l], dstOff); err != nil {
			return err
		}
		srcOff, dstOff, n = srcOff+l, dstOff+l, n-l
	}
	return nil
}
