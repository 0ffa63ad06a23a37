package fusemount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// shower answers what the kernel asks about a tree. Each method is called for a
// request, in a goroutine of its own.
type shower struct {
	fuse.RawFileSystem // answers ENOSYS to the rest

	nodes   *table
	root    Dir
	fresh   time.Duration // for how long what changes is believed
	now     func() time.Time
	once    *once
	files   *files
	readers readers
	zeroes  *os.File // reads as maxRead bytes of zeroes; nil if there is none
}

// String implements fuse.RawFileSystem.
func (s *shower) String() string { return subtype }

// fail returns what a program is told of err, having logged it if it has to be.
// path is only asked for then.
func (s *shower) fail(op string, path func() string, err error) fuse.Status {
	status, log := errno(err)
	if log {
		s.once.report(op, path(), err)
	}
	return status
}

// failData is fail for content: that a part of it does not exist is no answer.
func (s *shower) failData(op string, n *node, err error) fuse.Status {
	status := s.fail(op, n.path, err)
	if status == fuse.ENOENT {
		s.once.report(op, n.path(), err)
		return fuse.EIO
	}
	return status
}

// validity returns for how long the kernel may keep what it was told.
func (s *shower) validity(changing bool) time.Duration {
	if changing {
		return s.fresh
	}
	return forever
}

// attr returns the attributes of a node, checked.
func (s *shower) attr(ctx context.Context, tree Node) (*Attr, error) {
	a, err := tree.Attr(ctx)
	if err != nil {
		return nil, err
	}
	return &a, check(tree, &a)
}

// entry tells the kernel of a child of parent, which then has to be forgotten.
func (s *shower) entry(parent *node, name string, tree Node, a *Attr, out *fuse.EntryOut) *node {
	n := s.nodes.add(parent, name, tree, a)
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(s.validity(parent.changing))
	out.SetAttrTimeout(s.validity(n.changing))
	a.fill(n.number, n.written.Load(), &out.Attr)
	return n
}

// Lookup implements fuse.RawFileSystem.
func (s *shower) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent, tree := s.nodes.get(header.NodeId)
	dir, ok := tree.(Dir)
	if !ok {
		return fuse.ENOTDIR
	}
	if !showable(name) {
		return fuse.ENOENT
	}
	c := newCall(cancel)
	defer c.end()
	child, err := dir.Lookup(c, name)
	var a *Attr
	if err == nil {
		a, err = s.attr(c, child)
	}
	if errors.Is(err, fs.ErrNotExist) && !parent.changing {
		out.SetEntryTimeout(forever) // no node: the kernel keeps that there is none
		return fuse.OK
	}
	if err != nil {
		return s.fail("lookup", func() string { return parent.below(name) }, err)
	}
	s.entry(parent, name, child, a, out)
	return fuse.OK
}

// Forget implements fuse.RawFileSystem.
func (s *shower) Forget(id, lookups uint64) { s.nodes.forget(id, lookups) }

// GetAttr implements fuse.RawFileSystem.
func (s *shower) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, tree := s.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	c := newCall(cancel)
	defer c.end()
	a, err := s.attr(c, tree)
	if err != nil {
		return s.fail("stat", n.path, err)
	}
	a.fill(n.number, n.written.Load(), &out.Attr)
	out.SetTimeout(s.validity(n.changing))
	return fuse.OK
}

// Statx implements fuse.RawFileSystem.
func (s *shower) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, tree := s.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	c := newCall(cancel)
	defer c.end()
	a, err := s.attr(c, tree)
	if err != nil {
		return s.fail("stat", n.path, err)
	}
	a.fillStatx(n.number, n.written.Load(), &out.Statx)
	out.SetTimeout(s.validity(n.changing))
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (s *shower) Readlink(cancel <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	n, tree := s.nodes.get(header.NodeId)
	link, ok := tree.(Link)
	if !ok {
		return nil, fuse.EINVAL
	}
	c := newCall(cancel)
	defer c.end()
	target, err := link.Target(c)
	if err != nil {
		return nil, s.fail("readlink", n.path, err)
	}
	return []byte(target), fuse.OK
}

// Limits of the kernel for extended attributes, in bytes.
const (
	maxXattrName = 255
	maxXattrs    = 64 << 10
)

func (s *shower) xattrs(cancel <-chan struct{}, id uint64) ([]Xattr, fuse.Status) {
	n, tree := s.nodes.get(id)
	x, ok := tree.(Xattrer)
	if !ok {
		return nil, fuse.OK
	}
	c := newCall(cancel)
	defer c.end()
	list, err := x.Xattrs(c)
	if err != nil {
		return nil, s.fail("xattrs", n.path, err)
	}
	return list, fuse.OK
}

// GetXAttr implements fuse.RawFileSystem.
func (s *shower) GetXAttr(cancel <-chan struct{}, header *fuse.InHeader, name string, dst []byte) (uint32, fuse.Status) {
	list, status := s.xattrs(cancel, header.NodeId)
	if !status.Ok() {
		return 0, status
	}
	for _, x := range list {
		if x.Name != name {
			continue
		}
		if len(x.Value) > maxXattrs {
			return 0, fuse.Status(syscall.E2BIG)
		}
		if len(x.Value) > len(dst) {
			return uint32(len(x.Value)), fuse.ERANGE
		}
		return uint32(copy(dst, x.Value)), fuse.OK
	}
	return 0, fuse.ENODATA
}

// ListXAttr implements fuse.RawFileSystem. Names that the kernel does not take,
// and for which it would refuse all, are left out.
func (s *shower) ListXAttr(cancel <-chan struct{}, header *fuse.InHeader, dst []byte) (uint32, fuse.Status) {
	list, status := s.xattrs(cancel, header.NodeId)
	if !status.Ok() {
		return 0, status
	}
	var names []byte
	for _, x := range list {
		if showable(x.Name) && len(x.Name) <= maxXattrName {
			names = append(append(names, x.Name...), 0)
		}
	}
	if len(names) > maxXattrs {
		return 0, fuse.Status(syscall.E2BIG)
	}
	if len(names) > len(dst) {
		return uint32(len(names)), fuse.ERANGE
	}
	return uint32(copy(dst, names)), fuse.OK
}

// StatFs implements fuse.RawFileSystem.
func (s *shower) StatFs(cancel <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: maxName}
	room, ok := s.root.(Capacity)
	if !ok {
		return fuse.OK
	}
	c := newCall(cancel)
	defer c.end()
	total, free, err := room.Capacity(c)
	if err != nil {
		return s.fail("statfs", func() string { return "/" }, err)
	}
	out.Blocks, out.Bfree = uint64(max(total, 0))/blockSize, uint64(max(free, 0))/blockSize
	out.Bavail = out.Bfree
	return fuse.OK
}
