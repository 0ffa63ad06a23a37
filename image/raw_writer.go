package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/sendense/sendense/block"
	"golang.org/x/sys/unix"
)

// RawWriter is a raw image open for writing: a file, or a block device, whose
// bytes are those of the disk. It is a [block.Device] with every capability but
// [block.Changer]. Its size is the one it was opened with.
type RawWriter struct {
	r *rawFile
}

var (
	_ block.Mapper  = (*RawWriter)(nil)
	_ block.Writer  = (*RawWriter)(nil)
	_ block.Zeroer  = (*RawWriter)(nil)
	_ block.Trimmer = (*RawWriter)(nil)
	_ block.Flusher = (*RawWriter)(nil)
	_ block.Locator = (*RawWriter)(nil)
)

// OpenRawWriter opens the raw image at path for writing.
func OpenRawWriter(path string) (*RawWriter, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	r, err := newRaw(path, f)
	if err == nil && r.size == 0 { // as the length of a block device is given
		r.size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open raw image %s: %w", path, err), f.Close())
	}
	return &RawWriter{r}, nil
}

// Size implements [block.Device].
func (w *RawWriter) Size() int64 { return w.r.size }

// Path returns the name under which the file was opened.
func (w *RawWriter) Path() string { return w.r.path }

// check returns why a request cannot be begun, or nil.
func (w *RawWriter) check(ctx context.Context, off, n int64) error {
	if err := block.CheckRange(w.r.size, off, n); err != nil {
		return err
	}
	return ctx.Err()
}

// ReadAt implements [block.Device].
func (w *RawWriter) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := w.check(ctx, off, int64(len(p))); err != nil {
		return err
	}
	n, err := w.r.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("raw image %s became shorter: %w", w.r.path, io.ErrUnexpectedEOF)
	}
	return err
}

// WriteAt implements [block.Writer].
func (w *RawWriter) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := w.check(ctx, off, int64(len(p))); err != nil {
		return err
	}
	_, err := w.r.f.WriteAt(p, off)
	return err
}

// WriteZeroes implements [block.Zeroer]. Zeroes are written out where the file
// system cannot set a range to zero.
func (w *RawWriter) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	if err := w.check(ctx, off, n); err != nil || n == 0 {
		return err
	}
	modes := []uint32{unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_PUNCH_HOLE}
	if flags&block.MayTrim != 0 {
		modes = []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}
	}
	for _, mode := range modes {
		// A hole gives up space that without MayTrim should be kept, but zeroes
		// need none until they are written over.
		if err := w.fallocate(mode, off, n); !cannotFallocate(err) {
			return err
		}
	}
	if flags&block.FastOnly != 0 {
		return block.ErrNotFast
	}
	zeroes := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; off += int64(len(zeroes)) {
		zeroes = zeroes[:min(end-off, int64(len(zeroes)))]
		if err := w.WriteAt(ctx, zeroes, off); err != nil {
			return err
		}
	}
	return nil
}

// Trim implements [block.Trimmer]: the range becomes a hole where it can.
func (w *RawWriter) Trim(ctx context.Context, off, n int64) error {
	if err := w.check(ctx, off, n); err != nil || n == 0 {
		return err
	}
	if err := w.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n); !cannotFallocate(err) {
		return err
	}
	return nil
}

func (w *RawWriter) fallocate(mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(int(w.r.f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != syscall.EINTR {
			return os.NewSyscallError("fallocate", err)
		}
	}
}

// cannotFallocate reports whether err says that a file system lacks a mode.
func cannotFallocate(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV)
}

// Flush implements [block.Flusher].
func (w *RawWriter) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return diskFile{w.r.f}.Sync()
}

// Map implements [block.Mapper].
func (w *RawWriter) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	if err := w.check(ctx, off, n); err != nil {
		return nil, err
	}
	var exts []block.Extent
	for end := off + n; off < end && len(exts) < maxRawExtents; {
		p, err := w.r.piece(off, end)
		if err != nil {
			return nil, fmt.Errorf("map image %s: %w", w.r.path, err)
		}
		e := block.Extent{Off: off, Len: p.end - off, Kind: block.Hole}
		if p.kind == normal {
			e.Kind = block.Data
		}
		exts = append(exts, e)
		off = p.end
	}
	return exts, nil
}

// maxRawExtents bounds the answer of one Map.
const maxRawExtents = 1024

// Locate implements [block.Locator].
func (w *RawWriter) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	if err := w.check(ctx, off, n); err != nil || n == 0 {
		return dst, err
	}
	return append(dst, block.Location{Len: n, Kind: block.InFile, File: w.r.f, Off: off}), nil
}

// Close makes what was written durable and closes the file.
func (w *RawWriter) Close() error {
	return errors.Join(diskFile{w.r.f}.Sync(), w.r.f.Close())
}
