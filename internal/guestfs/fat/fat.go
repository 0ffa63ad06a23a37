// Package fat reads FAT12, FAT16 and FAT32 with long names, by Microsoft's "FAT32
// File System Specification", version 1.03, and shows them as Linux's vfat does
// with shortname=mixed and utf8.
//
// Times on such a volume are of the clock on the wall of whoever wrote them, and no
// zone is recorded: they are taken for UTC. An inode is numbered by where its
// directory entry lies. It knows nothing of partitions.
package fat

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options of a reader.
type Options struct {
	// CodePage is that of short names: 437 or 850; default 437.
	CodePage int
	// CacheBytes is what the cache of structures takes; default 16 MiB, none if
	// less than 0.
	CacheBytes int64
}

// FS is a FAT file system.
type FS struct {
	vol    fsys.Volume // content
	meta   fsys.Volume // the same, cached
	boot   boot
	table  *cluster.Table
	chains cluster.Cache
	page   []rune
	info   fsys.Info
}

var (
	_ fsys.FileSystem = (*FS)(nil)
	_ fsys.Late       = (*FS)(nil)
)

// Open opens the file system of a volume.
func Open(v fsys.Volume) (fsys.FileSystem, error) { return OpenWith(v, Options{}) }

// OpenWith opens the file system of a volume.
func OpenWith(v fsys.Volume, o Options) (fsys.FileSystem, error) {
	page, err := codepage(o.CodePage)
	if err != nil {
		return nil, err
	}
	if v.Size() < 512 {
		return nil, fsys.ErrNotFound
	}
	sector := make([]byte, 512)
	if err := v.ReadAt(sector, 0); err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	b, err := parseBoot(sector)
	if err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	f := &FS{vol: v, meta: v, boot: b, page: page}
	if o.CacheBytes >= 0 {
		f.meta = fsys.Cached(v, cmp.Or(o.CacheBytes, 16<<20))
	}
	mask := uint32(1)<<min(b.bits, 28) - 1
	f.table = &cluster.Table{Volume: f.meta, At: b.table, Bits: b.bits, Mask: mask, Heap: b.heap, Size: b.cluster, Clusters: b.clusters}
	f.info = fsys.Info{
		Type: "vfat", BlockSize: b.cluster, Size: int64(b.clusters) * b.cluster, Free: -1, FoldsCase: true, Label: f.label(),
	}
	if b.serial != 0 {
		f.info.UUID = fmt.Sprintf("%04X-%04X", b.serial>>16, b.serial&0xffff)
	}
	if n, ok := f.free(); ok {
		f.info.Free = int64(n) * b.cluster
	}
	f.info.Notes, err = f.notes()
	return f, err
}

// label returns the name of the volume, which is an entry of the root directory,
// or what the boot sector says.
func (f *FS) label() string {
	label := f.boot.label
	// A root directory that cannot be read will tell so when it is listed.
	_ = f.raw(rootID, func(b []byte, _ int64) bool {
		if b[11]&attrLong != attrLong && b[11]&attrLabel != 0 && b[0] != deleted {
			label = bytes.Clone(b[:11])
			return false
		}
		return true
	})
	if label == nil {
		return ""
	}
	raw := bytes.Clone(label)
	if raw[0] == 0x05 {
		raw[0] = 0xe5
	}
	return decode(raw, false, f.page)
}

// free returns how many clusters are free: in FAT32 as was noted, else by the
// table, which is small.
func (f *FS) free() (uint32, bool) {
	if f.boot.bits != 32 {
		n := uint32(0)
		err := f.table.Each(func(entry uint32) {
			if entry == 0 {
				n++
			}
		})
		return n, err == nil
	}
	b := make([]byte, 512)
	if f.boot.info == 0 || f.meta.ReadAt(b, f.boot.info) != nil {
		return 0, false
	}
	le := binary.LittleEndian
	n := le.Uint32(b[488:])
	return n, le.Uint32(b) == 0x41615252 && le.Uint32(b[484:]) == 0x61417272 && n <= f.boot.clusters
}

// notes tells of the state of the volume, which the boot sector and entry 1 of the
// table have.
func (f *FS) notes() ([]string, error) {
	one, err := f.table.Entry(1)
	if err != nil {
		return nil, err
	}
	var clean, sound uint32
	switch f.boot.bits {
	case 16:
		clean, sound = 0x8000, 0x4000
	case 32:
		clean, sound = 0x08000000, 0x04000000
	}
	var notes []string
	if f.boot.state&1 != 0 || one&clean != clean {
		notes = append(notes, "The file system was not unmounted: what was being written may be incomplete.")
	}
	if f.boot.state&2 != 0 || one&sound != sound {
		notes = append(notes, "The file system has recorded errors of its medium.")
	}
	if f.boot.end > f.vol.Size() {
		notes = append(notes, fmt.Sprintf("The volume ends %d bytes before the file system does.", f.boot.end-f.vol.Size()))
	}
	return notes, nil
}

// Info implements fsys.FileSystem.
func (f *FS) Info() fsys.Info { return f.info }

