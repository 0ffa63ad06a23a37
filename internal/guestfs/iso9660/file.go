package iso9660

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// inode is a file, a directory or another thing.
type inode struct {
	attr   fsys.Attr
	parts  []part
	target target
	zisofs *zisofs
	err    error // why the content cannot be read
}

// part is a run of a file's content.
type part struct{ at, n int64 }

// inode reads what an ID stands for.
func (f *FS) inode(id fsys.ID) (*inode, error) {
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	k, err := f.rockOf(r)
	if err != nil {
		return nil, err
	}
	n := &inode{target: k.target}
	n.attr = fsys.Attr{Mode: 0o555, Links: 1, Modified: r.recorded()}
	if r.flags()&flagHidden != 0 {
		n.attr.Flags = append(n.attr.Flags, "hidden")
	}
	if r.flags()&flagDirectory != 0 {
		if err := f.checkDir(r, id); err != nil {
			return nil, err
		}
		n.attr.Mode |= fs.ModeDir
		n.attr.Size, n.attr.Allocated = r.size(), f.rounded(r.size())
	}
	n.describe(&k)
	switch {
	case n.attr.Mode.IsDir() != (r.flags()&flagDirectory != 0):
		return nil, fmt.Errorf("inode %d is a directory and is none: %w", id, fsys.ErrCorrupt)
	case n.attr.Mode.IsRegular():
		return n, f.content(n, id, r, &k)
	case n.attr.Mode.Type() == fs.ModeSymlink:
		n.attr.Size = int64(len(k.target.path))
	}
	return n, nil
}

// rounded returns n bytes as they take up blocks.
func (f *FS) rounded(n int64) int64 { return (n + f.block - 1) / f.block * f.block }

// describe takes over what Rock Ridge says.
func (n *inode) describe(k *rock) {
	if k.hasMode {
		n.attr.Mode, n.attr.Links, n.attr.UID, n.attr.GID = k.mode, k.links, k.uid, k.gid
	}
	if n.attr.Mode.Type()&fs.ModeDevice != 0 {
		n.attr.Major, n.attr.Minor = k.major, k.minor
	}
	if t := k.times[timeModified]; !t.IsZero() {
		n.attr.Modified = t
	}
	n.attr.Created, n.attr.Accessed, n.attr.Changed = k.times[timeCreated], k.times[timeAccessed], k.times[timeChanged]
}

// content finds where that of a file lies. What keeps it from being read is kept:
// the file has its attributes all the same.
func (f *FS) content(n *inode, id fsys.ID, first record, k *rock) error {
	list, err := f.sections(id, first)
	if err != nil {
		return err
	}
	for _, r := range list {
		p := part{r.start(f.block), r.size()}
		if n.err == nil {
			n.err = r.readable(f.disc.number)
		}
		if n.err == nil && p.n > 0 && p.at > f.vol.Size()-p.n {
			n.err = fmt.Errorf("content at byte %d of %d: %w", p.at, f.vol.Size(), fsys.ErrCorrupt)
		}
		if p.n > 0 {
			n.parts = append(n.parts, p)
		}
		n.attr.Size += p.n
		n.attr.Allocated += f.rounded(p.n)
	}
	switch {
	case k.sparse:
		n.err = fmt.Errorf("a sparse file of Rock Ridge: %w", fsys.ErrUnsupported)
	case k.zisofs != nil:
		n.zisofs = k.zisofs
		n.attr.Flags = append(n.attr.Flags, "compressed")
		stored := n.attr.Size
		n.attr.Size = k.zisofs.size
		if n.err == nil {
			n.err = k.zisofs.check(stored)
		}
	}
	return nil
}

// file returns a regular file whose content can be read.
func (f *FS) file(id fsys.ID) (*inode, error) {
	n, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	if !n.attr.Mode.IsRegular() {
		return nil, fmt.Errorf("read inode %d, which is no regular file: %w", id, fs.ErrInvalid)
	}
	return n, n.err
}

// Extents implements fsys.FileSystem.
func (f *FS) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	x, err := f.file(id)
	if err != nil || off < 0 || off >= x.attr.Size || n <= 0 {
		return nil, err
	}
	n = min(n, x.attr.Size-off)
	if x.zisofs != nil {
		return []fsys.Extent{{Kind: fsys.Opaque, Off: off, Len: n}}, nil
	}
	return x.extents(off, n), nil
}

// extents returns where the content lies in [off, off+n), which is within it.
func (n *inode) extents(off, length int64) []fsys.Extent {
	var list []fsys.Extent
	begins := int64(0)
	for _, p := range n.parts {
		skip := off - begins
		begins += p.n
		if skip >= p.n {
			continue
		}
		e := fsys.Extent{Kind: fsys.Data, Off: off, Len: min(p.n-skip, length), At: p.at + skip}
		list = append(list, e)
		if off, length = off+e.Len, length-e.Len; length == 0 {
			break
		}
	}
	return list
}

// readStored reads what is stored of a file.
func (f *FS) readStored(v fsys.Volume, n *inode, p []byte, off int64) error {
	for _, e := range n.extents(off, int64(len(p))) {
		if err := v.ReadAt(p[:e.Len], e.At); err != nil {
			return err
		}
		p = p[e.Len:]
	}
	if len(p) > 0 {
		return fmt.Errorf("content that ends %d bytes early: %w", len(p), fsys.ErrCorrupt)
	}
	return nil
}

// ReadAt implements fsys.FileSystem.
func (f *FS) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	x, err := f.file(id)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, errors.New("read before the start of a file")
	}
	n := max(0, min(int64(len(p)), x.attr.Size-off))
	if x.zisofs != nil {
		err = f.inflate(id, x, p[:n], off)
	} else if n > 0 {
		err = f.readStored(f.vol, x, p[:n], off)
	}
	if err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
