package guestfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/tree"
)

// File is the content of a regular file, as a device: it is read from the disks
// where it lies, and through the confined process only where it is stored in
// another form. It may be used concurrently, until its Guest is closed.
type File struct {
	g    *Guest
	node Node
	size int64

	data []byte // all of it, if it is not nil

	mu   sync.Mutex // guards the field below
	runs []run      // known ones, by offset
}

// run is an extent with its place in the file.
type run struct {
	off int64
	tree.Extent
}

// maxRuns is how many extents of a file are remembered.
const maxRuns = 8192

var (
	_ block.Device  = (*File)(nil)
	_ block.Locator = (*File)(nil)
	_ block.Mapper  = (*File)(nil)
)

// OpenFile opens the content of a file whose attributes are known.
func (g *Guest) OpenFile(e Entry) (*File, error) {
	if !e.Attr.Mode.IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", e.Name)
	}
	return &File{g: g, node: e.Node, size: e.Attr.Size}, nil
}

// Size returns the length in bytes.
func (f *File) Size() int64 { return f.size }

// at returns the extent that holds byte off, from there on.
func (f *File) at(ctx context.Context, off int64) (tree.Extent, error) {
	f.mu.Lock()
	i := sort.Search(len(f.runs), func(i int) bool { return f.runs[i].off+f.runs[i].Len > off })
	if i < len(f.runs) && f.runs[i].off <= off {
		defer f.mu.Unlock()
		return f.runs[i].from(off), nil
	}
	f.mu.Unlock()
	// What lies behind is likely to be asked for next.
	reply, err := f.g.call(ctx, proto.Request{Op: proto.Extents, Node: f.node, Off: off, N: f.size - off})
	if err != nil {
		return tree.Extent{}, err
	}
	found, err := f.runsOf(reply.Extents, off)
	if err != nil {
		return tree.Extent{}, err
	}
	if len(found) == 0 {
		return tree.Extent{}, errProtocol
	}
	f.remember(found)
	return found[0].Extent, nil
}

// runsOf places extents that follow each other, from byte off on.
func (f *File) runsOf(list []tree.Extent, off int64) ([]run, error) {
	found := make([]run, 0, len(list))
	for _, e := range list {
		if err := f.check(e, f.size-off); err != nil {
			return nil, err
		}
		found = append(found, run{off, e})
		off += e.Len
	}
	return found, nil
}

// know takes what came with an entry of a walk.
func (f *File) know(e *proto.Entry) error {
	if int64(len(e.Data)) == f.size {
		f.data = e.Data
	}
	found, err := f.runsOf(e.Extents, 0)
	if err == nil && len(found) > 0 {
		f.remember(found)
	}
	return err
}

// remember keeps extents that follow each other.
func (f *File) remember(found []run) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(found) > maxRuns {
		found = found[:maxRuns]
	}
	if len(f.runs)+len(found) > maxRuns {
		f.runs = f.runs[:0]
	}
	first, end := found[0].off, found[len(found)-1].off+found[len(found)-1].Len
	kept := f.runs[:0:0]
	for _, r := range f.runs {
		if r.off+r.Len <= first || r.off >= end {
			kept = append(kept, r)
		}
	}
	kept = append(kept, found...)
	sort.Slice(kept, func(i, j int) bool { return kept[i].off < kept[j].off })
	f.runs = kept
}

// from returns the part of an extent that begins at byte off of the file.
func (r run) from(off int64) tree.Extent {
	skip := off - r.off
	e := r.Extent
	e.Len -= skip
	if e.Kind == fsys.Data {
		e.At += skip
	}
	return e
}

// check refuses an extent that is not within the file or the disks.
func (f *File) check(e tree.Extent, left int64) error {
	if e.Len <= 0 || e.Len > left {
		return errProtocol
	}
	if e.Kind != fsys.Data {
		return nil
	}
	d, ok := f.g.disks[e.Disk]
	if !ok || block.CheckRange(d.Size(), e.At, e.Len) != nil {
		return errProtocol
	}
	return nil
}

// each calls use for each extent of [off, off+n) in turn.
func (f *File) each(ctx context.Context, off, n int64, use func(e tree.Extent, off int64) error) error {
	if err := block.CheckRange(f.size, off, n); err != nil {
		return err
	}
	for n > 0 {
		e, err := f.at(ctx, off)
		if err != nil {
			return err
		}
		e.Len = min(e.Len, n)
		if err := use(e, off); err != nil {
			return err
		}
		off, n = off+e.Len, n-e.Len
	}
	return nil
}

// ReadAt implements block.Device.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	start := off
	return f.each(ctx, off, int64(len(p)), func(e tree.Extent, off int64) error {
		b := p[off-start:][:e.Len]
		switch e.Kind {
		case fsys.Hole:
			clear(b)
			return nil
		case fsys.Data:
			return f.g.disks[e.Disk].ReadAt(ctx, b, e.At)
		}
		return f.readCoded(ctx, b, off)
	})
}

// readCoded has the confined process read what is not stored as it is.
func (f *File) readCoded(ctx context.Context, p []byte, off int64) error {
	if f.data != nil {
		copy(p, f.data[off:])
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), 1<<20)
		r, err := f.g.call(ctx, proto.Request{Op: proto.Read, Node: f.node, Off: off, N: int64(n)})
		if err != nil {
			return err
		}
		if len(r.Data) > n {
			return errProtocol
		}
		if len(r.Data) == 0 {
			return io.ErrUnexpectedEOF
		}
		copy(p, r.Data)
		p, off = p[len(r.Data):], off+int64(len(r.Data))
	}
	return nil
}

// Locate implements block.Locator.
func (f *File) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	err := f.each(ctx, off, n, func(e tree.Extent, _ int64) (err error) {
		switch e.Kind {
		case fsys.Hole:
			dst = append(dst, block.Location{Len: e.Len, Kind: block.InNothing})
		case fsys.Data:
			dst, err = block.Locate(ctx, f.g.disks[e.Disk], dst, e.At, e.Len)
		default:
			dst = append(dst, block.Location{Len: e.Len, Kind: block.Opaque})
		}
		return err
	})
	return dst, err
}

// Data returns the first run at or behind byte off that is no hole. Both ends are
// the size if there is none.
func (f *File) Data(ctx context.Context, off int64) (from, to int64, err error) {
	for from = off; off < f.size; {
		e, err := f.at(ctx, off)
		if err != nil {
			return 0, 0, err
		}
		off += e.Len
		if e.Kind != fsys.Hole {
			to = off
			continue
		}
		if to > from {
			return from, to, nil
		}
		from = off
	}
	return from, max(from, to), nil
}

// maxMapped is how many extents are enough for one answer of Map.
const maxMapped = 1024

// errEnough ends what has been looked at for long enough.
var errEnough = errors.New("enough")

// Map implements block.Mapper: what is a hole in the file, or on the disk beneath
// it.
func (f *File) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	var list []block.Extent
	seen := 0
	err := f.each(ctx, off, n, func(e tree.Extent, off int64) error {
		if seen++; seen > maxMapped {
			return errEnough
		}
		kind := block.Data
		if e.Kind == fsys.Hole {
			kind = block.Hole
		}
		if len(list) > 0 && list[len(list)-1].Kind == kind {
			list[len(list)-1].Len += e.Len
		} else {
			list = append(list, block.Extent{Off: off, Len: e.Len, Kind: kind})
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, err
}
