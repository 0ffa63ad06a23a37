package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/block"
)

// IngestOptions say what a draft builds on and how it is stored.
type IngestOptions struct {
	// Parent is the chain that backs the draft. Default: none, a full.
	Parent *Chain
	// ParentDigests are those of Parent.Layers, in that order, and of the draft's
	// cluster size. Default: content is compared byte by byte.
	ParentDigests []*Digests
	// Compress stores clusters in compressed form where that gains something.
	Compress bool
}

// Ingest is the device through which a draft is written. It keeps out what need
// not be stored: zeroes over zeroes, and whole clusters whose content is that of
// the parent. Of the other whole clusters it takes the digests on the way, of
// those that were written in parts at the end.
//
// It is a block.Device with every capability but block.Changer. Requests for
// different clusters are hashed, compressed and written in parallel; requests for
// the same cluster one after another, so that digest and content agree. Beyond
// what the Writer takes it needs two bits of memory for each cluster of the disk
// (10 MiB for each TiB at 64 KiB), up to 32 MiB for digests of the parent, and a
// file without a name beside the draft for its own.
type Ingest struct {
	w        *Writer
	parent   *Chain
	digests  *digestMap // nil: compare bytes
	compress bool
	size     int64
	cs       int64
	zeroSum  Digest

	locks    rangeLocks
	held     bitset   // clusters that the draft holds
	known    bitset   // clusters whose digest is in scratch
	scratch  *os.File // digest of cluster c at c*DigestSize
	bufs     sync.Pool
	finished atomic.Bool

	stored, dropped atomic.Int64 // whole clusters
}

var (
	_ block.Mapper  = (*Ingest)(nil)
	_ block.Writer  = (*Ingest)(nil)
	_ block.Zeroer  = (*Ingest)(nil)
	_ block.Trimmer = (*Ingest)(nil)
	_ block.Flusher = (*Ingest)(nil)
	_ block.Locator = (*Ingest)(nil)
)

// NewIngest puts an Ingest before w, whose backing is o.Parent. What the file
// holds already is kept: its digests are computed at the end. Close releases what
// the Ingest itself takes and leaves w, the chain and the digests open.
func NewIngest(ctx context.Context, w *Writer, o IngestOptions) (*Ingest, error) {
	d, err := newIngest(ctx, w, o)
	if err != nil {
		return nil, fmt.Errorf("begin draft %s: %w", w.Path(), err)
	}
	return d, nil
}

func newIngest(ctx context.Context, w *Writer, o IngestOptions) (*Ingest, error) {
	d := &Ingest{w: w, parent: o.Parent, compress: o.Compress, size: w.Size(), cs: w.ClusterSize()}
	if len(o.ParentDigests) > 0 {
		m, err := newDigestMap(o.ParentDigests)
		if err != nil {
			return nil, err
		}
		if o.Parent == nil || m.layers[0].opts.ClusterSize != d.cs || len(m.layers) != len(o.Parent.Layers()) {
			return nil, errors.New("the digests are not those of the parent")
		}
		d.digests = m
	}
	n := clusterCount(d.size, d.cs)
	d.held, d.known = newBitset(n), newBitset(n)
	d.bufs.New = func() any { b := make([]byte, d.cs); return &b }
	d.zeroSum = Sum(make([]byte, d.cs))
	if err := d.noteHeld(ctx); err != nil {
		return nil, err
	}
	var err error
	d.scratch, err = openScratch(filepath.Dir(w.Path()))
	return d, err
}

// noteHeld finds out what the file holds to begin with.
func (d *Ingest) noteHeld(ctx context.Context) error {
	if err := d.w.Flush(ctx); err != nil {
		return err
	}
	f, err := OpenFile(d.w.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Runs(ctx, 0, d.size, func(r Run) error {
		d.held.setRange(r.Off/d.cs, clusterCount(r.Off+r.Len, d.cs)-r.Off/d.cs)
		return nil
	})
}

// openScratch opens a file that vanishes with its descriptor.
func openScratch(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	// A file system without O_TMPFILE.
	if f, err = os.CreateTemp(dir, ".digests-*.partial"); err != nil {
		return nil, fmt.Errorf("open file for digests: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("open file for digests: %w", err), f.Close())
	}
	return f, nil
}

// Close gives up what the Ingest holds. The draft's file is the Writer's affair.
func (d *Ingest) Close() error {
	d.finished.Store(true)
	return d.scratch.Close()
}

// Size returns the virtual size in bytes.
func (d *Ingest) Size() int64 { return d.size }

// ClusterSize returns the unit of digests and of storage in bytes.
func (d *Ingest) ClusterSize() int64 { return d.cs }

// ReadAt implements block.Device: what was written, else what the parent has.
func (d *Ingest) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.w.ReadAt(ctx, p, off)
}

// Map implements block.Mapper.
func (d *Ingest) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	return d.w.Map(ctx, off, n)
}

