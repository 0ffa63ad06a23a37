package volume

import (
	"fmt"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Zeroes is the Disk of a [Piece] that reads as zeroes.
const Zeroes = -1

// Piece is a run of a volume's bytes where they lie.
type Piece struct {
	Disk int   // its Index, or Zeroes
	Off  int64 // byte of the disk
	Len  int64 // bytes, more than none
}

// Located is a volume whose bytes lie on disks as they are.
type Located interface {
	fsys.Volume
	// Locate returns where the n bytes from off lie, in order and without gaps. It
	// may return fewer than there are, but at least one piece where n > 0.
	Locate(off, n int64) ([]Piece, error)
}

// maxPieces is how many pieces Locate returns at most.
const maxPieces = 1024

// maxBytes bounds sizes and offsets, so that sums of two do not overflow.
const maxBytes = 1 << 62

// run is a row of bytes of a lower volume, or of zeroes.
type run struct {
	vol fsys.Volume // nil: zeroes
	at  int64
	n   int64 // more than none
}

// layout says where the bytes of a volume lie in others. It is only asked for
// what the volume's size covers.
type layout interface {
	// run returns where the byte at off lies, with as many that follow it in a row
	// as is known cheaply, max at most.
	run(off, max int64) (run, error)
	// volumes calls yield for every volume that run may return.
	volumes(yield func(fsys.Volume))
}

// errNoRun ends what would not come to an end otherwise.
var errNoRun = fmt.Errorf("a layout has no bytes where it should: %w", fsys.ErrCorrupt)

// newVolume returns a volume of size bytes that is laid out so; a [Located] if all
// below are.
func newVolume(l layout, size int64) fsys.Volume {
	located := true
	l.volumes(func(v fsys.Volume) {
		if _, ok := v.(Located); !ok {
			located = false
		}
	})
	m := mapped{l, size}
	if located {
		return locatedVolume{m}
	}
	return m
}

// mapped is a volume made of others.
type mapped struct {
	layout layout
	size   int64
}

func (m mapped) Size() int64 { return m.size }

func (m mapped) ReadAt(p []byte, off int64) error {
	if err := fsys.CheckRange(off, int64(len(p)), m.size); err != nil {
		return err
	}
	for len(p) > 0 {
		r, err := m.layout.run(off, int64(len(p)))
		if err != nil {
			return err
		}
		if r.n <= 0 {
			return errNoRun
		}
		head := p[:min(r.n, int64(len(p)))]
		if r.vol == nil {
			clear(head)
		} else if err := r.vol.ReadAt(head, r.at); err != nil {
			return err
		}
		p, off = p[len(head):], off+int64(len(head))
	}
	return nil
}

// locatedVolume is a volume made of others that are located.
type locatedVolume struct{ mapped }

func (v locatedVolume) Locate(off, n int64) ([]Piece, error) {
	if err := fsys.CheckRange(off, n, v.size); err != nil {
		return nil, err
	}
	var pieces []Piece
	for n > 0 && len(pieces) < maxPieces {
		r, err := v.layout.run(off, n)
		if err != nil {
			return nil, err
		}
		if r.n <= 0 {
			return nil, errNoRun
		}
		r.n = min(r.n, n)
		below := []Piece{{Disk: Zeroes, Len: r.n}}
		if r.vol != nil {
			if below, err = r.vol.(Located).Locate(r.at, r.n); err != nil {
				return nil, err
			}
		}
		for _, p := range below {
			pieces = appendPiece(pieces, p)
			off, n = off+p.Len, n-p.Len
		}
	}
	return pieces, nil
}

// appendPiece appends a piece, to the last one if it follows that.
func appendPiece(pieces []Piece, p Piece) []Piece {
	if len(pieces) > 0 {
		last := &pieces[len(pieces)-1]
		if last.Disk == p.Disk && (p.Disk == Zeroes || last.Off+last.Len == p.Off) {
			last.Len += p.Len
			return pieces
		}
	}
	return append(pieces, p)
}

// diskVolume is a disk as a volume, with its bounds checked.
type diskVolume struct {
	fsys.Volume
	index int
}

func (d diskVolume) ReadAt(p []byte, off int64) error {
	if err := fsys.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return err
	}
	return d.Volume.ReadAt(p, off)
}

func (d diskVolume) Locate(off, n int64) ([]Piece, error) {
	if err := fsys.CheckRange(off, n, d.Size()); err != nil || n == 0 {
		return nil, err
	}
	return []Piece{{d.index, off, n}}, nil
}

// part is the layout of a range of a volume.
type part struct {
	vol fsys.Volume
	at  int64
}

func (p part) run(off, max int64) (run, error)         { return run{p.vol, p.at + off, max}, nil }
func (p part) volumes(yield func(fsys.Volume))         { yield(p.vol) }
func slice(v fsys.Volume, off, size int64) fsys.Volume { return newVolume(part{v, off}, size) }

// Join returns volumes as one, each behind the one before it; a [Located] if all are.
func Join(list []fsys.Volume) fsys.Volume {
	if len(list) == 1 {
		return list[0]
	}
	var all concatenation
	size := int64(0)
	for _, v := range list {
		if n := v.Size(); n > 0 && n <= maxBytes-size {
			all = append(all, segment{size, n, part{v, 0}})
			size += n
		}
	}
	return newVolume(all, size)
}

// zeroes is the layout of what reads as zeroes.
type zeroes struct{}

func (zeroes) run(_, max int64) (run, error) { return run{n: max}, nil }
func (zeroes) volumes(func(fsys.Volume))     {}

// stripes is the layout of chunks that go around volumes of equal size.
type stripes struct {
	vols  []part
	chunk int64 // bytes
}

func (s stripes) run(off, max int64) (run, error) {
	chunk, in := off/s.chunk, off%s.chunk
	p := s.vols[chunk%int64(len(s.vols))]
	return run{p.vol, p.at + chunk/int64(len(s.vols))*s.chunk + in, min(max, s.chunk-in)}, nil
}

func (s stripes) volumes(yield func(fsys.Volume)) {
	for _, p := range s.vols {
		yield(p.vol)
	}
}

// segment is a part of a [concatenation].
type segment struct {
	start, size int64
	layout      layout
}

// concatenation is the layout of segments that follow one another from 0.
type concatenation []segment

func (c concatenation) run(off, max int64) (run, error) {
	i, ok := slices.BinarySearchFunc(c, off, func(s segment, off int64) int {
		switch {
		case s.start+s.size <= off:
			return -1
		case s.start > off:
			return 1
		}
		return 0
	})
	if !ok {
		return run{}, fmt.Errorf("no segment at byte %d: %w", off, fsys.ErrCorrupt)
	}
	return c[i].layout.run(off-c[i].start, min(max, c[i].start+c[i].size-off))
}

func (c concatenation) volumes(yield func(fsys.Volume)) {
	for _, s := range c {
		s.layout.volumes(yield)
	}
}

// firstDisk returns the Index of the disk that the first byte of a volume comes
// from, which need not lie there as it is; other if that cannot be told.
func firstDisk(v fsys.Volume, other int) int {
	at := int64(0)
	for range maxDepth * maxNesting {
		switch x := v.(type) {
		case diskVolume:
			return x.index
		case *decrypted:
			v, at = x.vol, at+x.off
		case locatedVolume:
			v = x.mapped
		case mapped:
			r, err := x.layout.run(at, 1)
			if err != nil || r.vol == nil { // nothing was ever written there
				return other
			}
			v, at = r.vol, r.at
		default:
			return other
		}
	}
	return other
}
