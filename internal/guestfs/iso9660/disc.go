package iso9660

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// sector is the length of a logical sector, in bytes (ECMA-119, 6.1.2).
const sector = 2048

// Where descriptors begin and how many sectors are searched for them.
const (
	firstDescriptor = 16
	maxDescriptors  = 84
)

// Types of volume descriptors (ECMA-119, 8.1.1).
const (
	typePrimary       = 1
	typeSupplementary = 2
)

// descriptor is what a volume descriptor says of a tree.
type descriptor struct {
	block  int64 // bytes
	blocks int64
	root   record
	volume []byte // its identifier
}

// disc is what the descriptors of a volume say.
type disc struct {
	primary descriptor
	joliet  *descriptor // nil: none
	number  int         // of this disc in its set
	uuid    string
	udf     bool
}

// readDisc reads the volume descriptors.
func readDisc(v fsys.Volume) (disc, error) {
	var d disc
	found, recognised := false, false
	b := make([]byte, sector)
	for i := int64(firstDescriptor); i < firstDescriptor+maxDescriptors && (i+1)*sector <= v.Size(); i++ {
		if err := v.ReadAt(b, i*sector); err != nil {
			return d, fmt.Errorf("read volume descriptor: %w", err)
		}
		switch id := string(b[1:6]); {
		case string(b[9:14]) == "CDROM" && !found:
			return d, fmt.Errorf("a disc in High Sierra format: %w", fsys.ErrUnsupported)
		case id == "NSR02" || id == "NSR03":
			d.udf = true
		case id == "BEA01" || id == "TEA01" || id == "BOOT2":
			recognised = true
		case id != "CD001":
			if found || recognised || i == firstDescriptor {
				i = firstDescriptor + maxDescriptors // there are no more
			}
		case b[0] == typePrimary && !found:
			p, err := parseDescriptor(b)
			if err != nil {
				return d, err
			}
			d.primary, d.number, d.uuid, found = p, int(le.Uint16(b[124:])), uuid(b), true
		case b[0] == typeSupplementary && d.joliet == nil && isJoliet(b):
			// One that is damaged leaves the tree of the primary descriptor.
			if j, err := parseDescriptor(b); err == nil {
				d.joliet = &j
			}
		}
	}
	switch {
	case found:
		return d, nil
	case d.udf:
		return d, fmt.Errorf("UDF with no ISO 9660 beside it: %w", fsys.ErrUnsupported)
	}
	return d, fsys.ErrNotFound
}

// isJoliet says whether the escape sequences are those of UCS-2 (Joliet 1.0,
// "Escape sequences").
func isJoliet(b []byte) bool {
	return b[88] == '%' && b[89] == '/' && strings.IndexByte("@CE", b[90]) >= 0
}

// parseDescriptor reads a primary or supplementary descriptor (ECMA-119, 8.4 and
// 8.5).
func parseDescriptor(b []byte) (descriptor, error) {
	d := descriptor{block: int64(le.Uint16(b[128:])), blocks: int64(le.Uint32(b[80:])), volume: bytes.Clone(b[40:72])}
	if d.block != 512 && d.block != 1024 && d.block != sector {
		return d, fmt.Errorf("logical blocks of %d bytes: %w", d.block, fsys.ErrCorrupt)
	}
	var err error
	d.root, err = parseRecord(bytes.Clone(b[156:190]))
	return d, err
}

// label is the identifier of the volume, as blkid prints it: that of Joliet, unless it
// is the beginning of the other, which may be twice as long.
func (d *disc) label() string {
	plain := trimmed(d.primary.volume)
	if d.joliet == nil {
		return plain
	}
	units := make([]uint16, 0, 16)
	for b := d.joliet.volume; len(b) >= 2; b = b[2:] {
		units = append(units, be.Uint16(b))
	}
	if label := trimmed([]byte(string(utf16.Decode(units)))); !strings.HasPrefix(plain, label) {
		return label
	}
	return plain
}

// trimmed returns what of b is before the first NUL, without spaces around it.
func trimmed(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(strings.TrimSpace(s), "\uFFFD")
}

// uuid makes one up of the time of the last change, as blkid does, or of the
// creation (ECMA-119, 8.4.26 and 8.4.27).
func uuid(b []byte) string {
	for _, d := range [][]byte{b[830:846], b[813:829]} {
		s := string(d)
		if strings.Trim(s, "0123456789") == "" && strings.Trim(s, "0") != "" {
			return strings.Join([]string{s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], s[14:16]}, "-")
		}
	}
	return ""
}