// Locate implements block.Locator.
func (d *Ingest) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	return d.w.Locate(ctx, dst, off, n)
}

// Flush implements block.Flusher.
func (d *Ingest) Flush(ctx context.Context) error { return d.w.Flush(ctx) }

// begin checks a request and waits for its clusters.
func (d *Ingest) begin(ctx context.Context, off, n int64) (*rangeLock, error) {
	if err := block.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	if d.finished.Load() {
		return nil, fmt.Errorf("draft %s is finished: %w", d.w.Path(), block.ErrReadOnly)
	}
	return d.locks.lock(ctx, off/d.cs, (off+n-1)/d.cs, false)
}

// whole returns the part of [off, end) that consists of whole clusters; the end
// of the disk ends the last. lo >= hi if there is none.
func (d *Ingest) whole(off, end int64) (lo, hi int64) {
	lo, hi = (off+d.cs-1)/d.cs*d.cs, end/d.cs*d.cs
	if end == d.size {
		hi = end
	}
	return lo, hi
}

// WriteAt implements block.Writer.
func (d *Ingest) WriteAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return block.CheckRange(d.size, off, 0)
	}
	lock, err := d.begin(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer d.locks.unlock(lock)
	end := off + int64(len(p))
	lo, hi := d.whole(off, end)
	if lo >= hi {
		return d.writePart(ctx, p, off)
	}
	if err := d.writePart(ctx, p[:lo-off], off); err != nil {
		return err
	}
	if err := d.writeWhole(ctx, p[lo-off:hi-off], lo); err != nil {
		return err
	}
	return d.writePart(ctx, p[hi-off:], hi)
}

// writePart writes parts of clusters. Their digests have to wait for the end.
func (d *Ingest) writePart(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	d.touch(off, int64(len(p)))
	return d.w.WriteAt(ctx, p, off)
}

// touch notes that the draft is about to hold a range whose digests are unknown.
func (d *Ingest) touch(off, n int64) {
	first, count := off/d.cs, (off+n-1)/d.cs-off/d.cs+1
	d.known.clearRange(first, count)
	d.held.setRange(first, count)
}

// verdict is what becomes of a whole cluster that is written.
type verdict uint8

const (
	drop  verdict = iota // the draft reads like that without it
	zero                 // explicit zeroes
	store                // data
)

