package ext4

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// What one call of Extents looks at, at most.
const (
	maxRuns    = 4096
	maxExtents = 4096
)

// content returns the inode of what users can read.
func (f *fileSystem) content(id fsys.ID, kind uint16) (*inode, error) {
	in, err := f.visible(id)
	if err != nil {
		return nil, err
	}
	if !in.is(kind) {
		return nil, fmt.Errorf("read inode %d with mode 0%o: %w", id, in.mode, fs.ErrInvalid)
	}
	if in.has(flagEncrypt) {
		return nil, unsupportedf("inode %d is encrypted", id)
	}
	return in, nil
}

// blocks returns how many a file's size takes.
func (f *fileSystem) blocks(in *inode) uint64 {
	return (uint64(in.size) + uint64(f.super.blockSize) - 1) / uint64(f.super.blockSize)
}

// Extents implements fsys.FileSystem. Blocks that the journal holds are opaque.
func (f *fileSystem) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	in, err := f.content(id, typeFile)
	if err != nil {
		return nil, err
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("extents of %d bytes at %d: %w", n, off, fs.ErrInvalid)
	}
	if n = min(n, in.size-off); n <= 0 {
		return nil, nil
	}
	if in.has(flagInlineData) {
		return []fsys.Extent{{Kind: fsys.Opaque, Off: off, Len: n}}, nil
	}
	bs := uint64(f.super.blockSize)
	first := uint64(off) / bs
	end := (uint64(off+n) + bs - 1) / bs
	c := collector{f: f, off: off, end: off + n}
	seen := 0
	err = f.eachRun(in, first, end, func(r run) bool {
		seen++
		c.add(r)
		return seen < maxRuns && len(c.extents) < maxExtents
	})
	if err != nil && len(c.extents) == 0 {
		return nil, err
	}
	return c.extents, nil // what could not be read is told of when it is asked for
}

// collector turns runs into extents.
type collector struct {
	f        *fileSystem
	off, end int64
	extents  []fsys.Extent
}

// add adds a run, in pieces where the journal holds some of its blocks.
func (c *collector) add(r run) {
	bs := c.f.super.blockSize
	for r.n > 0 {
		e, n := fsys.Extent{Kind: fsys.Hole}, r.n
		if r.at != 0 {
			var held bool
			if held, n = c.f.replayed.split(r.at, r.n); held {
				e.Kind = fsys.Opaque
			} else {
				e.Kind, e.At = fsys.Data, int64(r.at)*bs
			}
			r.at += n
		}
		start, end := int64(r.first)*bs, int64(r.first+n)*bs
		r.first, r.n = r.first+n, r.n-n
		e.Off, e.Len = max(start, c.off), min(end, c.end)-max(start, c.off)
		if e.Kind == fsys.Data {
			e.At += e.Off - start
		}
		c.append(e)
	}
}

func (c *collector) append(e fsys.Extent) {
	if len(c.extents) > 0 {
		last := &c.extents[len(c.extents)-1]
		if last.Kind == e.Kind && (e.Kind != fsys.Data || last.At+last.Len == e.At) {
			last.Len += e.Len
			return
		}
	}
	c.extents = append(c.extents, e)
}

// ReadAt implements fsys.FileSystem.
func (f *fileSystem) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	in, err := f.content(id, typeFile)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	}
	return f.readAt(in, p, off)
}

// readAt reads content by the rules of io.ReaderAt.
func (f *fileSystem) readAt(in *inode, p []byte, off int64) (int, error) {
	var eof error
	if left := max(in.size-off, 0); int64(len(p)) > left {
		p, eof = p[:left], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	if in.has(flagInlineData) {
		b, err := f.inline(in)
		if err != nil {
			return 0, err
		}
		return copy(p, b[off:]), eof
	}
	bs := uint64(f.super.blockSize)
	first, end := uint64(off)/bs, (uint64(off)+uint64(len(p))+bs-1)/bs
	n := 0
	var failed error
	err := f.eachRun(in, first, end, func(r run) bool {
		skip := int64(uint64(off) + uint64(n) - r.first*bs)
		part := p[n:]
		if left := int64(r.n*bs) - skip; int64(len(part)) > left {
			part = part[:left]
		}
		if r.at == 0 {
			clear(part)
		} else if failed = f.vol.ReadAt(part, int64(r.at*bs)+skip); failed != nil {
			failed = fmt.Errorf("read inode %d: %w", in.number, failed)
			return false
		}
		n += len(part)
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return n, err
	}
	return n, eof
}

// inline returns content that is kept in the inode: in the area for the map of
// blocks, and what does not fit there as an extended attribute.
func (f *fileSystem) inline(in *inode) ([]byte, error) {
	rest, ok, err := in.inlineData()
	if err != nil {
		return nil, err
	}
	b := append(bytes.Clone(in.block()), rest...)
	if !ok || in.size > int64(len(b)) {
		return nil, corruptf("inode %d of %d bytes holds %d of them", in.number, in.size, len(b))
	}
	return b[:in.size], nil
}

// Readlink implements fsys.FileSystem.
func (f *fileSystem) Readlink(id fsys.ID) (string, error) {
	in, err := f.content(id, typeLink)
	if err != nil {
		return "", err
	}
	if in.size == 0 || in.size > f.super.blockSize {
		return "", corruptf("symbolic link %d has a target of %d bytes", id, in.size)
	}
	target := make([]byte, in.size)
	switch area := in.block(); {
	case in.has(flagInlineData) || !f.fast(in):
		_, err = f.readAt(in, target, 0)
	case in.size >= int64(len(area)):
		err = corruptf("symbolic link %d has a target of %d bytes in its inode", id, in.size)
	default:
		copy(target, area)
	}
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return "", corruptf("the target of symbolic link %d contains zeroes", id)
	}
	return string(target), nil
}

// fast says whether a link keeps its target where others keep their map of blocks.
// Where attributes can have inodes of their own, blocks no longer tell.
func (f *fileSystem) fast(in *inode) bool {
	if f.super.has(incompatEAInode) {
		return in.size < int64(len(in.block()))
	}
	attributes := int64(0)
	if f.xattrBlock(in) != 0 {
		attributes = f.super.clusterSize
	}
	return f.allocated(in) == attributes
}
