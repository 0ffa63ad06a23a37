package fat

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// entrySize is that of a directory entry, in bytes.
const entrySize = 32

// rootID stands for the root directory, which has no entry. It would be an entry in
// the boot sector.
const rootID fsys.ID = 1

// deleted is the first byte of an entry that was.
const deleted = 0xe5

// Bits of the byte of attributes.
const (
	attrReadOnly = 0x01
	attrHidden   = 0x02
	attrSystem   = 0x04
	attrLabel    = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
	attrLong     = 0x0f // part of a long name
	attrMask     = 0x3f
)

// maxDir is how many bytes a directory has at most.
const maxDir = 65536 * entrySize

// inode returns the directory entry that an ID stands for.
func (f *FS) inode(id fsys.ID) ([]byte, error) {
	if id >= fsys.ID(f.boot.end/entrySize) {
		return nil, fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	}
	at := int64(id) * entrySize
	inHeap := at >= f.boot.heap && at < f.table.Offset(cluster.First+f.table.Clusters-1)+f.table.Size
	if !inHeap && (at < f.boot.root || at >= f.boot.root+f.boot.rootLen) {
		return nil, fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	}
	b := make([]byte, entrySize)
	if err := f.meta.ReadAt(b, at); err != nil {
		return nil, err
	}
	if !isFile(b) {
		return nil, fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	}
	return b, nil
}

// isFile reports that an entry is of a file or directory, but not "." or "..".
func isFile(b []byte) bool {
	return b[0] != 0 && b[0] != deleted && b[11]&attrLabel == 0 && string(b[:11]) != ".          " && string(b[:11]) != "..         "
}

// firstCluster returns where the content of an entry begins.
func (f *FS) firstCluster(b []byte) uint32 {
	c := uint32(binary.LittleEndian.Uint16(b[26:]))
	if f.boot.bits == 32 { // in others, what is there has another meaning
		c |= uint32(binary.LittleEndian.Uint16(b[20:])) << 16
	}
	return c
}

// dirChain returns the clusters of a directory, and with an error those that can be
// told. It has none where the root directory lies in a place of its own.
func (f *FS) dirChain(dir fsys.ID) (*cluster.Chain, error) {
	first := f.boot.rootCluster
	if dir != rootID {
		b, err := f.inode(dir)
		if err != nil {
			return nil, err
		}
		if b[11]&attrDir == 0 {
			return nil, fmt.Errorf("inode %d is not a directory: %w", dir, fs.ErrInvalid)
		}
		first = f.firstCluster(b)
	} else if f.boot.bits != 32 {
		return nil, nil
	}
	return f.chains.Follow(f.table, first, cluster.All)
}

// dirSize returns the length of a directory, as far as it can be read.
func (f *FS) dirSize(dir fsys.ID) int64 {
	c, _ := f.dirChain(dir) // told when it is listed
	if c == nil {
		return f.boot.rootLen
	}
	return min(c.Len()*f.table.Size, maxDir)
}

// raw calls yield for each entry of a directory in use, long names included, with
// where it lies.
func (f *FS) raw(dir fsys.ID, yield func(b []byte, at int64) bool) error {
	c, chainErr := f.dirChain(dir)
	if c == nil {
		if chainErr != nil {
			return chainErr
		}
		_, err := f.piece(f.boot.root, f.boot.rootLen, yield)
		return err
	}
	size := c.Len() * f.table.Size
	if size > maxDir && chainErr == nil {
		chainErr = fmt.Errorf("directory of %d bytes: %w", size, fsys.ErrCorrupt)
	}
	for off := int64(0); off < min(size, maxDir); {
		exts, err := c.Extents(off, min(size, maxDir)-off)
		if err != nil {
			return err
		}
		for _, e := range exts {
			more, err := f.piece(e.At, e.Len, yield)
			if err != nil || !more {
				return err
			}
			off += e.Len
		}
	}
	return chainErr
}

// maxPiece is how much of a directory is read at a time.
const maxPiece = 64 << 10

// piece calls yield for the entries in a piece of the volume. There are more
// unless it ended at one that says so, or yield returned false.
func (f *FS) piece(at, n int64, yield func(b []byte, at int64) bool) (more bool, err error) {
	buf := make([]byte, min(n, maxPiece))
	for ; n > 0; at, n = at+int64(len(buf)), n-int64(len(buf)) {
		buf = buf[:min(n, maxPiece)]
		if err := f.meta.ReadAt(buf, at); err != nil {
			return false, fmt.Errorf("read directory: %w", err)
		}
		for i := 0; i < len(buf); i += entrySize {
			if buf[i] == 0 || !yield(buf[i:i+entrySize], at+int64(i)) {
				return false, nil
			}
		}
	}
	return true, nil
}

// entries calls yield for each file and directory with its name. Names that no
// system could make are left out, and are an error at the end.
func (f *FS) entries(dir fsys.ID, yield func(b []byte, at int64, name string) bool) error {
	l := long{next: none}
	var bad error
	stopped := false
	err := f.raw(dir, func(b []byte, at int64) bool {
		if b[0] != deleted && b[11]&attrMask == attrLong {
			l.add(b)
			return true
		}
		name, ok := l.take(b)
		if !isFile(b) {
			return true
		}
		if !ok {
			name = shortName(b, b[12], f.page)
		}
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			if bad == nil {
				bad = fmt.Errorf("directory entry with the name %q: %w", name, fsys.ErrCorrupt)
			}
			return true
		}
		stopped = !yield(b, at, name)
		return !stopped
	})
	if err == nil && !stopped {
		err = bad
	}
	return err
}
