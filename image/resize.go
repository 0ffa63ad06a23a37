package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrShrink says that a disk was to be made smaller.
var ErrShrink = errors.New("disks cannot be made smaller")

// Resize makes the disk larger. What is new reads as zeroes, even where the
// backing file is longer than the disk was. The new size is durable when Resize
// returns; a crash before leaves the old one. Other operations wait.
func (w *Writer) Resize(ctx context.Context, size int64) error {
	if err := w.usable(); err != nil {
		return err
	}
	lock, err := w.locks.lock(ctx, 0, math.MaxInt64, false)
	if err != nil {
		return err
	}
	defer w.locks.unlock(lock)
	old := w.Size()
	switch {
	case size == old:
		return nil
	case size < old:
		return fmt.Errorf("resize from %d to %d bytes: %w", old, size, ErrShrink)
	}
	h := Header{Size: size, ClusterBits: w.header.ClusterBits, Incompatible: w.header.Incompatible}
	if h.l1Needed()*8 > maxL1Bytes {
		return fmt.Errorf("resize to %d bytes: too much for clusters of %d bytes", size, w.ClusterSize())
	}
	if err := w.resize(ctx, old, size, h.l1Needed()); err != nil {
		return fmt.Errorf("resize from %d to %d bytes: %w", old, size, err)
	}
	return nil
}

func (w *Writer) resize(ctx context.Context, old, size, l1Needed int64) error {
	if err := w.Flush(ctx); err != nil {
		return err
	}
	if err := w.growL1(l1Needed); err != nil {
		return err
	}
	if err := w.zeroNew(ctx, old, size); err != nil {
		return err
	}
	if err := w.Flush(ctx); err != nil {
		return err
	}
	w.flushMu.Lock()
	defer w.flushMu.Unlock()
	if err := w.patchHeader(24, binary.BigEndian.AppendUint64(nil, uint64(size))); err != nil {
		return err
	}
	w.limit.Store(size)
	w.size.Store(size)
	return nil
}

// growL1 moves the L1 table to where it has room for n entries. Nothing is dirty,
// and the caller keeps others from changing that.
func (w *Writer) growL1(n int64) error {
	w.flushMu.Lock()
	defer w.flushMu.Unlock()
	was := int64(len(w.l2.l1))
	if n <= was {
		return nil
	}
	bits, cs := w.header.ClusterBits, w.ClusterSize()
	w.mu.Lock()
	run, err := w.refs.allocExactly((n*8 + cs - 1) >> bits)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	l1 := make([]uint64, n)
	copy(l1, w.l2.l1)
	off := run.first << bits
	if err := w.moveL1(l1, off); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.failed == nil {
			w.failed = w.refs.release(run)
		}
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.give(w.header.L1Offset, max(was*8, 1))
	w.refs.reserve(off, n*8)
	w.l2.l1 = l1
	w.header.L1Size, w.header.L1Offset = uint32(n), off
	return nil
}

// moveL1 writes the table and has the header point to it. If it fails before the
// header may have been changed, the Writer stays usable.
func (w *Writer) moveL1(l1 []uint64, off int64) error {
	if err := writeAll(w.st, encodeEntries(l1), off); err != nil {
		return err
	}
	w.unsynced.Store(true)
	if err := w.flush(); err != nil { // the refcounts of its clusters with it
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(l1)))
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	if err := w.patchHeader(36, b); err != nil {
		return w.fail(err)
	}
	return nil
}

// zeroNew makes the bytes from old to size read as zeroes once they are part of
// the disk: what lies behind the old end in its last cluster, and what the
// backing file has there.
func (w *Writer) zeroNew(ctx context.Context, old, size int64) error {
	cs := w.ClusterSize()
	end := min(size, (old+cs-1)&^(cs-1))
	if w.backing != nil {
		end = max(end, min(size, w.backing.Size()))
	} else if w.hasBacking {
		end = size
	}
	if end <= old {
		return nil
	}
	w.limit.Store(size) // what is zeroed counts as part of the disk already
	defer w.limit.Store(old)
	g := w.l2.granule()
	lo := min((old+g-1)&^(g-1), end)
	if err := w.zeroTail(ctx, old, lo); err != nil {
		return err
	}
	hi := min((end+g-1)&^(g-1), max(lo, size))
	return w.zeroClusters(ctx, lo, hi, 0)
}

// zeroTail writes zeroes to [old, end), behind the old end of the disk, if their
// subcluster has data of its own; an unallocated one is written with what belongs
// before.
func (w *Writer) zeroTail(ctx context.Context, old, end int64) error {
	if old >= end {
		return nil
	}
	run, err := w.lookup(old, end-old)
	if err != nil || run.kind == zeroPlain || run.kind == zeroAlloc {
		return err
	}
	if run.kind == unallocated && w.backed(old, end-old) == 0 {
		return nil
	}
	for old < end {
		n := min(end-old, int64(len(someZeroes)))
		if err := w.write(ctx, someZeroes[:n], old); err != nil {
			return err
		}
		old += n
	}
	return nil
}
