package xfs

import (
	"encoding/binary"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Flags of attributes (Shortform Attributes, Leaf Attributes).
const (
	attrLocal      = 1 << 0
	attrRoot       = 1 << 1
	attrSecure     = 1 << 2
	attrParent     = 1 << 3
	attrIncomplete = 1 << 7
)

// Bounds of attributes: of one by the format, of an inode's because all of them
// are returned at once.
const (
	maxAttr  = 64 << 10
	maxAttrs = 16 << 20
)

// attributes collects the attributes of an inode.
type attributes struct {
	fs    *FS
	in    *inode
	fork  *fork
	list  []fsys.Xattr
	bytes int
}

// Xattrs implements fsys.FileSystem. What XFS keeps as trusted.SGI_ACL_FILE and
// trusted.SGI_ACL_DEFAULT is shown as the ACLs that it is, and pointers to
// parents are not shown.
func (f *FS) Xattrs(id fsys.ID) ([]fsys.Xattr, error) {
	in, err := f.inode(uint64(id))
	if err != nil {
		return nil, err
	}
	if in.attr == nil {
		return nil, nil
	}
	if err := f.pending.refused(in.ino); err != nil {
		return nil, err
	}
	a := &attributes{fs: f, in: in}
	if in.attrFormat == formatLocal {
		err = a.short()
	} else if a.fork, err = f.newFork(in.ino, in.attrFormat, in.attr, in.attrExtents); err == nil {
		err = a.leaves()
	}
	if err != nil {
		return nil, err
	}
	return a.list, nil
}

// add takes an attribute. The value is read only if it is shown.
func (a *attributes) add(flags uint8, name []byte, value func() ([]byte, error)) error {
	if flags&(attrParent|attrIncomplete) != 0 {
		return nil
	}
	prefix := "user."
	switch flags & (attrRoot | attrSecure) {
	case attrRoot:
		prefix = "trusted."
	case attrSecure:
		prefix = "security."
	case attrRoot | attrSecure:
		return corrupt("inode %d: attribute %q is in two namespaces", a.in.ino, name)
	}
	if len(name) == 0 {
		return corrupt("inode %d: an attribute without a name", a.in.ino)
	}
	v, err := value()
	if err != nil {
		return err
	}
	x := fsys.Xattr{Name: prefix + string(name)}
	switch x.Name {
	case "trusted.SGI_ACL_FILE":
		x.Name = "system.posix_acl_access"
		x.Value, err = a.acl(v)
	case "trusted.SGI_ACL_DEFAULT":
		x.Name = "system.posix_acl_default"
		x.Value, err = a.acl(v)
	default:
		x.Value = append([]byte{}, v...)
	}
	if a.bytes += 64 + len(x.Name) + len(x.Value); a.bytes > maxAttrs {
		return unsupported("inode %d has more than %d MiB of extended attributes", a.in.ino, maxAttrs>>20)
	}
	a.list = append(a.list, x)
	return err
}

// Tags of entries of an ACL that have an ID.
const (
	aclUser  = 0x02
	aclGroup = 0x08
)

// acl translates an ACL from how XFS keeps it to how Linux shows it.
func (a *attributes) acl(v raw) ([]byte, error) {
	if len(v) < 4 || uint64(len(v)) != 4+12*uint64(v.u32(0)) {
		return nil, corrupt("inode %d: ACL of %d bytes", a.in.ino, len(v))
	}
	out := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(v)/12*8), 2)
	for e := v[4:]; len(e) > 0; e = e[12:] {
		tag, id := e.u32(0), ^uint32(0)
		switch tag {
		case aclUser, aclGroup:
			id = e.u32(4)
		case 0x01, 0x04, 0x10, 0x20:
		default:
			return nil, corrupt("inode %d: ACL with a tag %#x", a.in.ino, tag)
		}
		out = binary.LittleEndian.AppendUint16(out, uint16(tag))
		out = binary.LittleEndian.AppendUint16(out, e.u16(8))
		out = binary.LittleEndian.AppendUint32(out, id)
	}
	return out, nil
}

