package volume

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// windowCache is what a window keeps, in bytes.
const windowCache = 1 << 20

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// window reads small structures of a volume. What lies outside of the volume, or
// cannot be read, is not there; the first error of reading is kept.
type window struct {
	vol fsys.Volume
	err error
}

func newWindow(v fsys.Volume) *window { return &window{vol: fsys.Cached(v, windowCache)} }

func (w *window) size() int64 { return w.vol.Size() }

// bytes returns the n bytes at off, or nil.
func (w *window) bytes(off int64, n int) []byte {
	if fsys.CheckRange(off, int64(n), w.size()) != nil {
		return nil
	}
	p := make([]byte, n)
	if err := w.vol.ReadAt(p, off); err != nil {
		if w.err == nil {
			w.err = err
		}
		return nil
	}
	return p
}

// has says whether magic lies at off.
func (w *window) has(off int64, magic string) bool {
	return string(w.bytes(off, len(magic))) == magic
}

// text returns what of b is before the first NUL, without spaces around it.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.ToValidUTF8(strings.TrimSpace(string(b)), "\uFFFD")
}

// text16 is text of UTF-16.
func text16(b []byte, order binary.ByteOrder) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := order.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return strings.TrimSpace(string(utf16.Decode(units)))
}

const hexDigits = "0123456789abcdef"

// uuid prints 16 bytes as a UUID; none for zeroes.
func uuid(b []byte) string {
	if len(b) != 16 || allZero(b) {
		return ""
	}
	s := make([]byte, 0, 36)
	for i, x := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			s = append(s, '-')
		}
		s = append(s, hexDigits[x>>4], hexDigits[x&15])
	}
	return string(s)
}

// guid prints 16 bytes whose first three fields are little-endian.
func guid(b []byte) string {
	if len(b) != 16 {
		return ""
	}
	return uuid([]byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]})
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
