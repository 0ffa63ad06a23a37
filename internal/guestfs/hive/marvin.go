package hive

import "math/bits"

// marvinSeed is that of the hashes in logs ("Log entries").
const marvinSeed = 0x82ef4d887a4e55c5

// marvin is the hash Marvin32 under way, of which logs have two in each entry.
type marvin struct {
	lo, hi uint32
	rest   [4]byte // bytes that wait to be four
	n      int
}

func newMarvin(seed uint64) *marvin { return &marvin{lo: uint32(seed), hi: uint32(seed >> 32)} }

func (m *marvin) add(b []byte) {
	for m.n > 0 && len(b) > 0 {
		m.rest[m.n] = b[0]
		m.n, b = m.n+1, b[1:]
		if m.n == 4 {
			m.mix(le.Uint32(m.rest[:]))
			m.n = 0
		}
	}
	for ; len(b) >= 4; b = b[4:] {
		m.mix(le.Uint32(b))
	}
	m.n += copy(m.rest[m.n:], b)
}

func (m *marvin) mix(x uint32) {
	m.lo += x
	m.hi ^= m.lo
	m.lo = bits.RotateLeft32(m.lo, 20) + m.hi
	m.hi = bits.RotateLeft32(m.hi, 9) ^ m.lo
	m.lo = bits.RotateLeft32(m.lo, 27) + m.hi
	m.hi = bits.RotateLeft32(m.hi, 19)
}

// sum ends the hash.
func (m *marvin) sum() uint64 {
	last := uint32(0x80)
	for i := m.n - 1; i >= 0; i-- {
		last = last<<8 | uint32(m.rest[i])
	}
	m.mix(last)
	m.mix(0)
	return uint64(m.hi)<<32 | uint64(m.lo)
}
