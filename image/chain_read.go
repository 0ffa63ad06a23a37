package image

import (
	"context"
	"fmt"

	"github.com/sendense/sendense/block"
)

// Map describes at most so much at a time.
const (
	mapRegions = 256
	mapExtents = 16 << 10
)

// holdersDepth is from which depth on it is worth knowing who holds what.
const holdersDepth = 8

// region returns the merged map of region i, which the caller must not change.
func (c *Chain) region(ctx context.Context, i int64) (*region, error) {
	if r, ok := c.regions.lookup(uint64(i)); ok {
		return r, nil
	}
	return c.regions.get(ctx, uint64(i), func() (*region, error) {
		m := c.pools.merge()
		defer c.pools.merges.Put(m)
		base := i << c.regionBits
		n := min(c.size-base, 1<<c.regionBits)
		m.begin(base, n)
		known, ok := c.holders.lookup(uint64(i))
		if err := m.layers(ctx, c.layers, known); err != nil {
			return nil, err
		}
		r := m.region(n)
		if !ok && len(c.layers) >= holdersDepth {
			c.holders.put(uint64(i), r.holders(len(c.layers)))
		}
		return r, nil
	})
}

// run is a run of the merged map, in guest offsets.
type run struct {
	off, end int64
	kind     clusterKind
	layer    int
	host     int64 // of off, for normal
}

// each calls fn for the runs of [off, end) until it returns false or an error.
func (c *Chain) each(ctx context.Context, off, end int64, fn func(run) (bool, error)) error {
	for off < end {
		base := off &^ (1<<c.regionBits - 1)
		r, err := c.region(ctx, base>>c.regionBits)
		if err != nil {
			return err
		}
		for i := r.find(uint32(off - base)); i < len(r.starts) && off < end; i++ {
			l := r.locs[i]
			u := run{
				off:   off,
				end:   min(end, base+int64(r.end(i))),
				kind:  l.kind(),
				layer: l.layer(),
				host:  l.host() + off - base - int64(r.starts[i]),
			}
			if more, err := fn(u); !more || err != nil {
				return err
			}
			off = u.end
		}
	}
	return nil
}

// ReadAt implements block.Device. Data go from the file to p without being
// copied on the way.
func (c *Chain) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(c.size, off, int64(len(p))); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.each(ctx, off, off+int64(len(p)), func(u run) (bool, error) {
		dst := p[u.off-off : u.end-off]
		switch u.kind {
		case normal:
			return true, readFull(c.files[u.layer], dst, u.host)
		case compressed:
			return true, c.readCompressed(ctx, u.layer, dst, u.off)
		case invalidEntry:
			return false, c.invalid(u)
		}
		clear(dst)
		return true, nil
	})
}

// invalid returns the error that reading u ends in.
func (c *Chain) invalid(u run) error { return c.layers[u.layer].(*File).explain(u.off) }

