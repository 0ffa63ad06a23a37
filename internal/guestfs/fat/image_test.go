package fat_test

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// memory is a volume in memory.
type memory = fstest.Memory

var le = binary.LittleEndian

// image is a file system made by hand, of clusters of 512 bytes.
type image struct {
	memory
	bits       int
	table, end int // bytes; end is that of the tables
	heap       int
}

// newImage makes an empty file system. Its root directory is in cluster 2 if it
// is a FAT32.
func newImage(bits int) *image {
	clusters := map[int]int{12: 100, 16: 5000, 32: 5000}[bits]
	im := &image{bits: bits, table: 32 * 512}
	perTable := (clusters + 2) * bits / 8 / 512
	perTable++
	im.end = im.table + perTable*512
	im.heap = im.end
	if bits != 32 {
		im.heap += 512
	}
	im.memory = make(memory, im.heap+clusters*512)
	b := im.memory
	copy(b, "\xeb\x3c\x90mkfs.fat")
	le.PutUint16(b[11:], 512)
	b[13], b[16], b[21] = 1, 1, 0xf8
	le.PutUint16(b[14:], 32)
	le.PutUint32(b[32:], uint32(len(b)/512))
	le.PutUint16(b[510:], 0xaa55)
	ext := b[36:]
	if bits == 32 {
		le.PutUint32(b[36:], uint32(perTable))
		le.PutUint32(b[44:], 2)
		ext = b[64:]
	} else {
		le.PutUint16(b[17:], 16)
		le.PutUint16(b[22:], uint16(perTable))
	}
	ext[2] = 0x29
	le.PutUint32(ext[3:], 0x1234abcd)
	copy(ext[7:], "NO NAME    ")
	im.set(0, 0x0ffffff8)
	im.set(1, 0x0fffffff)
	if bits == 32 {
		im.set(2, 0x0fffffff)
	}
	return im
}

// set writes an entry of the table.
func (im *image) set(cluster, next int) {
	b := im.memory[im.table:]
	switch im.bits {
	case 12:
		at := b[cluster*3/2:]
		if cluster%2 == 1 {
			le.PutUint16(at, le.Uint16(at)&0x000f|uint16(next)<<4)
		} else {
			le.PutUint16(at, le.Uint16(at)&0xf000|uint16(next)&0x0fff)
		}
	case 16:
		le.PutUint16(b[2*cluster:], uint16(next))
	case 32:
		le.PutUint32(b[4*cluster:], uint32(next))
	}
}

// chain links clusters, and ends the chain with the last.
func (im *image) chain(clusters ...int) {
	for i, c := range clusters {
		next := 0x0fffffff
		if i+1 < len(clusters) {
			next = clusters[i+1]
		}
		im.set(c, next)
	}
}

// cluster returns the bytes of one.
func (im *image) cluster(c int) []byte { return im.memory[im.heap+(c-2)*512:][:512] }

// root returns the bytes of the root directory.
func (im *image) root() []byte {
	if im.bits == 32 {
		return im.cluster(2)
	}
	return im.memory[im.end:im.heap]
}

// short returns an entry of a directory. The name takes 11 bytes.
func short(name string, attr byte, cluster, size int) []byte {
	b := make([]byte, 32)
	copy(b, fmt.Sprintf("%-11s", name))
	b[11] = attr
	le.PutUint16(b[20:], uint16(cluster>>16))
	le.PutUint16(b[26:], uint16(cluster))
	le.PutUint32(b[28:], uint32(size))
	le.PutUint16(b[24:], 0x5a21) // 2025-01-01
	return b
}

// long returns the entries of a long name for a short one.
func long(name string, of []byte) []byte { return longUnits(utf16.Encode([]rune(name)), of) }

func longUnits(units []uint16, of []byte) []byte {
	var sum byte
	for _, c := range of[:11] {
		sum = (sum>>1 | sum<<7) + c
	}
	if len(units)%13 != 0 {
		units = append(units[:len(units):len(units)], 0)
	}
	for len(units)%13 != 0 {
		units = append(units, 0xffff)
	}
	var b []byte
	for n := len(units) / 13; n > 0; n-- {
		e := make([]byte, 32)
		e[0], e[11], e[13] = byte(n), 0x0f, sum
		if n == len(units)/13 {
			e[0] |= 0x40
		}
		for i, u := range units[(n-1)*13 : n*13] {
			le.PutUint16(e[[13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}[i]:], u)
		}
		b = append(b, e...)
	}
	return append(b, of...)
}

// put writes entries one after the other.
func put(dir []byte, entries ...[]byte) {
	for _, e := range entries {
		dir = dir[copy(dir, e):]
	}
}
