package ext4

import (
	"bytes"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

const (
	xattrMagic      = 0xea020000
	xattrHeaderSize = 32 // bytes, in a block; in an inode it is but the magic number
	xattrEntrySize  = 16 // bytes before the name
	// What Linux shows of a value at most, in bytes.
	maxXattrSize = 64 << 10
	// What the values of one inode take at most, in bytes, so that many entries with
	// the same large value do not take all memory.
	maxXattrTotal = 16 << 20

	indexACLAccess  = 2
	indexACLDefault = 3
	indexSystem     = 7
)

// xattrPrefixes are what names begin with by their index, as far as Linux shows them.
var xattrPrefixes = map[byte]string{
	1: "user.", indexACLAccess: "system.posix_acl_access", indexACLDefault: "system.posix_acl_default",
	4: "trusted.", 6: "security.", 10: "gnu.",
}

// xattr is an entry of extended attributes ("Extended Attributes" in the kernel's
// documentation).
type xattr struct {
	index byte
	name  []byte
	value []byte // unless it lies in an inode
	inode uint32 // 0: none
	size  uint32 // bytes of the value
}

// parseXattrs calls yield for each of the entries in b from off on. Values lie at
// offsets from base.
func parseXattrs(b []byte, off, base int, yield func(xattr) error) error {
	for off+4 <= len(b) && le.Uint32(b[off:]) != 0 {
		if off+xattrEntrySize > len(b) || off+xattrEntrySize+int(b[off]) > len(b) {
			return corruptf("an extended attribute goes past the end")
		}
		e := b[off:]
		x := xattr{index: e[1], name: e[xattrEntrySize : xattrEntrySize+int(e[0])], inode: le.Uint32(e[4:]), size: le.Uint32(e[8:])}
		if at := base + int(le.Uint16(e[2:])); x.inode == 0 {
			if x.size > uint32(len(b)) || at+int(x.size) > len(b) {
				return corruptf("the value of extended attribute %q goes past the end", x.name)
			}
			x.value = b[at : at+int(x.size)]
		}
		if err := yield(x); err != nil {
			return err
		}
		off += (xattrEntrySize + int(e[0]) + 3) &^ 3
	}
	return nil
}

// inodeXattrs calls yield for the attributes that lie in the inode itself.
func (in *inode) inodeXattrs(yield func(xattr) error) error {
	if len(in.raw) <= 128 {
		return nil
	}
	start := 128 + int(le.Uint16(in.raw[0x80:]))
	if start == 128 || start+8 > len(in.raw) || le.Uint32(in.raw[start:]) != xattrMagic {
		return nil
	}
	if err := parseXattrs(in.raw, start+4, start+4, yield); err != nil {
		return fmt.Errorf("inode %d: %w", in.number, err)
	}
	return nil
}

// inlineData returns the part of the content that is kept as an attribute, and
// whether there is that attribute.
func (in *inode) inlineData() (value []byte, ok bool, err error) {
	err = in.inodeXattrs(func(x xattr) error {
		if x.index == indexSystem && string(x.name) == "data" && x.inode == 0 {
			value, ok = x.value, true
		}
		return nil
	})
	return value, ok, err
}

// xattrBlock returns the block of an inode's attributes, or 0.
func (f *fileSystem) xattrBlock(in *inode) uint64 {
	at := uint64(le.Uint32(in.raw[0x68:]))
	if f.super.creatorOS != osHurd && f.super.has(incompat64Bit) {
		at |= uint64(le.Uint16(in.raw[0x76:])) << 32
	}
	return at
}

// blockXattrs calls yield for the attributes that lie in a block.
func (f *fileSystem) blockXattrs(in *inode, yield func(xattr) error) error {
	at := f.xattrBlock(in)
	if at == 0 {
		return nil
	}
	if !f.super.holds(at, 1) {
		return corruptf("extended attributes of inode %d are said to be in block %d", in.number, at)
	}
	b, err := f.readBlock(at)
	if err != nil {
		return fmt.Errorf("read extended attributes of inode %d: %w", in.number, err)
	}
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return corruptf("extended attributes of inode %d begin with %x", in.number, b[:12])
	}
	if f.super.checksums() {
		crc := crc32c(crc32c(f.super.seed, le.AppendUint64(nil, at)), b[:0x10])
		if got, want := crc32c(crc32c(crc, make([]byte, 4)), b[0x14:]), le.Uint32(b[0x10:]); got != want {
			return corruptf("the checksum of extended attributes of inode %d is 0x%x instead of 0x%x", in.number, got, want)
		}
	}
	if err := parseXattrs(b, xattrHeaderSize, 0, yield); err != nil {
		return fmt.Errorf("block %d: %w", at, err)
	}
	return nil
}

