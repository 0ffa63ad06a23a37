package iso9660

import (
	"fmt"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// xaLen is the length of the system use information of CD-ROM XA, in bytes, which
// may come before the entries.
const xaLen = 14

// entry is a system use entry: a signature of two letters, a length, a version and
// data (SUSP 4.1). Its length has been checked.
type entry []byte

func (e entry) is(signature string) bool { return string(e[:2]) == signature }

// number returns the number that lies at a byte of the entry in both orders, or 0 if
// the entry is too short for it (ECMA-119, 7.3.3).
func (e entry) number(at int) uint32 {
	if len(e) < at+8 {
		return 0
	}
	return le.Uint32(e[at:])
}

// isRockRidge says whether an entry ER names Rock Ridge, by one of the names that it
// has had (SUSP 5.5, RRIP 4.3).
func (e entry) isRockRidge() bool {
	if !e.is("ER") || len(e) < 8 || int(e[4]) > len(e)-8 {
		return false
	}
	switch id := string(e[8 : 8+int(e[4])]); {
	case strings.HasPrefix(id, "RRIP_1991"), id == "IEEE_P1282", id == "IEEE_1282":
		return true
	}
	return false
}

// Limits of the continuation areas of one record, which hold a name and a target.
const (
	maxAreas     = 32
	maxAreaBytes = 16 << 10 // all together
)

// entries calls take for each entry of a system use area, and of the areas in which
// it goes on (SUSP 5.1), until that returns an error.
func (f *FS) entries(area []byte, take func(entry) error) error {
	left := int64(maxAreaBytes)
	for areas := 0; ; areas++ {
		var next entry
		for len(area) >= 4 {
			n := int(area[2])
			if n < 4 || n > len(area) {
				break // padding, or nothing that has to do with this
			}
			e := entry(area[:n])
			area = area[n:]
			if e.is("CE") && n >= 28 {
				next = e
				continue
			}
			if err := take(e); err != nil {
				return err
			}
		}
		if next == nil {
			return nil
		}
		at := int64(next.number(4))*f.block + int64(next.number(12))
		n := int64(next.number(20))
		if left -= n; areas >= maxAreas || left < 0 {
			return fmt.Errorf("system use area %d of %d bytes: %w", areas+1, n, fsys.ErrCorrupt)
		}
		area = make([]byte, n)
		if err := f.meta.ReadAt(area, at); err != nil {
			return fmt.Errorf("read continuation of a system use area: %w", err)
		}
	}
}
