package fusemount

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sendense/sendense/block"
	"golang.org/x/sys/unix"
)

// Write implements fuse.RawFileSystem. A content keeps its size, like a disk.
func (s *shower) Write(cancel <-chan struct{}, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	n, c := s.content(in.NodeId)
	if c == nil || !c.writable {
		return 0, fuse.Status(syscall.EBADF)
	}
	off := int64(in.Offset)
	if off < 0 || off >= c.size {
		return 0, fuse.Status(syscall.ENOSPC)
	}
	p = p[:min(int64(len(p)), c.size-off)]
	ctx := newCall(cancel)
	defer ctx.end()
	if err := block.Write(ctx, c.Content, p, off); err != nil {
		return 0, s.failData("write", n, err)
	}
	n.written.Store(s.now().UnixNano())
	return uint32(len(p)), fuse.OK
}

// Fsync implements fuse.RawFileSystem.
func (s *shower) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, c := s.content(in.NodeId)
	if c == nil {
		return fuse.Status(syscall.EBADF)
	}
	if !c.writable {
		return fuse.OK
	}
	ctx := newCall(cancel)
	defer ctx.end()
	return s.failData("sync", n, block.Flush(ctx, c.Content))
}

// Fallocate implements fuse.RawFileSystem: it punches holes and zeroes, as programs
// do that make file systems.
func (s *shower) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, c := s.content(in.NodeId)
	if c == nil || !c.writable {
		return fuse.Status(syscall.EBADF)
	}
	off, length := int64(in.Offset), int64(in.Length)
	if off < 0 || length <= 0 {
		return fuse.EINVAL
	}
	var flags block.ZeroFlags
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0: // there is room for all of it, or it is not there
		if off+length < 0 || off+length > c.size && in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
			return fuse.Status(syscall.ENOSPC)
		}
		return fuse.OK
	case unix.FALLOC_FL_PUNCH_HOLE:
		flags = block.MayTrim
	case unix.FALLOC_FL_ZERO_RANGE:
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	if off >= c.size {
		return fuse.OK
	}
	ctx := newCall(cancel)
	defer ctx.end()
	if err := block.WriteZeroes(ctx, c.Content, off, min(length, c.size-off), flags); err != nil {
		return s.failData("zero", n, err)
	}
	n.written.Store(s.now().UnixNano())
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem. Nothing but the time of the last change of
// what can be written can be set. A size that stays as it is is no change.
func (s *shower) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	const never = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID
	if in.Valid&never != 0 {
		return fuse.EPERM
	}
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
	if size, ok := in.GetSize(); ok && size != uint64(a.Size) {
		return fuse.EPERM
	}
	if t, ok := in.GetMTime(); ok {
		if _, open := s.content(in.NodeId); open == nil || !open.writable {
			return fuse.EPERM
		}
		n.written.Store(t.UnixNano())
	}
	a.fill(n.number, n.written.Load(), &out.Attr)
	out.SetTimeout(s.validity(n.changing))
	return fuse.OK
}

// What follows would change the tree, which nothing does. The default answer would
// be that there is no such call.

// Mknod implements fuse.RawFileSystem.
func (s *shower) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Mkdir implements fuse.RawFileSystem.
func (s *shower) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Unlink implements fuse.RawFileSystem.
func (s *shower) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EPERM }

// Rmdir implements fuse.RawFileSystem.
func (s *shower) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EPERM }

// Rename implements fuse.RawFileSystem.
func (s *shower) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return fuse.EPERM
}

// Link implements fuse.RawFileSystem.
func (s *shower) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Symlink implements fuse.RawFileSystem.
func (s *shower) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Create implements fuse.RawFileSystem.
func (s *shower) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EPERM
}

// SetXAttr implements fuse.RawFileSystem.
func (s *shower) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status {
	return fuse.EPERM
}

// RemoveXAttr implements fuse.RawFileSystem.
func (s *shower) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return fuse.EPERM
}
