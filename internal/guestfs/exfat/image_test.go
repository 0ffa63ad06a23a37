package exfat_test

import (
	"encoding/binary"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// memory is a volume in memory.
type memory = fstest.Memory

var le = binary.LittleEndian

const (
	clusters  = 400
	tableAt   = 24 * 512
	heapAt    = 32 * 512
	endOfFile = 0xffffffff
)

// image is a file system made by hand, of sectors and clusters of 512 bytes. Cluster
// 2 has the bitmap, 3 the up-case table, 4 the root directory.
type image struct{ memory }

// newImage makes one that holds these entries in its root directory.
func newImage(entries ...[]byte) *image {
	im := &image{make(memory, heapAt+clusters*512)}
	b := im.memory
	copy(b, "\xeb\x76\x90EXFAT   ")
	le.PutUint64(b[72:], uint64(len(b)/512))
	le.PutUint32(b[80:], tableAt/512)
	le.PutUint32(b[84:], (heapAt-tableAt)/512)
	le.PutUint32(b[88:], heapAt/512)
	le.PutUint32(b[92:], clusters)
	le.PutUint32(b[96:], 4)
	le.PutUint32(b[100:], 0x1234abcd)
	le.PutUint16(b[104:], 0x0100)
	b[108], b[110] = 9, 1
	le.PutUint16(b[510:], 0xaa55)
	im.seal()
	for i := range 2 {
		im.chain(2 + i)
	}
	im.chain(4, 5, 6, 7)
	copy(im.cluster(2), "\x3f") // what is set so far
	bitmap := make([]byte, 32)
	bitmap[0] = 0x81
	le.PutUint32(bitmap[20:], 2)
	le.PutUint64(bitmap[24:], clusters/8)
	table := []uint16{0xffff, 'a'}
	for c := 'A'; c <= 'Z'; c++ {
		table = append(table, uint16(c))
	}
	table = append(table, 0xffff, 0xe4-'z'-1, 0xc4) // ä
	upcase := make([]byte, 32)
	upcase[0] = 0x82
	var sum uint32
	for i, x := range table {
		le.PutUint16(im.cluster(3)[2*i:], x)
	}
	for _, c := range im.cluster(3)[:2*len(table)] {
		sum = (sum>>1 | sum<<31) + uint32(c)
	}
	le.PutUint32(upcase[4:], sum)
	le.PutUint32(upcase[20:], 3)
	le.PutUint64(upcase[24:], uint64(2*len(table)))
	put(im.root(), append([][]byte{label("Läbel 😀"), bitmap, upcase}, entries...)...)
	return im
}

// seal writes the checksum of the boot region, and the backup.
func (im *image) seal() {
	b := im.memory
	var sum uint32
	for i, c := range b[:11*512] {
		if i != 106 && i != 107 && i != 112 {
			sum = (sum>>1 | sum<<31) + uint32(c)
		}
	}
	for i := 11 * 512; i < 12*512; i += 4 {
		le.PutUint32(b[i:], sum)
	}
	copy(b[12*512:], b[:12*512])
}

// chain links clusters, and ends the chain with the last.
func (im *image) chain(clusters ...int) {
	for i, c := range clusters {
		next := uint32(endOfFile)
		if i+1 < len(clusters) {
			next = uint32(clusters[i+1])
		}
		im.set(c, next)
	}
}

func (im *image) set(c int, next uint32) { le.PutUint32(im.memory[tableAt+4*c:], next) }

// cluster returns the bytes of one.
func (im *image) cluster(c int) []byte { return im.memory[heapAt+(c-2)*512:][:512] }

// root returns the bytes of the root directory, which lie in one piece.
func (im *image) root() []byte { return im.memory[heapAt+2*512:][:4*512] }

func label(name string) []byte {
	b := make([]byte, 32)
	units := utf16.Encode([]rune(name))
	b[0], b[1] = 0x83, byte(len(units))
	for i, u := range units {
		le.PutUint16(b[2+2*i:], u)
	}
	return b
}

// file describes a file or directory.
type file struct {
	name        string
	units       []uint16 // instead of the name
	attr        uint16
	contiguous  bool
	first       uint32
	size, valid uint64
	more        [][]byte // entries behind those of the name
	do          func(b []byte)
}

// entries returns those of a file, with their checksum.
func (f file) entries() []byte {
	units := f.units
	if units == nil {
		units = utf16.Encode([]rune(f.name))
	}
	b := make([]byte, 64)
	b[0], b[32], b[33], b[35] = 0x85, 0xc0, 1, byte(len(units))
	le.PutUint16(b[4:], f.attr)
	if f.contiguous {
		b[33] |= 2
	}
	le.PutUint64(b[32+8:], f.valid)
	le.PutUint32(b[32+20:], f.first)
	le.PutUint64(b[32+24:], f.size)
	for len(units) > 0 {
		e := make([]byte, 32)
		e[0] = 0xc1
		for i, u := range units[:min(15, len(units))] {
			le.PutUint16(e[2+2*i:], u)
		}
		units = units[min(15, len(units)):]
		b = append(b, e...)
	}
	for _, e := range f.more {
		b = append(b, e...)
	}
	b[1] = byte(len(b)/32 - 1)
	if f.do != nil {
		f.do(b)
	}
	var sum uint16
	for i, c := range b {
		if i != 2 && i != 3 {
			sum = (sum>>1 | sum<<15) + uint16(c)
		}
	}
	le.PutUint16(b[2:], sum)
	return b
}

// put writes entries one after the other.
func put(dir []byte, entries ...[]byte) {
	for _, e := range entries {
		dir = dir[copy(dir, e):]
	}
}
