package ext4

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// inode is the record of a file ("Index Nodes" in the kernel's documentation).
type inode struct {
	number uint32
	mode   uint16
	flags  uint32
	size   int64  // bytes
	raw    []byte // the record
	seed   uint32 // of checksums of what belongs to it
}

// Types of files in i_mode.
const (
	typeMask  = 0xf000
	typeDir   = 0x4000
	typeFile  = 0x8000
	typeLink  = 0xa000
	blockArea = 0x28 // where the map of blocks begins in a record
	blockEnd  = 0x64
)

// block returns the 60 bytes that hold the map of blocks, or content.
func (in *inode) block() []byte { return in.raw[blockArea:blockEnd] }

func (in *inode) is(kind uint16) bool { return in.mode&typeMask == kind }

func (in *inode) has(flag uint32) bool { return in.flags&flag != 0 }

// extra returns the field of n bytes at off past the first 128 bytes of a record,
// or nil if the record does not have it.
func (in *inode) extra(off, n int) []byte {
	if len(in.raw) < 0x82 || off+n > 128+int(le.Uint16(in.raw[0x80:])) {
		return nil
	}
	return in.raw[off : off+n]
}

// Inode implements fsys.Inodes. What the journal holds lies in the journal.
func (f *fileSystem) Inode(id fsys.ID) (off, n int64, err error) {
	off, err = f.locate(id)
	if err != nil {
		return 0, 0, err
	}
	return f.replayed.at(off), f.super.inodeSize, nil
}

// locate returns where the record of an inode lies, in bytes.
func (f *fileSystem) locate(id fsys.ID) (int64, error) {
	s := f.super
	if id == 0 || id > fsys.ID(s.inodes) {
		return 0, fmt.Errorf("inode %d of %d: %w", id, s.inodes, fs.ErrNotExist)
	}
	nth := uint64(id - 1)
	table, err := f.inodeTable(nth / uint64(s.inodesPerGroup))
	if err != nil {
		return 0, fmt.Errorf("find inode %d: %w", id, err)
	}
	return int64(table)*s.blockSize + int64(nth%uint64(s.inodesPerGroup))*s.inodeSize, nil
}

// visible reads an inode that users can see.
func (f *fileSystem) visible(id fsys.ID) (*inode, error) {
	if id <= fsys.ID(f.super.inodes) && f.super.reserved(uint32(id)) {
		return nil, fmt.Errorf("inode %d is reserved: %w", id, fs.ErrNotExist)
	}
	in, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	if in.has(flagEAInode) {
		return nil, fmt.Errorf("inode %d holds an extended attribute: %w", id, fs.ErrNotExist)
	}
	return in, nil
}

// inode reads one that is in use.
func (f *fileSystem) inode(id fsys.ID) (*inode, error) {
	off, err := f.locate(id)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, f.super.inodeSize)
	if err := f.meta.ReadAt(raw, off); err != nil {
		return nil, fmt.Errorf("read inode %d: %w", id, err)
	}
	return f.super.parseInode(uint32(id), raw)
}

func (s *superblock) parseInode(number uint32, raw []byte) (*inode, error) {
	in := &inode{number: number, raw: raw, mode: le.Uint16(raw), flags: le.Uint32(raw[0x20:]), size: int64(le.Uint32(raw[0x4:]))}
	links := le.Uint16(raw[0x1a:])
	if links == 0 && in.mode == 0 { // never used: it has no checksum either
		return nil, fmt.Errorf("inode %d is not in use: %w", number, fs.ErrNotExist)
	}
	if n := 128; len(raw) > n {
		if extra := int(le.Uint16(raw[0x80:])); n+extra > len(raw) || extra%4 != 0 {
			return nil, corruptf("inode %d tells of %d extra bytes", number, extra)
		}
	}
	if err := in.checksum(s); err != nil {
		return nil, err
	}
	if links == 0 {
		return nil, fmt.Errorf("inode %d is not in use: %w", number, fs.ErrNotExist)
	}
	if in.is(typeFile) || s.has(incompatLargeDir) {
		in.size |= int64(le.Uint32(raw[0x6c:])) << 32
	}
	if in.size < 0 {
		return nil, corruptf("inode %d tells of a size of %d bytes", number, uint64(in.size))
	}
	return in, nil
}

