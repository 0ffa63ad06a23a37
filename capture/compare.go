package capture

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/sendense/sendense/block"
)

// Bounds of what is asked of the target at a time while comparing.
const (
	compareBatch   = 8 << 20  // bytes of data, held until the answer is there
	compareZeroes  = 1 << 30  // bytes of zeroes, of which nothing is held
	compareWorkers = 8        // batches at a time, more where there are more cores
	digestsAtOnce  = 32 << 10 // digests in one question
)

// compare reads the disk, asks which clusters differ from the parent's, and
// sends those. Clusters marked in skip, which may be nil, are in the draft
// already. It returns how many clusters differed.
func (j *diskJob) compare(ctx context.Context, skip *bitset) (differed int64, err error) {
	batch := max(compareBatch, j.grain)
	zero := j.draft.Sum(make([]byte, j.grain))
	produce := func(ctx context.Context, emit func(unit) error) error {
		return j.unmarked(skip, func(off, n int64) error {
			return j.split(ctx, off, n, batch, func(u unit) error { return splitZeroes(u, emit) })
		})
	}
	var sum atomic.Int64
	workers := max(min(compareWorkers, j.run.o.Workers), runtime.GOMAXPROCS(0))
	err = pipeline(ctx, workers, min(batch, j.up(j.size)), produce, func(ctx context.Context, u unit, buf []byte) error {
		compare := j.compareZeroes
		if u.data {
			compare = j.compareData
		}
		n, err := compare(ctx, u, buf, zero)
		sum.Add(n)
		j.run.progress.done.Add(u.n)
		return err
	})
	return sum.Load(), err
}

// unmarked yields the ranges whose clusters are not marked in skip.
func (j *diskJob) unmarked(skip *bitset, yield func(off, n int64) error) error {
	if skip == nil {
		return yield(0, j.size)
	}
	for i := int64(0); i < skip.n; {
		end := skip.run(i, skip.n)
		if !skip.has(i) {
			if err := yield(i*j.grain, min(end*j.grain, j.size)-i*j.grain); err != nil {
				return err
			}
		}
		i = end
	}
	return nil
}

// splitZeroes emits a unit of zeroes in pieces, so that several workers share it.
func splitZeroes(u unit, emit func(unit) error) error {
	if u.data {
		return emit(u)
	}
	for at, end := u.off, u.off+u.n; at < end; {
		n := min(end, (at/compareZeroes+1)*compareZeroes) - at
		if err := emit(unit{off: at, n: n}); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// compareData reads a unit and sends what of it differs from the parent.
func (j *diskJob) compareData(ctx context.Context, u unit, buf []byte, _ Digest) (differed int64, err error) {
	sums := make([]Digest, 0, j.clusters(u.n))
	step := max(copyChunk, j.grain)
	for at := int64(0); at < u.n; at += step {
		n := min(step, u.n-at)
		if err := j.src.ReadAt(ctx, buf[at:at+n], u.off+at); err != nil {
			return 0, fmt.Errorf("read the source: %w", err)
		}
		clear(buf[at+n : at+j.up(n)]) // the last cluster is padded
		for c := at; c < at+n; c += j.grain {
			sums = append(sums, j.draft.Sum(buf[c:c+j.grain]))
		}
	}
	first := u.off / j.grain
	differs, err := j.differs(ctx, first, sums)
	if err != nil {
		return 0, err
	}
	for _, d := range differs {
		if d {
			differed++
		}
	}
	return differed, j.put(ctx, buf[:u.n], u.off, sendZeroes, func(c int64) bool { return differs[c-first] })
}

// compareZeroes zeroes what the parent has where the source reads as zeroes. The
// draft's map, where it has one, spares asking about what is zero already.
func (j *diskJob) compareZeroes(ctx context.Context, u unit, _ []byte, zero Digest) (differed int64, err error) {
	at := u.off // what comes before is dealt with
	err = block.MapAll(ctx, j.dst, u.off, u.n, func(e block.Extent) error {
		if e.Kind != block.Data {
			return nil
		}
		from, to := max(at, j.down(e.Off)), min(j.up(e.End()), u.off+u.n)
		for ; from < to; from += digestsAtOnce * j.grain {
			n, err := j.zeroDiffering(ctx, from, min(to-from, digestsAtOnce*j.grain), zero)
			differed += n
			if err != nil {
				return err
			}
		}
		at = max(at, to)
		return nil
	})
	return differed, err
}

// zeroDiffering zeroes the clusters of a range that differ from zeroes.
func (j *diskJob) zeroDiffering(ctx context.Context, off, n int64, zero Digest) (differed int64, err error) {
	sums := make([]Digest, j.clusters(n))
	for i := range sums {
		sums[i] = zero
	}
	differs, err := j.differs(ctx, off/j.grain, sums)
	if err != nil {
		return 0, err
	}
	for i := 0; i < len(differs); i++ {
		if !differs[i] {
			continue
		}
		from := i
		for i+1 < len(differs) && differs[i+1] {
			i++
		}
		start := off + int64(from)*j.grain
		if err := j.zero(ctx, start, min(off+int64(i+1)*j.grain, off+n)-start, sendZeroes); err != nil {
			return differed, err
		}
		differed += int64(i + 1 - from)
	}
	return differed, nil
}

// differs asks the target.
func (j *diskJob) differs(ctx context.Context, first int64, sums []Digest) ([]bool, error) {
	d, err := j.draft.Differs(ctx, first, sums)
	if err != nil {
		return nil, fmt.Errorf("compare with the parent: %w", err)
	}
	if len(d) != len(sums) {
		return nil, fmt.Errorf("compare with the parent: %d answers to %d digests", len(d), len(sums))
	}
	return d, nil
}
