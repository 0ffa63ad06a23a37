// Package cluster follows chains of clusters, as FAT and exFAT keep their files in:
// a table has an entry for each cluster, which names the next one. It knows nothing
// of directories, names or boot sectors.
package cluster

import (
	"encoding/binary"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// First is the number of the first cluster of a volume.
const First = 2

// Table is a file allocation table, and where the clusters lie. It is not changed
// once it is in use.
type Table struct {
	Volume   fsys.Volume // of which the table is read in pieces of a few KiB
	At       int64       // byte of the volume at which the table begins
	Bits     int         // of an entry: 12, 16 or 32
	Mask     uint32      // of the bits of an entry that count
	Heap     int64       // byte of the volume at which the first cluster begins
	Size     int64       // of a cluster, in bytes
	Clusters uint32      // how many there are; the last has the number Clusters+1
}

// Holds reports whether there is a cluster of this number.
func (t *Table) Holds(c uint32) bool { return c >= First && c-First < t.Clusters }

// Offset returns the byte of the volume at which a cluster begins.
func (t *Table) Offset(c uint32) int64 { return t.Heap + int64(c-First)*t.Size }

// Count returns how many clusters n bytes take.
func (t *Table) Count(n int64) int64 { return n/t.Size + min(1, n%t.Size) }

// Entry returns what the table says of a cluster. The entries 0 and 1 are of no
// cluster, but can be read.
func (t *Table) Entry(c uint32) (uint32, error) { return (&window{table: t}).entry(c) }

// ends reports that an entry says that a chain ends with its cluster.
func (t *Table) ends(entry uint32) bool { return entry >= t.Mask-7 }

// window is the part of a table that was read last: the next entry is mostly in it.
type window struct {
	table *Table
	from  int64 // byte of the table
	data  []byte
}

// windowSize is a multiple of what three entries of 12 bits and two of 32 take.
const windowSize = 3 << 10

// entry returns the masked entry of cluster c.
func (w *window) entry(c uint32) (uint32, error) {
	t := w.table
	if c >= First+t.Clusters {
		return 0, fmt.Errorf("entry %d of a table of %d clusters: %w", c, t.Clusters, fsys.ErrCorrupt)
	}
	bit := int64(c) * int64(t.Bits)
	n := int64(2)
	if t.Bits == 32 {
		n = 4
	}
	at := bit / 8
	if at < w.from || at+n > w.from+int64(len(w.data)) {
		if err := w.load(at); err != nil {
			return 0, err
		}
	}
	b := w.data[at-w.from:]
	switch {
	case t.Bits == 32:
		return binary.LittleEndian.Uint32(b) & t.Mask, nil
	case bit%8 != 0: // the upper 12 of 16 bits
		return uint32(binary.LittleEndian.Uint16(b)>>4) & t.Mask, nil
	}
	return uint32(binary.LittleEndian.Uint16(b)) & t.Mask, nil
}

// load reads the part of the table with the entry at a byte of it.
func (w *window) load(at int64) error {
	t := w.table
	end := ((int64(t.Clusters)+First)*int64(t.Bits) + 7) / 8
	from := at - at%windowSize
	n := min(windowSize+1, end-from)
	if int64(cap(w.data)) < n {
		w.data = make([]byte, windowSize+1)
	}
	w.data = w.data[:n]
	w.from = from
	if err := t.Volume.ReadAt(w.data, t.At+from); err != nil {
		w.data = w.data[:0]
		return fmt.Errorf("read allocation table: %w", err)
	}
	return nil
}

// Each calls visit with the entry of every cluster.
func (t *Table) Each(visit func(entry uint32)) error {
	w := &window{table: t}
	for i := range t.Clusters {
		entry, err := w.entry(First + i)
		if err != nil {
			return err
		}
		visit(entry)
	}
	return nil
}
