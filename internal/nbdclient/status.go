package nbdclient

import (
	"context"
	"fmt"

	"github.com/sendense/sendense/block"
	"libguestfs.org/libnbd"
)

const (
	baseAllocation = "base:allocation"
	dirtyBitmap    = "qemu:dirty-bitmap:" // docs/interop/nbd.rst of QEMU
	bitmapDirty    = 1                    // flag of its extents
)

// status asks for the extents of one context from off on: pairs of length and
// flags, of which at least the first lies partly inside [off, off+n).
func (d *Device) status(ctx context.Context, context string, off, n int64) ([]uint32, error) {
	start, end := d.align(off, min(n, maxRange))
	var pairs []uint32
	r := &request{op: opStatus, off: start, n: end - start}
	r.extent = func(name string, offset uint64, entries []uint32, _ *int) int {
		if name == context && int64(offset) == start+total(pairs) {
			pairs = append(pairs, entries...)
		}
		return 0
	}
	if err := d.do(ctx, []*request{r}); err != nil {
		return nil, err
	}
	if len(pairs) < 2 || len(pairs)%2 != 0 || total(pairs) <= off-start {
		return nil, fmt.Errorf("map %d bytes at %d: server sent no extents of %s", n, off, context)
	}
	for i := 0; start < off; { // drop what alignment added
		cut := min(int64(pairs[i]), off-start)
		pairs[i] -= uint32(cut)
		start += cut
		if pairs[i] == 0 {
			pairs = pairs[2:]
		}
	}
	return pairs, nil
}

func total(pairs []uint32) (n int64) {
	for i := 0; i+1 < len(pairs); i += 2 {
		n += int64(pairs[i])
	}
	return n
}

// Map describes the export from off on by its base:allocation context; all of it
// is data where the server has none.
func (d *Device) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	if err := block.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, ctx.Err()
	}
	if !d.contexts[baseAllocation] {
		return []block.Extent{{Off: off, Len: n, Kind: block.Data}}, nil
	}
	pairs, err := d.status(ctx, baseAllocation, off, n)
	if err != nil {
		return nil, err
	}
	var exts []block.Extent
	for i := 0; i+1 < len(pairs) && n > 0; i += 2 {
		l := min(int64(pairs[i]), n)
		if l == 0 {
			continue
		}
		exts = append(exts, block.Extent{Off: off, Len: l, Kind: allocation(pairs[i+1])})
		off, n = off+l, n-l
	}
	return exts, nil
}

// allocation reads the flags of base:allocation. A hole that is not said to read
// as zeroes may hold anything.
func allocation(flags uint32) block.Kind {
	switch {
	case flags&libnbd.STATE_ZERO == 0:
		return block.Data
	case flags&libnbd.STATE_HOLE != 0:
		return block.Hole
	}
	return block.Zero
}

// Changed returns what a dirty bitmap marks. since names one of Options.Contexts,
// in full or without "qemu:dirty-bitmap:"; ErrNoContext if the server did not
// grant it.
func (d *Device) Changed(ctx context.Context, since string, off, n int64) ([]block.Range, error) {
	if err := block.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	name := since
	if !d.contexts[name] || name == baseAllocation {
		name = dirtyBitmap + since
	}
	if !d.contexts[name] {
		return nil, fmt.Errorf("%q: %w", since, ErrNoContext)
	}
	var ranges []block.Range
	for n > 0 {
		pairs, err := d.status(ctx, name, off, n)
		if err != nil {
			return nil, err
		}
		for i := 0; i+1 < len(pairs) && n > 0; i += 2 {
			l := min(int64(pairs[i]), n)
			if pairs[i+1]&bitmapDirty != 0 && l > 0 {
				ranges = appendRange(ranges, off, l)
			}
			off, n = off+l, n-l
		}
	}
	return ranges, nil
}

func appendRange(rs []block.Range, off, n int64) []block.Range {
	if k := len(rs) - 1; k >= 0 && rs[k].End() == off {
		rs[k].Len += n
		return rs
	}
	return append(rs, block.Range{Off: off, Len: n})
}
