// Package exfat reads exFAT by Microsoft's "exFAT file system specification". TexFAT
// is refused.
//
// Times without an offset from UTC, as old writers leave them, are taken for UTC. An
// inode is numbered by where its directory entry lies. The package knows nothing of
// partitions.
package exfat

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options of a reader.
type Options struct {
	// CacheBytes is what the cache of structures takes; default 16 MiB, none if
	// less than 0.
	CacheBytes int64
}

// FS is an exFAT file system.
type FS struct {
	vol    fsys.Volume // content
	meta   fsys.Volume // the same, cached
	boot   boot
	table  *cluster.Table
	chains cluster.Cache
	upcase *upcase
	info   fsys.Info
}

var (
	_ fsys.FileSystem = (*FS)(nil)
	_ fsys.Late       = (*FS)(nil)
)

// errStop ends the reading of a directory.
var errStop = errors.New("stop")

// Open opens the file system of a volume.
func Open(v fsys.Volume) (fsys.FileSystem, error) { return OpenWith(v, Options{}) }

// OpenWith opens the file system of a volume.
func OpenWith(v fsys.Volume, o Options) (fsys.FileSystem, error) {
	b, err := readBoot(v)
	if err != nil {
		return nil, fmt.Errorf("exfat: %w", err)
	}
	f := &FS{vol: v, meta: v, boot: b}
	if o.CacheBytes >= 0 {
		f.meta = fsys.Cached(v, cmp.Or(o.CacheBytes, 16<<20))
	}
	f.table = &cluster.Table{Volume: f.meta, At: b.table, Bits: 32, Mask: 1<<32 - 1, Heap: b.heap, Size: b.cluster, Clusters: b.clusters}
	f.info = fsys.Info{
		Type: "exfat", BlockSize: b.cluster, Size: int64(b.clusters) * b.cluster, Free: -1, FoldsCase: true,
		UUID: fmt.Sprintf("%04X-%04X", b.serial>>16, b.serial&0xffff), Notes: f.notes(),
	}
	f.system()
	return f, nil
}

// notes tells of the state of the volume.
func (f *FS) notes() []string {
	var notes []string
	if f.boot.flags&volumeDirty != 0 {
		notes = append(notes, "The file system was not unmounted: what was being written may be incomplete.")
	}
	if f.boot.flags&mediaFailure != 0 {
		notes = append(notes, "The file system has recorded errors of its medium.")
	}
	if f.boot.fromBackup {
		notes = append(notes, fmt.Sprintf("The backup of the boot region is in use: %v.", f.boot.fromBackups))
	}
	if f.boot.end > f.vol.Size() {
		notes = append(notes, fmt.Sprintf("The volume ends %d bytes before the file system does.", f.boot.end-f.vol.Size()))
	}
	return notes
}

// maxSystem is how much of the root directory is searched for what describes the
// volume, in entries. It stands at the beginning.
const maxSystem = 32 << 10

// system reads what the root directory holds beside files: the label, the up-case
// table and the allocation bitmap. Files can be read without any of them.
func (f *FS) system() {
	errs := map[string]error{"The up-case table": fs.ErrNotExist, "The allocation bitmap": fs.ErrNotExist}
	c, err := f.chains.Follow(f.table, f.boot.root, cluster.All)
	seen, n := 0, 0
	// A root directory that cannot be read will tell so when it is listed.
	rawErr := f.raw(c, func(b []byte, _ int64) bool {
		switch b[0] {
		case typeBitmap:
			f.info.Free, errs["The allocation bitmap"] = f.free(b)
			seen++
		case typeUpcase:
			errs["The up-case table"] = f.readUpcase(b)
			seen++
		case typeLabel:
			units := make([]uint16, min(int(b[1]), 11))
			for i := range units {
				units[i] = binary.LittleEndian.Uint16(b[2+2*i:])
			}
			f.info.Label = string(utf16.Decode(units))
			seen++
		}
		n++
		return seen < 3 && n < maxSystem
	})
	if rawErr == errStop {
		rawErr = nil
	}
	if f.upcase == nil {
		f.upcase = defaultUpcase()
	}
	for _, what := range []string{"The up-case table", "The allocation bitmap"} {
		e := errs[what]
		if e == fs.ErrNotExist {
			e = cmp.Or(rawErr, err, e)
		}
		if e != nil {
			f.info.Notes = append(f.info.Notes, fmt.Sprintf("%s cannot be read: %v.", what, e))
		}
	}
}

