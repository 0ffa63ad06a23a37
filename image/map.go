package image

import (
	"cmp"
	"context"
	"math"
	"slices"
)

// loc says where a run's bytes are, in one word: the kind, the layer, and for
// normal the host offset in sectors.
type loc uint64

const (
	locSectorBits = 47
	locLayerBits  = 14
	noLayer       = 1<<locLayerBits - 1
	maxLayers     = noLayer
	maxRawSize    = 1 << (locSectorBits + 9) // 64 PiB, which is also the format's limit
)

func makeLoc(kind clusterKind, layer int, host int64) loc {
	return loc(kind)<<(locLayerBits+locSectorBits) | loc(layer)<<locSectorBits | loc(host>>9)
}

func (l loc) kind() clusterKind { return clusterKind(l >> (locLayerBits + locSectorBits)) }
func (l loc) layer() int        { return int(l >> locSectorBits & (1<<locLayerBits - 1)) }
func (l loc) host() int64       { return int64(l&(1<<locSectorBits-1)) << 9 }

// region is the merged map of one region of a chain: runs in ascending order,
// each up to where the next begins. A run of compressed clusters does not say
// where they are: their layer is asked again, which costs nothing beside the
// decompression.
type region struct {
	starts []uint32 // bytes from the start of the region; starts[0] is 0
	locs   []loc
	size   uint32 // bytes
}