// short reads attributes that lie in the inode (Shortform Attributes).
func (a *attributes) short() error {
	b := a.in.attr
	size, count := int(b.u16(0)), int(b[2])
	if size < 4 || size > len(b) {
		return corrupt("inode %d: %d bytes of attributes in a place for %d", a.in.ino, size, len(b))
	}
	b = b[4:size]
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return corrupt("inode %d: attributes end inside of one", a.in.ino)
		}
		name, value := b[3:3+int(b[0])], b[3+int(b[0]):3+int(b[0])+int(b[1])]
		if err := a.add(b[2], name, func() ([]byte, error) { return value, nil }); err != nil {
			return err
		}
		b = b[3+len(name)+len(value):]
	}
	return nil
}

// leaves reads the leaves of attributes from the first on (Leaf Attributes, Node
// Attributes).
func (a *attributes) leaves() error {
	if a.in.attrExtents == 0 {
		return nil
	}
	t := newTree(a.fork, int(a.fs.blockSize()), 0, kindAttr)
	leaf, err := t.descend(0)
	for err == nil {
		// Values of their own blocks are read while the leaf is needed.
		b := leaf.raw
		for e := leaf.entries; len(e) > 0; e = e[8:] {
			if err := a.entry(b, int(e.u16(4)), e[6]); err != nil {
				return err
			}
		}
		if leaf.next == 0 {
			return nil
		}
		leaf, err = t.leaf(leaf.next)
	}
	return err
}

// entry reads the attribute at a byte of a leaf.
func (a *attributes) entry(b raw, at int, flags uint8) error {
	head := 9
	if flags&attrLocal != 0 {
		head = 3
	}
	short := func() error { return corrupt("inode %d: an attribute at %d of %d bytes", a.in.ino, at, len(b)) }
	if at+head > len(b) {
		return short()
	}
	n, nameLen := int(b.u16(at)), int(b[at+2])
	if flags&attrLocal == 0 {
		n, nameLen = 0, int(b[at+8])
	}
	body := b[at+head:]
	if len(body) < nameLen+n {
		return short()
	}
	name := body[:nameLen]
	if flags&attrLocal != 0 {
		return a.add(flags, name, func() ([]byte, error) { return body[nameLen : nameLen+n], nil })
	}
	block, size := uint64(b.u32(at)), b.u32(at+4)
	return a.add(flags, name, func() ([]byte, error) { return a.remote(block, size) })
}

const magicRemote = 0x5841524d // XARM

// remote reads a value that has blocks of its own (Remote Attribute Values).
func (a *attributes) remote(block uint64, size uint32) ([]byte, error) {
	if size > maxAttr {
		return nil, corrupt("inode %d: an attribute of %d bytes", a.in.ino, size)
	}
	value := make([]byte, 0, size)
	b := make(raw, a.fs.blockSize())
	for ; len(value) < int(size); block++ {
		left := int(size) - len(value)
		at, replayed, err := a.fork.read(b, block)
		if err != nil {
			return nil, fmt.Errorf("read an attribute: %w", err)
		}
		if !a.fs.v5 {
			value = append(value, b[:min(left, len(b))]...)
			continue
		}
		if b.u32(0) != magicRemote {
			return nil, corrupt("inode %d: no value of an attribute at byte %d", a.in.ino, at)
		}
		if err := a.fs.sane(b, headerRemote, at, a.in.ino, replayed); err != nil {
			return nil, err
		}
		n := b.u32(8)
		if uint64(b.u32(4)) != uint64(len(value)) || n == 0 || uint64(n) > uint64(min(left, len(b)-56)) {
			return nil, corrupt("inode %d: %d bytes of an attribute from %d, for %d", a.in.ino, n, b.u32(4), len(value))
		}
		value = append(value, b[56:56+n]...)
	}
	return value, nil
}