// Xattrs implements fsys.FileSystem.
func (f *fileSystem) Xattrs(id fsys.ID) ([]fsys.Xattr, error) {
	in, err := f.visible(id)
	if err != nil {
		return nil, err
	}
	var list []fsys.Xattr
	total := 0
	show := func(x xattr) error {
		prefix, ok := xattrPrefixes[x.index]
		if !ok {
			return nil
		}
		name := prefix + string(x.name)
		value, err := f.xattrValue(in, x)
		if err == nil && (x.index == indexACLAccess || x.index == indexACLDefault) {
			value, err = convertACL(value)
		}
		if err != nil {
			return fmt.Errorf("extended attribute %q of inode %d: %w", name, id, err)
		}
		if total += len(value); total > maxXattrTotal {
			return unsupportedf("extended attributes of inode %d take more than %d bytes", id, maxXattrTotal)
		}
		list = append(list, fsys.Xattr{Name: name, Value: value})
		return nil
	}
	if err := in.inodeXattrs(show); err != nil {
		return nil, err
	}
	if err := f.blockXattrs(in, show); err != nil {
		return nil, err
	}
	return list, nil
}

// xattrValue returns a copy of a value of an attribute of owner, which may be the
// content of an inode.
func (f *fileSystem) xattrValue(owner *inode, x xattr) ([]byte, error) {
	if x.inode == 0 {
		return bytes.Clone(x.value), nil
	}
	if x.size > maxXattrSize {
		return nil, unsupportedf("a value of %d bytes", x.size)
	}
	if !f.super.has(incompatEAInode) {
		return nil, corruptf("its value is said to be in inode %d", x.inode)
	}
	in, err := f.inode(fsys.ID(x.inode))
	if err != nil {
		return nil, corruptf("its value: %v", err)
	}
	if !in.has(flagEAInode) || in.has(flagInlineData|flagEncrypt) || in.size != int64(x.size) {
		return nil, corruptf("its value is said to be in inode %d of %d bytes", x.inode, in.size)
	}
	value := make([]byte, x.size)
	if _, err := f.readAt(in, value, 0); err != nil {
		return nil, fmt.Errorf("read its value: %w", err)
	}
	// The time of access holds the checksum of the content, but in inodes of the
	// first kind, which belong to one owner.
	owned := le.Uint32(in.raw[0x10:]) == owner.number && bytes.Equal(in.raw[0x64:0x68], owner.raw[0x64:0x68])
	if got, want := crc32c(f.super.seed, value), le.Uint32(in.raw[0x8:]); got != want && !owned {
		return nil, corruptf("the checksum of its value is 0x%x instead of 0x%x", got, want)
	}
	return value, nil
}

// convertACL turns a POSIX ACL of ext4's own form, which leaves out what has no
// qualifier, into the one that Linux shows.
func convertACL(b []byte) ([]byte, error) {
	const version, undefined = 2, ^uint32(0)
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, corruptf("an ACL of %d bytes", len(b))
	}
	acl := le.AppendUint32(nil, version)
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, corruptf("an ACL ends within an entry")
		}
		tag, id, size := le.Uint16(b), undefined, 4
		switch tag {
		case 0x1, 0x4, 0x10, 0x20: // owner, owning group, mask, others
		case 0x2, 0x8: // a user, a group
			if size = 8; len(b) < size {
				return nil, corruptf("an ACL ends within an entry")
			}
			id = le.Uint32(b[4:])
		default:
			return nil, corruptf("an ACL has an entry of type 0x%x", tag)
		}
		acl = le.AppendUint32(append(acl, b[:4]...), id)
		b = b[size:]
	}
	return acl, nil
}
