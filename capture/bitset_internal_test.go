package capture

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestBitsetAgreesWithASliceOfBools(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		n := 1 + r.Int64N(400)
		b, model := newBitset(n), make([]bool, n)
		for range r.IntN(6) {
			from := r.Int64N(n)
			to := from + r.Int64N(n-from+1)
			b.set(from, to)
			for i := from; i < to; i++ {
				model[i] = true
			}
		}
		var unset []int64
		for i, m := range model {
			if b.has(int64(i)) != m {
				t.Fatalf("bit %d: got %v, want %v", i, !m, m)
			}
			if !m {
				unset = append(unset, int64(i))
			}
			end := int64(i)
			for end < n && model[end] == m {
				end++
			}
			if got := b.run(int64(i), n); got != end {
				t.Fatalf("run from %d: got %d, want %d", i, got, end)
			}
		}
		if got, want := b.count(), n-int64(len(unset)); got != want {
			t.Fatalf("count: got %d, want %d", got, want)
		}
		ranks := sample(r, int64(len(unset)), r.Int64N(int64(len(unset))+1))
		var want []int64
		for _, k := range ranks {
			want = append(want, unset[k])
		}
		if got := b.unset(ranks); !slices.Equal(got, want) {
			t.Fatalf("unset %v: got %v, want %v", ranks, got, want)
		}
	}
}

func TestSampleIsUniformWithoutReplacement(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const of, n, rounds = 12, 5, 20000
	var hits [of]int
	for range rounds {
		s := sample(r, of, n)
		for i, v := range s {
			if i > 0 && v <= s[i-1] || v < 0 || v >= of {
				t.Fatalf("sample: got %v", s)
			}
			hits[v]++
		}
	}
	// Each number is in a sample with probability 5/12; the standard deviation of
	// its count is below 70.
	for v, h := range hits {
		if d := h - rounds*n/of; d < -350 || d > 350 {
			t.Errorf("number %d: got %d times, want about %d", v, h, rounds*n/of)
		}
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, 512, 65536} {
		b := make([]byte, n)
		if !isZero(b) {
			t.Errorf("%d zeroes: got false", n)
		}
		for _, i := range []int{0, n / 2, n - 1} {
			if i < 0 || n == 0 {
				continue
			}
			b[i] = 1
			if isZero(b) {
				t.Errorf("%d bytes with a one at %d: got true", n, i)
			}
			b[i] = 0
		}
	}
}
