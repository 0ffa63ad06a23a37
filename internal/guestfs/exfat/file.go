package exfat

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// file returns the clusters of a file, and what says its size.
func (f *FS) file(id fsys.ID) (*cluster.Chain, set, error) {
	if id == rootID {
		return nil, nil, fmt.Errorf("read a directory: %w", fs.ErrInvalid)
	}
	s, _, err := f.inode(id)
	if err != nil {
		return nil, nil, err
	}
	if s.isDir() {
		return nil, nil, fmt.Errorf("read a directory: %w", fs.ErrInvalid)
	}
	c, err := f.content(s)
	return c, s, err
}

// Extents implements fsys.FileSystem. What was never written, which lies at the end
// of a file, reads as zeroes whatever is in its clusters.
func (f *FS) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	c, s, err := f.file(id)
	if err != nil || off < 0 || off >= s.size() || n <= 0 {
		return nil, err
	}
	n = min(n, s.size()-off)
	if off >= s.valid() {
		return []fsys.Extent{{Kind: fsys.Hole, Off: off, Len: n}}, nil
	}
	exts, err := c.Extents(off, min(n, s.valid()-off))
	if err != nil {
		return nil, err
	}
	last := exts[len(exts)-1]
	if end := last.Off + last.Len; end == s.valid() && end < off+n {
		exts = append(exts, fsys.Extent{Kind: fsys.Hole, Off: end, Len: off + n - end})
	}
	return exts, nil
}

// ReadAt implements fsys.FileSystem.
func (f *FS) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	c, s, err := f.file(id)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, errors.New("read before the start of a file")
	}
	n := max(0, min(int64(len(p)), s.size()-off))
	written := max(0, min(n, s.valid()-off))
	if err := c.ReadAt(f.vol, p[:written], off); err != nil {
		return 0, err
	}
	clear(p[written:n])
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// RecordsComeLate implements fsys.Late.
func (f *FS) RecordsComeLate() {}

// Inode implements fsys.Inodes. A directory's entries need not change when the
// directory does.
func (f *FS) Inode(id fsys.ID) (off, n int64, err error) {
	s, at, err := f.inode(id)
	switch {
	case err != nil:
		return 0, 0, err
	case s.isDir():
		return 0, 0, fmt.Errorf("record of a directory: %w", fsys.ErrUnsupported)
	case (at-f.boot.heap)/f.table.Size != (at+int64(len(s))-1-f.boot.heap)/f.table.Size:
		return 0, 0, fmt.Errorf("record in two clusters: %w", fsys.ErrUnsupported)
	}
	return at, int64(len(s)), nil
}
