package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// Limits that QEMU enforces too (block/qcow2.h); a file beyond them is refused
// rather than trusted with memory.
const (
	minClusterBits  = 9
	maxClusterBits  = 21
	maxL1Bytes      = 32 << 20
	maxRefTableSize = 8 << 20
	maxBackingName  = 1023
	maxSnapshots    = 65536
)

// maxHeaderArea bounds the header with its extensions and the backing file's
// name. QEMU allows a whole cluster; files in use take less than 1 KiB.
const maxHeaderArea = 64 << 10

const (
	magic            = 0x514649fb // "QFI\xfb"
	headerLengthV2   = 72
	headerLengthV3   = 104 // without compression_type
	headerLengthType = 112 // with compression_type and its padding
)

// Incompatible, compatible and autoclear feature bits (qcow2.txt, "Header").
const (
	IncompatDirty       = 1 << 0 // refcounts may be inconsistent
	IncompatCorrupt     = 1 << 1 // metadata is corrupt, must not be written
	IncompatDataFile    = 1 << 2 // guest data lives in an external file
	IncompatCompression = 1 << 3 // compression_type is not deflate
	IncompatExtendedL2  = 1 << 4 // L2 entries carry 32 subclusters
	incompatKnown       = IncompatDirty | IncompatCorrupt | IncompatDataFile | IncompatCompression | IncompatExtendedL2

	CompatLazyRefcounts = 1 << 0

	AutoclearBitmaps = 1 << 0 // the bitmaps extension is consistent
	AutoclearRawData = 1 << 1 // the external data file is a raw image
)

// Header extension types.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extEncryption    = 0x0537be77
	extDataFile      = 0x44415441
)

// Compression is how compressed clusters of a file were compressed.
type Compression uint8

// The compression types of the format. Deflate streams are raw, with a window of
// 4 KiB; zstd frames are plain.
const (
	Deflate Compression = 0
	Zstd    Compression = 1
)

