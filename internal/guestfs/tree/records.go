package tree

import (
	"bytes"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// records tells where the records of a System's inodes lie on its disks, one after
// another.
type records struct {
	s     *System
	known map[int]*table // by file system; nil: nothing can be told of it
}

// table is where the inodes of a file system lie.
type table struct {
	inodes fsys.Inodes
	vol    volume.Located
	cached fsys.Volume // vol, with what was read last

	from  int64        // byte of the volume where piece begins
	piece volume.Piece // found last; of no length: none
}

// record is an inode's place, in one piece.
type record struct {
	table  *table
	off, n int64 // in the volume
	disk   int
	at     int64 // byte of the disk
}

const (
	// recordCache is how much of a volume is kept for reading records, in bytes: those
	// of one directory lie close together.
	recordCache = 1 << 20
	// locateAhead is how much of a volume is located at a time, in bytes.
	locateAhead = 1 << 30
)

// of returns where the record of an inode lies; false if that is not known, or not
// in one piece.
func (r *records) of(n Node) (record, bool) {
	t, ok := r.known[n.FS]
	if !ok {
		t = r.open(n.FS)
		r.known[n.FS] = t
	}
	if t == nil {
		return record{}, false
	}
	off, length, err := t.inodes.Inode(n.ID)
	if err != nil || !t.locate(off, length) || t.piece.Disk == volume.Zeroes {
		return record{}, false
	}
	return record{t, off, length, t.piece.Disk, t.piece.Off + off - t.from}, true
}

func (r *records) open(mount int) *table {
	f, err := r.s.fsAt(mount)
	if err != nil {
		return nil
	}
	inodes, ok := f.(fsys.Inodes)
	located, ok2 := r.s.device(mount).(volume.Located)
	if !ok || !ok2 {
		return nil
	}
	return &table{inodes: inodes, vol: located, cached: fsys.Cached(located, recordCache)}
}

// locate finds the piece that holds n bytes at off; false if there is none.
func (t *table) locate(off, n int64) bool {
	if off >= t.from && off+n <= t.from+t.piece.Len {
		return true
	}
	if off < 0 || n <= 0 || off > t.vol.Size()-n {
		return false
	}
	from := off - off%locateAhead
	pieces, err := t.vol.Locate(from, min(locateAhead+n, t.vol.Size()-from))
	if err != nil {
		return false
	}
	for _, p := range pieces {
		if off < from+p.Len {
			t.from, t.piece = from, p
			return off+n <= from+p.Len
		}
		from += p.Len
	}
	return false // behind what was told
}

// equal reports whether two records read the same.
func equal(a, b record) bool {
	if a.n != b.n || a.n > recordCache/4 {
		return false
	}
	p, q := make([]byte, a.n), make([]byte, b.n)
	return a.table.cached.ReadAt(p, a.off) == nil && b.table.cached.ReadAt(q, b.off) == nil && bytes.Equal(p, q)
}
