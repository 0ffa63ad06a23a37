package ntfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Types of attributes.
const (
	typeStandardInformation = 0x10
	typeAttributeList       = 0x20
	typeFileName            = 0x30
	typeVolumeName          = 0x60
	typeVolumeInformation   = 0x70
	typeData                = 0x80
	typeIndexRoot           = 0x90
	typeIndexAllocation     = 0xa0
	typeReparsePoint        = 0xc0
	typeEA                  = 0xe0
	typeEnd                 = 0xffffffff
)

// Flags of attributes.
const (
	flagCompression = 0x00ff // the method, of which 1 is known
	flagEncrypted   = 0x4000
	flagSparse      = 0x8000
)

// Flags of records.
const (
	recordInUse     = 1
	recordDirectory = 2
)

// protected is the stride of the update sequence: whatever the size of a sector,
// the last two bytes of each 512 are replaced.
const protected = 512

// reference builds a file reference. Sequence 0 stands for any.
func reference(number uint64, sequence uint16) fsys.ID {
	return fsys.ID(number | uint64(sequence)<<48)
}

// numberOf returns the number of the record that a reference is to.
func numberOf(id fsys.ID) uint64 { return uint64(id) & (1<<48 - 1) }

// restore verifies the update sequence of a record or an index block and puts
// the bytes back that it replaced.
func restore(b []byte) error {
	off, n := int(binary.LittleEndian.Uint16(b[4:])), int(binary.LittleEndian.Uint16(b[6:]))
	if n != len(b)/protected+1 || off%2 != 0 || off < 8 || off+2*n > protected-2 {
		return corruptf("read its update sequence: %d numbers at %d", n, off)
	}
	sequence := b[off : off+2]
	for i := 1; i < n; i++ {
		end := b[i*protected-2 : i*protected]
		if !bytes.Equal(end, sequence) {
			return corruptf("verify its update sequence: part %d of %d was not written with the others", i, n-1)
		}
		copy(end, b[off+2*i:off+2*i+2])
	}
	return nil
}

// record is an MFT record, verified.
type record struct {
	number   uint64
	sequence uint16
	flags    uint16
	base     fsys.ID // of which it is an extension; 0: of none
	attrs    []attr
}

// attr is an attribute, or a piece of one, in a record.
type attr struct {
	typ      uint32
	id       uint16
	flags    uint16
	name     []byte // in UTF-16
	resident bool
	value    []byte // if resident

	// If not resident:
	lowest, highest              int64 // clusters of the attribute, from 0; none: highest is one less
	pairs                        []byte
	unit                         uint8 // clusters of a compression unit, as a power of 2
	allocated, size, initialized int64 // bytes, in the first piece
	total                        int64 // bytes that are taken
}

// record returns the MFT record that id refers to.
func (f *fileSystem) record(id fsys.ID) (*record, error) {
	number := numberOf(id)
	if number >= uint64(f.mfts) {
		return nil, corruptf("read MFT record %d: there are %d", number, f.mfts)
	}
	b := make([]byte, f.recordBytes)
	if err := f.readMFT(b, int64(number)*f.recordBytes); err != nil {
		return nil, fmt.Errorf("read MFT record %d: %w", number, err)
	}
	r, err := parseRecord(b, number)
	if err != nil {
		return nil, err
	}
	if r.flags&recordInUse == 0 {
		return nil, corruptf("read MFT record %d: it is free", number)
	}
	if want := uint16(id >> 48); want != 0 && want != r.sequence {
		return nil, corruptf("read MFT record %d: its use %d is asked for, and it is at %d", number, want, r.sequence)
	}
	return r, nil
}

