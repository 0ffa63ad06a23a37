package capture_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
)

// atMost is P(X <= x) for X of K marked among N in a sample of n, exactly.
func atMost(N, K, n, x int64) *big.Rat {
	choose := func(n, k int64) *big.Int {
		if k < 0 || k > n {
			return new(big.Int)
		}
		return new(big.Int).Binomial(n, k)
	}
	sum := new(big.Int)
	for i := int64(0); i <= x; i++ {
		sum.Add(sum, new(big.Int).Mul(choose(K, i), choose(N-K, n-i)))
	}
	return new(big.Rat).SetFrac(sum, choose(N, n))
}

func TestMissRateBoundAgreesWithBruteForce(t *testing.T) {
	risk := big.NewRat(5, 100)
	for N := int64(1); N <= 24; N++ {
		for n := int64(1); n <= N; n++ {
			for x := int64(0); x <= n; x++ {
				want := x
				for K := x; K <= N-(n-x); K++ {
					if atMost(N, K, n, x).Cmp(risk) > 0 {
						want = K
					}
				}
				if got := capture.MissRateBound(N, n, x); math.Abs(got-float64(want)/float64(N)) > 1e-12 {
					t.Fatalf("N=%d n=%d x=%d: got %v, want %d/%d", N, n, x, got, want, N)
				}
			}
		}
	}
}

func TestMissRateBoundCoversTheTruth(t *testing.T) {
	const N, n = 30, 9
	for K := int64(0); K <= N; K++ {
		covered := new(big.Rat) // probability that the bound is not below K/N
		for x := int64(0); x <= min(n, K); x++ {
			if capture.MissRateBound(N, n, x) >= float64(K)/N-1e-12 {
				p := atMost(N, K, n, x)
				if x > 0 {
					p.Sub(p, atMost(N, K, n, x-1))
				}
				covered.Add(covered, p)
			}
		}
		if p, _ := covered.Float64(); p < 0.95-1e-12 {
			t.Errorf("K=%d: the bound holds with probability %v, want 0.95 or more", K, p)
		}
	}
}

func TestMissRateBoundOfLargeDisks(t *testing.T) {
	for _, c := range []struct {
		unchanged, sampled, missed int64
		want                       float64
	}{
		{0, 0, 0, 0},
		{100, 100, 0, 0},
		{100, 100, 7, 0.07},
		{1 << 28, 256, 0, 1 - math.Pow(0.05, 1.0/256)}, // as good as with replacement
		{1 << 28, 3000, 0, 1 - math.Pow(0.05, 1.0/3000)},
	} {
		if got := capture.MissRateBound(c.unchanged, c.sampled, c.missed); math.Abs(got-c.want) > 1e-6 {
			t.Errorf("%d of %d, %d missed: got %v, want %v", c.sampled, c.unchanged, c.missed, got, c.want)
		}
	}
}

// missing is a source whose tracker does not tell of some changes.
type missing struct {
	capture.Source
	drop func() bool // whether to keep quiet about the next changed granule
}

func (m missing) Begin(ctx context.Context, vm capture.VM, r capture.Request) (capture.Instant, error) {
	in, err := m.Source.Begin(ctx, vm, r)
	return missingInstant{in, m.drop}, err
}

type missingInstant struct {
	capture.Instant
	drop func() bool
}

func (m missingInstant) Disks() []capture.Disk {
	disks := append([]capture.Disk(nil), m.Instant.Disks()...)
	for i := range disks {
		disks[i].Device = missingDevice{block.Wrapped{Inner: disks[i].Device}, m.drop}
	}
	return disks
}

type missingDevice struct {
	block.Wrapped
	drop func() bool
}

func (d missingDevice) Changed(ctx context.Context, since string, off, n int64) (kept []block.Range, err error) {
	ranges, err := d.Wrapped.Changed(ctx, since, off, n)
	for _, r := range ranges {
		if !d.drop() {
			kept = append(kept, r)
		}
	}
	return kept, err
}

func TestAMissIsFoundAsOftenAsTheFormulaSaysAndHealed(t *testing.T) {
	const clusters, grain, dirty, dropped, sampled, runs = 128, 512, 24, 4, 16, 400
	var detected int
	r := rand.New(rand.NewPCG(7, 7))
	for i := range runs {
		s := capturetest.NewSource(t, fmt.Sprintf("vm%d", i))
		s.Granularity = grain
		s.Add("vda", clusters*grain)
		target := capturetest.NewTarget(t)
		target.ClusterSize = grain
		s.Write("vda", bytes.Repeat([]byte{1}, clusters*grain), 0)
		o := capture.Options{VM: fmt.Sprintf("vm%d", i), AuditClusters: sampled, Workers: 2, Rand: r}
		if _, err := capture.Run(context.Background(), s, target, o); err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Perm(clusters)[:dirty] {
			s.Write("vda", []byte{0}, int64(c)*grain)
		}
		left := dropped
		sum, err := capture.Run(context.Background(), missing{s, func() bool { left--; return left >= 0 }}, target, o)
		if err != nil {
			t.Fatal(err)
		}
		a := sum.Disks[0].Audit
		const unchanged = clusters - dirty + dropped
		if a == nil || a.Unchanged != unchanged || a.Sampled != sampled {
			t.Fatalf("audit: got %+v, want %d of %d sampled", a, sampled, unchanged)
		}
		same := bytes.Equal(target.Latest().Disks["vda"].Content(), s.Content()["vda"])
		if same != (a.Missed > 0) {
			t.Fatalf("missed %d: point equals the disk: %v", a.Missed, same)
		}
		if a.Missed == 0 {
			continue
		}
		detected++
		if a.Healed != dropped {
			t.Errorf("healed: got %d, want %d", a.Healed, dropped)
		}
		if a.MissRateBound < float64(a.Missed)/float64(unchanged) {
			t.Errorf("bound: got %v below the share of misses", a.MissRateBound)
		}
	}
	// P(found) = 1 - P(no miss in the sample)
	quiet, _ := atMost(clusters-dirty+dropped, dropped, sampled, 0).Float64()
	want := (1 - quiet) * runs
	if limit := 4 * math.Sqrt(runs*quiet*(1-quiet)); math.Abs(float64(detected)-want) > limit {
		t.Errorf("detected: got %d of %d runs, want %.0f give or take %.0f", detected, runs, want, limit)
	}
	t.Logf("detected in %d of %d runs, %.0f expected", detected, runs, want)
}
