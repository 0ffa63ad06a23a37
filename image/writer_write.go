package image

import (
	"context"
	"errors"

	"github.com/sendense/sendense/block"
)

// placement is a run of guest clusters that one write fills, as far as it concerns
// them, in one run of host clusters.
type placement struct {
	table *metaTable // pinned
	index int64      // of the first entry in table
	n     int64      // clusters
	host  int64      // of the first cluster
	// inPlace: the entries stay as they are. Else they change once the data is
	// written.
	inPlace bool
	// taken: the host clusters were allocated for this write.
	taken bool
	// fresh: they read as zeroes because nobody ever wrote there.
	fresh bool
}

// WriteAt implements block.Writer. What a new cluster needs besides p is copied
// from what it read as before.
func (w *Writer) WriteAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return block.CheckRange(w.Size(), off, 0)
	}
	lock, err := w.begin(ctx, off, int64(len(p)), true)
	if err != nil {
		return err
	}
	done, err := w.overwrite(p, off)
	w.locks.unlock(lock)
	if done || err != nil {
		return err
	}
	if lock, err = w.begin(ctx, off, int64(len(p)), false); err != nil {
		return err
	}
	defer w.locks.unlock(lock)
	return w.write(ctx, p, off)
}

// overwrite writes p if all of it goes to one run of host clusters that are
// written in place. The caller may share its lock: nothing else is changed.
func (w *Writer) overwrite(p []byte, off int64) (done bool, err error) {
	s, err := w.place(off, int64(len(p)), true)
	if err != nil || s.table == nil {
		return false, err
	}
	defer w.unpin(s)
	cs := w.ClusterSize()
	if !s.inPlace || s.n < (off+int64(len(p))-1)/cs-off/cs+1 {
		return false, nil
	}
	return true, w.put(p, s.host+off%cs)
}

