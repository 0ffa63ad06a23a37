package iso9660_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// memory is a volume in memory.
type memory = fstest.Memory

var le, be = binary.LittleEndian, binary.BigEndian

const (
	sector  = 2048
	sectors = 60
	// Sectors of the image: the root directories, and where tests put things.
	rootAt   = 20
	jolietAt = 22
	dirAt    = 24
	areaAt   = 28
	dataAt   = 30
)

// image is a disc made by hand.
type image struct{ memory }

// newImage makes one with Rock Ridge, whose root directory holds records.
func newImage(records ...[]byte) *image {
	im := plainImage(records...)
	im.dir(rootAt, 2*sector, join(sp(), er("RRIP_1991A"), px(0o40755, 2)), records...)
	return im
}

// plainImage makes one without.
func plainImage(records ...[]byte) *image {
	im := &image{make(memory, sectors*sector)}
	im.descriptor(16, 1, rootAt)
	copy(im.sector(17), "\xffCD001\x01")
	im.dir(rootAt, 2*sector, nil, records...)
	return im
}

// withJoliet adds a second tree.
func (im *image) withJoliet(records ...[]byte) *image {
	b := im.descriptor(17, 2, jolietAt)
	copy(b[88:], "%/E")
	copy(im.sector(18), "\xffCD001\x01")
	im.dir(jolietAt, sector, nil, records...)
	return im
}

func (im *image) sector(n int) []byte { return im.memory[n*sector:][:sector] }

// descriptor writes a volume descriptor.
func (im *image) descriptor(at int, kind byte, root int) []byte {
	b := im.sector(at)
	copy(b, "\x00CD001\x01")
	b[0] = kind
	copy(b[40:], fmt.Sprintf("%-32s", "LABEL"))
	both32(b[80:], sectors)
	both16(b[124:], 1)
	both16(b[128:], sector)
	copy(b[156:], file{name: "\x00", dir: true, at: root, size: sector}.record())
	copy(b[813:], "2020022912345600\x00")
	return b
}

// dir writes a directory of n bytes, its first record having system use entries.
func (im *image) dir(at, n int, use []byte, records ...[]byte) {
	b := im.memory[at*sector:][:n]
	clear(b)
	used := 0
	for _, r := range append([][]byte{file{name: "\x00", dir: true, at: at, size: uint32(n), use: use}.record(),
		file{name: "\x01", dir: true, at: at, size: uint32(n)}.record()}, records...) {
		if used%sector+len(r) > sector {
			used = (used/sector + 1) * sector
		}
		used += copy(b[used:], r)
	}
}

// file describes a directory record.
type file struct {
	name  string
	dir   bool
	flags byte
	at    int // sector
	size  uint32
	use   []byte
	do    func(b []byte)
}

func (f file) record() []byte {
	b := make([]byte, 33, 255)
	b[32] = byte(len(f.name))
	b = append(b, f.name...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	b = append(b, f.use...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	both32(b[2:], uint32(f.at))
	both32(b[10:], f.size)
	copy(b[18:], "\x78\x02\x1d\x0c\x22\x38\x00") // 2020-02-29 12:34:56
	b[25] = f.flags
	if f.dir {
		b[25] |= 2
	}
	both16(b[28:], 1)
	if f.do != nil {
		f.do(b)
	}
	return b
}

func both16(b []byte, n uint16) {
	le.PutUint16(b, n)
	be.PutUint16(b[2:], n)
}

func both32(b []byte, n uint32) {
	le.PutUint32(b, n)
	be.PutUint32(b[4:], n)
}

// join puts entries behind one another.
func join(list ...[]byte) []byte { return bytes.Join(list, nil) }

// susp makes a system use entry.
func susp(signature string, data ...byte) []byte {
	return append([]byte{signature[0], signature[1], byte(4 + len(data)), 1}, data...)
}

func numbers(list ...uint32) []byte {
	b := make([]byte, 8*len(list))
	for i, n := range list {
		both32(b[8*i:], n)
	}
	return b
}

func sp() []byte { return susp("SP", 0xbe, 0xef, 0) }

func er(id string) []byte { return susp("ER", append([]byte{byte(len(id)), 0, 0, 1}, id...)...) }

func px(mode, links uint32) []byte { return susp("PX", numbers(mode, links, 1000, 100)...) }

func pn(high, low uint32) []byte { return susp("PN", numbers(high, low)...) }

func nm(name string) []byte { return susp("NM", append([]byte{0}, name...)...) }

func ce(sector, off, n uint32) []byte { return susp("CE", numbers(sector, off, n)...) }

// sl makes a target of components, each with its flags in front.
func sl(flags byte, components ...string) []byte {
	data := []byte{flags}
	for _, c := range components {
		data = append(append(data, c[0], byte(len(c)-1)), c[1:]...)
	}
	return susp("SL", data...)
}

// ucs2 encodes a name of Joliet.
func ucs2(s string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = be.AppendUint16(b, u)
	}
	return string(b)
}
