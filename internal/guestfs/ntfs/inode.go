package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Attributes of files, as DOS and Windows know them.
const (
	attributeReadOnly     = 0x1
	attributeHidden       = 0x2
	attributeSystem       = 0x4
	attributeSparse       = 0x200
	attributeReparse      = 0x400
	attributeCompressed   = 0x800
	attributeOffline      = 0x1000
	attributeEncrypted    = 0x4000
	attributeRecallOnOpen = 0x40000
	attributeRecall       = 0x400000   // when data is accessed
	attributeIndex        = 0x10000000 // in a copy only: is a directory
)

// attributeNames are those that say something of a file to a person.
var attributeNames = []struct {
	bit  uint32
	name string
}{
	{attributeReadOnly, "readonly"}, {attributeHidden, "hidden"}, {attributeSystem, "system"}, {attributeCompressed, "compressed"},
	{attributeEncrypted, "encrypted"}, {attributeSparse, "sparse"}, {attributeOffline, "offline"},
	{attributeRecallOnOpen | attributeRecall, "online-only"},
}

// node is what the attributes of an inode but its content say.
type node struct {
	in         *inode
	attributes uint32
	times      [4]time.Time // created, modified, changed, accessed
	kind       fs.FileMode  // type bits
	tag        uint32       // of a reparse point; 0: none
	reparse    []byte       // its data, behind the head
	target     string       // of a link of the subsystem for UNIX
	linux      linuxMetadata
}

// node reads what an inode is.
func (f *fileSystem) node(id fsys.ID) (*node, error) {
	in, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	n := &node{in: in}
	if err = f.describe(n); err != nil {
		return nil, fmt.Errorf("read MFT record %d: %w", in.base.number, err)
	}
	return n, nil
}

func (f *fileSystem) describe(n *node) error {
	b, err := f.value(n.in, typeStandardInformation, nil, 1<<10)
	if err != nil || len(b) < 0x30 {
		return errors.Join(corruptf("read its times: %d bytes", len(b)), err)
	}
	for i := range n.times {
		n.times[i] = timeOf(binary.LittleEndian.Uint64(b[8*i:]))
	}
	n.attributes = binary.LittleEndian.Uint32(b[0x20:])
	if n.in.base.flags&recordDirectory != 0 {
		n.kind = fs.ModeDir
	}
	if n.attributes&attributeReparse != 0 {
		if err := f.readReparse(n); err != nil {
			return err
		}
	}
	if err := f.readLinux(n); err != nil {
		return err
	}
	if n.attributes&attributeSystem != 0 && n.kind == 0 && n.tag == 0 {
		return f.readInterix(n)
	}
	return nil
}

// epoch is how long before 1970 the times of NTFS begin, in 100 ns.
const epoch = 116444736000000000

// timeOf translates a count of 100 ns since 1601. Zero, and what no calendar has,
// are no time.
func timeOf(t uint64) time.Time {
	const end = 2650467744000000000 // year 10000
	if t == 0 || t >= end {
		return time.Time{}
	}
	since := int64(t) - epoch
	return time.Unix(since/1e7, since%1e7*100).UTC()
}

// Stat implements fsys.FileSystem.
func (f *fileSystem) Stat(id fsys.ID) (fsys.Attr, error) {
	n, err := f.node(id)
	if err != nil {
		return fsys.Attr{}, err
	}
	a := fsys.Attr{
		Mode: n.kind | permissions(n), UID: n.linux.uid, GID: n.linux.gid, Major: n.linux.major, Minor: n.linux.minor,
		Created: n.times[0], Modified: n.times[1], Changed: n.times[2], Accessed: n.times[3],
	}
	if err := f.statContent(n, &a); err != nil {
		return fsys.Attr{}, fmt.Errorf("read MFT record %d: %w", n.in.base.number, err)
	}
	if a.Links, err = f.links(n.in); err != nil {
		return fsys.Attr{}, fmt.Errorf("count the names of MFT record %d: %w", n.in.base.number, err)
	}
	for _, x := range attributeNames {
		if n.attributes&x.bit != 0 {
			a.Flags = append(a.Flags, x.name)
		}
	}
	if n.tag != 0 {
		a.Flags = append(a.Flags, tagName(n.tag))
	}
	_, large, err := f.streams(n)
	for _, s := range large {
		a.Flags = append(a.Flags, fmt.Sprintf("stream %s of %d bytes", s.name, s.size))
	}
	return a, err
}

// permissions returns what attributes come to, or what Linux under Windows keeps.
func permissions(n *node) fs.FileMode {
	if n.linux.hasMode {
		return n.linux.mode
	}
	mode := fs.FileMode(0o666)
	if n.kind.IsDir() || n.kind == fs.ModeSymlink {
		mode = 0o777
	}
	if n.attributes&attributeReadOnly != 0 && n.kind != fs.ModeSymlink {
		mode &^= 0o222
	}
	return mode
}

