package image

import (
	"context"
	"errors"
	"fmt"
)

// mergeStep is how many bytes Merge moves under one lock.
const mergeStep = 4 << 20

// Merge copies into child whatever parent holds and child lacks, explicit zeroes
// included, and flushes child, which afterwards reads the same over parent's own
// backing file as it does over parent. Making it so is the caller's next step:
// [Writer.Rebase], and only then parent may go.
//
// parent is the layer directly below, opened alone, and child was opened with a
// backing device that reads as parent with all that is below it. What child reads
// never changes on the way. Merge may be stopped or killed at any instant and
// done again: clusters that child has are passed over.
//
// Clusters are copied as they lie, compressed ones as streams, if both files have
// the same cluster size, and inside the kernel where it can; other cluster sizes,
// compression types and subclusters are read through. A child longer than its
// parent gets explicit zeroes behind the parent's end, lest the grandparent shows
// there.
//
// progress, if not nil, is told from time to time how many of child's bytes were
// looked at. Readers that have parent and child open may go on.
func Merge(ctx context.Context, child *Writer, parent *File, progress func(done, total int64)) error {
	m, err := newMerger(child, parent)
	if err == nil {
		err = m.run(ctx, progress)
	}
	if err != nil {
		return fmt.Errorf("merge %s into %s: %w", parent.Path(), child.Path(), err)
	}
	return nil
}

// merger is a merge under way.
type merger struct {
	child  *Writer
	parent *l2Tables
	data   storage // where parent's guest data lie
	end    int64   // bytes that parent has
	alike  bool    // clusters can be copied as they lie
	stream bool    // compressed ones too
	below  bool    // there is something below parent
	buf    []byte
}

func newMerger(child *Writer, parent *File) (*merger, error) {
	if child.backing == nil {
		return nil, errors.New("child is open without its backing device")
	}
	h := parent.header
	// Tables are visited in order: few are needed at a time.
	tables, err := newL2Tables(diskFile{parent.meta}, h, 0)
	if err != nil {
		return nil, err
	}
	alike := h.ClusterBits == child.header.ClusterBits && !h.hasExtendedL2() && !child.l2.extended
	return &merger{
		child: child, parent: tables, data: diskFile{parent.data}, end: h.Size, alike: alike,
		stream: alike && h.Compression == child.header.Compression && !h.hasDataFile(),
		below:  h.BackingFile != "",
		buf:    make([]byte, max(1<<20, child.ClusterSize())),
	}, nil
}

func (m *merger) run(ctx context.Context, progress func(done, total int64)) error {
	size := m.child.Size()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.child.relieve(ctx); err != nil {
			return err
		}
		n, err := m.step(ctx, off, size)
		if err != nil {
			return err
		}
		off += n
		if progress != nil {
			progress(min(off, size), size)
		}
	}
	return m.child.Flush(ctx)
}

// step deals with some of the bytes from off on and returns how many.
func (m *merger) step(ctx context.Context, off, size int64) (int64, error) {
	run, err := m.child.lookup(off, size-off)
	if err != nil || run.kind != unallocated {
		return run.n, err
	}
	held, n, err := m.held(off, run.n)
	if err != nil || held == unallocated {
		return n, err
	}
	lock, err := m.child.begin(ctx, off, n, false)
	if err != nil {
		return 0, err
	}
	defer m.child.locks.unlock(lock)
	// Somebody else may have written there since.
	if run, err = m.child.lookup(off, n); err != nil || run.kind != unallocated {
		return run.n, err
	}
	return min(n, run.n), m.bring(ctx, off, min(n, run.n), held)
}

// readThrough is what held calls ranges that are not of one kind, or not to be
// had as they are.
const readThrough = invalidEntry

// held says how parent holds the bytes from off on, which child lacks, and for how
// many that is true: whole subclusters of child, unless they end at n.
func (m *merger) held(off, n int64) (clusterKind, int64, error) {
	g := m.child.l2.granule()
	if off >= m.end {
		if !m.below {
			return unallocated, n, nil
		}
		return zeroPlain, min(n, m.child.l2.perTable()<<m.child.header.ClusterBits), nil
	}
	kind, have, err := m.parentRun(off, min(n, m.end-off, mergeStep))
	if err != nil {
		return 0, 0, err
	}
	if have < n { // only whole subclusters, unless it is the last
		have &^= g - 1
	}
	switch {
	case have == 0:
		return readThrough, min(g, n), nil
	case kind == zeroPlain && !m.below:
		kind = unallocated
	case kind == compressed && m.stream:
		have = min(have, m.child.ClusterSize())
	case kind == compressed, kind == normal && !m.alike:
		kind = readThrough
	}
	return kind, have, nil
}

// parentRun says of what kind the bytes from off on are in parent, and for how
// many that holds, n at most.
func (m *merger) parentRun(off, n int64) (clusterKind, int64, error) {
	var kind clusterKind
	have := int64(0)
	for have < n {
		run, err := m.parent.lookup(off+have, n-have)
		if err != nil {
			return 0, 0, err
		}
		if run.kind == zeroAlloc {
			run.kind = zeroPlain
		}
		if have > 0 && run.kind != kind {
			break
		}
		kind, have = run.kind, have+run.n
	}
	return kind, have, nil
}

// bring gives child the bytes at off, all of which it lacks.
func (m *merger) bring(ctx context.Context, off, n int64, held clusterKind) error {
	switch held {
	case zeroPlain:
		return m.zero(ctx, off, n)
	case normal:
		return m.copyClusters(off, n)
	case compressed:
		return m.copyStream(off)
	}
	for n > 0 {
		p := m.buf[:min(n, int64(len(m.buf)))]
		if err := m.child.read(ctx, p, off); err != nil {
			return err
		}
		if isZero(p) && m.child.header.Version >= 3 {
			if err := m.zero(ctx, off, int64(len(p))); err != nil {
				return err
			}
		} else if err := m.child.write(ctx, p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// zero makes a range of child explicit zeroes.
func (m *merger) zero(ctx context.Context, off, n int64) error {
	if m.child.header.Version >= 3 {
		return m.child.zeroClusters(ctx, off, off+n, 0)
	}
	for n > 0 {
		k := min(n, int64(len(someZeroes)))
		if err := m.child.write(ctx, someZeroes[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// copyClusters copies whole clusters as they lie. The last one may end beyond the
// end of the disk.
func (m *merger) copyClusters(off, n int64) error {
	cs := m.child.ClusterSize()
	for end := off + n; off < end; {
		from, err := m.parent.lookup(off, end-off)
		if err != nil {
			return err
		}
		s, err := m.child.place(off, min(end, off+from.n)-off, false)
		if err != nil {
			return err
		}
		err = copyRange(m.child.st, s.host, m.data, from.host, s.n*cs, m.buf)
		m.child.unsynced.Store(true)
		if err != nil {
			m.child.abandon(s)
			return err
		}
		if err := m.child.commit(s, off, min(s.n*cs, end-off)); err != nil {
			return err
		}
		off += s.n * cs
	}
	return nil
}

// copyStream copies one compressed cluster. How long the stream is, is known only
// in sectors: it begins on one, so that copies of the copy take no more.
func (m *merger) copyStream(off int64) error {
	from, err := m.parent.lookup(off, 1)
	if err != nil {
		return err
	}
	host, n := decodeCompressed(from.desc, m.child.header.ClusterBits)
	return m.child.storeStream(off, n, 512, func(to int64) error {
		err := copyRange(m.child.st, to, m.data, host, n, m.buf)
		m.child.unsynced.Store(true)
		return err
	})
}
