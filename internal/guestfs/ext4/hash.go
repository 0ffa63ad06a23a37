package ext4

import "math/bits"

// Versions of hashes of names. Those of unsigned char are three more.
const (
	hashLegacy   = 0
	hashHalfMD4  = 1
	hashTEA      = 2
	unsignedStep = 3

	hashEnd = 0x7fffffff << 1 // stands for the end of a directory; no name has it
)

// hashName returns the hash by which a directory is indexed ("Hash Tree
// Directories"). Its lowest bit is free: in the index it says that names with that
// hash begin in the block before.
func hashName(name []byte, version int, seed [4]uint32) (hash uint32, ok bool) {
	signed := version < unsignedStep
	state := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		state = seed
	}
	switch version % unsignedStep {
	case hashLegacy:
		hash = legacyHash(name, signed)
	case hashHalfMD4:
		for ; len(name) > 0; name = name[min(len(name), 32):] {
			var in [8]uint32
			hashWords(in[:], name, signed)
			halfMD4(&state, &in)
		}
		hash = state[1]
	case hashTEA:
		for ; len(name) > 0; name = name[min(len(name), 16):] {
			var in [4]uint32
			hashWords(in[:], name, signed)
			tea(&state, &in)
		}
		hash = state[0]
	}
	if hash &^= 1; hash == hashEnd {
		hash -= 2
	}
	return hash, version >= hashLegacy && version < 2*unsignedStep
}

// widen is the conversion of a char of C to an unsigned integer.
func widen(c byte, signed bool) uint32 {
	if signed {
		return uint32(int32(int8(c)))
	}
	return uint32(c)
}

// hashWords packs what fits of a name into words, and fills them up with its length.
func hashWords(out []uint32, name []byte, signed bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	for i := range out {
		word := pad
		for _, c := range name[min(len(name), 4*i):min(len(name), 4*i+4)] {
			word = widen(c, signed) + word<<8
		}
		out[i] = word
	}
}

func legacyHash(name []byte, signed bool) uint32 {
	last, before := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for _, c := range name {
		next := before + (last ^ widen(c, signed)*7152373)
		if next&0x80000000 != 0 {
			next -= 0x7fffffff
		}
		before, last = last, next
	}
	return last << 1
}

// tea mixes a state with the Tiny Encryption Algorithm, the input being the key.
func tea(state *[4]uint32, key *[4]uint32) {
	x, y, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9e3779b9
		x += (y<<4 + key[0]) ^ (y + sum) ^ (y>>5 + key[1])
		y += (x<<4 + key[2]) ^ (x + sum) ^ (x>>5 + key[3])
	}
	state[0] += x
	state[1] += y
}

// halfMD4 mixes a state with three rounds of MD4 (RFC 1320, 3.4) over half of its
// input.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	rounds := [3]struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		shift [4]int
	}{
		{func(x, y, z uint32) uint32 { return x&y | ^x&z }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y | x&z | y&z }, 0x5a827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for i := range rounds {
		r := &rounds[i]
		for step, word := range r.order {
			a = bits.RotateLeft32(a+r.mix(b, c, d)+in[word]+r.add, r.shift[step%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
