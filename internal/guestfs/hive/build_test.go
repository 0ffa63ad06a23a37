package hive_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"testing"
	"unicode/utf16"
)

var le = binary.LittleEndian

// memory is a file in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) error {
	if off < 0 || off > m.Size()-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	copy(p, m[off:])
	return nil
}

// builder makes a hive by hand, of one bin.
type builder struct {
	bin      []byte
	security uint32
}

func newBuilder() *builder {
	b := &builder{bin: make([]byte, 32)}
	copy(b.bin, "hbin")
	// A security descriptor without owner, which all keys share.
	sk := make([]byte, 20+20)
	copy(sk, "sk")
	le.PutUint32(sk[12:], 1)
	le.PutUint32(sk[16:], 20)
	sk[20], sk[23] = 1, 0x80
	b.security = b.cell(sk)
	le.PutUint32(b.bin[b.security+4+4:], b.security)
	le.PutUint32(b.bin[b.security+4+8:], b.security)
	return b
}

// cell adds one, and returns its offset.
func (b *builder) cell(data []byte) uint32 {
	at := len(b.bin)
	n := (4 + len(data) + 7) &^ 7
	b.bin = append(b.bin, make([]byte, n)...)
	le.PutUint32(b.bin[at:], uint32(-n))
	copy(b.bin[at+4:], data)
	return uint32(at)
}

func offsets(list ...uint32) []byte {
	var b []byte
	for _, o := range list {
		b = le.AppendUint32(b, o)
	}
	return b
}

// key adds one, of keys in a list of a kind and of values.
func (b *builder) key(name string, kind string, keys, values []uint32) uint32 {
	nk := make([]byte, 76, 76+len(name))
	copy(nk, "nk")
	for _, at := range []int{16, 28, 32, 40, 48} {
		le.PutUint32(nk[at:], 0xffffffff)
	}
	le.PutUint16(nk[2:], 0x20)
	le.PutUint32(nk[44:], b.security)
	if len(keys) > 0 {
		le.PutUint32(nk[20:], uint32(len(keys)))
		le.PutUint32(nk[28:], b.list(kind, keys))
	}
	if len(values) > 0 {
		le.PutUint32(nk[36:], uint32(len(values)))
		le.PutUint32(nk[40:], b.cell(offsets(values...)))
	}
	le.PutUint16(nk[72:], uint16(len(name)))
	at := b.cell(append(nk, name...))
	for _, k := range keys {
		le.PutUint32(b.bin[k+4+16:], at)
	}
	return at
}

// list adds a list of keys: li, lf, or ri of li with two each.
func (b *builder) list(kind string, keys []uint32) uint32 {
	if kind == "ri" {
		var leaves []uint32
		for ; len(keys) > 0; keys = keys[min(2, len(keys)):] {
			leaves = append(leaves, b.list("li", keys[:min(2, len(keys))]))
		}
		return b.cell(append(head("ri", len(leaves)), offsets(leaves...)...))
	}
	data := head(kind, len(keys))
	for _, k := range keys {
		data = le.AppendUint32(data, k)
		if kind != "li" {
			data = append(data, "hint"...)
		}
	}
	return b.cell(data)
}

func head(kind string, n int) []byte { return le.AppendUint16([]byte(kind), uint16(n)) }

// value adds one.
func (b *builder) value(name string, kind uint32, data []byte) uint32 {
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
			parts = append(parts, b.cell(rest[:min(segment, len(rest))]))
		}
		list := b.cell(offsets(parts...))
		le.PutUint32(vk[8:], b.cell(append(head("db", len(parts)), offsets(list)...)))
	default:
		le.PutUint32(vk[8:], b.cell(data))
	}
	return b.cell(append(vk, name...))
}

// hive returns the whole, with its root.
func (b *builder) hive(root uint32) memory {
	n := (len(b.bin) + 4095) &^ 4095
	if free := n - len(b.bin); free > 0 {
		at := len(b.bin)
		b.bin = append(b.bin, make([]byte, free)...)
		le.PutUint32(b.bin[at:], uint32(free))
	}
	le.PutUint32(b.bin[8:], uint32(n))
	m := make(memory, 4096, 4096+n)
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
	seal(m)
	// The root is marked as such.
	m = append(m, b.bin...)
	m[4096+int(root)+4+2] |= 0x04
	return m
}

// seal writes the checksum of a base block.
func seal(b []byte) {
	var sum uint32
	for i := 0; i < 508; i += 4 {
		sum ^= le.Uint32(b[i:])
	}
	le.PutUint32(b[508:], sum)
}

// utf16le encodes a string with its end.
func utf16le(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = le.AppendUint16(b, u)
	}
	return b
}

// save writes a hive to a file.
func save(t testing.TB, path string, m memory) {
	t.Helper()
	if err := os.WriteFile(path, m, 0o600); err != nil {
		t.Fatal(err)
	}
}