// writeWhole writes whole clusters: each run of them that is to be kept at once,
// so that it stays in one piece.
func (d *Ingest) writeWhole(ctx context.Context, p []byte, off int64) error {
	n := clusterCount(int64(len(p)), d.cs)
	sums := make([]Digest, n)
	verdicts := make([]verdict, n)
	for i := range n {
		b := p[i*d.cs : min((i+1)*d.cs, int64(len(p)))]
		v, err := d.judge(ctx, b, off/d.cs+i, &sums[i])
		if err != nil {
			return err
		}
		verdicts[i] = v
	}
	for i, j := int64(0), int64(0); i < n; i = j {
		for j = i + 1; j < n && verdicts[j] == verdicts[i]; {
			j++
		}
		at, end := i*d.cs, min(j*d.cs, int64(len(p)))
		var err error
		switch verdicts[i] {
		case drop:
			d.dropped.Add(j - i)
		case zero:
			d.touch(off+at, end-at)
			err = d.w.WriteZeroes(ctx, off+at, end-at, block.MayTrim)
		case store:
			err = d.store(ctx, p[at:end], off+at, sums[i:j])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// judge decides what becomes of whole cluster c with content b, and leaves its
// digest in sum if that is to store it.
func (d *Ingest) judge(ctx context.Context, b []byte, c int64, sum *Digest) (verdict, error) {
	held := d.held.get(c)
	if isZero(b) {
		if held {
			return zero, nil
		}
		same, err := d.parentZero(ctx, c*d.cs, int64(len(b)))
		if same || err != nil {
			return drop, err
		}
		return zero, nil
	}
	*sum = d.sum(b)
	if held || d.parent == nil {
		return store, nil
	}
	same, err := d.parentSame(ctx, b, c, *sum)
	if same || err != nil {
		return drop, err
	}
	return store, nil
}

// sum returns the digest of a cluster that the end of the disk may have cut.
func (d *Ingest) sum(b []byte) Digest {
	if int64(len(b)) == d.cs {
		return Sum(b)
	}
	buf := d.bufs.Get().(*[]byte)
	defer d.bufs.Put(buf)
	clear((*buf)[copy(*buf, b):])
	return Sum(*buf)
}

// store writes a run of whole clusters of data.
func (d *Ingest) store(ctx context.Context, p []byte, off int64, sums []Digest) error {
	d.touch(off, int64(len(p)))
	if d.compress {
		for at := int64(0); at < int64(len(p)); at += d.cs {
			b := p[at:min(at+d.cs, int64(len(p)))]
			if _, err := d.w.WriteCompressed(ctx, b, off+at); err != nil {
				return err
			}
		}
	} else if err := d.w.WriteAt(ctx, p, off); err != nil {
		return err
	}
	d.stored.Add(int64(len(sums)))
	b := make([]byte, 0, len(sums)*DigestSize)
	for i := range sums {
		b = append(b, sums[i][:]...)
	}
	// Without room for the digests they are computed once more, at the end.
	if _, err := d.scratch.WriteAt(b, off/d.cs*DigestSize); err == nil {
		d.known.setRange(off/d.cs, int64(len(sums)))
	}
	return nil
}

// WriteZeroes implements block.Zeroer.
func (d *Ingest) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	if n == 0 {
		return block.CheckRange(d.size, off, 0)
	}
	lock, err := d.begin(ctx, off, n)
	if err != nil {
		return err
	}
	defer d.locks.unlock(lock)
	lo, hi := d.whole(off, off+n)
	edges := []block.Range{{Off: off, Len: lo - off}, {Off: hi, Len: off + n - hi}}
	if lo >= hi {
		lo, hi = off, off
		edges = []block.Range{{Off: off, Len: n}}
	}
	if edges, err = d.notZero(ctx, edges); err != nil {
		return err
	}
	if len(edges) > 0 && flags&block.FastOnly != 0 {
		return block.ErrNotFast
	}
	for _, e := range edges {
		d.touch(e.Off, e.Len)
		if err := d.w.WriteZeroes(ctx, e.Off, e.Len, flags); err != nil {
			return err
		}
	}
	return d.zeroWhole(ctx, lo, hi, flags)
}

// notZero returns those of the parts of clusters given that may not be zeroes.
func (d *Ingest) notZero(ctx context.Context, parts []block.Range) ([]block.Range, error) {
	var list []block.Range
	for _, e := range parts {
		for e.Len > 0 {
			n := min(e.Len, d.cs-e.Off%d.cs)
			same := !d.held.get(e.Off / d.cs)
			if same {
				var err error
				if same, err = d.parentZero(ctx, e.Off, n); err != nil {
					return nil, err
				}
			}
			if !same {
				list = append(list, block.Range{Off: e.Off, Len: n})
			}
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	return list, nil
}

// zeroWhole zeroes whole clusters, in runs of those that are not zeroes already.
func (d *Ingest) zeroWhole(ctx context.Context, lo, hi int64, flags block.ZeroFlags) error {
	start := lo // of the pending run
	for pos := lo; pos < hi; {
		next := min(pos+d.cs, hi)
		if !d.held.get(pos / d.cs) {
			same, err := d.parentZero(ctx, pos, next-pos)
			if err != nil {
				return err
			}
			if same {
				d.dropped.Add(1)
				if err := d.zeroRun(ctx, start, pos, flags); err != nil {
					return err
				}
				start = next
			}
		}
		pos = next
	}
	return d.zeroRun(ctx, start, hi, flags)
}

func (d *Ingest) zeroRun(ctx context.Context, lo, hi int64, flags block.ZeroFlags) error {
	if lo >= hi {
		return nil
	}
	d.touch(lo, hi-lo)
	return d.w.WriteZeroes(ctx, lo, hi-lo, flags)
}

// Trim implements block.Trimmer: whole clusters become zeroes.
func (d *Ingest) Trim(ctx context.Context, off, n int64) error {
	if err := block.CheckRange(d.size, off, n); err != nil {
		return err
	}
	lo, hi := d.whole(off, off+n)
	if lo >= hi {
		return nil
	}
	return d.WriteZeroes(ctx, lo, hi-lo, block.MayTrim)
}