// readUpcase reads the up-case table that an entry tells of.
func (f *FS) readUpcase(b []byte) error {
	size := binary.LittleEndian.Uint64(b[24:])
	if size > maxUpcase {
		return fmt.Errorf("it has %d bytes: %w", size, fsys.ErrCorrupt)
	}
	table := make([]byte, size)
	c, err := f.table.Follow(binary.LittleEndian.Uint32(b[20:]), uint32(f.table.Count(int64(size))))
	if err != nil {
		return err
	}
	if err := c.ReadAt(f.meta, table, 0); err != nil {
		return err
	}
	u, err := parseUpcase(table, binary.LittleEndian.Uint32(b[4:]))
	if err == nil {
		f.upcase = u
	}
	return err
}

// maxBitmap is how large an allocation bitmap may be to be counted: reading that of
// a volume of many TiB takes longer than the number is worth.
const maxBitmap = 16 << 20

// free counts the bytes that are free by the bitmap that an entry tells of.
func (f *FS) free(b []byte) (int64, error) {
	n := int64(f.table.Clusters)
	size := (n + 7) / 8
	if size > maxBitmap {
		return -1, nil
	}
	if has := binary.LittleEndian.Uint64(b[24:]); has < uint64(size) {
		return -1, fmt.Errorf("it has %d of %d bytes: %w", has, size, fsys.ErrCorrupt)
	}
	c, err := f.table.Follow(binary.LittleEndian.Uint32(b[20:]), uint32(f.table.Count(size)))
	if err != nil {
		return -1, err
	}
	buf := make([]byte, min(size, 1<<20))
	used := int64(0)
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := c.ReadAt(f.vol, buf, off); err != nil {
			return -1, err
		}
		if off+int64(len(buf)) == size && n%8 != 0 {
			buf[len(buf)-1] &= 1<<(n%8) - 1
		}
		for _, x := range buf {
			used += int64(bits.OnesCount8(x))
		}
	}
	return (n - used) * f.table.Size, nil
}

// Info implements fsys.FileSystem.
func (f *FS) Info() fsys.Info { return f.info }

// Root implements fsys.FileSystem.
func (f *FS) Root() fsys.ID { return rootID }

// Stat implements fsys.FileSystem.
func (f *FS) Stat(id fsys.ID) (fsys.Attr, error) {
	if id == rootID {
		c, _, _ := f.dirChain(id) // told when it is listed
		size := c.Len() * f.table.Size
		return fsys.Attr{Mode: fs.ModeDir | 0o755, Links: 1, Size: size, Allocated: size}, nil
	}
	s, _, err := f.inode(id)
	if err != nil {
		return fsys.Attr{}, err
	}
	if f.table.Count(s.size()) > int64(f.table.Clusters) {
		return fsys.Attr{}, fmt.Errorf("%d bytes in %d clusters: %w", s.size(), f.table.Clusters, fsys.ErrCorrupt)
	}
	a := fsys.Attr{
		Mode: 0o755, Links: 1, Size: s.size(), Allocated: f.table.Count(s.size()) * f.table.Size,
		Created: s.created(), Modified: s.modified(), Accessed: s.accessed(),
	}
	for _, x := range []struct {
		bit  uint16
		name string
	}{{attrReadOnly, "read-only"}, {attrHidden, "hidden"}, {attrSystem, "system"}, {attrArchive, "archive"}} {
		if s.attributes()&x.bit != 0 {
			a.Flags = append(a.Flags, x.name)
		}
	}
	if s.isDir() {
		a.Mode |= fs.ModeDir
	} else if s.attributes()&attrReadOnly != 0 {
		a.Mode &^= 0o222
	}
	return a, nil
}

// Lookup implements fsys.FileSystem. A name as it is written goes before one that
// differs in case.
func (f *FS) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	trimmed := strings.TrimRight(name, ".") // which names do not end in, but may be asked for with
	folded, found := f.upcase.foldText(trimmed), fsys.ID(0)
	err := f.sets(dir, func(_ set, units []uint16, as string, id fsys.ID) bool {
		switch {
		case as == name || as == trimmed:
			found = id
			return false
		case found == 0 && len(units) == len(folded) && slices.Equal(f.upcase.fold(units), folded):
			found = id
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
	return f.sets(dir, func(s set, _ []uint16, name string, id fsys.ID) bool {
		e := fsys.Entry{Name: name, ID: id}
		if s.isDir() {
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
