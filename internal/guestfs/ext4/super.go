package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian // of the journal
)

// corruptf returns an error that is fsys.ErrCorrupt.
func corruptf(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), fsys.ErrCorrupt)
}

// unsupportedf returns an error that is fsys.ErrUnsupported.
func unsupportedf(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), fsys.ErrUnsupported)
}

const (
	superOffset = 1024 // bytes
	superSize   = 1024
	superMagic  = 0xef53

	rootInode   = 2
	stateValid  = 0x1 // unmounted in order
	stateErrors = 0x2
	osHurd      = 1
	// Of the superblock's flags: which kind of char hashes were made with.
	signedHash, unsignedHash = 0x1, 0x2
)

// superblock is what the file system says of itself ("The Super Block" in the
// kernel's ext4 documentation).
type superblock struct {
	raw                      []byte
	blocks, free             uint64 // in blocks
	blockSize, clusterSize   int64
	firstData                uint64 // block
	blocksPerGroup           uint64
	inodesPerGroup, inodes   uint32
	groups                   uint64
	inodeSize, descSize      int64
	firstInode               uint32 // that is not reserved
	compat, incompat, ro     uint32
	firstMetaBG              uint64
	state                    uint16
	creatorOS                uint32
	journalInode             uint32
	hidden                   []uint32 // inodes that only the kernel uses, past firstInode
	hashSeed                 [4]uint32
	hashFlags                uint32
	seed                     uint32 // of checksums
	uuid, label, lastMounted string
}

func (s *superblock) has(incompat uint32) bool { return s.incompat&incompat != 0 }

func (s *superblock) checksums() bool { return s.ro&roMetadataCSum != 0 }

// readSuper reads the superblock.
func readSuper(v fsys.Volume) (*superblock, error) {
	if v.Size() < superOffset+superSize {
		return nil, fmt.Errorf("a volume of %d bytes: %w", v.Size(), fsys.ErrNotFound)
	}
	b := make([]byte, superSize)
	if err := v.ReadAt(b, superOffset); err != nil {
		return nil, fmt.Errorf("read the superblock: %w", err)
	}
	return parseSuper(b)
}

func parseSuper(b []byte) (*superblock, error) {
	if le.Uint16(b[0x38:]) != superMagic {
		return nil, fmt.Errorf("no magic number of ext2, ext3 or ext4: %w", fsys.ErrNotFound)
	}
	s := &superblock{
		raw:            b,
		blocks:         uint64(le.Uint32(b[0x4:])),
		free:           uint64(le.Uint32(b[0xc:])),
		firstData:      uint64(le.Uint32(b[0x14:])),
		blocksPerGroup: uint64(le.Uint32(b[0x20:])),
		inodes:         le.Uint32(b[0x0:]),
		inodesPerGroup: le.Uint32(b[0x28:]),
		inodeSize:      128,
		descSize:       32,
		firstInode:     11,
		state:          le.Uint16(b[0x3a:]),
		creatorOS:      le.Uint32(b[0x48:]),
	}
	if u := b[0x68:0x78]; !bytes.Equal(u, make([]byte, 16)) {
		s.uuid = formatUUID(u)
	}
	s.label, s.lastMounted = text(b[0x78:0x88]), text(b[0x88:0xc8])
	if le.Uint32(b[0x4c:]) > 0 { // revision 0 knows no more
		s.parseDynamic()
	}
	if err := s.supported(); err != nil {
		return nil, err
	}
	if err := s.geometry(); err != nil {
		return nil, err
	}
	return s, nil
}

// parseDynamic parses what revision 1 added.
func (s *superblock) parseDynamic() {
	b := s.raw
	s.firstInode, s.inodeSize = le.Uint32(b[0x54:]), int64(le.Uint16(b[0x58:]))
	s.compat, s.incompat, s.ro = le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	if s.compat&compatHasJournal != 0 {
		s.journalInode = le.Uint32(b[0xe0:])
	}
	for i := range s.hashSeed {
		s.hashSeed[i] = le.Uint32(b[0xec+4*i:])
	}
	if s.has(incompat64Bit) {
		s.descSize = int64(le.Uint16(b[0xfe:]))
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.free |= uint64(le.Uint32(b[0x158:])) << 32
	}
	s.firstMetaBG = uint64(le.Uint32(b[0x104:]))
	s.hashFlags = le.Uint32(b[0x160:])
	for _, at := range []int{0x240, 0x244, 0x26c, 0x280} { // quota of users, groups, projects; orphans
		s.hidden = append(s.hidden, le.Uint32(b[at:]))
	}
	s.seed = crc32c(^uint32(0), b[0x68:0x78])
	if s.has(incompatCSumSeed) {
		s.seed = le.Uint32(b[0x270:])
	}
}

