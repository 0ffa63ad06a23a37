package image

import (
	"context"

	"github.com/sendense/sendense/block"
)

// WriteZeroes implements block.Zeroer. Whole clusters become zero without being
// written, except in version 2 files where something would show through. The
// edges of other clusters are written out, unless they read as zeroes already;
// with block.FastOnly that is refused before anything is changed.
//
// With block.MayTrim the host clusters are given up, without it they are kept.
func (w *Writer) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	if n == 0 {
		return block.CheckRange(w.Size(), off, 0)
	}
	lock, err := w.begin(ctx, off, n, false)
	if err != nil {
		return err
	}
	defer w.locks.unlock(lock)
	lo, hi := w.inner(off, off+n)
	if flags&block.FastOnly != 0 {
		if err := w.fast(off, off+n, lo, hi, flags); err != nil {
			return err
		}
	}
	if lo >= hi {
		return w.writeOutZeroes(ctx, off, n)
	}
	if err := w.writeOutZeroes(ctx, off, lo-off); err != nil {
		return err
	}
	if err := w.zeroClusters(ctx, lo, hi, flags); err != nil {
		return err
	}
	return w.writeOutZeroes(ctx, hi, off+n-hi)
}

// Trim implements block.Trimmer: whole clusters inside the range read as zeroes
// afterwards and keep no space. In a version 2 file with a backing file, which
// would show through, nothing happens.
func (w *Writer) Trim(ctx context.Context, off, n int64) error {
	if n == 0 {
		return block.CheckRange(w.Size(), off, 0)
	}
	lock, err := w.begin(ctx, off, n, false)
	if err != nil {
		return err
	}
	defer w.locks.unlock(lock)
	lo, hi := w.inner(off, off+n)
	if lo >= hi || w.mustWriteZeroes(block.MayTrim) {
		return nil
	}
	return w.zeroClusters(ctx, lo, hi, block.MayTrim)
}

// inner narrows a range to whole subclusters. The end of the disk ends the last.
func (w *Writer) inner(off, end int64) (lo, hi int64) {
	g := w.l2.granule()
	lo, hi = (off+g-1)&^(g-1), end&^(g-1)
	if end == w.Size() {
		hi = end
	}
	return lo, hi
}

// mustWriteZeroes reports whether even whole clusters have to be written out.
func (w *Writer) mustWriteZeroes(flags block.ZeroFlags) bool {
	return w.header.Version < 3 && (w.hasBacking || flags&block.MayTrim == 0)
}

// fast returns ErrNotFast if zeroing [off, end), whose whole clusters are
// [lo, hi), takes writing.
func (w *Writer) fast(off, end, lo, hi int64, flags block.ZeroFlags) error {
	edges := [][2]int64{{off, end}}
	if lo < hi && !w.mustWriteZeroes(flags) {
		edges = [][2]int64{{off, lo}, {hi, end}}
	}
	for _, e := range edges {
		for pos := e[0]; pos < e[1]; {
			n, zero, err := w.readsZero(pos, e[1]-pos)
			if err != nil {
				return err
			}
			if !zero {
				return block.ErrNotFast
			}
			pos += n
		}
	}
	return nil
}

// readsZero reports whether the bytes at off read as zeroes for certain, and for
// how many bytes, n at most, that answer holds.
func (w *Writer) readsZero(off, n int64) (int64, bool, error) {
	run, err := w.lookup(off, n)
	switch run.kind {
	case zeroPlain, zeroAlloc:
		return run.n, true, err
	case unallocated:
		if k := w.backed(off, run.n); k > 0 {
			return k, false, err
		}
		return run.n, w.backing != nil || !w.hasBacking, err
	}
	return run.n, false, err
}

// someZeroes is what is written out.
var someZeroes [256 << 10]byte

// writeOutZeroes writes zeroes where the disk does not read as such already.
func (w *Writer) writeOutZeroes(ctx context.Context, off, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, zero, err := w.readsZero(off, min(n, int64(len(someZeroes))))
		if err != nil {
			return err
		}
		if !zero {
			if err := w.write(ctx, someZeroes[:k], off); err != nil {
				return err
			}
		}
		off, n = off+k, n-k
	}
	return nil
}

// zeroClusters zeroes whole subclusters, table by table.
func (w *Writer) zeroClusters(ctx context.Context, lo, hi int64, flags block.ZeroFlags) error {
	if w.mustWriteZeroes(flags) {
		return w.writeOutZeroes(ctx, lo, hi-lo)
	}
	tableBytes := w.l2.perTable() << w.header.ClusterBits
	for lo < hi {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.relieve(ctx); err != nil {
			return err
		}
		end := min(hi, (lo/tableBytes+1)*tableBytes)
		rest, err := w.zeroTable(lo, end, flags)
		if err != nil {
			return err
		}
		// What is left is part of a cluster that cannot be zeroed by halves.
		if rest < end {
			next := min(end, (rest>>w.header.ClusterBits+1)<<w.header.ClusterBits)
			if err := w.writeOutZeroes(ctx, rest, next-rest); err != nil {
				return err
			}
			rest = next
		}
		lo = rest
	}
	return nil
}

// zeroTable zeroes [lo, end), which one L2 table describes, and returns how far
// it came.
func (w *Writer) zeroTable(lo, end int64, flags block.ZeroFlags) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	per := w.l2.perTable()
	bits := w.header.ClusterBits
	i := lo >> bits / per
	if !w.hasBacking && w.l2.l1[i]&entryOffset == 0 {
		return end, nil
	}
	table, err := w.tableFor(i, false)
	if err != nil {
		return lo, err
	}
	for lo < end {
		c := lo >> bits
		old, err := w.l2.entry(table, c%per)
		if err != nil {
			return lo, err
		}
		next := min(end, (c+1)<<bits)
		g, ok := w.zeroed(old, w.touched(c, lo, next-lo), flags)
		if !ok {
			return lo, nil
		}
		if g != old {
			w.l2.setEntry(table, c%per, g)
		}
		if old.holds() && g.host != old.host || old.desc != 0 {
			w.giveCluster(old)
		}
		lo = next
	}
	return lo, nil
}

// zeroed returns what becomes of an entry when some of its subclusters are
// zeroed; false if that takes writing.
func (w *Writer) zeroed(old guestCluster, which uint32, flags block.ZeroFlags) (guestCluster, bool) {
	all := w.l2.all()
	if !w.hasBacking && !old.holds() && old.zero&which != which {
		// Unallocated subclusters of a file without backing read as zeroes.
		return old, true
	}
	g := guestCluster{zero: all}
	if which != all {
		if old.desc != 0 || old.host != 0 && !old.copied {
			return old, false
		}
		g = old
		g.alloc &^= which
		g.zero |= which
	}
	if old.private() {
		g.host, g.copied = old.host, true
		if flags&block.MayTrim != 0 && g.alloc == 0 {
			g.host, g.copied = 0, false
		}
	}
	if w.header.Version < 3 { // nothing shows through here, see mustWriteZeroes
		g.zero = 0
	}
	return g, true
}