// checksum works out the seed of what belongs to an inode, and checks its own.
func (in *inode) checksum(s *superblock) error {
	if !s.checksums() {
		return nil
	}
	in.seed = crc32c(crc32c(s.seed, le.AppendUint32(nil, in.number)), in.raw[0x64:0x68])
	crc := crc32c(crc32c(crc32c(in.seed, in.raw[:0x7c]), []byte{0, 0}), in.raw[0x7e:128])
	want := uint32(le.Uint16(in.raw[0x7c:]))
	high := in.extra(0x82, 2)
	switch {
	case high != nil:
		want |= uint32(le.Uint16(high)) << 16
		crc = crc32c(crc32c(crc32c(crc, in.raw[0x80:0x82]), []byte{0, 0}), in.raw[0x84:])
	default:
		crc = crc32c(crc, in.raw[128:]) & 0xffff
	}
	if crc != want {
		return corruptf("the checksum of inode %d is 0x%x instead of 0x%x", in.number, crc, want)
	}
	return nil
}

// Stat implements fsys.FileSystem.
func (f *fileSystem) Stat(id fsys.ID) (fsys.Attr, error) {
	in, err := f.visible(id)
	if err != nil {
		return fsys.Attr{}, err
	}
	raw := in.raw
	a := fsys.Attr{
		Mode:      fileMode(in.mode),
		UID:       uint32(le.Uint16(raw[0x2:])) | uint32(le.Uint16(raw[0x78:]))<<16,
		GID:       uint32(le.Uint16(raw[0x18:])) | uint32(le.Uint16(raw[0x7a:]))<<16,
		Links:     uint32(le.Uint16(raw[0x1a:])),
		Size:      in.size,
		Allocated: f.allocated(in),
		Accessed:  moment(raw[0x8:], in.extra(0x8c, 4)),
		Changed:   moment(raw[0xc:], in.extra(0x84, 4)),
		Modified:  moment(raw[0x10:], in.extra(0x88, 4)),
	}
	if created := in.extra(0x90, 4); created != nil {
		a.Created = moment(created, in.extra(0x94, 4))
	}
	if a.Mode&fs.ModeType == fs.ModeIrregular {
		return fsys.Attr{}, corruptf("inode %d tells of mode 0%o", in.number, in.mode)
	}
	if a.Mode&fs.ModeDevice != 0 {
		a.Major, a.Minor = device(in.block())
	}
	for _, n := range flagNames {
		if in.has(n.bit) {
			a.Flags = append(a.Flags, n.name)
		}
	}
	return a, nil
}

// allocated returns the bytes that an inode takes, as stat(2) shows them: of a file
// that is kept in its inode that is its size.
func (f *fileSystem) allocated(in *inode) int64 {
	n := int64(le.Uint32(in.raw[0x1c:])) // units of 512 bytes
	if f.super.ro&roHugeFile != 0 {
		if f.super.creatorOS != osHurd {
			n |= int64(le.Uint16(in.raw[0x74:])) << 32
		}
		if in.has(flagHugeFile) {
			n *= f.super.blockSize / 512
		}
	}
	if in.has(flagInlineData) && in.is(typeFile) {
		n += (in.size + 511) / 512
	}
	return n * 512
}

// moment decodes a time: 32 bits with a sign, and where there is more, two bits that
// go on above them and nanoseconds.
func moment(seconds, extra []byte) time.Time {
	s, ns := int64(int32(le.Uint32(seconds))), int64(0)
	if extra != nil {
		x := le.Uint32(extra)
		s, ns = s+int64(x&3)<<32, int64(x>>2)
	}
	return time.Unix(s, ns).UTC()
}

// device decodes the number of a device, in the old form or in the new.
func device(b []byte) (major, minor uint32) {
	if n := le.Uint32(b); n != 0 {
		return n >> 8 & 0xff, n & 0xff
	}
	n := le.Uint32(b[4:])
	return n >> 8 & 0xfff, n&0xff | n>>12&0xfff00
}

// fileMode translates i_mode.
func fileMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & typeMask {
	case typeFile:
	case typeDir:
		mode |= fs.ModeDir
	case typeLink:
		mode |= fs.ModeSymlink
	case 0x1000:
		mode |= fs.ModeNamedPipe
	case 0x2000:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0x6000:
		mode |= fs.ModeDevice
	case 0xc000:
		mode |= fs.ModeSocket
	default:
		mode |= fs.ModeIrregular
	}
	for _, x := range []struct {
		bit  uint16
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if m&x.bit != 0 {
			mode |= x.mode
		}
	}
	return mode
}
