package exfat

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// upcase says of each unit of UTF-16 what it is in upper case.
type upcase [1 << 16]uint16

// maxUpcase is how many bytes the table takes on the volume at most.
const maxUpcase = 2 << 16

// parseUpcase reads the table (section 7.2): 0xffff and n stand for n units that
// are their own upper case.
func parseUpcase(b []byte, want uint32) (*upcase, error) {
	var sum uint32
	for _, c := range b {
		sum = (sum>>1 | sum<<31) + uint32(c)
	}
	if sum != want {
		return nil, fmt.Errorf("up-case table with the checksum %#x, not %#x: %w", sum, want, fsys.ErrCorrupt)
	}
	u := &upcase{}
	for i := range u {
		u[i] = uint16(i)
	}
	for at := 0; len(b) >= 2 && at < len(u); b = b[2:] {
		x := binary.LittleEndian.Uint16(b)
		if x == 0xffff && at != 0xffff && len(b) >= 4 {
			b = b[2:]
			at += int(binary.LittleEndian.Uint16(b))
			continue
		}
		u[at] = x
		at++
	}
	return u, nil
}

// defaultUpcase stands in for a table that cannot be read. A letter whose upper
// case has another lower case, as the dotless i has, stays.
func defaultUpcase() *upcase {
	u := &upcase{}
	for i := range u {
		u[i] = uint16(i)
		if r := unicode.ToUpper(rune(i)); r < 1<<16 && unicode.ToLower(r) == rune(i) {
			u[i] = uint16(r)
		}
	}
	return u
}

// fold returns a name in upper case.
func (u *upcase) fold(units []uint16) []uint16 {
	folded := slices.Clone(units)
	for i, x := range folded {
		folded[i] = u[x]
	}
	return folded
}

// foldText does so with UTF-8.
func (u *upcase) foldText(name string) []uint16 { return u.fold(utf16.Encode([]rune(name))) }
