package capture

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// auditTracker reads a random sample of the clusters that the tracker calls
// unchanged and compares them with the parent. A miss is proof that the tracker
// cannot be trusted, and makes the whole disk be compared, which heals it.
func (j *diskJob) auditTracker(ctx context.Context) error {
	unchanged := j.changed.n - j.changed.count()
	if j.run.o.AuditClusters < 0 || unchanged == 0 {
		return nil
	}
	j.run.progress.enter(phaseAudit, j.disk.Key)
	ranks := sample(j.run.o.Rand, unchanged, min(int64(j.run.o.AuditClusters), unchanged))
	clusters := j.changed.unset(ranks)
	missed, err := j.recheck(ctx, clusters)
	if err != nil {
		return fmt.Errorf("audit the tracker: %w", err)
	}
	sampled := int64(len(clusters))
	j.audit = &Audit{
		Unchanged: unchanged, Sampled: sampled, Missed: missed,
		MissRateBound: MissRateBound(unchanged, sampled, missed),
	}
	if missed == 0 {
		return nil
	}
	j.run.o.Log.Warn("change tracker missed changes", "vm", j.run.sum.VM.Name, "disk", j.disk.Key,
		"sampled", sampled, "missed", missed)
	j.run.progress.enter(phaseCompare, j.disk.Key)
	j.run.progress.total.Add(unchanged * j.grain)
	if j.audit.Healed, err = j.compare(ctx, j.sentAlready()); err != nil {
		return fmt.Errorf("heal what the tracker missed: %w", err)
	}
	return nil
}

// sentAlready marks what needs no healing: what the tracker named, and
// everything beyond what it knows of.
func (j *diskJob) sentAlready() *bitset {
	all := newBitset(j.clusters(j.size))
	copy(all.words, j.changed.words)
	all.set(j.changed.n, all.n)
	return all
}

// recheck counts which of the clusters differ from the parent's.
func (j *diskJob) recheck(ctx context.Context, clusters []int64) (missed int64, err error) {
	var differing atomic.Int64
	produce := func(_ context.Context, emit func(unit) error) error {
		for _, c := range clusters {
			off := c * j.grain
			if err := emit(unit{off: off, n: min(j.grain, j.size-off), data: true}); err != nil {
				return err
			}
		}
		return nil
	}
	err = pipeline(ctx, j.run.o.Workers, j.grain, produce, func(ctx context.Context, u unit, buf []byte) error {
		if err := j.src.ReadAt(ctx, buf[:u.n], u.off); err != nil {
			return fmt.Errorf("read the source: %w", err)
		}
		clear(buf[u.n:])
		d, err := j.differs(ctx, u.off/j.grain, []Digest{j.draft.Sum(buf)})
		if err == nil && d[0] {
			differing.Add(1)
		}
		return err
	})
	return differing.Load(), err
}

// sample returns n different numbers of [0, of), in ascending order, every such
// set being equally likely (R. W. Floyd's algorithm).
func sample(r *rand.Rand, of, n int64) []int64 {
	chosen := make(map[int64]bool, n)
	out := make([]int64, 0, n)
	for top := of - n; top < of; top++ {
		v := r.Int64N(top + 1)
		if chosen[v] {
			v = top
		}
		chosen[v] = true
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// MissRateBound returns the upper limit, with 95 % confidence, on the share of
// unchanged clusters that a tracker called unchanged although they had changed,
// when a random sample of sampled of them had missed such. It is exact, the
// one-sided limit of Clopper and Pearson for sampling without replacement: with
// N = unchanged, n = sampled, x = missed it is K/N for the largest K with
//
//	P(X <= x | N, K, n) = sum over i <= x of C(K, i) C(N-K, n-i) / C(N, n) > 0.05
//
// For x = 0 that is about 3/n where n is small beside N.
func MissRateBound(unchanged, sampled, missed int64) float64 {
	if unchanged <= 0 {
		return 0
	}
	if sampled <= 0 {
		return 1
	}
	const risk = 0.05 * (1 + 1e-9) // what rounding adds must not make a tie a "more"
	// The probability falls as K grows. missed and unchanged-(sampled-missed) are
	// the least and the most that the sample allows.
	lo, hi := missed, unchanged-(sampled-missed)
	for lo < hi {
		k := hi - (hi-lo)/2
		if atMost(unchanged, k, sampled, missed) > risk {
			lo = k
		} else {
			hi = k - 1
		}
	}
	return float64(lo) / float64(unchanged)
}

// atMost returns P(X <= x), X being how many of K marked among N are in a sample
// of n without replacement.
func atMost(N, K, n, x int64) float64 {
	if x >= min(n, K) {
		return 1
	}
	var terms []float64 // logarithms
	for i := max(0, n-(N-K)); i <= x; i++ {
		terms = append(terms, logChoose(K, i)+logChoose(N-K, n-i)-logChoose(N, n))
	}
	if len(terms) == 0 {
		return 0
	}
	most := slices.MaxFunc(terms, cmp.Compare)
	var sum float64
	for _, t := range terms {
		sum += math.Exp(t - most)
	}
	return math.Exp(most) * sum
}

// logChoose returns the natural logarithm of the binomial coefficient.
func logChoose(n, k int64) float64 {
	g := func(v int64) float64 { l, _ := math.Lgamma(float64(v + 1)); return l }
	return g(n) - g(k) - g(n-k)
}
