package btrfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

const (
	superSize = 4096
	magic     = "_BHRfS_M"
)

// superOffsets are where the superblock and its copies lie, in bytes.
var superOffsets = []int64{64 << 10, 64 << 20, 256 << 30}

// uuid identifies a file system or a device.
type uuid [16]byte

func (u uuid) String() string {
	s := hex.EncodeToString(u[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// super is the superblock: "Superblock" of the on-disk format.
type super struct {
	fsid         uuid // as it is shown
	metadataFSID uuid // in the headers of tree blocks
	flags        uint64
	generation   uint64
	root         uint64
	chunkRoot    uint64
	chunkRootGen uint64
	logRoot      uint64
	totalBytes   uint64
	bytesUsed    uint64
	rootDir      uint64
	numDevices   uint64
	sectorSize   uint32
	nodeSize     uint32
	rootLevel    uint8
	chunkLevel   uint8
	logLevel     uint8
	incompat     uint64
	sum          checksum
	device       deviceItem
	label        string
	systemChunks []byte
}

// featureMetadataUUID is an incompatible feature.
const featureMetadataUUID = 1 << 10

// readable are the features that change nothing for a reader, or that it knows:
// mixed-backref, default-subvol, mixed-groups, compress-lzo, compress-zstd,
// big-metadata, extended-iref, raid56, skinny-metadata, no-holes, metadata-uuid,
// raid1c34, simple-quota.
const readable = 1<<12 - 1 | 1<<16

var featureNames = map[int]string{12: "zoned", 13: "extent-tree-v2", 14: "raid-stripe-tree", 17: "remap-tree"}

// Flags of the superblock.
const (
	flagError   = 1 << 2
	flagSeeding = 1 << 32
)

// unfinished are flags of states that cannot be read.
var unfinished = map[uint64]string{
	1 << 33: "a metadata image without content",
	1 << 34: "a metadata image without content",
	1 << 35: "an unfinished change of its UUID",
	1 << 36: "an unfinished change of its UUID",
	1 << 38: "an unfinished conversion to a block group tree",
	1 << 39: "an unfinished change of its data checksums",
	1 << 40: "an unfinished change of its metadata checksums",
}

// readSuper returns the newest valid superblock of a volume, and what is to be
// noted about it. Only a volume with the first superblock's magic holds btrfs: what
// was made in its place may have left the copies.
func readSuper(v fsys.Volume) (s super, notes []string, err error) {
	b := make([]byte, superSize)
	if v.Size() < superOffsets[0]+superSize {
		return s, nil, fmt.Errorf("btrfs: a volume of %d bytes is too small: %w", v.Size(), fsys.ErrNotFound)
	}
	if err := v.ReadAt(b, superOffsets[0]); err != nil {
		return s, nil, fmt.Errorf("read superblock: %w", err)
	}
	if string(b[64:72]) != magic {
		return s, nil, fmt.Errorf("btrfs: no magic at %d: %w", superOffsets[0], fsys.ErrNotFound)
	}
	s, first := parseSuper(b, superOffsets[0])
	if errors.Is(first, fsys.ErrUnsupported) {
		return s, nil, first
	}
	valid := first == nil
	for _, at := range superOffsets[1:] {
		if v.Size() < at+superSize || v.ReadAt(b, at) != nil {
			continue
		}
		other, err := parseSuper(b, at)
		switch {
		case err != nil || valid && (other.fsid != s.fsid || other.device.uuid != s.device.uuid || other.generation <= s.generation):
			continue
		case valid:
			notes = []string{fmt.Sprintf("The superblock is older than its copy at %d, which is used.", at)}
		default:
			notes = []string{fmt.Sprintf("The superblock is damaged; its copy at %d is used.", at)}
		}
		s, valid = other, true
	}
	if !valid {
		return s, nil, first
	}
	return s, notes, nil
}

// parseSuper decodes the superblock that was read from at.
func parseSuper(b []byte, at int64) (super, error) {
	corrupt := func(format string, args ...any) (super, error) {
		return super{}, fmt.Errorf("superblock at %d: %s: %w", at, fmt.Sprintf(format, args...), fsys.ErrCorrupt)
	}
	if string(b[64:72]) != magic || le64(b[48:]) != uint64(at) {
		return corrupt("it says that it lies at %d", le64(b[48:]))
	}
	algorithm := int(le16(b[196:]))
	if algorithm >= len(checksums) {
		return super{}, fmt.Errorf("superblock at %d: checksum algorithm %d: %w", at, algorithm, fsys.ErrUnsupported)
	}
	s := super{
		fsid: uuid(b[32:48]), metadataFSID: uuid(b[32:48]), flags: le64(b[56:]), generation: le64(b[72:]),
		root: le64(b[80:]), chunkRoot: le64(b[88:]), logRoot: le64(b[96:]),
		totalBytes: le64(b[112:]), bytesUsed: le64(b[120:]), rootDir: le64(b[128:]), numDevices: le64(b[136:]),
		sectorSize: le32(b[144:]), nodeSize: le32(b[148:]), chunkRootGen: le64(b[164:]), incompat: le64(b[188:]),
		rootLevel: b[198], chunkLevel: b[199], logLevel: b[200],
		sum: checksums[algorithm], device: parseDeviceItem(b[201:]), label: text(b[299:555]),
	}
	if s.incompat&featureMetadataUUID != 0 {
		s.metadataFSID = uuid(b[571:587])
	}
	if !s.sum.matches(b[32:superSize], b) {
		return corrupt("its checksum is wrong")
	}
	if n := le32(b[160:]); n <= 2048 {
		s.systemChunks = bytes.Clone(b[811 : 811+n])
	} else {
		return corrupt("%d bytes of system chunks", n)
	}
	if err := s.check(); err != nil {
		return corrupt("%v", err)
	}
	return s, s.supported()
}

// check returns what contradicts itself in a superblock.
func (s *super) check() error {
	size := func(n, least uint32) bool { return n >= least && n <= 64<<10 && n&(n-1) == 0 }
	switch {
	case !size(s.sectorSize, 512):
		return fmt.Errorf("sectors of %d bytes", s.sectorSize)
	case !size(s.nodeSize, max(s.sectorSize, 4096)):
		return fmt.Errorf("tree blocks of %d bytes", s.nodeSize)
	case s.rootLevel >= maxLevel || s.chunkLevel >= maxLevel || s.logLevel >= maxLevel:
		return fmt.Errorf("trees of %d, %d, %d levels", s.rootLevel, s.chunkLevel, s.logLevel)
	case s.totalBytes > 1<<62 || s.bytesUsed > s.totalBytes:
		return fmt.Errorf("%d of %d bytes in use", s.bytesUsed, s.totalBytes)
	}
	return nil
}

// supported names what cannot be read.
func (s *super) supported() error {
	if unknown := s.incompat &^ readable; unknown != 0 {
		bit := bits.TrailingZeros64(unknown)
		name, ok := featureNames[bit]
		if !ok {
			name = fmt.Sprintf("with bit %d, which this version does not know", bit)
		}
		return fmt.Errorf("btrfs feature %s: %w", name, fsys.ErrUnsupported)
	}
	for flag, what := range unfinished {
		if s.flags&flag != 0 {
			return fmt.Errorf("btrfs with %s: %w", what, fsys.ErrUnsupported)
		}
	}
	return nil
}

// text is a string that ends at the first zero byte.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
