package btrfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Types of extents.
const (
	extentInline   = 0
	extentRegular  = 1
	extentPrealloc = 2
)

const (
	inlineStart = 21 // of the data in an inline extent
	regularSize = 53
	// maxExpanded bounds compressed extents, before and after. The kernel makes none
	// of more than 128 KiB.
	maxExpanded = 1 << 20
)

// extent is "File extent" of the on-disk format.
type extent struct {
	from, to    uint64 // in the file
	kind        uint8
	compression uint8
	ram         uint64 // bytes when expanded
	inline      []byte
	disk        uint64 // logical address; 0: a hole
	diskLen     uint64
	offset      uint64 // of from, in the extent when expanded
}

func (s *store) parseExtent(k key, b []byte) (extent, error) {
	fail := func(format string, args ...any) (extent, error) {
		return extent{}, fmt.Errorf("extent at %d of inode %d: %s: %w", k.offset, k.object, fmt.Sprintf(format, args...), fsys.ErrCorrupt)
	}
	if len(b) < inlineStart {
		return fail("%d bytes", len(b))
	}
	e := extent{from: k.offset, ram: le64(b[8:]), compression: b[16], kind: b[20]}
	if e.compression >= uint8(len(expanders)) || b[17] != 0 || le16(b[18:]) != 0 {
		return extent{}, fmt.Errorf("extent at %d of inode %d: compression %d, encryption %d, encoding %d: %w",
			k.offset, k.object, e.compression, b[17], le16(b[18:]), fsys.ErrUnsupported)
	}
	if e.compression != 0 && e.ram > maxExpanded {
		return fail("%d bytes in one compressed extent", e.ram)
	}
	if e.kind == extentInline {
		e.inline = b[inlineStart:]
		e.to = e.from + e.ram
		if e.from != 0 || e.compression == 0 && e.ram != uint64(len(e.inline)) {
			return fail("%d bytes inline, %d when expanded", len(e.inline), e.ram)
		}
		return e, nil
	}
	if e.kind > extentPrealloc || len(b) != regularSize {
		return fail("type %d, %d bytes", e.kind, len(b))
	}
	e.disk, e.diskLen, e.offset = le64(b[21:]), le64(b[29:]), le64(b[37:])
	n := le64(b[45:])
	e.to = e.from + n
	align := uint64(s.super.sectorSize - 1)
	held := e.diskLen
	if e.compression != 0 {
		held = e.ram
	}
	switch {
	case n == 0 || n > math.MaxInt64 || e.from > math.MaxInt64-n || (e.from|n|e.disk|e.diskLen|e.offset)&align != 0:
		return fail("%d bytes, %d of them at %d", n, e.diskLen, e.disk)
	case e.disk != 0 && (e.offset > held || n > held-e.offset || e.disk > math.MaxInt64-e.diskLen):
		return fail("bytes %d to %d of %d", e.offset, e.offset+n, held)
	case e.compression != 0 && e.diskLen > maxExpanded:
		return fail("%d bytes in one compressed extent", e.diskLen)
	}
	return e, nil
}

// file is an inode with content.
type file struct {
	tree   *tree
	number uint64
	inode  inode
}

// segment is a part of a file that is stored in one way.
type segment struct {
	off, end uint64 // in the file
	extent          // of a hole, nothing is set but kind
	hole     bool
}

// logical is where an uncompressed segment begins.
func (g *segment) logical() uint64 { return g.disk + g.offset + g.off - g.from }

// segments calls yield for the parts of [off, end) in order and without gaps until
// it returns false.
func (s *store) segments(f file, off, end uint64, yield func(segment) bool) error {
	if off >= end {
		return nil
	}
	first, _, err := f.tree.floor(key{f.number, extentData, off})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || first.object != f.number || first.kind != extentData {
		first = key{f.number, extentData, off}
	}
	var bad error
	var last uint64 // end of the extent before
	err = f.tree.scan(first, key{f.number, extentData, end - 1}, func(k key, b []byte) bool {
		var e extent
		if e, bad = s.parseExtent(k, b); bad != nil {
			return false
		}
		if e.from < last {
			bad = fmt.Errorf("extent at %d of inode %d begins before the end of another: %w", k.offset, k.object, fsys.ErrCorrupt)
			return false
		}
		last = e.to
		if e.to <= off {
			return true
		}
		if e.from > off {
			if !yield(segment{off: off, end: e.from, hole: true}) {
				off = end
				return false
			}
			off = e.from
		}
		g := segment{off: off, end: min(e.to, end), extent: e}
		g.hole = e.kind != extentInline && e.disk == 0 || e.kind == extentPrealloc
		if off = g.end; !yield(g) {
			off = end
		}
		return off < end
	})
	if err == nil {
		err = bad
	}
	if err == nil && off < end {
		yield(segment{off: off, end: end, hole: true})
	}
	return err
}