// String returns the name qemu-img uses.
func (c Compression) String() string {
	switch c {
	case Deflate:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression type %d", uint8(c))
}

// Extension is a header extension as it stands in the file.
type Extension struct {
	Type uint32
	Data []byte // without padding
}

// Header is the header of a QCOW2 file (qcow2.txt, "Header" and "Header
// extensions"), in the units of the format.
type Header struct {
	Version               uint32 // 2 or 3
	ClusterBits           uint32 // 9 to 21
	Size                  int64  // virtual size in bytes
	CryptMethod           uint32 // 0: none
	L1Size                uint32 // entries
	L1Offset              int64
	RefcountTableOffset   int64
	RefcountTableClusters uint32
	Snapshots             uint32 // number of internal snapshots
	SnapshotsOffset       int64
	Incompatible          uint64
	Compatible            uint64
	Autoclear             uint64
	RefcountOrder         uint32 // a refcount has 1<<order bits; 0 to 6
	Compression           Compression
	Unknown               []byte      // additional fields behind compression_type, kept as they are
	BackingFile           string      // "" for none
	Extensions            []Extension // all but the end marker, in file order
}

// Errors of foreign or damaged files.
var (
	// ErrNotQCOW2 says that a file does not begin with the QCOW2 magic.
	ErrNotQCOW2 = errors.New("not a QCOW2 file")
	// ErrCorrupt says that a file contradicts itself or the format.
	ErrCorrupt = errors.New("QCOW2 file is corrupt")
	// ErrUnsupported says that a file uses a feature this package refuses.
	ErrUnsupported = errors.New("QCOW2 feature is not supported")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// ClusterSize returns the cluster size in bytes, 512 to 2 MiB.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// hasExtendedL2 reports whether L2 entries are 16 bytes and describe subclusters.
func (h *Header) hasExtendedL2() bool { return h.Incompatible&IncompatExtendedL2 != 0 }

// hasDataFile reports whether guest data lives in an external file.
func (h *Header) hasDataFile() bool { return h.Incompatible&IncompatDataFile != 0 }

// BackingFormat returns the backing file's format as the header names it, or "".
func (h *Header) BackingFormat() string { return string(h.extension(extBackingFormat)) }

// DataFile returns the name of the external data file, or "".
func (h *Header) DataFile() string { return string(h.extension(extDataFile)) }

func (h *Header) extension(typ uint32) []byte {
	for _, e := range h.Extensions {
		if e.Type == typ {
			return e.Data
		}
	}
	return nil
}

// l2EntrySize returns the bytes of one L2 entry.
func (h *Header) l2EntrySize() int64 {
	if h.hasExtendedL2() {
		return 16
	}
	return 8
}

// l2Entries returns how many clusters one L2 table describes.
func (h *Header) l2Entries() int64 { return h.ClusterSize() / h.l2EntrySize() }

// l2Coverage returns how many guest bytes one L2 table describes.
func (h *Header) l2Coverage() int64 { return h.l2Entries() << h.ClusterBits }

// l1Needed returns how many L1 entries the virtual size takes.
func (h *Header) l1Needed() int64 {
	c := h.l2Coverage()
	n := h.Size / c
	if h.Size%c != 0 {
		n++
	}
	return n
}

// ReadHeader parses the header at the start of r. It trusts nothing: every
// length is checked before memory is taken for it. The error wraps ErrNotQCOW2,
// ErrCorrupt or ErrUnsupported where the file is the cause.
func ReadHeader(r io.ReaderAt) (*Header, error) {
	b := make([]byte, 4<<10) // holds the whole of nearly every header
	n, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read header: %w", err)
	}
	b = b[:n]
	if n < 8 || binary.BigEndian.Uint32(b) != magic {
		return nil, ErrNotQCOW2
	}
	h := &Header{Version: binary.BigEndian.Uint32(b[4:])}
	if h.Version != 2 && h.Version != 3 {
		return nil, fmt.Errorf("%w: version %d (2 and 3 are)", ErrUnsupported, h.Version)
	}
	if n < headerLengthV2 || h.Version == 3 && n < headerLengthV3 {
		return nil, corrupt("header ends after %d bytes", n)
	}
	length := h.decodeFixed(b)
	if h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits {
		return nil, corrupt("cluster_bits is %d, outside %d to %d", h.ClusterBits, minClusterBits, maxClusterBits)
	}
	if length < headerLengthV2 || h.Version == 3 && (length < headerLengthV3 || length%8 != 0) ||
		length > min(h.ClusterSize(), maxHeaderArea) {
		return nil, corrupt("header_length is %d", length)
	}
	if int64(n) == 4<<10 && h.ClusterSize() > 4<<10 {
		if b, err = h.wholeArea(r, b, length); err != nil {
			return nil, err
		}
	}
	b = b[:min(int64(len(b)), h.ClusterSize())]
	if int64(len(b)) < length {
		return nil, corrupt("header of %d bytes ends after %d", length, len(b))
	}
	extErr := h.readVariable(b, length)
	// A feature that we do not know may change the rest of the header: it is
	// named first.
	if err := h.validate(); err != nil {
		return nil, err
	}
	return h, extErr
}

// wholeArea returns b, or what it has to be extended to because the header's
// variable part does not end inside it.
func (h *Header) wholeArea(r io.ReaderAt, b []byte, length int64) ([]byte, error) {
	be := binary.BigEndian
	end := length + 8
	for end <= int64(len(b)) {
		typ, n := be.Uint32(b[end-8:]), int64(be.Uint32(b[end-4:]))
		if typ == extEnd {
			break
		}
		end += (n+7)&^7 + 8
	}
	if off := be.Uint64(b[8:]); off != 0 && off < maxHeaderArea {
		end = max(end, int64(off)+maxBackingName)
	}
	if end <= int64(len(b)) {
		return b, nil
	}
	b = make([]byte, min(h.ClusterSize(), maxHeaderArea))
	n, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read header: %w", err)
	}
	return b[:n], nil
}

