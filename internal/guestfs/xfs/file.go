package xfs

import (
	"fmt"
	"io"
	"io/fs"
	"math"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// maxExtents is how many extents are returned at once.
const maxExtents = 4096

// content returns the inode and the data fork of a regular file.
func (f *FS) content(id fsys.ID) (*inode, *fork, error) {
	in, err := f.inode(uint64(id))
	if err != nil {
		return nil, nil, err
	}
	if !in.isRegular() {
		return nil, nil, fmt.Errorf("inode %d is not a regular file: %w", id, fs.ErrInvalid)
	}
	if in.flags&flagRealtime != 0 && in.size > 0 {
		return nil, nil, unsupported("inode %d lies in the realtime section", id)
	}
	if err := f.pending.refused(in.ino); err != nil {
		return nil, nil, err
	}
	k, err := f.dataFork(in)
	return in, k, err
}

// Extents implements fsys.FileSystem. Unwritten extents are holes.
func (f *FS) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	in, k, err := f.content(id)
	if err != nil {
		return nil, err
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("extents from %d: %w", off, fs.ErrInvalid)
	}
	if off >= in.size {
		return nil, nil
	}
	return k.extents(off, off+min(n, in.size-off))
}

// extents returns where the bytes in [off, end) of a file lie.
func (k *fork) extents(off, end int64) ([]fsys.Extent, error) {
	var list []fsys.Extent
	for off < end {
		e, err := k.extent(off, end)
		if err != nil {
			return nil, err
		}
		off += e.Len
		if i := len(list) - 1; i >= 0 && list[i].Kind == e.Kind && (e.Kind == fsys.Hole || list[i].At+list[i].Len == e.At) {
			list[i].Len += e.Len
			continue
		}
		if len(list) == maxExtents {
			break
		}
		list = append(list, e)
	}
	return list, nil
}

// extent returns what begins at off, and ends at end at the latest.
func (k *fork) extent(off, end int64) (fsys.Extent, error) {
	block := uint64(off) >> k.fs.blockLog
	if block >= endOfFork {
		return fsys.Extent{Kind: fsys.Hole, Off: off, Len: end - off}, nil
	}
	r, err := k.find(block)
	if err != nil {
		return fsys.Extent{}, err
	}
	stop := end
	if last := r.off + r.n; last < uint64(math.MaxInt64)>>k.fs.blockLog {
		stop = min(end, int64(last)<<k.fs.blockLog)
	}
	e := fsys.Extent{Kind: fsys.Hole, Off: off, Len: stop - off}
	if !r.hole && !r.unwritten {
		e.Kind = fsys.Data
		at, _ := k.fs.blockAt(r.block+block-r.off, 1)
		e.At = at + off&(k.fs.blockSize()-1)
	}
	return e, nil
}

// ReadAt implements fsys.FileSystem.
func (f *FS) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	in, k, err := f.content(id)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	}
	var atEnd error
	if left := max(in.size-off, 0); int64(len(p)) > left {
		p, atEnd = p[:left], io.EOF
	}
	done := 0
	for done < len(p) {
		list, err := k.extents(off+int64(done), off+int64(len(p)))
		if err != nil {
			return done, err
		}
		for _, e := range list {
			part := p[done : done+int(e.Len)]
			if e.Kind == fsys.Hole {
				clear(part)
			} else if err := f.vol.ReadAt(part, e.At); err != nil {
				return done, fmt.Errorf("read inode %d: %w", id, err)
			}
			done += len(part)
		}
	}
	return done, atEnd
}

// maxTarget is how long the target of a symbolic link may be, in bytes.
const maxTarget = 1024

const magicSymlink = 0x58534c4d // XSLM

// Readlink implements fsys.FileSystem (Symbolic Links).
func (f *FS) Readlink(id fsys.ID) (string, error) {
	in, err := f.inode(uint64(id))
	if err != nil {
		return "", err
	}
	if !in.isSymlink() {
		return "", fmt.Errorf("inode %d is not a symbolic link: %w", id, fs.ErrInvalid)
	}
	if in.size == 0 || in.size > maxTarget {
		return "", corrupt("inode %d: symbolic link of %d bytes", id, in.size)
	}
	if in.format == formatLocal {
		return string(in.data[:in.size]), nil
	}
	if err := f.pending.refused(in.ino); err != nil {
		return "", err
	}
	k, err := f.dataFork(in)
	if err != nil {
		return "", err
	}
	target := make([]byte, 0, in.size)
	for off := uint64(0); int64(len(target)) < in.size; {
		part, blocks, err := f.linkPart(k, off, len(target), int(in.size)-len(target))
		if err != nil {
			return "", err
		}
		target, off = append(target, part...), off+blocks
	}
	return string(target), nil
}

// linkPart reads what an extent holds of a target, from done on. In version 5
// each extent begins with a header.
func (f *FS) linkPart(k *fork, off uint64, done, left int) (part []byte, blocks uint64, err error) {
	r, err := k.find(off)
	if err != nil {
		return nil, 0, err
	}
	if r.hole || r.off != off || r.n<<f.blockLog > 16*maxTarget+1<<f.blockLog {
		return nil, 0, corrupt("inode %d: the target has no block %d, or %d of them", k.ino, off, r.n)
	}
	b := make(raw, r.n<<f.blockLog)
	at, replayed, err := k.read(b, off)
	if err != nil {
		return nil, 0, err
	}
	if !f.v5 {
		return b[:min(left, len(b))], r.n, nil
	}
	if b.u32(0) != magicSymlink {
		return nil, 0, corrupt("inode %d: no symbolic link at byte %d", k.ino, at)
	}
	if err := f.sane(b, headerSymlink, at, k.ino, replayed); err != nil {
		return nil, 0, err
	}
	body := b[56:]
	if n := uint64(b.u32(8)); uint64(b.u32(4)) != uint64(done) || n == 0 || n > uint64(left) || n > uint64(len(body)) {
		return nil, 0, corrupt("inode %d: symbolic link block with bytes from %d, for %d", k.ino, b.u32(4), done)
	}
	return body[:b.u32(8)], r.n, nil
}