// write writes p; the caller has its clusters to itself.
func (w *Writer) write(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		if err := w.relieve(ctx); err != nil {
			return err
		}
		s, err := w.place(off, int64(len(p)), false)
		if err != nil {
			return err
		}
		cs := w.ClusterSize()
		n := min(int64(len(p)), s.n*cs-off%cs)
		if err := w.fill(ctx, s, p[:n], off); err != nil {
			w.abandon(s)
			return err
		}
		if err := w.commit(s, off, n); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// place decides where the bytes at off, n at most, go, and allocates what that
// takes. With peek it allocates nothing and the placement may be empty.
func (w *Writer) place(off, n int64, peek bool) (placement, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := off >> w.header.ClusterBits
	per := w.l2.perTable()
	table, err := w.tableFor(first/per, peek)
	if err != nil || table == nil {
		return placement{}, err
	}
	s := placement{table: table, index: first % per}
	last := min((off+n-1)>>w.header.ClusterBits-first+s.index, per-1)
	for i := s.index; i <= last; i++ {
		g, err := w.l2.entry(table, i)
		if err != nil {
			if s.n > 0 {
				break
			}
			return s, err
		}
		inPlace := g.private() && w.touched(first+s.n, off, n)&^g.alloc == 0
		host := int64(0)
		if g.private() {
			host = g.host
		}
		if s.n == 0 {
			s.inPlace, s.host = inPlace, host
		} else if inPlace != s.inPlace || host != s.next(w.ClusterSize()) {
			break
		}
		s.n++
	}
	if s.host == 0 {
		if peek {
			return placement{}, nil
		}
		if err := w.take(&s); err != nil {
			return s, err
		}
	}
	if !s.taken {
		at := s.host >> w.header.ClusterBits
		if at+s.n > w.refs.virgin {
			return s, corrupt("cluster at %#x, beyond the end of the file", s.host)
		}
		if err := w.refs.guard(at, s.n); err != nil {
			return s, err
		}
	}
	table.pins++
	return s, nil
}

// next is where the host cluster behind the placement would be; 0 if it has none yet.
func (s *placement) next(clusterSize int64) int64 {
	if s.host == 0 {
		return 0
	}
	return s.host + s.n*clusterSize
}

// take allocates host clusters for the placement, which becomes shorter if there are
// not as many side by side.
func (w *Writer) take(s *placement) error {
	virgin := w.refs.virgin
	run, err := w.refs.alloc(s.n)
	if err != nil {
		return err
	}
	s.n, s.host, s.taken = run.n, run.first<<w.header.ClusterBits, true
	s.fresh = run.first >= virgin
	w.stats.DataBytes += run.n << w.header.ClusterBits
	return nil
}

// touched returns the subclusters of cluster c that [off, off+n) has a part in.
func (w *Writer) touched(c, off, n int64) uint32 {
	if !w.l2.extended {
		return 1
	}
	start := c << w.header.ClusterBits
	g := w.l2.granule()
	lo := max(off-start, 0) / g
	hi := (min(off+n-start, w.ClusterSize()) + g - 1) / g
	return uint32(1<<hi - 1<<lo)
}

// fill writes p to the placement, and around it what its first and last
// subclusters need to become whole. A cluster with such an edge is written in one
// go, so that no sector is ever written in parts.
func (w *Writer) fill(ctx context.Context, s placement, p []byte, off int64) error {
	cs := w.ClusterSize()
	start := off &^ (cs - 1)
	if s.inPlace {
		return w.put(p, s.host+off-start)
	}
	lo, hi, err := w.edges(s, off, off+int64(len(p)))
	if err != nil {
		return err
	}
	if lo < off {
		n := min(int64(len(p)), start+cs-off)
		to := off + n
		if n == int64(len(p)) {
			to = hi
		}
		if err := w.putWithin(ctx, p[:n], off, lo, to, s.host+lo-start); err != nil || n == int64(len(p)) {
			return err
		}
		p, off = p[n:], off+n
	}
	end := off + int64(len(p))
	if hi == end {
		return w.put(p, s.host+off-start)
	}
	if last := (end - 1) &^ (cs - 1); last > off {
		if err := w.put(p[:last-off], s.host+off-start); err != nil {
			return err
		}
		p, off = p[last-off:], last
	}
	return w.putWithin(ctx, p, off, off, hi, s.host+off-start)
}

// edges widens [off, end) to the subclusters, or clusters, that will count as
// written, as far as there is something to be written there.
func (w *Writer) edges(s placement, off, end int64) (lo, hi int64, err error) {
	cs := w.ClusterSize()
	w.mu.Lock()
	head, err := w.l2.entry(s.table, s.index)
	tail, err2 := w.l2.entry(s.table, s.index+s.n-1)
	w.mu.Unlock()
	if err != nil || err2 != nil {
		return 0, 0, errors.Join(err, err2)
	}
	lo, hi = off, end
	if u := w.unit(head, s); off&(u-1) != 0 && !w.stored(head, s, off&(cs-1)) {
		if lo = off &^ (u - 1); s.fresh && w.surelyZero(lo, off) {
			lo = off
		}
	}
	if u := w.unit(tail, s); end&(u-1) != 0 && !w.stored(tail, s, (end-1)&(cs-1)) {
		if hi = (end + u - 1) &^ (u - 1); s.fresh && w.surelyZero(end, hi) {
			hi = end
		}
	}
	return lo, hi, nil
}

// surelyZero reports whether a range reads as zeroes because of what stands in the
// tables.
func (w *Writer) surelyZero(from, to int64) bool {
	for from < to {
		n, zero, err := w.readsZero(from, to-from)
		if err != nil || !zero {
			return false
		}
		from += n
	}
	return true
}

// unit is the size of the pieces in which a cluster of the placement becomes written:
// all of it if it moves and there is something to be moved.
func (w *Writer) unit(old guestCluster, s placement) int64 {
	if s.taken && (old.desc != 0 || old.alloc != 0) {
		return w.ClusterSize()
	}
	return w.l2.granule()
}

// stored reports whether the subcluster at byte in of a cluster of the placement has
// its data in place already.
func (w *Writer) stored(old guestCluster, s placement, in int64) bool {
	return !s.taken && old.alloc>>(in/w.l2.granule())&1 != 0
}

// putWithin writes p, which belongs at off, together with what the disk reads as
// around it: bytes [lo, hi) of one cluster.
func (w *Writer) putWithin(ctx context.Context, p []byte, off, lo, hi, host int64) error {
	buf := w.buffer()
	defer w.bufs.Put(buf)
	b := (*buf)[:hi-lo]
	if err := w.readOld(ctx, b[:off-lo], lo); err != nil {
		return err
	}
	n := copy(b[off-lo:], p)
	if err := w.readOld(ctx, b[off-lo+int64(n):], off+int64(n)); err != nil {
		return err
	}
	return w.put(b, host)
}

// readOld is read with zeroes for what lies behind the end of the disk.
func (w *Writer) readOld(ctx context.Context, b []byte, off int64) error {
	if err := w.read(ctx, b, off); err != nil {
		return err
	}
	if end := w.limit.Load(); off+int64(len(b)) > end {
		clear(b[min(int64(len(b)), max(0, end-off)):])
	}
	return nil
}

// writebackStep is how much data is written before the kernel is asked to begin
// writing it out.
const writebackStep = 8 << 20

// put writes guest data to the file.
func (w *Writer) put(p []byte, host int64) error {
	err := writeAll(w.st, p, host)
	w.unsynced.Store(true)
	if end := host + int64(len(p)); err == nil && end/writebackStep != host/writebackStep {
		// Sequential writes have filled a step. What other goroutines are still
		// writing of it waits for the sync.
		last := end &^ (writebackStep - 1)
		startWriteback(w.st, last-writebackStep, writebackStep)
	}
	return err
}

// commit makes the entries of a placement refer to what was written.
func (w *Writer) commit(s placement, off, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.table.pins--
	if s.inPlace {
		return nil
	}
	first := off >> w.header.ClusterBits
	for i := range s.n {
		old, err := w.l2.entry(s.table, s.index+i)
		if err != nil {
			return err
		}
		g := guestCluster{host: s.host + i<<w.header.ClusterBits, copied: true}
		if s.taken && (old.desc != 0 || old.alloc != 0) {
			g.alloc = w.l2.all()
		} else {
			t := w.touched(first+i, off, n)
			g.alloc, g.zero = old.alloc|t, old.zero&^t
		}
		w.l2.setEntry(s.table, s.index+i, g)
		if s.taken {
			w.giveCluster(old)
		}
	}
	return nil
}

// giveCluster gives up what an entry referred to.
func (w *Writer) giveCluster(old guestCluster) {
	switch {
	case old.desc != 0:
		host, size := decodeCompressed(old.desc, w.header.ClusterBits)
		w.give(host, size)
	case old.host != 0:
		w.give(old.host, w.ClusterSize())
		w.stats.DataBytes -= w.ClusterSize()
	}
}

// abandon frees what was allocated for a placement that could not be written.
func (w *Writer) abandon(s placement) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.table.pins--
	if !s.taken {
		return
	}
	w.stats.DataBytes -= s.n << w.header.ClusterBits
	if err := w.refs.release(hostRun{s.host >> w.header.ClusterBits, s.n}); err != nil && w.failed == nil {
		w.failed = err
	}
}

