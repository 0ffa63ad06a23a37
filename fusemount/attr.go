package fusemount

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// blockSize is the unit that programs are told to read in. Those that copy files
// take more by themselves.
const blockSize = 4096

// typeBits returns the type of a mode as the kernel has it, 0 where it is unknown.
func typeBits(m fs.FileMode) uint32 {
	switch m.Type() {
	case 0:
		return unix.S_IFREG
	case fs.ModeDir:
		return unix.S_IFDIR
	case fs.ModeSymlink:
		return unix.S_IFLNK
	case fs.ModeNamedPipe:
		return unix.S_IFIFO
	case fs.ModeSocket:
		return unix.S_IFSOCK
	case fs.ModeDevice:
		return unix.S_IFBLK
	case fs.ModeDevice | fs.ModeCharDevice:
		return unix.S_IFCHR
	}
	return 0
}

func modeBits(m fs.FileMode) uint32 {
	bits := typeBits(m) | uint32(m.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if m&b.mode != 0 {
			bits |= b.bit
		}
	}
	return bits
}

// check refuses attributes that the kernel would, and nodes that are not what
// their mode says.
func check(n Node, a *Attr) error {
	ok := true
	switch typeBits(a.Mode) {
	case 0:
		return fmt.Errorf("mode %v names no type of file", a.Mode)
	case unix.S_IFDIR:
		_, ok = n.(Dir)
	case unix.S_IFREG:
		_, ok = n.(File)
	case unix.S_IFLNK:
		_, ok = n.(Link)
	}
	if !ok {
		return fmt.Errorf("%T is not what its mode %v says", n, a.Mode)
	}
	if a.Size < 0 || a.Allocated < 0 {
		return fmt.Errorf("size %d, allocated %d: out of range", a.Size, a.Allocated)
	}
	return nil
}

// number returns the inode number that is shown for id. Numbers of one volume do
// not collide; those of two are told apart by a hash of the volume.
func (id ID) number() uint64 {
	if id.Volume == 0 {
		return id.Inode
	}
	// splitmix64, whose output is a permutation of its input.
	z := id.Volume + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	if n := z ^ z>>31 ^ id.Inode; n != 0 {
		return n
	}
	return 1 << 63
}

// derived returns the inode number of a node that is known by its name only. Its
// highest bit keeps it apart from numbers that were given.
func derived(folder uint64, name string) uint64 {
	b := make([]byte, 0, 64)
	b = binary.LittleEndian.AppendUint64(b, folder)
	sum := sha256.Sum256(append(b, name...))
	return binary.LittleEndian.Uint64(sum[:]) | 1<<63
}

// fill puts the attributes of a node into what the kernel is told. written is when
// the node was last written through this mount, in nanoseconds since 1970; 0: never.
func (a *Attr) fill(number uint64, written int64, out *fuse.Attr) {
	changed, modified, accessed := a.times(written)
	*out = fuse.Attr{
		Ino:     number,
		Size:    uint64(a.Size),
		Blocks:  uint64(a.Allocated)/512 + min(1, uint64(a.Allocated)%512),
		Mode:    modeBits(a.Mode),
		Nlink:   max(a.Links, 1),
		Owner:   fuse.Owner{Uid: a.UID, Gid: a.GID},
		Blksize: blockSize,
	}
	if a.Mode&fs.ModeDevice != 0 {
		out.Rdev = uint32(unix.Mkdev(a.DevMajor, a.DevMinor))
	}
	out.Atime, out.Atimensec = stamp(accessed)
	out.Mtime, out.Mtimensec = stamp(modified)
	out.Ctime, out.Ctimensec = stamp(changed)
}

// times returns the times to show, where one that is known stands in for one that
// is not.
func (a *Attr) times(written int64) (changed, modified, accessed time.Time) {
	modified, changed, accessed = a.Modified, a.Changed, a.Accessed
	if w := time.Unix(0, written); written != 0 && w.After(modified) {
		modified, changed = w, w
	}
	if modified.IsZero() {
		modified = changed
	}
	if changed.IsZero() {
		changed = modified
	}
	if accessed.IsZero() {
		accessed = modified
	}
	return changed, modified, accessed
}

func stamp(t time.Time) (seconds uint64, nanoseconds uint32) {
	if t.IsZero() {
		return 0, 0
	}
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

// fillStatx is fill for statx, which also knows when a node was made.
func (a *Attr) fillStatx(number uint64, written int64, out *fuse.Statx) {
	var base fuse.Attr
	a.fill(number, written, &base)
	out.Mask = unix.STATX_BASIC_STATS
	out.Blksize, out.Nlink, out.Uid, out.Gid = base.Blksize, base.Nlink, base.Uid, base.Gid
	out.Mode, out.Ino, out.Size, out.Blocks = uint16(base.Mode), base.Ino, base.Size, base.Blocks
	out.RdevMajor, out.RdevMinor = a.DevMajor, a.DevMinor
	out.Atime = fuse.SxTime{Sec: base.Atime, Nsec: base.Atimensec}
	out.Mtime = fuse.SxTime{Sec: base.Mtime, Nsec: base.Mtimensec}
	out.Ctime = fuse.SxTime{Sec: base.Ctime, Nsec: base.Ctimensec}
	if !a.Created.IsZero() {
		out.Mask |= unix.STATX_BTIME
		out.Btime.Sec, out.Btime.Nsec = stamp(a.Created)
	}
}

// maxName is the longest name that the kernel takes, in bytes.
const maxName = 1024

// showable reports whether the kernel takes a name. It would refuse the whole
// directory for one that it does not.
func showable(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}

// forever is how long the kernel keeps what does not change.
const forever = time.Duration(math.MaxInt32) * time.Second
