package archive

import (
	"strings"
	"unicode/utf8"
)

// zipName returns a name that means the same wherever a zip is extracted. A byte
// that cannot stand in one, or means something to others, becomes the character
// U+F000 + byte: bytes that are not UTF-8, control characters (which unzip drops),
// backslashes (which separate names on Windows), and the colon of what reads as a
// drive wherever in a path it stands. WSL, Cygwin and Samba write such names on Windows in the same way.
// Different names stay different, since what is such a character already is
// written byte by byte.
func zipName(name string) string {
	if simple(name) {
		return name
	}
	var b strings.Builder
	first := 0 // of the name that we are in
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 || r >= 0xf000 && r <= 0xf0ff {
			for range n {
				b.WriteRune(0xf000 + rune(name[i]))
				i++
			}
			continue
		}
		if r < ' ' || r == 0x7f || r == '\\' || r == ':' && i == first+1 && letter(name[first]) {
			r += 0xf000
		}
		b.WriteRune(r)
		i += n
		if r == '/' {
			first = i
		}
	}
	return b.String()
}

// simple reports whether a name can be had as it is, for most.
func simple(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < ' ' || c >= 0x7f || c == '\\' || c == ':' {
			return false
		}
	}
	return true
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
