// Package hivetest makes hives for tests: by hand, and by hivex, which is an
// independent writer and reader of them.
package hivetest

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
)

var le = binary.LittleEndian

// Builder makes a hive by hand, of one bin.
type Builder struct {
	Bin      []byte // of which cells are numbered by where they begin
	security uint32
}

// New begins one.
func New() *Builder {
	b := &Builder{Bin: make([]byte, 32)}
	copy(b.Bin, "hbin")
	// A security descriptor without owner, which all keys share.
	sk := make([]byte, 20+20)
	copy(sk, "sk")
	le.PutUint32(sk[12:], 1)
	le.PutUint32(sk[16:], 20)
	sk[20], sk[23] = 1, 0x80
	b.security = b.Cell(sk)
	le.PutUint32(b.Bin[b.security+4+4:], b.security)
	le.PutUint32(b.Bin[b.security+4+8:], b.security)
	return b
}

// Cell adds one, and returns its offset.
func (b *Builder) Cell(data []byte) uint32 {
	at := len(b.Bin)
	n := (4 + len(data) + 7) &^ 7
	b.Bin = append(b.Bin, make([]byte, n)...)
	le.PutUint32(b.Bin[at:], uint32(-n))
	copy(b.Bin[at+4:], data)
	return uint32(at)
}

// Offsets puts some behind one another.
func Offsets(list ...uint32) []byte {
	var b []byte
	for _, o := range list {
		b = le.AppendUint32(b, o)
	}
	return b
}

// Key adds one, of keys in a list of a kind and of values.
func (b *Builder) Key(name string, kind string, keys, values []uint32) uint32 {
	nk := make([]byte, 76, 76+len(name))
	copy(nk, "nk")
	for _, at := range []int{16, 28, 32, 40, 48} {
		le.PutUint32(nk[at:], 0xffffffff)
	}
	le.PutUint16(nk[2:], 0x20)
	le.PutUint32(nk[44:], b.security)
	if len(keys) > 0 {
		le.PutUint32(nk[20:], uint32(len(keys)))
		le.PutUint32(nk[28:], b.List(kind, keys))
	}
	if len(values) > 0 {
		le.PutUint32(nk[36:], uint32(len(values)))
		le.PutUint32(nk[40:], b.Cell(Offsets(values...)))
	}
	le.PutUint16(nk[72:], uint16(len(name)))
	at := b.Cell(append(nk, name...))
	for _, k := range keys {
		le.PutUint32(b.Bin[k+4+16:], at)
	}
	return at
}

// List adds a list of keys: li, lf, or ri of li with two each.
func (b *Builder) List(kind string, keys []uint32) uint32 {
	if kind == "ri" {
		var leaves []uint32
		for ; len(keys) > 0; keys = keys[min(2, len(keys)):] {
			leaves = append(leaves, b.List("li", keys[:min(2, len(keys))]))
		}
		return b.Cell(append(Head("ri", len(leaves)), Offsets(leaves...)...))
	}
	data := Head(kind, len(keys))
	for _, k := range keys {
		data = le.AppendUint32(data, k)
		if kind != "li" {
			data = append(data, "hint"...)
		}
	}
	return b.Cell(data)
}

// Head begins a list.
func Head(kind string, n int) []byte { return le.AppendUint16([]byte(kind), uint16(n)) }

// Value adds one.
func (b *Builder) Value(name string, kind uint32, data []byte) uint32 {
	vk := make([]byte, 20, 20+len(name))
	copy(vk, "vk")
	le.PutUint16(vk[2:], uint16(len(name)))
	le.PutUint32(vk[4:], uint32(len(data)))
	le.PutUint32(vk[12:], kind)
	vk[16] = 1
	const segment = 16344
	switch {
	case len(data) <= 4:
		le.PutUint32(vk[4:], uint32(len(data))|1<<31)
		copy(vk[8:12], data)
	case len(data) > segment:
		var parts []uint32
		for rest := data; len(rest) > 0; rest = rest[min(segment, len(rest)):] {
			parts = append(parts, b.Cell(rest[:min(segment, len(rest))]))
		}
		list := b.Cell(Offsets(parts...))
		le.PutUint32(vk[8:], b.Cell(append(Head("db", len(parts)), Offsets(list)...)))
	default:
		le.PutUint32(vk[8:], b.Cell(data))
	}
	return b.Cell(append(vk, name...))
}

// Hive returns the whole, with its root.
func (b *Builder) Hive(root uint32) []byte {
	n := (len(b.Bin) + 4095) &^ 4095
	if free := n - len(b.Bin); free > 0 {
		at := len(b.Bin)
		b.Bin = append(b.Bin, make([]byte, free)...)
		le.PutUint32(b.Bin[at:], uint32(free))
	}
	le.PutUint32(b.Bin[8:], uint32(n))
	m := make([]byte, 4096, 4096+n)
	copy(m, "regf")
	le.PutUint32(m[4:], 7)
	le.PutUint32(m[8:], 7)
	le.PutUint64(m[12:], 131000000000000000)
	le.PutUint32(m[20:], 1)
	le.PutUint32(m[24:], 5)
	le.PutUint32(m[32:], 1)
	le.PutUint32(m[36:], root)
	le.PutUint32(m[40:], uint32(n))
	le.PutUint32(m[44:], 1)
	Seal(m)
	// The root is marked as such.
	m = append(m, b.Bin...)
	m[4096+int(root)+4+2] |= 0x04
	return m
}

// Seal writes the checksum of a base block.
func Seal(b []byte) {
	var sum uint32
	for i := 0; i < 508; i += 4 {
		sum ^= le.Uint32(b[i:])
	}
	le.PutUint32(b[508:], sum)
}

// Text encodes a string with its end.
func Text(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = le.AppendUint16(b, u)
	}
	return b
}

// OldLog makes a log of the format before Windows 8.1, which leads from one state of a
// hive to another.
func OldLog(from, to []byte) []byte {
	var pages []byte
	vector := make([]byte, (len(to)-4096)/4096)
	for at := 4096; at < len(to); at += 4096 {
		if at >= len(from) || !bytes.Equal(from[at:at+4096], to[at:at+4096]) {
			vector[at/4096-1] = 0xff
			pages = append(pages, to[at:at+4096]...)
		}
	}
	b := bytes.Clone(from[:512])
	b[28] = 1
	le.PutUint32(b[40:], uint32(len(to)-4096))
	Seal(b)
	b = append(append(b, "DIRT"...), vector...)
	b = append(b, make([]byte, (512-len(b)%512)%512)...)
	return append(b, pages...)
}
