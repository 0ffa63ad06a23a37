// Package iso9660 reads the file system of optical discs: ECMA-119 with what the
// System Use Sharing Protocol (SUSP, IEEE P1281) and the Rock Ridge Interchange
// Protocol (RRIP, IEEE P1282) add to it, and Joliet. What Linux shows is shown: the
// tree of Rock Ridge if there is one, else that of Joliet, else plain names in lower
// case without version numbers.
//
// Files of several extents and files that zisofs compressed are read. Interleaved
// files, Rock Ridge's sparse files, discs in High Sierra format and UDF are refused;
// El Torito's boot records are passed over. An inode is numbered by where its
// directory record lies, so each name of a hard link has one of its own, as on
// Linux. The package knows nothing of partitions.
package iso9660

import (
	"cmp"
	"fmt"
	"io/fs"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options of a reader.
type Options struct {
	// CacheBytes is what the cache of structures takes; default 16 MiB, none if
	// less than 0.
	CacheBytes int64
}

// FS is the file system of a disc.
type FS struct {
	vol   fsys.Volume // content
	meta  fsys.Volume // the same, cached
	disc  disc
	block int64 // bytes
	root  fsys.ID
	// joliet and rock say which names are shown; neither: plain ones.
	joliet bool
	rock   bool
	skip   int // bytes of each system use field that come before the first entry
	info   fsys.Info

	mu   sync.Mutex // guards what follows
	last inflated
}

var _ fsys.FileSystem = (*FS)(nil)

// Open opens the file system of a volume.
func Open(v fsys.Volume) (fsys.FileSystem, error) { return OpenWith(v, Options{}) }

// OpenWith opens the file system of a volume.
func OpenWith(v fsys.Volume, o Options) (fsys.FileSystem, error) {
	d, err := readDisc(v)
	if err != nil {
		return nil, fmt.Errorf("iso9660: %w", err)
	}
	f := &FS{vol: v, meta: v, disc: d, block: d.primary.block}
	if o.CacheBytes >= 0 {
		f.meta = fsys.Cached(v, cmp.Or(o.CacheBytes, 16<<20))
	}
	if err := f.choose(); err != nil {
		return nil, fmt.Errorf("iso9660: read root directory: %w", err)
	}
	size := d.primary.blocks * d.primary.block
	f.info = fsys.Info{
		Type: "iso9660", Label: d.label(), UUID: d.uuid, BlockSize: f.block, Size: size, Notes: f.notes(size), FoldsCase: f.joliet,
	}
	return f, nil
}

// choose decides which of the trees is shown.
func (f *FS) choose() error {
	var err error
	if f.root, err = f.rootOf(f.disc.primary); err == nil {
		err = f.findRock()
	}
	if f.disc.joliet == nil {
		return err
	}
	// A disc whose first tree is broken or empty may have a sound second one.
	if err == nil && f.rock {
		if empty, err := f.empty(f.root); err == nil && !empty {
			return nil
		}
	}
	f.rock, f.joliet, f.block = false, true, f.disc.joliet.block
	f.root, err = f.rootOf(*f.disc.joliet)
	return err
}

// rootOf returns the root directory that a descriptor names.
func (f *FS) rootOf(d descriptor) (fsys.ID, error) {
	id := fsys.ID(d.root.start(d.block))
	_, err := f.record(id)
	return id, err
}

// findRock looks for what says that the tree has Rock Ridge: SP and ER in the system
// use field of the first record of the root directory (SUSP 5.3 and 5.5). Writers
// that leave ER out are believed if there is nothing but plain names otherwise.
func (f *FS) findRock() error {
	r, err := f.record(f.root)
	if err != nil {
		return err
	}
	area := r.systemUse()
	for _, skip := range []int{0, xaLen} {
		if len(area) < skip+7 || string(area[skip:skip+2]) != "SP" || area[skip+4] != 0xbe || area[skip+5] != 0xef {
			continue
		}
		f.rock = f.disc.joliet == nil
		err := f.entries(area[skip:], func(e entry) error {
			f.rock = f.rock || e.isRockRidge()
			return nil
		})
		f.skip = int(area[skip+6])
		return err
	}
	return nil
}

// notes tells of what is not shown.
func (f *FS) notes(size int64) []string {
	var notes []string
	if size > f.vol.Size() {
		notes = append(notes, fmt.Sprintf("The volume ends %d bytes before the file system does.", size-f.vol.Size()))
	}
	if f.disc.udf {
		notes = append(notes, "The volume holds UDF, too, which is not read: that may show more than this does.")
	}
	return notes
}

// Info implements fsys.FileSystem.
func (f *FS) Info() fsys.Info { return f.info }

// Root implements fsys.FileSystem.
func (f *FS) Root() fsys.ID { return f.root }

// Stat implements fsys.FileSystem.
func (f *FS) Stat(id fsys.ID) (fsys.Attr, error) {
	n, err := f.inode(id)
	if err != nil {
		return fsys.Attr{}, err
	}
	return n.attr, nil
}

// Readlink implements fsys.FileSystem.
func (f *FS) Readlink(id fsys.ID) (string, error) {
	n, err := f.inode(id)
	if err != nil {
		return "", err
	}
	if n.attr.Mode.Type() != fs.ModeSymlink {
		return "", fmt.Errorf("read link: inode %d is none: %w", id, fs.ErrInvalid)
	}
	return n.target.text()
}

// Xattrs implements fsys.FileSystem: Rock Ridge has none.
func (f *FS) Xattrs(fsys.ID) ([]fsys.Xattr, error) { return nil, nil }
