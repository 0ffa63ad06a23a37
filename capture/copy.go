package capture

import (
	"bytes"
	"context"
	"fmt"

	"github.com/sendense/sendense/block"
	"golang.org/x/sync/errgroup"
)

// copyChunk is what a worker reads and writes at a time, unless clusters are
// larger.
const copyChunk = 1 << 20

// zeroPolicy says what to do about zeroes of the source.
type zeroPolicy bool

const (
	leaveZeroes zeroPolicy = false // the draft reads as zeroes there
	sendZeroes  zeroPolicy = true  // the draft may read as something else there
)

// unit is a piece of work: whole clusters, but for the end of the disk.
type unit struct {
	off, n int64
	data   bool // false: the source says that it is zeroes
}

// pipeline hands what produce emits to workers, each with a buffer of its own. It
// returns when all of them have ended, with the first error.
func pipeline(ctx context.Context, workers int, buffer int64,
	produce func(ctx context.Context, emit func(unit) error) error,
	work func(ctx context.Context, u unit, buf []byte) error,
) error {
	g, ctx := errgroup.WithContext(ctx)
	units := make(chan unit)
	g.Go(func() error {
		defer close(units)
		return produce(ctx, func(u unit) error {
			select {
			case units <- u:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for range workers {
		g.Go(func() error {
			var buf []byte
			for u := range units {
				if buf == nil {
					buf = make([]byte, buffer)
				}
				if err := work(ctx, u, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// copyRange sends a range of the disk.
func (j *diskJob) copyRange(ctx context.Context, off, n int64, zeroes zeroPolicy) error {
	if n == 0 {
		return nil
	}
	return j.copyRuns(ctx, func(yield func(off, n int64) error) error { return yield(off, n) }, zeroes)
}

// copyRuns sends ranges, which begin on clusters and end on clusters or with the
// disk.
func (j *diskJob) copyRuns(ctx context.Context, runs func(yield func(off, n int64) error) error, zeroes zeroPolicy) error {
	chunk := max(copyChunk, j.grain)
	produce := func(ctx context.Context, emit func(unit) error) error {
		return runs(func(off, n int64) error {
			return j.split(ctx, off, n, chunk, emit)
		})
	}
	return pipeline(ctx, j.run.o.Workers, min(chunk, j.up(j.size)), produce, func(ctx context.Context, u unit, buf []byte) error {
		if err := j.copyUnit(ctx, u, buf, zeroes); err != nil {
			return err
		}
		j.run.progress.done.Add(u.n)
		return nil
	})
}

// split emits the range [off, off+n) as units: data of at most chunk bytes, and
// the zeroes between. A cluster that holds any data is data, so that each is
// written at once and by one worker.
func (j *diskJob) split(ctx context.Context, off, n, chunk int64, emit func(unit) error) error {
	at, end := off, off+n // at: what comes before is emitted
	err := block.MapAll(ctx, j.src, off, n, func(e block.Extent) error {
		if e.Kind != block.Data {
			return nil
		}
		if from := j.down(e.Off); from > at {
			if err := emit(unit{off: at, n: from - at}); err != nil {
				return err
			}
			at = from
		}
		for to := min(j.up(e.End()), end); at < to; {
			l := min(to, (at/chunk+1)*chunk) - at
			if err := emit(unit{off: at, n: l, data: true}); err != nil {
				return err
			}
			at += l
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("map the source: %w", err)
	}
	if at < end {
		return emit(unit{off: at, n: end - at})
	}
	return nil
}

// copyUnit brings one unit into the draft.
func (j *diskJob) copyUnit(ctx context.Context, u unit, buf []byte, zeroes zeroPolicy) error {
	if !u.data {
		return j.zero(ctx, u.off, u.n, zeroes)
	}
	buf = buf[:u.n]
	if err := j.src.ReadAt(ctx, buf, u.off); err != nil {
		return fmt.Errorf("read the source: %w", err)
	}
	return j.put(ctx, buf, u.off, zeroes, func(int64) bool { return true })
}

// put writes those clusters of b, which lie at off, that want is true for;
// clusters of zeroes by zeroPolicy.
func (j *diskJob) put(ctx context.Context, b []byte, off int64, zeroes zeroPolicy, want func(cluster int64) bool) error {
	const skip, empty, full = 0, 1, 2
	kind := func(at int64) int {
		switch {
		case !want((off + at) / j.grain):
			return skip
		case isZero(b[at:min(at+j.grain, int64(len(b)))]):
			return empty
		}
		return full
	}
	for at, n := int64(0), int64(len(b)); at < n; {
		what, end := kind(at), min(at+j.grain, n)
		for end < n && kind(end) == what {
			end = min(end+j.grain, n)
		}
		var err error
		switch what {
		case empty:
			err = j.zero(ctx, off+at, end-at, zeroes)
		case full:
			if err = block.Write(ctx, j.dst, b[at:end], off+at); err != nil {
				err = fmt.Errorf("write the draft: %w", err)
			}
		}
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}

func (j *diskJob) zero(ctx context.Context, off, n int64, zeroes zeroPolicy) error {
	if zeroes == leaveZeroes {
		return nil
	}
	if err := block.WriteZeroes(ctx, j.dst, off, n, block.MayTrim); err != nil {
		return fmt.Errorf("zero the draft: %w", err)
	}
	return nil
}

// isZero reports whether b holds only zeroes: its first bytes are, and each byte
// equals the one so many before it.
func isZero(b []byte) bool {
	const head = 64
	for _, c := range b[:min(head, len(b))] {
		if c != 0 {
			return false
		}
	}
	return len(b) <= head || bytes.Equal(b[head:], b[:len(b)-head])
}
