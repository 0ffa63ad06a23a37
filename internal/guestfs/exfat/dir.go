package exfat

import (
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// rootID stands for the root directory, which has no entry.
const rootID fsys.ID = 1

// maxDir is how many bytes a directory has at most (section 7.4).
const maxDir = 256 << 20

// newID returns the number of the inode whose first entry lies at a byte of the
// volume. The rest of its entries may lie in the directory's next cluster: to find
// that, it has to be known whether the table names it.
func newID(at int64, contiguous bool) fsys.ID {
	id := fsys.ID(at / entrySize << 1)
	if contiguous {
		id |= 1
	}
	return id
}

// inode returns the entries that an ID stands for, and where the first lies.
func (f *FS) inode(id fsys.ID) (set, int64, error) {
	missing := fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	if id>>1 >= fsys.ID(f.boot.end/entrySize) {
		return nil, 0, missing
	}
	at := int64(id>>1) * entrySize
	within := at - f.boot.heap
	if within < 0 || within/f.table.Size >= int64(f.table.Clusters) {
		return nil, 0, missing
	}
	c := cluster.First + uint32(within/f.table.Size)
	b := make([]byte, maxSet*entrySize)
	n := int(min(int64(len(b)), f.table.Size-within%f.table.Size))
	if err := f.meta.ReadAt(b[:n], at); err != nil {
		return nil, 0, fmt.Errorf("read directory: %w", err)
	}
	if b[0] != typeFile {
		return nil, 0, missing
	}
	length, err := setLen(b)
	if err != nil {
		return nil, 0, err
	}
	for n < length {
		if c, err = f.following(c, id&1 != 0); err != nil {
			return nil, 0, err
		}
		more := int(min(int64(length-n), f.table.Size))
		if err := f.meta.ReadAt(b[n:n+more], f.table.Offset(c)); err != nil {
			return nil, 0, fmt.Errorf("read directory: %w", err)
		}
		n += more
	}
	s := set(b[:length])
	return s, at, s.check()
}

// following returns the cluster of a directory that follows one.
func (f *FS) following(c uint32, contiguous bool) (next uint32, err error) {
	next = c + 1
	if !contiguous {
		next, err = f.table.Entry(c)
	}
	if err == nil && !f.table.Holds(next) {
		err = fmt.Errorf("directory goes on with cluster %d: %w", next, fsys.ErrCorrupt)
	}
	return next, err
}

// content returns the clusters of a file or directory.
func (f *FS) content(s set) (*cluster.Chain, error) {
	n := f.table.Count(s.size())
	if n > int64(f.table.Clusters) {
		return nil, fmt.Errorf("%d bytes in %d clusters: %w", s.size(), f.table.Clusters, fsys.ErrCorrupt)
	}
	switch {
	case n > 0 && s.flags()&allocationPossible == 0:
		return nil, fmt.Errorf("%d bytes without clusters: %w", s.size(), fsys.ErrCorrupt)
	case s.flags()&noFATChain != 0:
		return f.table.Contiguous(s.firstCluster(), uint32(n))
	}
	return f.chains.Follow(f.table, s.firstCluster(), uint32(n))
}

// dirChain returns the clusters of a directory, and with an error those that can be
// told.
func (f *FS) dirChain(dir fsys.ID) (c *cluster.Chain, contiguous bool, err error) {
	if dir == rootID {
		c, err = f.chains.Follow(f.table, f.boot.root, cluster.All)
		return c, false, err
	}
	s, _, err := f.inode(dir)
	if err != nil {
		return nil, false, err
	}
	if !s.isDir() {
		return nil, false, fmt.Errorf("inode %d is not a directory: %w", dir, fs.ErrInvalid)
	}
	c, err = f.content(s)
	return c, s.flags()&noFATChain != 0, err
}

// raw calls yield for each entry of clusters, with where it lies.
func (f *FS) raw(c *cluster.Chain, yield func(b []byte, at int64) bool) error {
	size := min(c.Len()*f.table.Size, maxDir)
	buf := make([]byte, min(size, 64<<10))
	for off := int64(0); off < size; {
		exts, err := c.Extents(off, size-off)
		if err != nil {
			return err
		}
		for _, e := range exts {
			for done := int64(0); done < e.Len; {
				piece := buf[:min(e.Len-done, int64(len(buf)))]
				if err := f.meta.ReadAt(piece, e.At+done); err != nil {
					return fmt.Errorf("read directory: %w", err)
				}
				for i := 0; i < len(piece); i += entrySize {
					if piece[i] == typeEnd || !yield(piece[i:i+entrySize], e.At+done+int64(i)) {
						return errStop
					}
				}
				done += int64(len(piece))
			}
			off += e.Len
		}
	}
	if c.Len()*f.table.Size > maxDir {
		return fmt.Errorf("directory of %d bytes: %w", c.Len()*f.table.Size, fsys.ErrCorrupt)
	}
	return nil
}

// sets calls yield for each file and directory in a directory, with its name and
// ID. Damaged ones are left out, and are an error at the end.
func (f *FS) sets(dir fsys.ID, yield func(s set, units []uint16, name string, id fsys.ID) bool) error {
	c, contiguous, chainErr := f.dirChain(dir)
	if c == nil {
		return chainErr
	}
	var bad error
	note := func(err error) {
		if bad == nil {
			bad = err
		}
	}
	var (
		pending set // entries of a file so far
		need    int // bytes of these in all; 0: no file has begun
		first   int64
		stopped bool
	)
	err := f.raw(c, func(b []byte, at int64) bool {
		kind := b[0]
		if need > 0 && kind&(inUse|secondary) != inUse|secondary {
			note(fmt.Errorf("a file with %d of %d bytes of directory entries: %w", len(pending), need, fsys.ErrCorrupt))
			need = 0
		}
		switch {
		case kind&inUse == 0:
		case kind == typeFile:
			n, err := setLen(b)
			if err != nil {
				note(err)
				break
			}
			pending, need, first = append(pending[:0], b...), n, at
		case kind&secondary != 0 && need > 0:
			if pending = append(pending, b...); len(pending) < need {
				break
			}
			need = 0
			if err := pending.check(); err != nil {
				note(err)
				break
			}
			units := pending.name()
			name, err := text(units)
			if err != nil {
				note(err)
				break
			}
			stopped = !yield(pending, units, name, newID(first, contiguous))
		case kind&(secondary|benign) == 0 && (kind < typeBitmap || kind > typeLabel):
			// Section 6.2.1.3: a directory with these is not to be trusted.
			note(fmt.Errorf("a directory entry of type %#x: %w", kind, fsys.ErrUnsupported))
		}
		return !stopped
	})
	switch {
	case stopped:
		return nil
	case err != nil && err != errStop:
		return err
	case need > 0:
		note(fmt.Errorf("a directory ends within a file's entries: %w", fsys.ErrCorrupt))
	}
	if bad == nil && err == nil { // the end of the directory was not seen
		bad = chainErr
	}
	return bad
}
