package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sendense/sendense/block"
	"golang.org/x/sys/unix"
)

// rawDevice is a file or device whose bytes are the disk's.
type rawDevice struct {
	file *os.File
	size int64
}

// Size implements [block.Device].
func (d *rawDevice) Size() int64 { return d.size }

// ReadAt implements [block.Device].
func (d *rawDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(d.size, off, int64(len(p))); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := d.file.ReadAt(p, off); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s became shorter: %w", d.file.Name(), io.ErrUnexpectedEOF)
		}
		return err
	}
	return nil
}

// maxExtents bounds the answer to one Map call.
const maxExtents = 1024

// Map asks the file system for holes; devices and file systems that know of none
// say that everything is data.
func (d *rawDevice) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	if err := block.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	var exts []block.Extent
	for end := off + n; off < end && len(exts) < maxExtents; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := d.extent(off, end)
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", d.file.Name(), err)
		}
		exts = append(exts, e)
		off = e.End()
	}
	return exts, nil
}

// extent returns the extent that begins at off, cut at end.
func (d *rawDevice) extent(off, end int64) (block.Extent, error) {
	fd := int(d.file.Fd())
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from here on
		return block.Extent{Off: off, Len: end - off, Kind: block.Hole}, nil
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
		return block.Extent{Off: off, Len: end - off, Kind: block.Data}, nil
	case err != nil:
		return block.Extent{}, err
	case data > off:
		return block.Extent{Off: off, Len: min(data, end) - off, Kind: block.Hole}, nil
	}
	hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	if err != nil || hole <= off { // the file changed, which Err will tell
		hole = end
	}
	return block.Extent{Off: off, Len: min(hole, end) - off, Kind: block.Data}, nil
}
