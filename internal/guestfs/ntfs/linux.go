package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// linuxMetadata is what Linux under Windows keeps of a file in extended
// attributes, where it was told to.
type linuxMetadata struct {
	uid, gid     uint32
	mode         fs.FileMode // permissions
	hasMode      bool
	major, minor uint32
}

// maxEA is the most that the extended attributes of a file take, in bytes.
const maxEA = 64 << 10

// readLinux reads the extended attributes that are of Linux.
func (f *fileSystem) readLinux(n *node) error {
	b, err := f.value(n.in, typeEA, nil, maxEA)
	if errors.Is(err, errNoAttribute) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read its extended attributes: %w", err)
	}
	return eachEA(b, func(name string, value []byte) {
		if len(value) < 4 {
			return
		}
		v := binary.LittleEndian.Uint32(value)
		switch name {
		case "$LXUID":
			n.linux.uid = v
		case "$LXGID":
			n.linux.gid = v
		case "$LXMOD":
			n.linux.mode, n.linux.hasMode = modeOf(v), true
		case "$LXDEV":
			if len(value) >= 8 {
				n.linux.major, n.linux.minor = v, binary.LittleEndian.Uint32(value[4:])
			}
		}
	})
}

// modeOf translates the permissions of a mode of Linux.
func modeOf(v uint32) fs.FileMode {
	mode := fs.FileMode(v & 0o777)
	for bit, m := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if v&bit != 0 {
			mode |= m
		}
	}
	return mode
}

// eachEA calls visit for each extended attribute of a list ([MS-FSCC] 2.4.16): how
// far the next one is, flags, the lengths of name and value, name, zero, value.
func eachEA(b []byte, visit func(name string, value []byte)) error {
	for len(b) > 0 {
		if len(b) < 8 {
			return corruptf("read its extended attributes: %d bytes are left", len(b))
		}
		next, nameLen, valueLen := int64(binary.LittleEndian.Uint32(b)), int(b[5]), int(binary.LittleEndian.Uint16(b[6:]))
		end := 8 + nameLen + 1 + valueLen
		if end > len(b) || next != 0 && (next < int64(end) || next > int64(len(b))) {
			return corruptf("read its extended attributes: one takes %d of %d bytes", end, len(b))
		}
		visit(string(b[8:8+nameLen]), b[8+nameLen+1:end])
		if next == 0 {
			return nil
		}
		b = b[next:]
	}
	return nil
}

// Starts of files of the subsystem for UNIX (Interix), which ntfs-3g uses as well.
var (
	interixLink  = []byte("IntxLNK\x01")
	interixChar  = []byte("IntxCHR\x00")
	interixBlock = []byte("IntxBLK\x00")
)

// readInterix looks whether a system file is a link or device of the subsystem for
// UNIX. Its pipes and sockets are empty files and files of one byte, which other
// programs make too: they are shown as that.
func (f *fileSystem) readInterix(n *node) error {
	s, err := f.open(n.in, typeData, nil)
	if err != nil || s.size < 8 || s.size > maxReparse || s.flags&flagEncrypted != 0 {
		if errors.Is(err, errNoAttribute) {
			err = nil
		}
		return err
	}
	b, err := s.all(maxReparse)
	if err != nil {
		return err
	}
	switch {
	case bytes.HasPrefix(b, interixLink) && len(b) > 8 && len(b)%2 == 0:
		if target := decodeName(b[8:]); !strings.Contains(target, "\x00") {
			n.kind, n.target = fs.ModeSymlink, target
		}
	case bytes.HasPrefix(b, interixChar) && len(b) == 24:
		n.kind = fs.ModeDevice | fs.ModeCharDevice
	case bytes.HasPrefix(b, interixBlock) && len(b) == 24:
		n.kind = fs.ModeDevice
	}
	if n.kind&fs.ModeDevice != 0 {
		n.linux.major, n.linux.minor = binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[16:])
	}
	return nil
}

// maxXattr is the longest stream that is shown as an extended attribute, and
// maxXattrs how much of them an inode shows, in bytes.
const (
	maxXattr  = 64 << 10
	maxXattrs = 1 << 20
)

// namedStream is a stream besides the content of a file.
type namedStream struct {
	name string
	raw  []byte
	size int64
}

// streams returns the named streams of an inode: those that are shown as extended
// attributes, and those that are told of only.
func (f *fileSystem) streams(n *node) (small, large []namedStream, err error) {
	all, err := f.attributes(n.in, typeData)
	if err != nil {
		return nil, nil, err
	}
	total := int64(0)
	for _, a := range all {
		if len(a.name) == 0 || n.tag == tagWOF && bytes.Equal(a.name, wofStream) {
			continue
		}
		s := namedStream{decodeName(a.name), a.name, a.size}
		if a.resident {
			s.size = int64(len(a.value))
		}
		// Linux takes names of 255 bytes, without zeroes.
		if s.size > maxXattr || total+s.size > maxXattrs || len(s.name) > 250 || strings.Contains(s.name, "\x00") || a.flags&flagEncrypted != 0 {
			large = append(large, s)
			continue
		}
		total += s.size
		small = append(small, s)
	}
	return small, large, nil
}

// Xattrs implements fsys.FileSystem: streams as user.{name}, and what ntfs-3g
// restores from, attributes of Windows, reparse points and its extended attributes.
func (f *fileSystem) Xattrs(id fsys.ID) ([]fsys.Xattr, error) {
	n, err := f.node(id)
	if err != nil {
		return nil, err
	}
	list := []fsys.Xattr{{Name: "system.ntfs_attrib", Value: binary.LittleEndian.AppendUint32(nil, n.windowsAttributes())}}
	for _, x := range []struct {
		typ  uint32
		name string
	}{{typeReparsePoint, "system.ntfs_reparse_data"}, {typeEA, "system.ntfs_ea"}} {
		b, err := f.value(n.in, x.typ, nil, maxEA)
		if errors.Is(err, errNoAttribute) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s of MFT record %d: %w", x.name, numberOf(id), err)
		}
		list = append(list, fsys.Xattr{Name: x.name, Value: b})
	}
	small, _, err := f.streams(n)
	if err != nil {
		return nil, fmt.Errorf("read the streams of MFT record %d: %w", numberOf(id), err)
	}
	for _, s := range small {
		b, err := f.value(n.in, typeData, s.raw, maxXattr)
		if err != nil {
			return nil, fmt.Errorf("read stream %s of MFT record %d: %w", s.name, numberOf(id), err)
		}
		list = append(list, fsys.Xattr{Name: xattrName(s.name), Value: b})
	}
	return list, nil
}

// windowsAttributes returns the attributes as Windows tells them to programs. On
// the disk, those two are told by others.
func (n *node) windowsAttributes() uint32 {
	const directory, normal = 0x10, 0x80
	switch {
	case n.in.base.flags&recordDirectory != 0:
		return n.attributes | directory
	case n.attributes == 0:
		return normal
	}
	return n.attributes
}

// xattrName returns the extended attribute that a stream is. Those outside of the
// name space of users ntfs-3g keeps in streams that start with its own name.
func xattrName(stream string) string {
	if name, ok := strings.CutPrefix(stream, "ntfs-3g."); ok {
		for _, space := range []string{"trusted.", "security."} {
			if strings.HasPrefix(name, space) {
				return name
			}
		}
	}
	return "user." + stream
}
