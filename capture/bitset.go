package capture

import "math/bits"

// bitset marks clusters. Beside the map of a disk's changes as ranges, which can
// be as many as half the clusters, its memory is bounded: 32 MiB for 16 TiB in
// clusters of 64 KiB.
type bitset struct {
	words []uint64
	n     int64
}

func newBitset(n int64) *bitset { return &bitset{make([]uint64, (n+63)/64), n} }

// set marks [from, to).
func (b *bitset) set(from, to int64) {
	for i := from; i < to; {
		if i%64 == 0 && to-i >= 64 {
			b.words[i/64] = ^uint64(0)
			i += 64
			continue
		}
		b.words[i/64] |= 1 << (i % 64)
		i++
	}
}

func (b *bitset) has(i int64) bool { return b.words[i/64]>>(i%64)&1 != 0 }

func (b *bitset) count() (n int64) {
	for _, w := range b.words {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// run returns the end of the run of equally marked clusters that begins at i,
// not beyond limit.
func (b *bitset) run(i, limit int64) int64 {
	var flip uint64 // makes the run's bits zeroes
	if b.has(i) {
		flip = ^uint64(0)
	}
	for at := i; at < limit; at = (at/64 + 1) * 64 {
		if w := (b.words[at/64] ^ flip) >> (at % 64); w != 0 {
			return min(limit, at+int64(bits.TrailingZeros64(w)))
		}
	}
	return limit
}

// unset returns the clusters that are not marked at the given ranks among all
// such clusters, counted from 0. The ranks are in ascending order and exist.
func (b *bitset) unset(ranks []int64) []int64 {
	at := make([]int64, 0, len(ranks))
	var before int64 // unmarked clusters in earlier words
	for i, w := range b.words {
		free := ^w
		if rest := b.n - int64(i)*64; rest < 64 {
			free &= 1<<rest - 1
		}
		here := int64(bits.OnesCount64(free))
		for len(at) < len(ranks) && ranks[len(at)] < before+here {
			at = append(at, int64(i)*64+nth(free, ranks[len(at)]-before))
		}
		before += here
	}
	return at
}

// nth returns the index of the bit of w that has k set bits below it.
func nth(w uint64, k int64) int64 {
	for ; k > 0; k-- {
		w &= w - 1
	}
	return int64(bits.TrailingZeros64(w))
}