// decodeFixed takes the fixed fields from b and returns where they end.
func (h *Header) decodeFixed(b []byte) (length int64) {
	be := binary.BigEndian
	h.ClusterBits = be.Uint32(b[20:])
	h.Size = int64(be.Uint64(b[24:]))
	h.CryptMethod = be.Uint32(b[32:])
	h.L1Size = be.Uint32(b[36:])
	h.L1Offset = int64(be.Uint64(b[40:]))
	h.RefcountTableOffset = int64(be.Uint64(b[48:]))
	h.RefcountTableClusters = be.Uint32(b[56:])
	h.Snapshots = be.Uint32(b[60:])
	h.SnapshotsOffset = int64(be.Uint64(b[64:]))
	h.RefcountOrder = 4
	if h.Version == 2 {
		return headerLengthV2
	}
	h.Incompatible = be.Uint64(b[72:])
	h.Compatible = be.Uint64(b[80:])
	h.Autoclear = be.Uint64(b[88:])
	h.RefcountOrder = be.Uint32(b[96:])
	return int64(be.Uint32(b[100:]))
}

// validate checks what can be checked without reading more of the file.
func (h *Header) validate() error {
	if unknown := h.Incompatible &^ incompatKnown; unknown != 0 {
		return fmt.Errorf("%w: %s", ErrUnsupported, h.featureList(unknown))
	}
	if h.CryptMethod != 0 {
		name := map[uint32]string{1: "AES", 2: "LUKS"}[h.CryptMethod]
		if name == "" {
			name = fmt.Sprintf("method %d", h.CryptMethod)
		}
		return fmt.Errorf("%w: file is encrypted (%s); use a decrypted copy, made with qemu-img convert", ErrUnsupported, name)
	}
	if h.hasExtendedL2() && h.ClusterBits < 14 {
		return corrupt("extended L2 entries need clusters of 16 KiB or more, not %d", h.ClusterSize())
	}
	if h.RefcountOrder > 6 {
		return corrupt("refcount_order is %d, more than 6", h.RefcountOrder)
	}
	if (h.Compression != Deflate) != (h.Incompatible&IncompatCompression != 0) {
		return corrupt("compression type %d contradicts the feature bits %#x", h.Compression, h.Incompatible)
	}
	if h.Compression > Zstd {
		return fmt.Errorf("%w: %v", ErrUnsupported, h.Compression)
	}
	if h.Size < 0 {
		return corrupt("virtual size is beyond 2^63")
	}
	if int64(h.L1Size)*8 > maxL1Bytes {
		return corrupt("L1 table has %d entries, more than 32 MiB", h.L1Size)
	}
	if need := h.l1Needed(); need > int64(h.L1Size) {
		return corrupt("L1 table has %d entries where the size takes %d", h.L1Size, need)
	}
	if n := int64(h.RefcountTableClusters) << h.ClusterBits; n == 0 || n > maxRefTableSize {
		return corrupt("refcount table has %d clusters, outside 1 to 8 MiB", h.RefcountTableClusters)
	}
	if h.Snapshots > maxSnapshots {
		return corrupt("%d internal snapshots, more than %d", h.Snapshots, maxSnapshots)
	}
	if h.Autoclear&AutoclearRawData != 0 && !h.hasDataFile() {
		return corrupt("raw external data is flagged without an external data file")
	}
	return h.validateOffsets()
}

// validateOffsets checks that tables begin on cluster boundaries.
func (h *Header) validateOffsets() error {
	mask := h.ClusterSize() - 1
	for _, t := range []struct {
		name string
		off  int64
		used bool
	}{
		{"L1 table", h.L1Offset, h.L1Size > 0},
		{"refcount table", h.RefcountTableOffset, true},
		{"snapshot table", h.SnapshotsOffset, h.Snapshots > 0},
	} {
		if !t.used {
			continue
		}
		if t.off < h.ClusterSize() || t.off&mask != 0 || t.off >= 1<<56 {
			return corrupt("%s at %#x", t.name, t.off)
		}
	}
	return nil
}

// readVariable takes from b, the start of the file, what follows the fixed
// fields: additional fields up to length, the extensions, which end before the
// backing file's name or with the first cluster, and that name.
func (h *Header) readVariable(b []byte, length int64) error {
	be := binary.BigEndian
	if h.Version >= 3 && length > headerLengthV3 {
		h.Compression = Compression(b[headerLengthV3])
	}
	if h.Version >= 3 && length > headerLengthType {
		h.Unknown = bytes.Clone(b[headerLengthType:length])
	}
	end := int64(len(b))
	if off, n := be.Uint64(b[8:]), int64(be.Uint32(b[16:])); off != 0 {
		if off < uint64(length) || off > uint64(end) || n > maxBackingName || n > end-int64(off) {
			return corrupt("backing file name of %d bytes at %d", n, off)
		}
		h.BackingFile = string(b[off : int64(off)+n])
		if strings.IndexByte(h.BackingFile, 0) >= 0 {
			return corrupt("backing file name %q", h.BackingFile)
		}
		end = int64(off)
	}
	return h.parseExtensions(b[:end], int(length))
}

