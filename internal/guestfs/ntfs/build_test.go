package ntfs

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// builder makes a volume by hand, of what no driver writes. Clusters, records and
// blocks of indexes have 1 KiB; the MFT starts at cluster 1.
type builder []byte

const (
	builtUnit    = 1024
	builtRecords = 32
	builtFree    = 1 + builtRecords // first cluster behind the MFT
	builtUnits   = builtFree + 16
)

func (b builder) Size() int64 { return int64(len(b)) }

func (b builder) ReadAt(p []byte, off int64) error {
	if off < 0 || off > b.Size()-int64(len(p)) {
		return errors.New("outside of the volume")
	}
	copy(p, b[off:])
	return nil
}

// build makes a volume with an empty root directory.
func build() builder {
	b := make(builder, builtUnits*builtUnit)
	copy(b[3:], "NTFS    ")
	binary.LittleEndian.PutUint16(b[0x0b:], 512)
	b[0x0d], b[0x40], b[0x44] = 2, 1, 1
	binary.LittleEndian.PutUint64(b[0x28:], builtUnits*2)
	binary.LittleEndian.PutUint64(b[0x30:], 1)
	b.record(recordMFT, 1, 0, info(6), runsAttr(typeData, builtRecords*builtUnit, 0x11, builtRecords, 1))
	b.record(recordLog, 2, 0, info(6), runsAttr(typeData, 0))
	b.record(recordVolume, 3, 0, info(6), resident(typeVolumeInformation, nil, []byte{11: 0, 8: 3, 9: 1}))
	// A hole: in upper case, all letters are the same.
	b.record(recordUpCase, 10, 0, info(6), runsAttr(typeData, 128<<10, 0x02, 128, 0))
	b.directory(recordRoot)
	return b
}

// protect makes an update sequence, of number 1, for the part of a volume.
func protect(p []byte) {
	binary.LittleEndian.PutUint16(p[4:], 0x28)
	binary.LittleEndian.PutUint16(p[6:], uint16(len(p)/protected+1))
	binary.LittleEndian.PutUint16(p[0x28:], 1)
	for i := range len(p) / protected {
		end := p[(i+1)*protected-2 : (i+1)*protected]
		copy(p[0x2a+2*i:], end)
		copy(end, []byte{1, 0})
	}
}

