package ntfs

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Name spaces of file names.
const (
	spacePOSIX = 0
	spaceWin32 = 1
	spaceDOS   = 2
	spaceBoth  = 3 // of Win32 and DOS
)

// units returns the code units of a name in UTF-16, little-endian.
func units(s string) []byte {
	b := make([]byte, 0, 2*len(s))
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// decodeName translates UTF-16 to UTF-8. Half of a surrogate pair, which Windows
// lets a name have, becomes what UTF-8 would make of it if it were a character.
func decodeName(b []byte) string {
	var s strings.Builder
	s.Grow(len(b) / 2)
	for i := 0; i+1 < len(b); i += 2 {
		u := rune(binary.LittleEndian.Uint16(b[i:]))
		switch {
		case u < utf8.RuneSelf:
			s.WriteByte(byte(u))
		case !utf16.IsSurrogate(u):
			s.WriteRune(u)
		default:
			if i+3 < len(b) {
				if r := utf16.DecodeRune(u, rune(binary.LittleEndian.Uint16(b[i+2:]))); r != utf8.RuneError {
					s.WriteRune(r)
					i += 2
					continue
				}
			}
			s.Write([]byte{0xe0 | byte(u>>12), 0x80 | byte(u>>6&0x3f), 0x80 | byte(u&0x3f)})
		}
	}
	return s.String()
}

// encodeName is the inverse of decodeName. It returns false for what is not UTF-8
// otherwise.
func encodeName(s string) ([]uint16, bool) {
	name := make([]uint16, 0, len(s))
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			if len(s) < 3 || s[0] != 0xed || s[1]&0xe0 != 0xa0 || s[2]&0xc0 != 0x80 {
				return nil, false
			}
			r, n = 0xd000|rune(s[1]&0x3f)<<6|rune(s[2]&0x3f), 3
			name = append(name, uint16(r))
		} else {
			name = utf16.AppendRune(name, r)
		}
		s = s[n:]
	}
	return name, true
}

// upcase is the volume's table of upper case letters.
type upcase [1 << 16]uint16

// compare orders names as directories do: as if they were in upper case and, where
// that makes them the same, which it tells, by the first difference.
func (u *upcase) compare(a []uint16, b []byte) (order int, same bool) {
	exact := 0
	for i, x := range a {
		if 2*i+1 >= len(b) {
			return 1, false
		}
		y := binary.LittleEndian.Uint16(b[2*i:])
		if x == y {
			continue
		}
		if fx, fy := u[x], u[y]; fx != fy {
			return int(fx) - int(fy), false
		}
		if exact == 0 {
			exact = int(x) - int(y)
		}
	}
	if len(b) > 2*len(a) {
		return -1, false
	}
	return exact, true
}