// readMFT fills b with the MFT from byte off.
func (f *fileSystem) readMFT(b []byte, off int64) error {
	for len(b) > 0 {
		r := f.mft[runAt(f.mft, off/f.clusterBytes)]
		if r.lcn < 0 {
			return corruptf("read the MFT at %d: there is a hole", off)
		}
		in := off - r.vcn*f.clusterBytes
		n := min(int64(len(b)), r.n*f.clusterBytes-in)
		if err := f.vol.ReadAt(b[:n], r.lcn*f.clusterBytes+in); err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// parseRecord verifies a record, and keeps b.
func parseRecord(b []byte, number uint64) (*record, error) {
	if string(b[:4]) != "FILE" {
		return nil, corruptf("read MFT record %d: it starts with %q", number, b[:4])
	}
	if err := restore(b); err != nil {
		return nil, fmt.Errorf("read MFT record %d: %w", number, err)
	}
	r := &record{
		number: number, sequence: binary.LittleEndian.Uint16(b[0x10:]), flags: binary.LittleEndian.Uint16(b[0x16:]),
		base: fsys.ID(binary.LittleEndian.Uint64(b[0x20:])),
	}
	used, at := int64(binary.LittleEndian.Uint32(b[0x18:])), int64(binary.LittleEndian.Uint16(b[0x14:]))
	if used > int64(len(b)) || at < 0x2a || at > used || at%8 != 0 {
		return nil, corruptf("read MFT record %d: attributes from %d to %d of %d", number, at, used, len(b))
	}
	if r.flags&recordInUse == 0 {
		return r, nil
	}
	if err := r.parseAttributes(b[at:used]); err != nil {
		return nil, fmt.Errorf("read MFT record %d: %w", number, err)
	}
	return r, nil
}

func (r *record) parseAttributes(b []byte) error {
	r.attrs = make([]attr, 0, 6)
	for {
		if len(b) < 4 {
			return corruptf("read its attributes: there is no end")
		}
		typ := binary.LittleEndian.Uint32(b)
		if typ == typeEnd {
			return nil
		}
		if len(b) < 0x18 {
			return corruptf("read its attribute %#x: it is cut off", typ)
		}
		n := binary.LittleEndian.Uint32(b[4:])
		if n < 0x18 || n%8 != 0 || int64(n) > int64(len(b)) {
			return corruptf("read its attribute %#x: it takes %d of %d bytes", typ, n, len(b))
		}
		a, err := parseAttribute(b[:n])
		if err != nil {
			return fmt.Errorf("read its attribute %#x: %w", typ, err)
		}
		r.attrs = append(r.attrs, a)
		b = b[n:]
	}
}

// parseAttribute reads an attribute that takes all of b.
func parseAttribute(b []byte) (attr, error) {
	a := attr{
		typ: binary.LittleEndian.Uint32(b), id: binary.LittleEndian.Uint16(b[0x0e:]), flags: binary.LittleEndian.Uint16(b[0x0c:]),
		resident: b[8] == 0,
	}
	if n := 2 * int(b[9]); n > 0 {
		at := int(binary.LittleEndian.Uint16(b[0x0a:]))
		if at+n > len(b) {
			return a, corruptf("read its name: %d bytes at %d of %d", n, at, len(b))
		}
		a.name = b[at : at+n]
	}
	if a.resident {
		n, at := int64(binary.LittleEndian.Uint32(b[0x10:])), int64(binary.LittleEndian.Uint16(b[0x14:]))
		if at+n > int64(len(b)) {
			return a, corruptf("read its value: %d bytes at %d of %d", n, at, len(b))
		}
		a.value = b[at : at+n]
		return a, nil
	}
	return a, a.parseNonResident(b)
}

// maxSize bounds what an attribute may say of its size, in bytes. Windows stops
// at 2^53.
const maxSize = 1 << 56

func (a *attr) parseNonResident(b []byte) error {
	if len(b) < 0x40 {
		return corruptf("read its head: it has %d bytes", len(b))
	}
	number := func(at int) int64 { return int64(binary.LittleEndian.Uint64(b[at:])) }
	a.lowest, a.highest, a.unit = number(0x10), number(0x18), b[0x22]
	if a.lowest < 0 || a.lowest > maxSize || a.highest < a.lowest-1 || a.highest > maxSize {
		return corruptf("read its place: clusters from %d to %d", a.lowest, a.highest)
	}
	at := int(binary.LittleEndian.Uint16(b[0x20:]))
	if at > len(b) {
		return corruptf("read its runs: they are at %d of %d bytes", at, len(b))
	}
	a.pairs = b[at:]
	if a.lowest > 0 {
		return nil
	}
	a.allocated, a.size, a.initialized = number(0x28), number(0x30), number(0x38)
	a.total = a.allocated
	if a.flags&(flagCompression|flagSparse) != 0 && len(b) >= 0x48 && at >= 0x48 {
		a.total = number(0x40)
	}
	if a.allocated < 0 || a.allocated > maxSize || a.size < 0 || a.size > a.allocated || a.initialized < 0 || a.total < 0 || a.total > a.allocated {
		return corruptf("read its sizes: %d of %d bytes, %d initialized, %d taken", a.size, a.allocated, a.initialized, a.total)
	}
	a.initialized = min(a.initialized, a.size)
	return nil
}

// find returns the first attribute of a type with a name, or nil.
func (r *record) find(typ uint32, name []byte) *attr {
	for i := range r.attrs {
		if a := &r.attrs[i]; a.typ == typ && bytes.Equal(a.name, name) {
			return a
		}
	}
	return nil
}
