package xfs

import (
	"math/bits"
	"strings"

	"github.com/google/uuid"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Magic numbers of what is read at fixed places.
const (
	magicSuper = 0x58465342 // XFSB
	magicAGF   = 0x58414746 // XAGF
	magicInode = 0x494e     // IN
)

// Bits of a version 4 superblock (sb_versionnum, sb_features2).
const (
	versionFoldsCase = 0x4000
	versionDirV2     = 0x2000
	versionSector    = 0x0800
	versionLogV2     = 0x0400
	versionMore      = 0x8000
	versionKnown     = 0x0010 | 0x0020 | 0x0040 | 0x0080 | 0x0100 | versionLogV2 | versionSector | 0x1000 | versionDirV2 | versionFoldsCase |
		versionMore

	features2FileType = 0x200
	features2Known    = 0x01 | 0x02 | 0x08 | 0x80 | 0x100 | features2FileType
)

// Bits of sb_features_incompat.
const (
	incompatFileType    = 1 << 0
	incompatSparse      = 1 << 1
	incompatMetaUUID    = 1 << 2
	incompatBigTime     = 1 << 3
	incompatNeedsRepair = 1 << 4
	incompatManyExtents = 1 << 5
	incompatExchange    = 1 << 6
	incompatParent      = 1 << 7
	incompatKnown       = incompatFileType | incompatSparse | incompatMetaUUID | incompatBigTime | incompatNeedsRepair |
		incompatManyExtents | incompatExchange | incompatParent
)

// incompatNames are of features that a reader would have to know.
var incompatNames = map[int]string{8: "a directory tree of metadata (metadir)", 9: "zoned devices", 10: "gaps of zones"}

// logKnown are the bits of sb_features_log_incompat whose log items are known.
const logKnown = 1 << 0 // logged attributes

// super is what the superblock says (Superblocks), checked.
type super struct {
	v5             bool
	blockLog       uint8 // of bytes
	blocks         uint64
	realtimeBlocks uint64
	groups         uint64
	groupBlocks    uint64 // of each group but the last
	groupLog       uint8
	sectorSize     uint32
	inodeLog       uint8 // of bytes
	perBlockLog    uint8 // of inodes
	dirLog         uint8 // of blocks of the file system in one of a directory
	rootInode      uint64
	uuid, metaUUID uuid.UUID
	label          string
	freeBlocks     uint64
	incompat       uint32
	logIncompat    uint32
	fileTypes      bool // directories hold the types of files
	foldsCase      bool
	inProgress     bool
	logV2          bool
	logStart       uint64 // block of the file system; 0: on another device
	logBlocks      uint64
}

func (s *super) blockSize() int64 { return 1 << s.blockLog }
func (s *super) inodeSize() int   { return 1 << s.inodeLog }
func (s *super) dirSize() int     { return 1 << (s.blockLog + s.dirLog) }

// readSuper reads and checks the first superblock.
func readSuper(v fsys.Volume) (*super, error) { return parseSuper(v, true) }

// parseSuper reads the first superblock, with its checksum or without.
func parseSuper(v fsys.Volume, sealed bool) (*super, error) {
	b := make(raw, 512)
	if v.Size() < int64(len(b)) {
		return nil, fsys.ErrNotFound
	}
	if err := v.ReadAt(b, 0); err != nil {
		return nil, err
	}
	if b.u32(0) != magicSuper {
		return nil, fsys.ErrNotFound
	}
	s := &super{}
	if err := s.version(b, v, sealed); err != nil {
		return nil, err
	}
	if err := s.geometry(b); err != nil {
		return nil, err
	}
	if size := int64(s.blocks) << s.blockLog; size > v.Size() {
		return nil, corrupt("the file system has %d bytes, the volume %d", size, v.Size())
	}
	s.uuid = uuid.UUID(b[32:48])
	s.metaUUID = s.uuid
	if s.incompat&incompatMetaUUID != 0 {
		s.metaUUID = uuid.UUID(b[248:264])
	}
	label, _, _ := strings.Cut(string(b[108:120]), "\x00")
	s.label = strings.TrimRight(label, " \t\n")
	s.freeBlocks = min(b.u64(144), s.blocks)
	s.realtimeBlocks = b.u64(16)
	s.inProgress = b[126] != 0
	s.logStart, s.logBlocks = b.u64(48), uint64(b.u32(96))
	return s, nil
}

// version checks versions, checksum and features.
func (s *super) version(b raw, v fsys.Volume, sealed bool) error {
	version := b.u16(100)
	switch version & 15 {
	case 1, 2, 3:
		return unsupported("version %d of XFS, older than 4", version&15)
	case 4:
	case 5:
		s.v5 = true
	default:
		return unsupported("version %d of XFS", version&15)
	}
	s.sectorSize = uint32(b.u16(102))
	if s.sectorSize < 512 || s.sectorSize > 32<<10 || bits.OnesCount32(s.sectorSize) != 1 {
		return corrupt("superblock: sectors of %d bytes", s.sectorSize)
	}
	s.logV2 = version&versionLogV2 != 0
	s.foldsCase = version&versionFoldsCase != 0
	if s.v5 {
		return s.version5(b, v, sealed)
	}
	// Some kernels wrote sb_features2 to where the compiler aligned it.
	features2 := b.u32(200) | b.u32(204)
	if version&versionDirV2 == 0 {
		return unsupported("directories of version 1")
	}
	if unknown := version &^ (versionKnown | 15); unknown != 0 {
		return unsupported("features %#x of version 4", unknown)
	}
	if version&versionMore != 0 {
		if unknown := features2 &^ features2Known; unknown != 0 {
			return unsupported("further features %#x of version 4", unknown)
		}
		s.fileTypes = features2&features2FileType != 0
	}
	return nil
}

func (s *super) version5(b raw, v fsys.Volume, sealed bool) error {
	sector := make([]byte, s.sectorSize)
	if err := v.ReadAt(sector, 0); err != nil {
		return err
	}
	if got, want := checksum(sector, 224); sealed && got != want {
		return corrupt("superblock: checksum %08x, recorded %08x", got, want)
	}
	s.incompat, s.logIncompat = b.u32(216), b.u32(220)
	for bit := range 32 {
		if s.incompat&^incompatKnown&(1<<bit) == 0 {
			continue
		}
		if name := incompatNames[bit]; name != "" {
			return unsupported("%s", name)
		}
		return unsupported("incompatible feature %d", bit)
	}
	s.fileTypes = s.incompat&incompatFileType != 0
	s.logV2 = true
	return nil
}

// geometry checks sizes and counts against each other, so that nothing computed
// from them overflows.
func (s *super) geometry(b raw) error {
	s.blockLog, s.inodeLog, s.perBlockLog, s.groupLog, s.dirLog = b[120], b[122], b[123], b[124], b[192]
	smallestBlock, smallestInode := uint8(9), uint8(8)
	if s.v5 {
		smallestBlock, smallestInode = 10, 9
	}
	if s.blockLog < smallestBlock || s.blockLog > 16 || b.u32(4) != 1<<s.blockLog {
		return corrupt("superblock: blocks of %d bytes, 1<<%d", b.u32(4), s.blockLog)
	}
	if s.inodeLog < smallestInode || s.inodeLog > 11 || s.inodeLog > s.blockLog || uint32(b.u16(104)) != 1<<s.inodeLog ||
		s.perBlockLog != s.blockLog-s.inodeLog {
		return corrupt("superblock: inodes of %d bytes, 1<<%d, 1<<%d in a block", b.u16(104), s.inodeLog, s.perBlockLog)
	}
	if s.dirLog > 16-s.blockLog {
		return corrupt("superblock: directory blocks of 1<<%d blocks", s.dirLog)
	}
	s.blocks, s.groupBlocks, s.groups = b.u64(8), uint64(b.u32(84)), uint64(b.u32(88))
	if s.blocks == 0 || s.blocks > 1<<62>>s.blockLog {
		return corrupt("superblock: %d blocks", s.blocks)
	}
	if s.groups == 0 || s.groupBlocks == 0 || s.blocks > s.groups*s.groupBlocks || s.blocks <= (s.groups-1)*s.groupBlocks {
		return corrupt("superblock: %d groups of %d blocks, for %d blocks", s.groups, s.groupBlocks, s.blocks)
	}
	if int(s.groupLog) != bits.Len64(s.groupBlocks-1) {
		return corrupt("superblock: groups of %d blocks, numbered by %d bits", s.groupBlocks, s.groupLog)
	}
	s.rootInode = b.u64(56)
	if _, ok := s.inodeAt(s.rootInode); !ok {
		return corrupt("superblock: root directory in inode %d", s.rootInode)
	}
	return nil
}

// groupSize returns how many blocks a group has.
func (s *super) groupSize(group uint64) uint64 {
	if group == s.groups-1 {
		return s.blocks - group*s.groupBlocks
	}
	return s.groupBlocks
}

// blockAt returns where n blocks from one lie on the volume, in bytes. A block's
// number is that of its group, followed by its number there; a run does not leave
// its group.
func (s *super) blockAt(block, n uint64) (int64, bool) {
	group, in := block>>s.groupLog, block&(1<<s.groupLog-1)
	if group >= s.groups || n > s.blocks || in+n > s.groupSize(group) {
		return 0, false
	}
	return int64(group*s.groupBlocks+in) << s.blockLog, true
}

// inodeAt returns where an inode lies on the volume, in bytes (Inode Numbers).
func (s *super) inodeAt(ino uint64) (int64, bool) {
	at, ok := s.blockAt(ino>>s.perBlockLog, 1)
	return at + int64(ino&(1<<s.perBlockLog-1))<<s.inodeLog, ok && ino != 0
}
