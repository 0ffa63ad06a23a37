package btrfs

import (
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// An ID is the number of a subvolume and that of an inode in it, for inodes of
// several subvolumes have the same.
const (
	inodeBits = 40
	treeBits  = 23
	// emptyDir marks the directory that stands for a subvolume which is not there,
	// inside the one that the rest of the ID names: a snapshot holds the subvolumes
	// inside the original as such.
	emptyDir fsys.ID = 1 << 63
)

func pack(tree, inode uint64) (fsys.ID, error) {
	if inode >= 1<<inodeBits || tree >= 1<<treeBits {
		return 0, fmt.Errorf("inode %d of subvolume %d has too large a number: %w", inode, tree, fsys.ErrUnsupported)
	}
	return fsys.ID(tree<<inodeBits | inode), nil
}

func unpack(id fsys.ID) (tree, inode uint64) {
	id &^= emptyDir
	return uint64(id >> inodeBits), uint64(id & (1<<inodeBits - 1))
}

// inode is "Inode item" of the on-disk format.
type inode struct {
	size, nbytes     uint64
	links, uid, gid  uint32
	mode             fs.FileMode
	device           uint64
	flags            uint64
	accessed         time.Time
	changed, written time.Time
	created          time.Time
}

// Flags of inodes.
const (
	noDataSum = 1 << 0
)

var flagNames = []string{"nodatasum", "nodatacow", "readonly", "nocompress", "prealloc", "sync", "immutable", "append",
	"nodump", "noatime", "dirsync", "compressed", 32: "verity"}

func parseInode(b []byte) (inode, error) {
	if len(b) < inodeSize {
		return inode{}, fmt.Errorf("inode item of %d bytes: %w", len(b), fsys.ErrCorrupt)
	}
	i := inode{
		size: le64(b[16:]), nbytes: le64(b[24:]), links: le32(b[40:]), uid: le32(b[44:]), gid: le32(b[48:]),
		device: le64(b[56:]), flags: le64(b[64:]),
		accessed: timeAt(b[112:]), changed: timeAt(b[124:]), written: timeAt(b[136:]), created: timeAt(b[148:]),
	}
	if le64(b[148:]) == 0 { // written before btrfs kept it
		i.created = time.Time{}
	}
	var ok bool
	if i.mode, ok = modeOf(le32(b[52:])); !ok || i.size > math.MaxInt64 || i.nbytes > math.MaxInt64-1<<16 {
		return inode{}, fmt.Errorf("mode %#o, %d bytes, %d allocated: %w", le32(b[52:]), i.size, i.nbytes, fsys.ErrCorrupt)
	}
	return i, nil
}

func timeAt(b []byte) time.Time { return time.Unix(int64(le64(b)), int64(le32(b[8:]))) }

// fileTypes are the types of a mode, by its highest four bits.
var fileTypes = map[uint32]fs.FileMode{
	1: fs.ModeNamedPipe, 2: fs.ModeDevice | fs.ModeCharDevice, 4: fs.ModeDir, 6: fs.ModeDevice, 8: 0, 10: fs.ModeSymlink, 12: fs.ModeSocket,
}

func modeOf(m uint32) (fs.FileMode, bool) {
	mode, ok := fileTypes[m>>12]
	mode |= fs.FileMode(m & 0o777)
	for bit, x := range []fs.FileMode{fs.ModeSticky, fs.ModeSetgid, fs.ModeSetuid} {
		if m>>(9+bit)&1 != 0 {
			mode |= x
		}
	}
	return mode, ok
}

// inode returns an inode with the tree that it is in and its number there.
func (f *FS) inode(id fsys.ID) (*tree, uint64, inode, error) {
	treeID, number := unpack(id)
	t, err := f.store.subvolume(treeID)
	if err != nil {
		return nil, 0, inode{}, err
	}
	b, err := t.get(key{number, inodeItem, 0})
	if err != nil {
		return nil, 0, inode{}, fmt.Errorf("inode %d of subvolume %d: %w", number, treeID, err)
	}
	i, err := parseInode(b)
	if err != nil {
		return nil, 0, inode{}, fmt.Errorf("inode %d of subvolume %d: %w", number, treeID, err)
	}
	if id&emptyDir != 0 { // as the kernel makes it up
		i = inode{links: 1, uid: i.uid, gid: i.gid, mode: fs.ModeDir | 0o755, accessed: i.accessed}
	}
	return t, number, i, nil
}

// ofType is inode for one that has to be of a type.
func (f *FS) ofType(id fsys.ID, want fs.FileMode, name string) (*tree, uint64, inode, error) {
	t, number, i, err := f.inode(id)
	if err == nil && i.mode.Type() != want {
		err = fmt.Errorf("inode %d is no %s: %w", number, name, fs.ErrInvalid)
	}
	return t, number, i, err
}

// Stat implements fsys.FileSystem.
func (f *FS) Stat(id fsys.ID) (fsys.Attr, error) {
	_, _, i, err := f.inode(id)
	if err != nil {
		return fsys.Attr{}, err
	}
	sector := uint64(f.store.super.sectorSize)
	a := fsys.Attr{
		Mode: i.mode, UID: i.uid, GID: i.gid, Links: i.links, Size: int64(i.size),
		Allocated: int64((i.nbytes + sector - 1) &^ (sector - 1)),
		Modified:  i.written, Changed: i.changed, Created: i.created, Accessed: i.accessed,
	}
	if i.mode&fs.ModeDevice != 0 {
		a.Major, a.Minor = uint32(i.device>>20), uint32(i.device&(1<<20-1))
	}
	for bit, name := range flagNames {
		if name != "" && i.flags>>bit&1 != 0 {
			a.Flags = append(a.Flags, name)
		}
	}
	return a, nil
}

// Readlink implements fsys.FileSystem.
func (f *FS) Readlink(id fsys.ID) (string, error) {
	t, number, i, err := f.ofType(id, fs.ModeSymlink, "symbolic link")
	if err != nil {
		return "", err
	}
	if i.size == 0 || i.size > 4096 {
		return "", fmt.Errorf("symbolic link %d with a target of %d bytes: %w", number, i.size, fsys.ErrCorrupt)
	}
	b := make([]byte, i.size)
	if err := f.store.fill(file{t, number, i}, b, 0); err != nil {
		return "", err
	}
	return string(b), nil
}

// Xattrs implements fsys.FileSystem.
func (f *FS) Xattrs(id fsys.ID) ([]fsys.Xattr, error) {
	t, number, _, err := f.inode(id)
	if err != nil || id&emptyDir != 0 {
		return nil, err
	}
	var found []fsys.Xattr
	var bad error
	size := 0
	err = t.scan(key{number, xattrItem, 0}, key{number, xattrItem, maxOffset}, func(k key, b []byte) bool {
		bad = eachEntry(b, func(e entry) bool {
			found = append(found, fsys.Xattr{Name: string(e.name), Value: append([]byte(nil), e.data...)})
			size += len(e.name) + len(e.data)
			return true
		})
		if bad == nil && size > maxXattrs {
			bad = fmt.Errorf("more than %d bytes: %w", maxXattrs, fsys.ErrCorrupt)
		}
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, fmt.Errorf("extended attributes of inode %d: %w", number, err)
	}
	return found, nil
}

// maxXattrs bounds what all extended attributes of an inode take. Linux lists no
// more than 64 KiB of names.
const maxXattrs = 16 << 20
