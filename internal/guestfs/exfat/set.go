package exfat

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// entrySize is that of a directory entry, in bytes.
const entrySize = 32

// Types of directory entries (section 6.3). The first bit says that one is in use.
const (
	typeEnd    = 0x00
	typeBitmap = 0x81
	typeUpcase = 0x82
	typeLabel  = 0x83
	typeFile   = 0x85
	typeStream = 0xc0
	typeName   = 0xc1

	inUse     = 0x80
	secondary = 0x40
	benign    = 0x20
)

// Bits of the attributes of a file (section 7.4.4).
const (
	attrReadOnly = 0x01
	attrHidden   = 0x02
	attrSystem   = 0x04
	attrDir      = 0x10
	attrArchive  = 0x20
)

// Bits of the flags of a stream (section 6.3.4).
const (
	allocationPossible = 0x01
	noFATChain         = 0x02
)

// A file takes from 3 to 19 entries.
const (
	minSet = 3
	maxSet = 19
)

// unitsPerEntry is how many units of UTF-16 are in an entry of a name.
const unitsPerEntry = 15

// set are the entries of a file or directory: the file's, the stream's, and those
// of its name.
type set []byte

// setLen returns how many bytes the set takes that begins with an entry.
func setLen(first []byte) (int, error) {
	n := 1 + int(first[1])
	if n < minSet || n > maxSet {
		return 0, fmt.Errorf("a file of %d directory entries: %w", n, fsys.ErrCorrupt)
	}
	return n * entrySize, nil
}

// check reports what is wrong with a set (sections 6.3.3, 7.6 and 7.7).
func (s set) check() error {
	var sum uint16
	for i, c := range s {
		if i != 2 && i != 3 {
			sum = (sum>>1 | sum<<15) + uint16(c)
		}
	}
	if got := binary.LittleEndian.Uint16(s[2:]); got != sum {
		return fmt.Errorf("directory entries with the checksum %#x, not %#x: %w", got, sum, fsys.ErrCorrupt)
	}
	names := (s.units() + unitsPerEntry - 1) / unitsPerEntry
	for i := 1; i < len(s)/entrySize; i++ {
		kind := s[i*entrySize]
		switch {
		case i == 1 && kind == typeStream && names > 0 && names+2 <= len(s)/entrySize:
		case i > 1 && i < names+2 && kind == typeName:
		case i >= names+2 && kind&benign != 0:
		case i >= names+2 && kind != typeStream && kind != typeName:
			return fmt.Errorf("a directory entry of type %#x: %w", kind, fsys.ErrUnsupported)
		default:
			return fmt.Errorf("a directory entry of type %#x is number %d of a file: %w", kind, i, fsys.ErrCorrupt)
		}
	}
	if s.valid() < 0 || s.valid() > s.size() {
		return fmt.Errorf("%d of %d bytes of a file are valid: %w", s.valid(), s.size(), fsys.ErrCorrupt)
	}
	return nil
}

func (s set) attributes() uint16   { return binary.LittleEndian.Uint16(s[4:]) }
func (s set) isDir() bool          { return s.attributes()&attrDir != 0 }
func (s set) flags() byte          { return s[entrySize+1] }
func (s set) units() int           { return int(s[entrySize+3]) }
func (s set) valid() int64         { return int64(binary.LittleEndian.Uint64(s[entrySize+8:])) }
func (s set) firstCluster() uint32 { return binary.LittleEndian.Uint32(s[entrySize+20:]) }
func (s set) size() int64          { return int64(binary.LittleEndian.Uint64(s[entrySize+24:])) }

// name returns the units of the name. The hash beside it (section 7.6.4) is left
// alone: the checksum protects the name already, and a file whose hash is wrong
// is to be found all the same.
func (s set) name() []uint16 {
	units := make([]uint16, s.units())
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(s[(2+i/unitsPerEntry)*entrySize+2+i%unitsPerEntry*2:])
	}
	return units
}

// text returns a name as UTF-8, and an error for one that no system could make.
func text(units []uint16) (string, error) {
	name := string(utf16.Decode(units))
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("a file with the name %q: %w", name, fsys.ErrCorrupt)
	}
	return name, nil
}

// created, modified and accessed are times (section 7.4.5 to 7.4.10).
func (s set) created() time.Time  { return stamp(s[8:], s[20], s[22]) }
func (s set) modified() time.Time { return stamp(s[12:], s[21], s[23]) }
func (s set) accessed() time.Time { return stamp(s[16:], 0, s[24]) }

// stamp returns a time, with hundredths of a second and the offset of its zone from
// UTC in quarters of an hour. One without a zone is taken for UTC. The zero time
// is returned for one that was not set.
func stamp(b []byte, hundredths, zone byte) time.Time {
	x := binary.LittleEndian.Uint32(b)
	if x == 0 {
		return time.Time{}
	}
	year, month, day := 1980+int(x>>25), max(1, int(x>>21&0xf)), max(1, int(x>>16&0x1f))
	t := time.Date(year, time.Month(month), day, int(x>>11&0x1f), int(x>>5&0x3f), int(x&0x1f)*2, 0, time.UTC)
	if zone&0x80 != 0 {
		t = t.Add(-time.Duration(int8(zone<<1)>>1) * 15 * time.Minute)
	}
	return t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
}