// record makes an MFT record.
func (b builder) record(number int, sequence, flags uint16, attrs ...[]byte) []byte {
	p := b[(1+number)*builtUnit : (2+number)*builtUnit]
	clear(p)
	copy(p, "FILE")
	binary.LittleEndian.PutUint16(p[0x10:], sequence)
	binary.LittleEndian.PutUint16(p[0x14:], 0x38)
	binary.LittleEndian.PutUint16(p[0x16:], flags|recordInUse)
	body := append(slices.Concat(attrs...), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(p[0x18:], uint32(0x38+len(body)))
	copy(p[0x38:], body)
	protect(p)
	return p
}

// head makes the head of an attribute of n bytes besides its name.
func head(typ uint32, name []byte, n int) []byte {
	at := n
	n = (n + len(name) + 7) &^ 7
	a := make([]byte, n)
	binary.LittleEndian.PutUint32(a, typ)
	binary.LittleEndian.PutUint32(a[4:], uint32(n))
	a[9] = byte(len(name) / 2)
	binary.LittleEndian.PutUint16(a[0x0a:], uint16(at))
	copy(a[at:], name)
	return a
}

func resident(typ uint32, name, value []byte) []byte {
	a := head(typ, name, 0x18+len(value))
	binary.LittleEndian.PutUint32(a[0x10:], uint32(len(value)))
	binary.LittleEndian.PutUint16(a[0x14:], 0x18)
	copy(a[0x18:], value)
	return a
}

// runsAttr makes an attribute that is not resident, of size bytes.
func runsAttr(typ uint32, size int, pairs ...byte) []byte {
	return named(typ, nil, size, pairs...)
}

func named(typ uint32, name []byte, size int, pairs ...byte) []byte {
	a := head(typ, name, 0x40+len(pairs)+1)
	a[8] = 1
	units := (size + builtUnit - 1) / builtUnit
	binary.LittleEndian.PutUint64(a[0x18:], uint64(units-1))
	binary.LittleEndian.PutUint16(a[0x20:], 0x40)
	binary.LittleEndian.PutUint64(a[0x28:], uint64(units*builtUnit))
	binary.LittleEndian.PutUint64(a[0x30:], uint64(size))
	binary.LittleEndian.PutUint64(a[0x38:], uint64(size))
	copy(a[0x40:], pairs)
	return a
}

// info makes $STANDARD_INFORMATION.
func info(attributes uint32) []byte {
	v := make([]byte, 0x30)
	binary.LittleEndian.PutUint32(v[0x20:], attributes)
	return resident(typeStandardInformation, nil, v)
}

// nameKey makes $FILE_NAME.
func nameKey(parent fsys.ID, space byte, name []byte) []byte {
	v := make([]byte, 0x42, 0x42+len(name))
	binary.LittleEndian.PutUint64(v, uint64(parent))
	v[0x40], v[0x41] = byte(len(name)/2), space
	return append(v, name...)
}

// indexEntry makes an entry of an index; without a key, the last one. Sub is the
// block before it, below zero for none.
func indexEntry(id fsys.ID, key []byte, sub int64) []byte {
	n := (0x10 + len(key) + 7) &^ 7
	flags := uint16(0)
	if sub >= 0 {
		n, flags = n+8, entryNode
	}
	if key == nil {
		flags |= entryLast
	}
	e := make([]byte, n)
	binary.LittleEndian.PutUint64(e, uint64(id))
	binary.LittleEndian.PutUint16(e[8:], uint16(n))
	binary.LittleEndian.PutUint16(e[0x0a:], uint16(len(key)))
	binary.LittleEndian.PutUint16(e[0x0c:], flags)
	copy(e[0x10:], key)
	if sub >= 0 {
		binary.LittleEndian.PutUint64(e[n-8:], uint64(sub))
	}
	return e
}

// indexNode makes the head of a node that holds entries. Behind it are n bytes.
func indexNode(n int, entries ...[]byte) []byte {
	body := slices.Concat(entries...)
	h := make([]byte, 0x10, 0x10+n)
	binary.LittleEndian.PutUint32(h, uint32(0x10+n-len(body)))
	binary.LittleEndian.PutUint32(h[4:], uint32(0x10+n))
	h = append(h, make([]byte, n-len(body))...)
	return append(h, body...)
}

func size(entries [][]byte) int { return len(slices.Concat(entries...)) }

// directory makes a directory with these entries in its record.
func (b builder) directory(number int, entries ...[]byte) {
	if len(entries) == 0 {
		entries = [][]byte{indexEntry(0, nil, -1)}
	}
	root := make([]byte, 0x10)
	binary.LittleEndian.PutUint32(root, typeFileName)
	binary.LittleEndian.PutUint32(root[4:], collationFileName)
	binary.LittleEndian.PutUint32(root[8:], builtUnit)
	root = append(root, indexNode(size(entries), entries...)...)
	b.record(number, uint16(number), recordDirectory, info(0), resident(typeIndexRoot, indexName, root),
		named(typeIndexAllocation, indexName, 4*builtUnit, 0x11, 4, builtFree))
}

// block makes a block of an index, of which there are four for all directories.
func (b builder) block(vcn int, entries ...[]byte) {
	p := b[(builtFree+vcn)*builtUnit : (builtFree+vcn+1)*builtUnit]
	clear(p)
	copy(p, "INDX")
	binary.LittleEndian.PutUint64(p[0x10:], uint64(vcn))
	copy(p[0x18:], indexNode(size(entries)+0x20, entries...))
	protect(p)
}