// find returns the run that x is in.
func (r *region) find(x uint32) int {
	lo, hi := 0, len(r.starts)
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) >> 1); r.starts[mid] <= x {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// end returns where run i ends.
func (r *region) end(i int) uint32 {
	if i+1 < len(r.starts) {
		return r.starts[i+1]
	}
	return r.size
}

// empty reports whether no layer holds anything of the region.
func (r *region) empty() bool {
	return len(r.locs) == 1 && r.locs[0].kind() == unallocated
}

// cost returns about how much memory the region takes, in bytes.
func (r *region) cost() int64 { return int64(len(r.starts))*12 + 192 }

// part is a range of a region, in bytes from its start.
type part struct{ off, end uint32 }

// claim is a part that a layer, or the end of a short one, has resolved.
type claim struct {
	part
	loc loc
}

// layer is one file of a chain as the merge sees it.
type layer interface {
	// Size returns the length of the disk that the layer describes, in bytes.
	Size() int64
	// claim takes what the layer holds of m.open from there.
	claim(m *merge, index int) error
	// nextHeld returns an offset in [off, end] before which the layer holds
	// nothing from off on.
	nextHeld(m *merge, off, end int64) (int64, error)
}

// merge is the state of merging a region's layers, top down.
type merge struct {
	base   int64  // guest offset of the region
	open   []part // what no layer has claimed so far, ascending, none of them empty
	left   []part // the next layer's open, being made
	claims []claim
	l1, l2 []byte // scratch for loading tables
}

// begin starts the merge of n bytes at base.
func (m *merge) begin(base, n int64) {
	m.base = base
	m.open = append(m.open[:0], part{0, uint32(n)})
	m.left = m.left[:0]
	m.claims = m.claims[:0]
}

// add notes that [off, end), in guest bytes, is what p and the layer say.
func (m *merge) add(off int64, p piece, layer int) {
	s := part{uint32(off - m.base), uint32(p.end - m.base)}
	switch p.kind {
	case unallocated:
		if n := len(m.left); n > 0 && m.left[n-1].end == s.off {
			m.left[n-1].end = s.end
		} else {
			m.left = append(m.left, s)
		}
	case normal:
		m.claims = append(m.claims, claim{s, makeLoc(normal, layer, p.host)})
	default:
		m.claims = append(m.claims, claim{s, makeLoc(p.kind, layer, 0)})
	}
}

// next makes what the layer has left over the next layer's open.
func (m *merge) next() { m.open, m.left = m.left, m.open[:0] }

// cut resolves everything from guest offset size on as held by nobody: a layer of
// that size ends there, and nothing that lies below it shows.
func (m *merge) cut(size int64) {
	for i := len(m.open) - 1; i >= 0; i-- {
		s := &m.open[i]
		if m.base+int64(s.end) <= size {
			return
		}
		from := max(s.off, uint32(min(max(size-m.base, 0), int64(s.end))))
		m.claims = append(m.claims, claim{part{from, s.end}, makeLoc(unallocated, noLayer, 0)})
		s.end = from
		if s.off == s.end {
			m.open = m.open[:i]
		}
	}
}

// layers lets each layer claim its part, from the top down; if known is not nil,
// only those in it, the others being known to have none.
func (m *merge) layers(ctx context.Context, layers []layer, known holders) error {
	size := int64(math.MaxInt64)
	for i, l := range layers {
		size = min(size, l.Size())
		if known != nil && !known.has(i) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		m.cut(size)
		if len(m.open) == 0 {
			return nil
		}
		if err := l.claim(m, i); err != nil {
			return err
		}
	}
	return nil
}

// nextHeld returns an offset in [off, end] before which none of layers holds
// anything that shows from off on.
func (m *merge) nextHeld(layers []layer, off, end int64) (int64, error) {
	shown := int64(math.MaxInt64)
	for _, l := range layers {
		if shown = min(shown, l.Size()); shown <= off {
			break // whatever lies below does not show
		}
		next, err := l.nextHeld(m, off, min(end, shown))
		if err != nil {
			return 0, err
		}
		if next < min(end, shown) {
			end = next
		}
	}
	return end, nil
}

// holders is the set of layers that a region's runs lie in: what is worth keeping
// of a map that had to go, because making it again then asks few layers.
type holders []uint64

func (h holders) has(i int) bool { return h[i/64]>>(i%64)&1 != 0 }

func (h holders) cost() int64 { return int64(len(h))*8 + 128 }

// holders returns the set for a chain of depth layers.
func (r *region) holders(depth int) holders {
	h := make(holders, (depth+63)/64)
	for _, l := range r.locs {
		if i := l.layer(); i != noLayer {
			h[i/64] |= 1 << (i % 64)
		}
	}
	return h
}

// region returns the result: the claims, and holes where nobody made one.
func (m *merge) region(n int64) *region {
	for _, s := range m.open {
		m.claims = append(m.claims, claim{s, makeLoc(unallocated, noLayer, 0)})
	}
	m.sort()
	runs := 0
	for i := range m.claims {
		if runs > 0 && follows(m.claims[runs-1], m.claims[i]) {
			m.claims[runs-1].end = m.claims[i].end
			continue
		}
		m.claims[runs] = m.claims[i]
		runs++
	}
	r := &region{starts: make([]uint32, runs), locs: make([]loc, runs), size: uint32(n)}
	for i, c := range m.claims[:runs] {
		r.starts[i], r.locs[i] = c.off, c.loc
	}
	return r
}

func (m *merge) sort() {
	slices.SortFunc(m.claims, func(a, b claim) int { return cmp.Compare(a.off, b.off) })
}

// follows reports whether b continues the run a.
func follows(a, b claim) bool {
	if a.loc.kind() != normal {
		return a.loc == b.loc
	}
	return b.loc.kind() == normal && a.loc.layer() == b.loc.layer() &&
		a.loc.host()+int64(a.end-a.off) == b.loc.host()
}

// claim implements layer.
func (f *File) claim(m *merge, index int) error {
	v, err := f.load(m, m.base+int64(m.open[0].off), m.base+int64(m.open[len(m.open)-1].end))
	if err != nil || v.entries == nil {
		return err // without a table everything stays open
	}
	for _, s := range m.open {
		for off, end := m.base+int64(s.off), m.base+int64(s.end); off < end; {
			p := f.piece(v, off, end)
			m.add(off, p, index)
			off = p.end
		}
	}
	m.next()
	return nil
}
