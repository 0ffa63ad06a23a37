package cluster

import (
	"fmt"
	"sort"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// All asks for a chain up to its end, of whatever length.
const All = 1<<32 - 1

// maxMarks bounds what is kept of a chain.
const maxMarks = 16 << 10

// Chain is a sequence of clusters.
type Chain struct {
	table *Table
	n     uint32 // clusters
	// marks are where runs of adjacent clusters begin: every step-th run has one.
	marks []mark
	step  int
	runs  int
	last  uint32 // cluster
}

// mark says which cluster one of a chain is.
type mark struct{ index, cluster uint32 }

// Len returns how many clusters a chain has.
func (c *Chain) Len() int64 { return int64(c.n) }

// Contiguous returns the chain of n clusters from first.
func (t *Table) Contiguous(first, n uint32) (*Chain, error) {
	c := &Chain{table: t, step: 1}
	if n == 0 {
		return c, nil
	}
	if !t.Holds(first) || n > t.Clusters-(first-First) {
		return c, fmt.Errorf("clusters %d to %d of %d: %w", first, uint64(first)+uint64(n)-1, t.Clusters, fsys.ErrCorrupt)
	}
	c.n, c.marks = n, []mark{{0, first}}
	return c, nil
}

// Follow returns the first n clusters of the chain that begins with first, or All.
// What it returns with an error is the chain up to where that is. A chain that
// comes back to itself is an error, even if it does so behind the first n clusters:
// which of these are right cannot be told.
func (t *Table) Follow(first, n uint32) (*Chain, error) {
	c := &Chain{table: t, step: 1}
	if n == 0 {
		return c, nil
	}
	if n != All && n > t.Clusters {
		return c, fmt.Errorf("a chain of %d of %d clusters: %w", n, t.Clusters, fsys.ErrCorrupt)
	}
	w := &window{table: t}
	loop := newLoop(first)
	for at := first; ; {
		if !t.Holds(at) {
			return c, fmt.Errorf("a chain goes on from its cluster %d with cluster %d of %d: %w", c.n, at, t.Clusters, fsys.ErrCorrupt)
		}
		c.append(at)
		if c.n == n {
			return c, behind(w, at, n, loop)
		}
		next, err := w.entry(at)
		if err != nil {
			return c, err
		}
		if t.ends(next) {
			if n == All {
				return c, nil
			}
			return c, fmt.Errorf("a chain ends after %d of %d clusters: %w", c.n, n, fsys.ErrCorrupt)
		}
		if loop.closes(next) {
			return c, fmt.Errorf("a chain comes back to its cluster %d: %w", next, fsys.ErrCorrupt)
		}
		at = next
	}
}

// behind looks for a loop behind the last of n clusters that are in use. Twice
// their number is as far as one that leads back to them can escape notice.
func behind(w *window, at, n uint32, l *loop) error {
	if n == 1 {
		return nil
	}
	for range 2 * uint64(n) {
		next, err := w.entry(at)
		if err != nil {
			return err
		}
		if !w.table.Holds(next) {
			return nil
		}
		if l.closes(next) {
			return fmt.Errorf("a chain comes back to its cluster %d: %w", next, fsys.ErrCorrupt)
		}
		at = next
	}
	return nil
}

// loop finds cycles by Brent's algorithm: each step is compared with one cluster,
// which is replaced after 1, 2, 4, ... steps.
type loop struct {
	with        uint32
	steps, next uint64
}

func newLoop(first uint32) *loop { return &loop{with: first, next: 1} }

// closes reports that cluster c was seen before.
func (l *loop) closes(c uint32) bool {
	if c == l.with {
		return true
	}
	if l.steps++; l.steps == l.next {
		l.with, l.steps, l.next = c, 0, l.next*2
	}
	return false
}

// append adds a cluster.
func (c *Chain) append(cluster uint32) {
	if c.n == 0 || cluster != c.last+1 {
		if c.runs%c.step == 0 {
			c.mark(mark{c.n, cluster})
		}
		c.runs++
	}
	c.last = cluster
	c.n++
}

// mark keeps a mark, and forgets every other one when there are too many.
func (c *Chain) mark(m mark) {
	c.marks = append(c.marks, m)
	if len(c.marks) < maxMarks {
		return
	}
	for i := range maxMarks / 2 {
		c.marks[i] = c.marks[2*i]
	}
	c.marks = c.marks[:maxMarks/2]
	c.step *= 2
}

// run returns which cluster the one of an index is, and how many from there on
// are adjacent. It may tell of fewer.
func (c *Chain) run(index uint32) (cluster, n uint32, err error) {
	if index >= c.n {
		return 0, 0, fmt.Errorf("cluster %d of a chain of %d: %w", index, c.n, fsys.ErrCorrupt)
	}
	i := sort.Search(len(c.marks), func(i int) bool { return c.marks[i].index > index })
	m, end := c.marks[i-1], c.n
	if i < len(c.marks) {
		end = c.marks[i].index
	}
	if c.step == 1 {
		return m.cluster + (index - m.index), end - index, nil
	}
	w := &window{table: c.table}
	for m.index < index {
		if m.cluster, err = w.entry(m.cluster); err != nil {
			return 0, 0, err
		}
		m.index++
	}
	for n, at := uint32(1), m.cluster; ; n++ {
		if index+n == end {
			return m.cluster, n, nil
		}
		next, err := w.entry(at)
		if err != nil {
			return 0, 0, err
		}
		if next != at+1 {
			return m.cluster, n, nil
		}
		at = next
	}
}

// maxExtents is how many Extents returns at a time.
const maxExtents = 4096

// Extents returns where the bytes [off, off+n) of a chain lie. They may be fewer
// than there are, but at least one if n is not 0.
func (c *Chain) Extents(off, n int64) ([]fsys.Extent, error) {
	t := c.table
	var exts []fsys.Extent
	for n > 0 && len(exts) < maxExtents {
		at, run, err := c.run(uint32(min(off/t.Size, All)))
		if err != nil {
			return nil, err
		}
		within := off % t.Size
		e := fsys.Extent{Kind: fsys.Data, Off: off, Len: min(n, int64(run)*t.Size-within), At: t.Offset(at) + within}
		if e.At+e.Len > t.Volume.Size() {
			return nil, fmt.Errorf("cluster %d lies beyond the end of the volume: %w", at, fsys.ErrCorrupt)
		}
		exts = append(exts, e)
		off, n = off+e.Len, n-e.Len
	}
	return exts, nil
}

// ReadAt reads the bytes of a chain from a volume, which may be another view of
// the one that has the table.
func (c *Chain) ReadAt(v fsys.Volume, p []byte, off int64) error {
	for len(p) > 0 {
		exts, err := c.Extents(off, int64(len(p)))
		if err != nil {
			return err
		}
		for _, e := range exts {
			if err := v.ReadAt(p[:e.Len], e.At); err != nil {
				return err
			}
			p, off = p[e.Len:], off+e.Len
		}
	}
	return nil
}
