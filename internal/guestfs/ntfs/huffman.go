package ntfs

import "encoding/binary"

// bitReader reads bits from words of 16, the highest first, as both Xpress and LZX
// have them. It holds at least 16 bits. Behind the end are zeroes, whose use short
// tells of.
type bitReader struct {
	src  []byte
	at   int    // next byte
	buf  uint32 // bits, from the highest on
	n    int    // how many
	fake int    // how many of what was read were behind the end
}

func (r *bitReader) fill() {
	if r.at+2 <= len(r.src) {
		r.buf |= uint32(binary.LittleEndian.Uint16(r.src[r.at:])) << (16 - r.n)
		r.at += 2
	} else {
		r.fake += 16
	}
	r.n += 16
}

// take returns the next n bits, of which there may be 16 at most.
func (r *bitReader) take(n int) int {
	v := int(r.buf >> 16 >> (16 - n))
	r.skip(n)
	return v
}

func (r *bitReader) skip(n int) {
	r.buf <<= n
	if r.n -= n; r.n < 16 {
		r.fill()
	}
}

// bytes returns the next n bytes that are not in words that were read, or nil.
func (r *bitReader) bytes(n int) []byte {
	if n > len(r.src)-r.at {
		return nil
	}
	r.at += n
	return r.src[r.at-n : r.at]
}

// short says whether bits were used that are not there.
func (r *bitReader) short() bool { return r.fake > r.n }

const (
	maxCode  = 16 // bits
	fastBits = 9
)

// huffman is a canonical Huffman code.
type huffman struct {
	fast   [1 << fastBits]uint16 // symbol and, in the lower 4 bits, length; 0: longer
	count  [maxCode + 1]uint16   // codes of a length
	first  [maxCode + 1]uint32   // the first of them
	index  [maxCode + 1]uint16   // and where its symbol is below
	symbol [512]uint16           // in the order of codes
	empty  bool
}

// build makes the code in which symbol i has a code of lengths[i] bits, 16 at most.
// A code that leaves something out, or says something twice, is refused, but for
// one without symbols.
func (h *huffman) build(lengths []byte) bool {
	*h = huffman{}
	for _, n := range lengths {
		h.count[n]++
	}
	h.empty = int(h.count[0]) == len(lengths)
	h.count[0] = 0
	code, index := uint32(0), uint16(0)
	for n := 1; n <= maxCode; n++ {
		code <<= 1
		h.first[n], h.index[n] = code, index
		code += uint32(h.count[n])
		index += h.count[n]
	}
	if code != 1<<maxCode {
		return h.empty
	}
	next := h.first
	for s, n := range lengths {
		if n == 0 {
			continue
		}
		c := next[n]
		next[n]++
		h.symbol[uint32(h.index[n])+c-h.first[n]] = uint16(s)
		if n <= fastBits {
			for i := range uint32(1) << (fastBits - n) {
				h.fast[c<<(fastBits-n)+i] = uint16(s)<<4 | uint16(n)
			}
		}
	}
	return true
}

// decode returns the next symbol.
func (h *huffman) decode(r *bitReader) (int, bool) {
	if f := h.fast[r.buf>>(32-fastBits)]; f != 0 {
		r.skip(int(f & 15))
		return int(f >> 4), true
	}
	if h.empty {
		return 0, false
	}
	for n := fastBits + 1; n <= maxCode; n++ {
		if i := r.buf>>(32-n) - h.first[n]; i < uint32(h.count[n]) {
			r.skip(n)
			return int(h.symbol[uint32(h.index[n])+i]), true
		}
	}
	return 0, false
}