// fill fills p with content from off. All of it has to be within the file.
func (s *store) fill(f file, p []byte, off uint64) error {
	var bad error
	err := s.segments(f, off, off+uint64(len(p)), func(g segment) bool {
		bad = s.fillSegment(f, p[g.off-off:g.end-off], &g)
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return fmt.Errorf("read inode %d at %d: %w", f.number, off, err)
	}
	return nil
}

func (s *store) fillSegment(f file, p []byte, g *segment) error {
	verify := s.opts.VerifyData && f.inode.flags&noDataSum == 0
	switch {
	case g.hole:
		clear(p)
	case g.compression != 0:
		b, err := s.expanded(&g.extent, verify)
		if err != nil {
			return err
		}
		copy(p, b[g.offset+g.off-g.from:])
	case g.kind == extentInline:
		copy(p, g.inline[g.off:])
	case verify:
		return s.readVerified(p, g.logical())
	default:
		return s.space.read(p, g.logical(), false, nil)
	}
	return nil
}

// ReadAt implements fsys.FileSystem.
func (f *FS) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	t, number, i, err := f.ofType(id, 0, "regular file")
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read inode %d at %d: %w", number, off, fs.ErrInvalid)
	}
	left := int64(i.size) - off
	if left < int64(len(p)) {
		p = p[:max(left, 0)]
		err = io.EOF
	}
	if e := f.store.fill(file{t, number, i}, p, uint64(off)); e != nil {
		return 0, e
	}
	return len(p), err
}

// Bounds of what one call of Extents looks at and returns.
const (
	maxExtents = 4096
	maxSteps   = 1 << 16
)

// Extents implements fsys.FileSystem. Data lie on the first of the volumes that the
// file system was opened from; what only others hold is Opaque. Their checksums
// are not verified.
func (f *FS) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	t, number, i, err := f.ofType(id, 0, "regular file")
	if err != nil {
		return nil, err
	}
	if off < 0 || n <= 0 || off >= int64(i.size) {
		return nil, nil
	}
	end := uint64(off) + uint64(min(n, int64(i.size)-off))
	var found extents
	var bad error
	err = f.store.segments(file{t, number, i}, uint64(off), end, func(g segment) bool {
		bad = f.store.locate(&found, &g)
		return bad == nil && !found.full()
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, fmt.Errorf("extents of inode %d: %w", number, err)
	}
	return found.list, nil
}

// extents are collected, those that continue one another as one.
type extents struct {
	list  []fsys.Extent
	steps int
}

func (x *extents) full() bool { return len(x.list) >= maxExtents || x.steps >= maxSteps }

func (x *extents) add(e fsys.Extent) {
	x.steps++
	if n := len(x.list); n > 0 {
		last := &x.list[n-1]
		if last.Kind == e.Kind && (e.Kind != fsys.Data || last.At+last.Len == e.At) {
			last.Len += e.Len
			return
		}
	}
	x.list = append(x.list, e)
}

// locate adds where a segment lies, or as much of it as there is room for.
func (s *store) locate(x *extents, g *segment) error {
	off, n := int64(g.off), int64(g.end-g.off)
	if g.hole || g.compression != 0 || g.kind == extentInline {
		kind := fsys.Opaque
		if g.hole {
			kind = fsys.Hole
		}
		x.add(fsys.Extent{Kind: kind, Off: off, Len: n})
		return nil
	}
	for logical := g.logical(); n > 0 && !x.full(); {
		from, run, err := s.space.places(logical)
		if err != nil {
			return err
		}
		run = min(run, n)
		at := from[0]
		if at.at > at.dev.vol.Size()-run {
			return fmt.Errorf("%d bytes at %d of a volume of %d: %w", run, at.at, at.dev.vol.Size(), fsys.ErrCorrupt)
		}
		x.add(fsys.Extent{Kind: fsys.Data, Off: off, Len: run, At: at.dev.base + at.at})
		off, n, logical = off+run, n-run, logical+uint64(run)
	}
	return nil
}