func (w *Writer) unpin(s placement) {
	w.mu.Lock()
	s.table.pins--
	w.mu.Unlock()
}

// tableFor returns the L2 table with index i, made for writing: there is one, and
// no snapshot shares it. With peek it returns nil where that takes a change.
func (w *Writer) tableFor(i int64, peek bool) (*metaTable, error) {
	t := w.l2
	if t.l1[i]&entryCopied != 0 && t.l1[i]&entryOffset != 0 {
		return t.load(i)
	}
	if peek {
		return nil, nil
	}
	old, err := t.load(i)
	if err != nil {
		return nil, err
	}
	data := t.room()
	clear(data)
	if old != nil {
		copy(data, old.data)
	}
	run, err := w.refs.alloc(1)
	if err != nil {
		return nil, err
	}
	if old != nil {
		w.give(old.off, w.ClusterSize())
	}
	m := t.cache.add(i, run.first<<w.header.ClusterBits, data)
	w.refs.reserve(m.off, 1)
	t.cache.touch(m, 0, len(data))
	t.l1[i] = uint64(m.off) | entryCopied
	w.touchL1(int(i))
	return m, nil
}

// forgetPacking is told of each cluster that became free.
func (w *Writer) forgetPacking(cluster int64) {
	if w.packing != 0 && (w.packing-1)>>w.header.ClusterBits == cluster {
		w.packing = 0
	}
}
