package iso9660

import (
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// record is a directory record (ECMA-119, 9.1). Its length has been checked, and
// that its name is within it.
type record []byte

// minRecord is the length of the shortest, in bytes.
const minRecord = 34

// Flags of files (ECMA-119, 9.1.6).
const (
	flagHidden     = 0x01
	flagDirectory  = 0x02
	flagAssociated = 0x04
	flagMore       = 0x80 // further extents of the file follow
)

// parseRecord returns the record at the start of b.
func parseRecord(b []byte) (record, error) {
	if len(b) < minRecord || int(b[0]) > len(b) || b[0] < minRecord || 33+int(b[32]) > int(b[0]) || b[32] == 0 {
		return nil, fmt.Errorf("a directory record that contradicts itself: %w", fsys.ErrCorrupt)
	}
	return record(b[:b[0]]), nil
}

func (r record) flags() byte { return r[25] }
func (r record) size() int64 { return int64(le.Uint32(r[10:])) }
func (r record) name() []byte {
	return r[33 : 33+int(r[32])]
}
func (r record) recorded() time.Time { return shortTime(r[18:25]) }

// start returns the byte of the volume at which the content begins, behind the
// extended attribute record that it may have.
func (r record) start(block int64) int64 {
	return (int64(le.Uint32(r[2:])) + int64(r[1])) * block
}

// itself says whether the record is the first of a directory, which stands for that
// (ECMA-119, 7.6.2).
func (r record) itself() bool { return r[32] == 1 && r[33] == 0 }

// dots says whether the record stands for its own directory or the one above.
func (r record) dots() bool { return r[32] == 1 && r[33] <= 1 }

// systemUse returns what follows the name (ECMA-119, 9.1.13).
func (r record) systemUse() []byte {
	n := 33 + int(r[32])
	n += n & 1
	return r[min(n, len(r)):]
}

// readable returns an error if the content is stored in a way that is not read.
func (r record) readable(number int) error {
	if r[26] != 0 || r[27] != 0 {
		return fmt.Errorf("an interleaved file: %w", fsys.ErrUnsupported)
	}
	if n := int(le.Uint16(r[28:])); n > 1 && n != number {
		return fmt.Errorf("a file on disc %d of the set, of which this is disc %d: %w", n, number, fsys.ErrUnsupported)
	}
	return nil
}

// shortTime decodes seven bytes (ECMA-119, 9.1.5). Zeroes are no time.
func shortTime(b []byte) time.Time {
	if b[1] == 0 || b[2] == 0 {
		return time.Time{}
	}
	zone := time.FixedZone("", int(int8(b[6]))*15*60)
	if int8(b[6]) < -52 || int8(b[6]) > 52 {
		zone = time.UTC
	}
	return time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, zone).UTC()
}

// longTime decodes seventeen (ECMA-119, 8.4.26.1).
func longTime(b []byte) time.Time {
	var n [7]int // year to hundredths
	at := 0
	for i := range n {
		digits := 2
		if i == 0 {
			digits = 4
		}
		for range digits {
			if b[at] < '0' || b[at] > '9' {
				return time.Time{}
			}
			n[i] = n[i]*10 + int(b[at]-'0')
			at++
		}
	}
	if n[1] == 0 || n[2] == 0 {
		return time.Time{}
	}
	zone := time.FixedZone("", int(int8(b[16]))*15*60)
	return time.Date(n[0], time.Month(n[1]), n[2], n[3], n[4], n[5], n[6]*1e7, zone).UTC()
}

// record returns the record that an ID stands for.
func (f *FS) record(id fsys.ID) (record, error) {
	missing := fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	if id < firstDescriptor*sector || id > math.MaxInt64 || int64(id) > f.vol.Size()-minRecord {
		return nil, missing
	}
	b := make([]byte, min(255, sector-int64(id)%sector, f.vol.Size()-int64(id)))
	if err := f.meta.ReadAt(b, int64(id)); err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	if len(b) < minRecord || b[0] == 0 {
		return nil, missing
	}
	return parseRecord(b)
}

// records calls yield for the records in a part of the volume, from byte at to byte
// end, with where each lies. Damaged ones are left out, with what follows them in the
// sector, and are an error at the end.
func (f *FS) records(at, end int64, yield func(r record, at int64) bool) error {
	var bad error
	buf := make([]byte, sector)
	for at < end {
		b := buf[:min(sector-at%sector, end-at)]
		if err := f.meta.ReadAt(b, at); err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		for i := 0; i < len(b); {
			if b[i] == 0 { // there are no more in this block (ECMA-119, 6.8.1.1)
				i += int(f.block - (at+int64(i))%f.block)
				continue
			}
			r, err := parseRecord(b[i:])
			if err != nil {
				bad = err
				break
			}
			if !yield(r, at+int64(i)) {
				return nil
			}
			i += len(r)
		}
		at += int64(len(b))
	}
	return bad
}

// maxSections is how many extents a file may have: as many as reach 8 TiB, the
// largest volume there is.
const maxSections = 2048

// sections returns the records of a file, whose first lies at id: those that follow
// it as long as there are more to come (ECMA-119, 9.1.6).
func (f *FS) sections(id fsys.ID, first record) ([]record, error) {
	list := []record{first}
	if first.flags()&flagMore == 0 {
		return list, nil
	}
	var err error
	more := true
	// Where the directory ends is not known here. The rest of its sector holds the
	// next record, or the next sector does, unless the disc is damaged.
	end := min(int64(id)+maxSections*256, f.vol.Size())
	bad := f.records(int64(id)+int64(len(first)), end, func(r record, _ int64) bool {
		if !bytes.Equal(r.name(), first.name()) {
			err = fmt.Errorf("extents of a file that end after %d: %w", len(list), fsys.ErrCorrupt)
			return false
		}
		list = append(list, bytes.Clone(r))
		more = r.flags()&flagMore != 0
		return more && len(list) < maxSections
	})
	if err == nil && more {
		err = bad
		if err == nil {
			err = fmt.Errorf("a file of more than %d extents: %w", len(list), fsys.ErrCorrupt)
		}
	}
	return list, err
}
