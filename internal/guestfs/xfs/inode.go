package xfs

import (
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Formats of forks (di_format, di_aformat).
const (
	formatDevice = iota
	formatLocal
	formatExtents
	formatBtree
)

// Bits of di_flags and di_flags2.
const (
	flagRealtime     = 1 << 0
	flag2BigTime     = 1 << 3
	flag2ManyExtents = 1 << 4
)

// inode is an inode (Inode Core), checked as far as it can be by itself.
type inode struct {
	ino     uint64
	raw     raw
	mode    uint16
	version uint8
	format  uint8
	size    int64
	blocks  uint64 // of the file system, of both forks
	flags   uint16
	flags2  uint64
	// Literal areas, which end where the inode does.
	data, attr raw
	// Extents of the forks.
	extents, attrExtents uint64
	attrFormat           uint8
}

// Types of a mode.
const (
	typeMask    = 0o170000
	typePipe    = 0o010000
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeBlock   = 0o060000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeSocket  = 0o140000
)

func (in *inode) isDir() bool     { return in.mode&typeMask == typeDir }
func (in *inode) isRegular() bool { return in.mode&typeMask == typeRegular }
func (in *inode) isSymlink() bool { return in.mode&typeMask == typeSymlink }

// inode reads an inode. It returns fs.ErrNotExist for one that is not in use.
func (f *FS) inode(ino uint64) (*inode, error) {
	at, ok := f.inodeAt(ino)
	if !ok {
		return nil, fmt.Errorf("inode %d: %w", ino, fs.ErrNotExist)
	}
	b := make(raw, f.inodeSize())
	if err := f.meta.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read inode %d: %w", ino, err)
	}
	return f.parseInode(ino, b)
}

func (f *FS) parseInode(ino uint64, b raw) (*inode, error) {
	if b.u16(0) != magicInode {
		return nil, corrupt("inode %d: there is none at its place", ino)
	}
	in := &inode{ino: ino, raw: b, mode: b.u16(2), version: b[4], format: b[5], size: int64(b.u64(56)), blocks: b.u64(64), flags: b.u16(90)}
	area := b[min(100, len(b)):]
	if f.v5 {
		if got, want := checksum(b, 100); got != want {
			return nil, corrupt("inode %d: checksum %08x, recorded %08x", ino, got, want)
		}
		if in.version != 3 || b.u64(152) != ino || [16]byte(b[160:]) != f.metaUUID {
			return nil, corrupt("inode %d: says that it is %d, of version %d, or of another file system", ino, b.u64(152), in.version)
		}
		in.flags2 = b.u64(120)
		area = b[176:]
	} else if in.version != 1 && in.version != 2 {
		return nil, corrupt("inode %d: version %d", ino, in.version)
	}
	if in.mode == 0 {
		return nil, fmt.Errorf("inode %d: %w", ino, fs.ErrNotExist)
	}
	if in.size < 0 {
		return nil, corrupt("inode %d: size %d", ino, in.size)
	}
	if in.blocks > f.blocks && in.flags&flagRealtime == 0 {
		return nil, corrupt("inode %d: takes %d blocks of %d", ino, in.blocks, f.blocks)
	}
	in.counts()
	return in, in.forks(area)
}

// counts reads how many extents the forks have.
func (in *inode) counts() {
	if in.flags2&flag2ManyExtents != 0 {
		in.extents, in.attrExtents = in.raw.u64(24), uint64(in.raw.u32(76))
	} else {
		in.extents, in.attrExtents = uint64(in.raw.u32(76)), uint64(in.raw.u16(80))
	}
}