// supported says which feature keeps the file system from being read.
func (s *superblock) supported() error {
	if s.has(incompatJournalDev) {
		return unsupportedf("the volume is a journal of another file system, and holds no files")
	}
	if unknown := s.incompat &^ incompatKnown; unknown != 0 {
		return unsupportedf("ext4 with %s", featureNames(unknown))
	}
	if !s.checksums() {
		return nil
	}
	if t := s.raw[0x175]; t != 1 {
		return unsupportedf("ext4 with checksums of type %d", t)
	}
	if got, want := crc32c(^uint32(0), s.raw[:0x3fc]), le.Uint32(s.raw[0x3fc:]); got != want {
		return corruptf("the superblock's checksum is 0x%x instead of 0x%x", got, want)
	}
	return nil
}

// geometry works out sizes, and refuses those that cannot be.
func (s *superblock) geometry() error {
	shift, clusterShift := le.Uint32(s.raw[0x18:]), le.Uint32(s.raw[0x1c:])
	if shift > 6 {
		return corruptf("the superblock tells of blocks of 2^%d KiB", shift)
	}
	s.blockSize = 1024 << shift
	s.clusterSize = s.blockSize
	if s.ro&roBigAlloc != 0 {
		if clusterShift < shift || clusterShift > 20 {
			return corruptf("the superblock tells of clusters of 2^%d KiB", clusterShift)
		}
		s.clusterSize = 1024 << clusterShift
	}
	perGroup := uint64(8 * s.blockSize) // by the bitmap, which has one block
	switch {
	case s.inodeSize < 128 || s.inodeSize > s.blockSize || bits.OnesCount64(uint64(s.inodeSize)) != 1:
		return corruptf("the superblock tells of inodes of %d bytes", s.inodeSize)
	case s.has(incompat64Bit) && (s.descSize < 64 || s.descSize > 1024 || bits.OnesCount64(uint64(s.descSize)) != 1):
		return corruptf("the superblock tells of group descriptors of %d bytes", s.descSize)
	case s.blocksPerGroup == 0 || s.blocksPerGroup > perGroup*uint64(s.clusterSize/s.blockSize):
		return corruptf("the superblock tells of %d blocks per group", s.blocksPerGroup)
	case s.inodesPerGroup == 0 || uint64(s.inodesPerGroup) > perGroup:
		return corruptf("the superblock tells of %d inodes per group", s.inodesPerGroup)
	case s.blocks > 1<<63/uint64(s.blockSize)-1 || s.firstData >= s.blocks || s.firstData > 1:
		return corruptf("the superblock tells of %d blocks from block %d", s.blocks, s.firstData)
	}
	s.groups = (s.blocks - s.firstData + s.blocksPerGroup - 1) / s.blocksPerGroup
	if s.groups*uint64(s.inodesPerGroup) != uint64(s.inodes) || s.firstInode < rootInode {
		return corruptf("the superblock tells of %d inodes from %d in %d groups of %d", s.inodes, s.firstInode, s.groups, s.inodesPerGroup)
	}
	return nil
}

// kind returns the type by the rules of blkid.
func (s *superblock) kind() string {
	switch {
	case s.ro&^roExt2 != 0 || s.incompat&^incompatExt3 != 0:
		return "ext4"
	case s.compat&compatHasJournal != 0:
		return "ext3"
	case s.incompat&^incompatExt2 != 0:
		return "ext4"
	}
	return "ext2"
}

// reserved says whether the kernel keeps an inode for itself.
func (s *superblock) reserved(inode uint32) bool {
	if inode < s.firstInode && inode != rootInode {
		return true
	}
	for _, h := range s.hidden {
		if inode == h {
			return true
		}
	}
	return false
}

func formatUUID(u []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// text returns a string that ends at the first zero.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}
