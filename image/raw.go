package image

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Whence values of lseek(2) that find data and holes.
const (
	seekData = 3
	seekHole = 4
)

// rawFile is a raw image, open for reading: the last layer of a chain. It holds
// every byte of the disk; the file system's holes are explicit zeroes to it.
type rawFile struct {
	path string
	f    *os.File
	size int64
}

func newRaw(path string, f *os.File) (*rawFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxRawSize {
		return nil, fmt.Errorf("%w: raw image of %d bytes, more than 64 PiB", ErrUnsupported, st.Size())
	}
	return &rawFile{path: path, f: f, size: st.Size()}, nil
}

// Size returns the length of the file in bytes, which need not be a multiple of
// a sector.
func (r *rawFile) Size() int64 { return r.size }

// claim implements layer.
func (r *rawFile) claim(m *merge, index int) error {
	for _, s := range m.open {
		for off, end := m.base+int64(s.off), m.base+int64(s.end); off < end; {
			p, err := r.piece(off, end)
			if err != nil {
				return fmt.Errorf("map image %s: %w", r.path, err)
			}
			m.add(off, p, index)
			off = p.end
		}
	}
	m.next()
	return nil
}

// piece returns the data or the hole that begins at off, as far as it reaches but
// not beyond limit. Where the file system does not tell, all is data.
func (r *rawFile) piece(off, limit int64) (piece, error) {
	data, err := r.f.Seek(off, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // a hole up to the end of the file
		return piece{end: limit, kind: zeroPlain}, nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTSUP):
		return piece{end: limit, kind: normal, host: off}, nil
	case err != nil:
		return piece{}, err
	}
	// Sectors are never divided: a host offset in the map is a multiple of 512.
	if sector := data &^ 511; sector > off {
		return piece{end: min(sector, limit), kind: zeroPlain}, nil
	}
	hole, err := r.f.Seek(max(off, data), seekHole)
	if err != nil {
		return piece{}, err
	}
	return piece{end: min((max(hole, off+1)+511)&^511, limit), kind: normal, host: off}, nil
}

// nextHeld implements layer.
func (r *rawFile) nextHeld(_ *merge, off, end int64) (int64, error) {
	return min(off, end), nil
}