// Root implements fsys.FileSystem.
func (f *FS) Root() fsys.ID { return rootID }

// Stat implements fsys.FileSystem.
func (f *FS) Stat(id fsys.ID) (fsys.Attr, error) {
	if id == rootID {
		return fsys.Attr{Mode: fs.ModeDir | 0o755, Links: 1, Size: f.dirSize(id), Allocated: f.dirSize(id)}, nil
	}
	b, err := f.inode(id)
	if err != nil {
		return fsys.Attr{}, err
	}
	return f.attr(id, b), nil
}

// attr returns what a directory entry says.
func (f *FS) attr(id fsys.ID, b []byte) fsys.Attr {
	le := binary.LittleEndian
	a := fsys.Attr{
		Mode: 0o755, Links: 1, Size: int64(le.Uint32(b[28:])), Created: stamp(le.Uint16(b[16:]), le.Uint16(b[14:]), b[13]),
		Modified: stamp(le.Uint16(b[24:]), le.Uint16(b[22:]), 0), Accessed: stamp(le.Uint16(b[18:]), 0, 0),
	}
	for _, x := range []struct {
		bit  byte
		name string
	}{{attrReadOnly, "read-only"}, {attrHidden, "hidden"}, {attrSystem, "system"}, {attrArchive, "archive"}} {
		if b[11]&x.bit != 0 {
			a.Flags = append(a.Flags, x.name)
		}
	}
	a.Allocated = f.table.Count(a.Size) * f.table.Size
	if b[11]&attrDir != 0 {
		a.Mode |= fs.ModeDir
		a.Size = f.dirSize(id)
		a.Allocated = a.Size
	} else if b[11]&attrReadOnly != 0 {
		a.Mode &^= 0o222
	}
	return a
}

// Lookup implements fsys.FileSystem. A name as it is written goes before one that
// differs in case, or is the short form of a long one.
func (f *FS) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	trimmed := strings.TrimRight(name, ".") // which names do not end in, but may be asked for with
	folded, found := fold(trimmed), fsys.ID(0)
	err := f.entries(dir, func(b []byte, at int64, as string) bool {
		switch {
		case as == name || as == trimmed:
			found = fsys.ID(at / entrySize)
			return false
		case found == 0 && (fold(as) == folded || fold(shortName(b, 0, f.page)) == folded):
			found = fsys.ID(at / entrySize)
		}
		return true
	})
	if found != 0 {
		return found, nil
	}
	if err == nil {
		err = fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return 0, err
}

// ReadDir implements fsys.FileSystem.
func (f *FS) ReadDir(dir fsys.ID, yield func(fsys.Entry) bool) error {
	return f.entries(dir, func(b []byte, at int64, name string) bool {
		e := fsys.Entry{Name: name, ID: fsys.ID(at / entrySize)}
		if b[11]&attrDir != 0 {
			e.Type = fs.ModeDir
		}
		return yield(e)
	})
}

// Readlink implements fsys.FileSystem: there are no symbolic links.
func (f *FS) Readlink(fsys.ID) (string, error) {
	return "", fmt.Errorf("read link: %w", fs.ErrInvalid)
}

// Xattrs implements fsys.FileSystem: there are none.
func (f *FS) Xattrs(fsys.ID) ([]fsys.Xattr, error) { return nil, nil }

// file returns the clusters and the size of a file.
func (f *FS) file(id fsys.ID) (*cluster.Chain, int64, error) {
	b, err := f.inode(id)
	if err != nil {
		return nil, 0, err
	}
	if b[11]&attrDir != 0 {
		return nil, 0, fmt.Errorf("read a directory: %w", fs.ErrInvalid)
	}
	size := int64(binary.LittleEndian.Uint32(b[28:]))
	c, err := f.chains.Follow(f.table, f.firstCluster(b), uint32(f.table.Count(size)))
	return c, size, err
}

// Extents implements fsys.FileSystem.
func (f *FS) Extents(id fsys.ID, off, n int64) ([]fsys.Extent, error) {
	c, size, err := f.file(id)
	if err != nil || off < 0 || off >= size {
		return nil, err
	}
	return c.Extents(off, min(n, size-off))
}

// ReadAt implements fsys.FileSystem.
func (f *FS) ReadAt(id fsys.ID, p []byte, off int64) (int, error) {
	c, size, err := f.file(id)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, errors.New("read before the start of a file")
	}
	n := int(max(0, min(int64(len(p)), size-off)))
	if err := c.ReadAt(f.vol, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// RecordsComeLate implements fsys.Late.
func (f *FS) RecordsComeLate() {}

// Inode implements fsys.Inodes. A directory's entry does not change when the
// directory does.
func (f *FS) Inode(id fsys.ID) (off, n int64, err error) {
	b, err := f.inode(id)
	if err == nil && b[11]&attrDir != 0 {
		err = fmt.Errorf("record of a directory: %w", fsys.ErrUnsupported)
	}
	return int64(id) * entrySize, entrySize, err
}