// readCompressed fills p from compressed clusters of a layer. Clusters of which p
// takes only a part are kept, for the next read is likely to want the rest.
func (c *Chain) readCompressed(ctx context.Context, layer int, p []byte, off int64) error {
	f := c.layers[layer].(*File)
	size := f.header.ClusterSize()
	for len(p) > 0 {
		start := off &^ (size - 1)
		n := min(int64(len(p)), start+size-off)
		if n == size {
			if err := f.inflate(p[:n], start); err != nil {
				return err
			}
		} else {
			// A cluster's number has at most 40 bits: 2^22 L1 entries of 2^18.
			key := uint64(layer)<<48 | uint64(start>>f.header.ClusterBits)
			whole, err := c.clusters.get(ctx, key, func() ([]byte, error) {
				b := make([]byte, size)
				return b, f.inflate(b, start)
			})
			if err != nil {
				return err
			}
			copy(p[:n], whole[off-start:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Locate implements block.Locator. Compressed ranges are Opaque; so are damaged
// ones, so that reading them gives the error. A location in a file never reaches
// beyond the file's end.
func (c *Chain) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	if err := block.CheckRange(c.size, off, n); err != nil {
		return dst, err
	}
	first := len(dst)
	err := c.each(ctx, off, off+n, func(u run) (bool, error) {
		l := block.Location{Len: u.end - u.off}
		switch u.kind {
		case normal:
			l.Kind, l.File, l.Off = block.InFile, c.files[u.layer], u.host
		case compressed, invalidEntry:
			l.Kind = block.Opaque
		default:
			l.Kind = block.InNothing
		}
		if i := len(dst) - 1; i >= first {
			b := &dst[i]
			if b.Kind == l.Kind && b.File == l.File && (l.Kind != block.InFile || b.Off+b.Len == l.Off) {
				b.Len += l.Len
				return true, nil
			}
		}
		dst = append(dst, l)
		return true, nil
	})
	return dst, err
}

// Map implements block.Mapper. What some layer zeroes while it keeps host
// clusters for it is Zero; other zeroes are a Hole. It describes up to 256
// regions or 16384 extents at a time, except that the whole of a range that no
// table describes counts as one region.
func (c *Chain) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	var exts []block.Extent
	err := c.survey(ctx, off, n, func(u run) (bool, error) {
		kind := block.Hole
		switch u.kind {
		case normal, compressed:
			kind = block.Data
		case zeroAlloc:
			kind = block.Zero
		case invalidEntry:
			return false, c.invalid(u)
		}
		if i := len(exts) - 1; i >= 0 && exts[i].Kind == kind {
			exts[i].Len += u.end - u.off
			return true, nil
		}
		exts = append(exts, block.Extent{Off: u.off, Len: u.end - u.off, Kind: kind})
		return len(exts) < mapExtents, nil
	})
	if err != nil && len(exts) == 0 {
		return nil, err
	}
	// An error behind the first extent is met again by the next call.
	return exts, nil
}

// Source says which layer of a chain provides a range.
type Source struct {
	Off     int64 // guest bytes
	Len     int64 // guest bytes, > 0
	Layer   int   // index in Layers; -1 where Content is Absent
	Content Content
}

// End returns the offset of the first byte behind the source's range.
func (s Source) End() int64 { return s.Off + s.Len }

// Sources says where [off, off+n) comes from, in ascending order and without a
// gap from off on. Like Map it covers at least one byte and may stop short of n.
func (c *Chain) Sources(ctx context.Context, off, n int64) ([]Source, error) {
	var list []Source
	err := c.survey(ctx, off, n, func(u run) (bool, error) {
		if u.kind == invalidEntry {
			return false, c.invalid(u)
		}
		s := Source{Off: u.off, Len: u.end - u.off, Layer: u.layer, Content: u.kind.content()}
		if s.Content == Absent {
			s.Layer = -1
		}
		if i := len(list) - 1; i >= 0 && list[i].Layer == s.Layer && list[i].Content == s.Content {
			list[i].Len += s.Len
			return true, nil
		}
		list = append(list, s)
		return len(list) < mapExtents, nil
	})
	if err != nil && len(list) == 0 {
		return nil, err
	}
	return list, nil
}

// survey is each for long ranges: it goes on for a bounded number of regions,
// and passes by in one step what no table describes.
func (c *Chain) survey(ctx context.Context, off, n int64, fn func(run) (bool, error)) error {
	if err := block.CheckRange(c.size, off, n); err != nil {
		return err
	}
	more := true
	for end, regions := off+n, 0; more && off < end && regions < mapRegions; regions++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		next := min(end, (off>>c.regionBits+1)<<c.regionBits)
		r, err := c.region(ctx, off>>c.regionBits)
		if err != nil {
			return err
		}
		if r.empty() {
			if next, err = c.nextHeld(c.layers, next, end); err != nil {
				return err
			}
			more, err = fn(run{off: off, end: next, kind: unallocated, layer: noLayer})
		} else {
			err = c.each(ctx, off, next, func(u run) (bool, error) {
				var err error
				more, err = fn(u)
				return more, err
			})
		}
		if err != nil {
			return err
		}
		off = next
	}
	return nil
}

// nextHeld returns an offset in [off, end] before which none of layers holds
// anything from off on. It looks ahead in steps that double, so that its work is
// in proportion to what it passes by.
func (c *Chain) nextHeld(layers []layer, off, end int64) (int64, error) {
	m := c.pools.merge()
	defer c.pools.merges.Put(m)
	for step := int64(1) << c.regionBits; off < end; step *= 2 {
		limit := end
		if end-off > step {
			limit = off + step
		}
		next, err := m.nextHeld(layers, off, limit)
		if err != nil || next < limit {
			return next, err
		}
		off = limit
	}
	return end, nil
}

// Changed implements block.Changer: since is the name of a layer, as Layers has
// it, and stands for the disk as that layer and those below show it. A range is
// reported if a layer above holds it, whatever its content, or if it lies behind
// the end of that disk or of a layer between. Only the layers above are looked
// at. Of several layers with the name the lowest is meant.
func (c *Chain) Changed(ctx context.Context, since string, off, n int64) ([]block.Range, error) {
	if err := block.CheckRange(c.size, off, n); err != nil {
		return nil, err
	}
	depth := -1
	for i, l := range c.infos {
		if l.Name == since {
			depth = i
		}
	}
	if depth < 0 {
		return nil, fmt.Errorf("list changes of %s: no layer is named %q", c.infos[0].Path, since)
	}
	above, oldSize := c.layers[:depth], c.layers[depth].Size()
	m := c.pools.merge()
	defer c.pools.merges.Put(m)
	var list []block.Range
	for end := off + n; off < end && depth > 0; {
		next := min(end, (off>>c.regionBits+1)<<c.regionBits)
		m.begin(off, next-off)
		if err := m.layers(ctx, above, nil); err != nil {
			return nil, err
		}
		m.cut(oldSize)
		m.sort()
		for _, cl := range m.claims {
			r := block.Range{Off: off + int64(cl.off), Len: int64(cl.end - cl.off)}
			if i := len(list) - 1; i >= 0 && list[i].End() == r.Off {
				list[i].Len += r.Len
			} else {
				list = append(list, r)
			}
		}
		if len(m.claims) == 0 {
			var err error
			if next, err = c.nextUnlike(above, oldSize, next, end); err != nil {
				return nil, err
			}
		}
		off = next
	}
	return list, nil
}

// nextUnlike returns an offset in [off, end] before which none of the layers
// above holds or cuts off anything of a disk of oldSize bytes from off on.
func (c *Chain) nextUnlike(above []layer, oldSize, off, end int64) (int64, error) {
	for _, l := range above {
		oldSize = min(oldSize, l.Size())
	}
	if oldSize <= off {
		return off, nil
	}
	return c.nextHeld(above, off, min(end, oldSize))
}