// forks finds where the forks begin (Data Fork, Attribute Fork).
func (in *inode) forks(area raw) error {
	in.data, in.attrFormat = area, in.raw[83]
	if forkOff := int(in.raw[82]) * 8; forkOff != 0 {
		if forkOff >= len(area) {
			return corrupt("inode %d: attributes begin at %d of %d bytes", in.ino, forkOff, len(area))
		}
		in.data, in.attr = area[:forkOff], area[forkOff:]
	}
	ok := false
	switch in.mode & typeMask {
	case typeDir:
		ok = in.format == formatLocal || in.format == formatExtents || in.format == formatBtree
	case typeRegular:
		ok = in.format == formatExtents || in.format == formatBtree
	case typeSymlink:
		ok = in.format == formatLocal || in.format == formatExtents
	case typeChar, typeBlock, typePipe, typeSocket:
		ok = in.format == formatDevice && len(in.data) >= 4
	}
	if !ok {
		return corrupt("inode %d: format %d for mode %o", in.ino, in.format, in.mode)
	}
	if in.format == formatLocal && in.size > int64(len(in.data)) {
		return corrupt("inode %d: %d bytes of content in a place for %d", in.ino, in.size, len(in.data))
	}
	return nil
}

// stamp decodes a time of an inode (Timestamps).
func (in *inode) stamp(at int) time.Time {
	if in.flags2&flag2BigTime != 0 {
		ns := in.raw.u64(at)
		return time.Unix(int64(ns/1e9)+math.MinInt32, int64(ns%1e9))
	}
	return time.Unix(int64(int32(in.raw.u32(at))), int64(int32(in.raw.u32(at+4))))
}

// fileMode translates a mode.
func fileMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & typeMask {
	case typePipe:
		mode |= fs.ModeNamedPipe
	case typeChar:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case typeDir:
		mode |= fs.ModeDir
	case typeBlock:
		mode |= fs.ModeDevice
	case typeSymlink:
		mode |= fs.ModeSymlink
	case typeSocket:
		mode |= fs.ModeSocket
	}
	if m&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if m&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	if m&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// flagNames are of bits of di_flags and, from 16, of di_flags2.
var flagNames = []struct {
	bit  int
	name string
}{
	{0, "realtime"}, {3, "immutable"}, {4, "append-only"}, {5, "synchronous"}, {6, "no-atime"}, {7, "no-dump"}, {9, "project-inherit"},
	{13, "no-defrag"}, {16, "dax"}, {17, "reflink"},
}

// Stat implements fsys.FileSystem.
func (f *FS) Stat(id fsys.ID) (fsys.Attr, error) {
	in, err := f.inode(uint64(id))
	if err != nil {
		return fsys.Attr{}, err
	}
	b := in.raw
	a := fsys.Attr{
		Mode: fileMode(in.mode), UID: b.u32(8), GID: b.u32(12), Links: b.u32(16), Size: in.size,
		Allocated: int64(min(in.blocks, math.MaxInt64>>f.blockLog)) << f.blockLog,
		Accessed:  in.stamp(32), Modified: in.stamp(40), Changed: in.stamp(48),
	}
	if in.version == 1 {
		a.Links = uint32(b.u16(6))
	}
	if in.version == 3 {
		a.Created = in.stamp(144)
	}
	if a.Mode&fs.ModeDevice != 0 {
		dev := in.data.u32(0)
		a.Major, a.Minor = dev>>18, dev&(1<<18-1)
	}
	all := uint64(in.flags) | in.flags2<<16
	for _, x := range flagNames {
		if all&(1<<x.bit) != 0 {
			a.Flags = append(a.Flags, x.name)
		}
	}
	return a, nil
}

// Inode implements fsys.Inodes. It returns fsys.ErrUnsupported for an inode whose
// newest state lies in the log.
func (f *FS) Inode(id fsys.ID) (off, n int64, err error) {
	at, ok := f.inodeAt(uint64(id))
	if !ok {
		return 0, 0, fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	}
	if f.replay != nil && (f.replay.inodes[uint64(id)] || f.pending.inodes[uint64(id)]) {
		return 0, 0, unsupported("inode %d has no place: it was replayed from the journal", id)
	}
	return at, int64(f.inodeSize()), nil
}
