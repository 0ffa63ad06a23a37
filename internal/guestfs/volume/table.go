package volume

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// maxPartitions is how many entries of a table are looked at.
const maxPartitions = 1024

// table is a partition table.
type table struct {
	kind   string // gpt, dos, bsd, mac, sun, sgi
	uuid   string
	sector int64 // unit of its numbers, in bytes
	parts  []entry
	notes  []string
	// refusal says why there are no partitions although there is a table.
	refusal string
}

// entry is a partition of a table.
type entry struct {
	Partition
	extended bool   // holds logical partitions, and nothing else
	refusal  string // why it cannot be read
}

// covers says whether a partition holds the byte at off.
func (t *table) covers(off int64) bool {
	return t != nil && slices.ContainsFunc(t.parts, func(e entry) bool {
		return !e.extended && e.Start <= off && off < e.Start+e.Size
	})
}

// cuts says whether a partition begins before end and reaches well past it: what ends
// there was overwritten, but for what follows its own end as padding. The partition
// that a disc with a second set of descriptors has begins behind its system area.
func (t *table) cuts(end int64) bool {
	const padding = 1 << 20
	return t != nil && end > 0 && slices.ContainsFunc(t.parts, func(e entry) bool {
		return e.Start < end && e.Start+e.Size > end+padding && e.Start != 16*isoSector
	})
}

// overlap notes which partitions share bytes. Both are shown: nobody knows which of
// them is right.
func (t *table) overlap() {
	var parts []entry
	for _, e := range t.parts {
		if !e.extended && e.refusal == "" && e.Size > 0 {
			parts = append(parts, e)
		}
	}
	slices.SortStableFunc(parts, func(a, b entry) int { return cmp.Compare(a.Start, b.Start) })
	last := 0 // the one of those before that ends last
	told := 0
	for i := 1; i < len(parts) && told < 8; i++ {
		if a, b := &parts[last], &parts[i]; b.Start < a.Start+a.Size {
			t.notes = append(t.notes, fmt.Sprintf("Partitions %d and %d overlap.", a.Number, b.Number))
			told++
		}
		if parts[i].Start+parts[i].Size > parts[last].Start+parts[last].Size {
			last = i
		}
	}
}

// sectorSizes are the units that tables may count in.
var sectorSizes = []int64{512, 4096}

// readTable returns the partition table of a volume, nil if there is none.
func readTable(w *window) *table {
	sector0 := w.bytes(0, 512)
	if sector0 == nil {
		return nil
	}
	m := parseMBR(sector0)
	switch {
	case m == nil || m.protective():
		// What is left of a table whose protective record was overwritten by
		// something else is not trusted; a record that is gone is not missed.
		if m == nil && !allZero(sector0[446:]) {
			break
		}
		if t := readGPT(w, m); t != nil {
			return t
		}
		if m == nil {
			break
		}
		return &table{kind: "gpt", sector: 512, refusal: "The disk has a protective master boot record, but neither of the GUID partition tables is sound."}
	case !bootSector(sector0):
		return readDOS(w, m)
	}
	return otherTable(w, sector0)
}

// otherTable recognises tables whose partitions are not read.
func otherTable(w *window, sector0 []byte) *table {
	kind := ""
	switch {
	case hasBSDLabel(w, 0):
		kind = "bsd"
	case string(sector0[:2]) == "ER" && (w.has(512, "PM\x00\x00") || w.has(2048, "PM\x00\x00")):
		kind = "mac"
	case be.Uint16(sector0[508:]) == 0xdabe && xor16(sector0) == 0:
		kind = "sun"
	case be.Uint32(sector0) == 0x0be5a941:
		kind = "sgi"
	default:
		return nil
	}
	return &table{kind: kind, sector: 512, refusal: fmt.Sprintf("The disk has a partition table of type %s, which is not read.", kind)}
}

// xor16 is the checksum of a Sun label: zero if it is sound.
func xor16(sector []byte) uint16 {
	var x uint16
	for i := 0; i+1 < len(sector); i += 2 {
		x ^= be.Uint16(sector[i:])
	}
	return x
}

// hasBSDLabel says whether there is a BSD disklabel at the volume's sector 1 or 0:
// struct disklabel has its magic number twice.
func hasBSDLabel(w *window, base int64) bool {
	const magic, second = 0x82564557, 132
	for _, at := range []int64{512, 64, 0} {
		if b := w.bytes(base+at, second+4); b != nil && le.Uint32(b) == magic && le.Uint32(b[second:]) == magic {
			return true
		}
	}
	return false
}

// place sets where an entry lies, and refuses it if that is not on the disk. What
// reaches past the end is cut there, as the kernel does.
func (e *entry) place(start, count uint64, sector, size int64) {
	if start > math.MaxInt64/uint64(sector)/4 || count > math.MaxInt64/uint64(sector)/4 {
		e.refusal = "The partition lies past the end of the disk."
		return
	}
	e.Start, e.Size = int64(start)*sector, int64(count)*sector
	if e.Start >= size {
		e.refusal = "The partition lies past the end of the disk."
	}
}
