package ext4

import (
	"hash/crc32"
	"math/bits"
	"sync"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c goes on with a CRC32c as ext4 and jbd2 use it: without the inversions at
// the start and at the end that make the standard one.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

// crc16 goes on with a CRC-16 (polynomial 0x8005, reflected), as gdt_csum uses it.
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			crc = crc>>1 ^ 0xa001*(crc&1)
		}
	}
	return crc
}

// crc32be goes on with a CRC-32 that shifts to the left, as the first checksums of
// jbd2 use it: the standard one with all bits mirrored.
func crc32be(crc uint32, p []byte) uint32 {
	t := crc32beTable()
	for _, b := range p {
		crc = crc<<8 ^ t[byte(crc>>24)^b]
	}
	return crc
}

var crc32beTable = sync.OnceValue(func() *[256]uint32 {
	var t [256]uint32
	for i := range t {
		t[i] = bits.Reverse32(crc32.IEEETable[bits.Reverse8(uint8(i))])
	}
	return &t
})