func (h *Header) parseExtensions(b []byte, pos int) error {
	be := binary.BigEndian
	for pos+8 <= len(b) {
		typ, n := be.Uint32(b[pos:]), int64(be.Uint32(b[pos+4:]))
		if typ == extEnd {
			return nil
		}
		pos += 8
		if n > int64(len(b)-pos) {
			return corrupt("header extension %#x has %d bytes where %d are left", typ, n, len(b)-pos)
		}
		if typ == extEncryption && h.CryptMethod == 0 {
			return corrupt("encryption header in a file that is not encrypted")
		}
		h.Extensions = append(h.Extensions, Extension{Type: typ, Data: bytes.Clone(b[pos : pos+int(n)])})
		pos += int(n+7) &^ 7
	}
	return nil
}

// Encode returns the header as it goes at the start of a file: the fixed fields,
// the extensions and their end marker, then the backing file's name. It is an
// error if that takes more than one cluster.
func (h *Header) Encode() ([]byte, error) {
	be := binary.BigEndian
	length := headerLengthV2
	if h.Version >= 3 {
		length = headerLengthType + len(h.Unknown)
	}
	b := make([]byte, length)
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], h.Version)
	be.PutUint32(b[20:], h.ClusterBits)
	be.PutUint64(b[24:], uint64(h.Size))
	be.PutUint32(b[32:], h.CryptMethod)
	be.PutUint32(b[36:], h.L1Size)
	be.PutUint64(b[40:], uint64(h.L1Offset))
	be.PutUint64(b[48:], uint64(h.RefcountTableOffset))
	be.PutUint32(b[56:], h.RefcountTableClusters)
	be.PutUint32(b[60:], h.Snapshots)
	be.PutUint64(b[64:], uint64(h.SnapshotsOffset))
	if h.Version >= 3 {
		be.PutUint64(b[72:], h.Incompatible)
		be.PutUint64(b[80:], h.Compatible)
		be.PutUint64(b[88:], h.Autoclear)
		be.PutUint32(b[96:], h.RefcountOrder)
		be.PutUint32(b[100:], uint32(length))
		b[headerLengthV3] = byte(h.Compression)
		copy(b[headerLengthType:], h.Unknown)
	}
	for _, e := range h.Extensions {
		b = be.AppendUint32(b, e.Type)
		b = be.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
		b = append(b, make([]byte, -len(e.Data)&7)...)
	}
	b = append(b, make([]byte, 8)...) // end marker
	if h.BackingFile != "" {
		be.PutUint64(b[8:], uint64(len(b)))
		be.PutUint32(b[16:], uint32(len(h.BackingFile)))
		b = append(b, h.BackingFile...)
	}
	if int64(len(b)) > h.ClusterSize() || len(h.BackingFile) > maxBackingName {
		return nil, fmt.Errorf("header takes %d bytes, more than a cluster of %d", len(b), h.ClusterSize())
	}
	return b, nil
}

// featureList names the incompatible feature bits set in v, by the file's
// feature name table where that has a name (qcow2.txt, "Feature name table").
func (h *Header) featureList(v uint64) string {
	const entry = 48
	names := make(map[byte]string)
	for t := h.extension(extFeatureNames); len(t) >= entry; t = t[entry:] {
		if name, _, _ := bytes.Cut(t[2:entry], []byte{0}); t[0] == 0 && len(name) > 0 {
			names[t[1]] = string(name)
		}
	}
	var s []string
	for ; v != 0; v &= v - 1 {
		bit := bits.TrailingZeros64(v)
		if name, ok := names[byte(bit)]; ok {
			s = append(s, fmt.Sprintf("%q (incompatible feature bit %d)", name, bit))
		} else {
			s = append(s, fmt.Sprintf("incompatible feature bit %d", bit))
		}
	}
	return strings.Join(s, ", ")
}
