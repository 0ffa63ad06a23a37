package fat

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
)

// Bits of the byte of a directory entry that tells which parts of a short name are
// to be shown in lower case.
const (
	lowerBase = 0x08
	lowerExt  = 0x10
)

// shortName decodes a name of 8 and 3 bytes as Linux shows it with
// shortname=mixed.
func shortName(b []byte, lower byte, page []rune) string {
	raw := [11]byte(b)
	if raw[0] == 0x05 { // stands for a byte that would mean "deleted"
		raw[0] = 0xe5
	}
	base := decode(raw[:8], lower&lowerBase != 0, page)
	if ext := decode(raw[8:], lower&lowerExt != 0, page); ext != "" {
		return base + "." + ext
	}
	return base
}

// decode translates bytes of a code page, without spaces at the end.
func decode(b []byte, lower bool, page []rune) string {
	var s strings.Builder
	for _, c := range b {
		r := rune(c)
		if c >= 0x80 {
			r = page[c-0x80]
		}
		if low := unicode.ToLower(r); lower && (low < 0x80 || slices.Contains(page, low)) {
			r = low
		}
		s.WriteRune(r)
	}
	return strings.TrimRight(s.String(), " ")
}

// checksum is of a short name, which the entries of its long name carry.
func checksum(short []byte) byte {
	var sum byte
	for _, c := range short[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// maxUnits is how many units of UTF-16 a long name has at most.
const maxUnits = 255

// unitsPerEntry is how many of them are in one entry.
const unitsPerEntry = 13

// long puts together the entries of a long name, which precede the entry of the
// short one in reverse order.
type long struct {
	units [20 * unitsPerEntry]uint16
	n     int // of units, when all entries are there
	next  int // ordinal of the entry that has to follow; 0: that of the short name
	sum   byte
}

// none is the ordinal to follow where there is no long name.
const none = -1

// add takes an entry. One that is out of order ends the name, or begins another.
func (l *long) add(b []byte) {
	ordinal := int(b[0] &^ 0x40)
	switch {
	case b[0]&0x40 != 0 && ordinal >= 1 && ordinal <= 20:
		l.n, l.next, l.sum = ordinal*unitsPerEntry, ordinal, b[13]
	case l.next <= 0 || ordinal != l.next || b[13] != l.sum:
		l.next = none
		return
	}
	to := l.units[(l.next-1)*unitsPerEntry:]
	for i := range unitsPerEntry {
		at := 1 + 2*i
		if i >= 5 {
			at += 3
		}
		if i >= 11 {
			at += 2
		}
		to[i] = binary.LittleEndian.Uint16(b[at:])
	}
	l.next--
}

// take returns the name if it is that of a short one, and forgets it.
func (l *long) take(short []byte) (string, bool) {
	complete := l.next == 0
	l.next = none
	if !complete || l.sum != checksum(short) {
		return "", false
	}
	units := l.units[:l.n]
	if i := slices.Index(units, 0); i >= 0 {
		units = units[:i]
	}
	if len(units) == 0 || len(units) > maxUnits {
		return "", false
	}
	return string(utf16.Decode(units)), true
}

// fold returns a name so that names that differ only in case are equal. A letter
// whose upper case has another lower case, as the dotless i has, stays.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		if up := unicode.ToUpper(r); unicode.ToLower(up) == r {
			return up
		}
		return r
	}, name)
}
