package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// IngestStats say what became of what was written to a draft.
type IngestStats struct {
	DigestSummary       // of what the draft holds
	Stored        int64 // whole clusters of data written
	Dropped       int64 // whole clusters that the parent has, or zeroes over zeroes
}

// finishChunk is for how many clusters Finish handles digests at a time.
const finishChunk = 1024

// Finish makes the draft durable and writes the digests of exactly what it holds
// to out, whose durability is the caller's affair. Requests that come after it
// began are refused. The Writer is still open afterwards.
func (d *Ingest) Finish(ctx context.Context, out io.Writer) (IngestStats, error) {
	s, err := d.finish(ctx, out)
	if err != nil {
		return IngestStats{}, fmt.Errorf("finish draft %s: %w", d.w.Path(), err)
	}
	return s, nil
}

func (d *Ingest) finish(ctx context.Context, out io.Writer) (IngestStats, error) {
	if d.finished.Swap(true) {
		return IngestStats{}, errors.New("it is finished already")
	}
	if d.size > 0 {
		// Wait for requests under way.
		lock, err := d.locks.lock(ctx, 0, (d.size-1)/d.cs, false)
		if err != nil {
			return IngestStats{}, err
		}
		defer d.locks.unlock(lock)
	}
	if err := d.ownEnd(ctx); err != nil {
		return IngestStats{}, err
	}
	if err := d.w.Flush(ctx); err != nil {
		return IngestStats{}, err
	}
	w, err := NewDigestWriter(out, DigestOptions{ClusterSize: d.cs, Size: d.size})
	if err != nil {
		return IngestStats{}, err
	}
	if err := d.writeDigests(ctx, w); err != nil {
		return IngestStats{}, err
	}
	sum, err := w.Finish()
	return IngestStats{DigestSummary: sum, Stored: d.stored.Load(), Dropped: d.dropped.Load()}, err
}

// ownEnd makes the draft hold its last cluster if the disk shrank to end in the
// middle of it: the parent's digest of that cluster is of more than is left.
func (d *Ingest) ownEnd(ctx context.Context) error {
	rest := d.size % d.cs
	if rest == 0 || d.parent == nil || d.parent.Size() <= d.size || d.held.get(d.size/d.cs) {
		return nil
	}
	b := make([]byte, rest)
	if err := d.w.ReadAt(ctx, b, d.size-rest); err != nil {
		return err
	}
	d.touch(d.size-rest, rest)
	return d.w.WriteAt(ctx, b, d.size-rest)
}

// writeDigests goes through what the file holds, which is what counts.
func (d *Ingest) writeDigests(ctx context.Context, w *DigestWriter) error {
	f, err := OpenFile(d.w.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Runs(ctx, 0, d.size, func(r Run) error {
		first, n := r.Off/d.cs, clusterCount(r.Len, d.cs)
		if r.Content == Zeroed {
			return w.AddZeroes(first, n)
		}
		for n > 0 {
			k := min(n, finishChunk)
			sums, err := d.sums(ctx, first, k)
			if err != nil {
				return err
			}
			for i, s := range sums {
				if err := w.Add(first+int64(i), s); err != nil {
					return err
				}
			}
			first, n = first+k, n-k
		}
		return nil
	})
}

// sums returns the digests of n clusters that the draft holds: those taken on the
// way, the others by reading, on all processors.
func (d *Ingest) sums(ctx context.Context, first, n int64) ([]Digest, error) {
	b := make([]byte, n*DigestSize)
	if err := readPadded(d.scratch, b, first*DigestSize); err != nil {
		return nil, err
	}
	sums := make([]Digest, n)
	var missing []int64
	for i := range n {
		if d.known.get(first + i) {
			sums[i] = Digest(b[i*DigestSize:])
		} else {
			missing = append(missing, i)
		}
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(missing)) {
		g.Go(func() error {
			buf := d.bufs.Get().(*[]byte)
			defer d.bufs.Put(buf)
			for k := next.Add(1) - 1; k < int64(len(missing)); k = next.Add(1) - 1 {
				i := missing[k]
				off := (first + i) * d.cs
				size := min(d.cs, d.size-off)
				if err := d.w.ReadAt(ctx, (*buf)[:size], off); err != nil {
					return err
				}
				clear((*buf)[size:])
				sums[i] = Sum(*buf)
			}
			return nil
		})
	}
	return sums, g.Wait()
}

// bitset is a set of cluster numbers that several goroutines may change.
type bitset []uint64

func newBitset(n int64) bitset { return make(bitset, (n+63)/64) }

func (s bitset) get(i int64) bool { return atomic.LoadUint64(&s[i/64])>>(i%64)&1 != 0 }

// each calls fn for each word that holds some of n bits from i on.
func (s bitset) each(i, n int64, fn func(word *uint64, mask uint64)) {
	for n > 0 {
		k := min(n, 64-i%64)
		mask := ^uint64(0) >> (64 - k) << (i % 64)
		fn(&s[i/64], mask)
		i, n = i+k, n-k
	}
}

func (s bitset) setRange(i, n int64) {
	s.each(i, n, func(w *uint64, m uint64) { atomic.OrUint64(w, m) })
}

func (s bitset) clearRange(i, n int64) {
	s.each(i, n, func(w *uint64, m uint64) { atomic.AndUint64(w, ^m) })
}