// statContent fills in sizes.
func (f *fileSystem) statContent(n *node, a *fsys.Attr) error {
	typ, name := uint32(typeData), []byte(nil)
	if n.kind.IsDir() {
		typ, name = typeIndexAllocation, indexName
	}
	first, _, err := f.first(n.in, typ, name)
	if err != nil && !errors.Is(err, errNoAttribute) {
		return err
	}
	if first != nil {
		a.Size, a.Allocated = int64(len(first.value)), first.total
		if !first.resident {
			a.Size = first.size
		}
	}
	switch {
	case n.kind == fs.ModeSymlink:
		target, err := f.linkTarget(n)
		if err != nil {
			return err
		}
		a.Size = int64(len(target))
	case n.tag == tagWOF:
		first, _, err := f.first(n.in, typeData, wofStream)
		if err == nil {
			a.Allocated += first.total
		}
	}
	return nil
}

// links returns how many names an inode has, but for short ones.
func (f *fileSystem) links(in *inode) (uint32, error) {
	names, err := f.attributes(in, typeFileName)
	if err != nil {
		return 0, err
	}
	count := uint32(0)
	for _, a := range names {
		key, err := fileName(a.value, len(a.value))
		if err != nil {
			return 0, err
		}
		if key[0x41] != spaceDOS {
			count++
		}
	}
	return count, nil
}

// content is what a file holds, or why that cannot be read.
type content struct {
	size    int64
	stream  *stream // nil: nothing
	packed  *wofFile
	refused error
}

// content opens the content of a file.
func (f *fileSystem) content(id fsys.ID) (*content, error) {
	if c, ok := f.contents.Get(id); ok {
		return c, nil
	}
	n, err := f.node(id)
	if err != nil {
		return nil, err
	}
	if n.kind != 0 {
		return nil, fmt.Errorf("read MFT record %d as a file: it is none: %w", n.in.base.number, fs.ErrInvalid)
	}
	c := &content{}
	cost := 16 << 10
	if c.stream, err = f.open(n.in, typeData, nil); err == nil {
		c.size = c.stream.size
		cost += 64 * len(c.stream.pieces)
		c.refused = refusal(n, c.stream)
		if n.tag == tagWOF && c.size > 0 {
			c.packed, err = f.openWOF(n, c.size)
			if errors.Is(err, fsys.ErrUnsupported) {
				c.refused, err = err, nil
			}
		}
	} else if errors.Is(err, errNoAttribute) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the content of MFT record %d: %w", n.in.base.number, err)
	}
	f.contents.Put(id, c, int64(cost))
	return c, nil
}

// refusal returns why what a stream holds is not the content of the file, if it is
// not.
func refusal(n *node, s *stream) error {
	switch {
	case s.size == 0:
		return nil
	case s.flags&flagEncrypted != 0:
		return unsupportedf("read what is encrypted (EFS)")
	case n.attributes&(attributeRecall|attributeRecallOnOpen) != 0, n.tag != 0 && n.attributes&attributeOffline != 0:
		return unsupportedf("read what is kept elsewhere (%s)", tagName(n.tag))
	case n.tag != 0 && !holdsContent(n.tag):
		return unsupportedf("read a file with the %s", tagName(n.tag))
	}
	return nil
}

// Extents implements fsys.FileSystem.
func (f *fileSystem) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	c, err := f.content(id)
	if err != nil || c.stream == nil {
		return nil, err
	}
	if c.refused == nil && c.packed == nil {
		list, err := c.stream.extents(off, n)
		if err != nil {
			return nil, fmt.Errorf("find the content of MFT record %d: %w", numberOf(id), err)
		}
		return list, nil
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("find %d bytes at %d: %w", n, off, fs.ErrInvalid)
	}
	if off >= c.size || n == 0 {
		return nil, nil
	}
	return []fsys.Extent{{Kind: fsys.Opaque, Off: off, Len: min(n, c.size-off)}}, nil
}

// ReadAt implements fsys.FileSystem.
func (f *fileSystem) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	c, err := f.content(id)
	if err != nil {
		return 0, err
	}
	n, err := f.readContent(c, p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read MFT record %d: %w", numberOf(id), err)
	}
	return n, err
}

func (f *fileSystem) readContent(c *content, p []byte, off int64) (int, error) {
	switch {
	case c.refused != nil:
		return 0, c.refused
	case off < 0:
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	case off >= c.size:
		return 0, io.EOF
	case c.packed != nil:
		return c.packed.readAt(p, off)
	}
	return c.stream.readAt(f.raw, p, off)
}
