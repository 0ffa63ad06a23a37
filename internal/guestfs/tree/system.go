// Package tree makes one tree of the file systems of a machine, as the guest saw
// it, and one by position: disk-0/p1/…. It resolves paths, walks, finds and
// compares. It works on open file systems and knows nothing of processes, sockets
// or backups.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// Volume is a place in which there may be a file system.
type Volume struct {
	// Path is where it stands by position: disk-0/p1, disk-0/vg0/root, disk-0/fs.
	Path string `cbor:"1,keyasint" json:"path"`
	// Type is what it holds, as blkid calls it; empty if that is not known.
	Type  string `cbor:"2,keyasint" json:"type,omitempty"`
	Label string `cbor:"3,keyasint" json:"label,omitempty"`
	UUID  string `cbor:"4,keyasint" json:"uuid,omitempty"`
	Size  int64  `cbor:"5,keyasint" json:"size"` // bytes
	// Refusal says why it cannot be read, in a sentence. Empty if it can, or if
	// nobody has tried yet.
	Refusal string `cbor:"6,keyasint" json:"refusal,omitempty"`
	// Notes say what an operator should know of it and its file system.
	Notes []string `cbor:"7,keyasint" json:"notes,omitempty"`
	// Mounted is where the guest has it in its tree; empty if nowhere.
	Mounted string `cbor:"8,keyasint" json:"mounted,omitempty"`
	// PartUUID and Devices are further names by which an fstab may call it, such as
	// /dev/mapper/vg0-root.
	PartUUID string   `cbor:"9,keyasint" json:"part_uuid,omitempty"`
	Devices  []string `cbor:"10,keyasint" json:"devices,omitempty"`
	// Free is how many bytes of the file system are free; -1: not known.
	Free int64 `cbor:"11,keyasint" json:"free"`
	// Locked says that it is encrypted, and a passphrase that was not given may
	// unlock it.
	Locked bool `cbor:"12,keyasint" json:"locked,omitempty"`

	Device fsys.Volume `cbor:"-" json:"-"` // nil: it cannot be read
	Start  int64       `cbor:"-" json:"-"` // first byte on the disk, of a partition
}

// place is what else is known of a Volume, and told to nobody.
type place struct {
	notes     []string // before those of its file system
	devices   []string // before those of a crypttab
	refusal   string   // of the scan
	err       error    // why the scan could not read it; nil: it could, or the reason is another
	container []string // names by which a crypttab may call the container that it is, or is the inside of
	// parts are those of a file system on several volumes, this one first.
	parts []part
}

// part is a volume on which a part of a file system lies.
type part struct {
	path   string // by position
	uuid   string // of the part
	volume fsys.Volume
}

// Opener opens the file system of a type; subvolume chooses one of several, where the
// file system has such: by a path that begins with a slash, or by number. One that lies on several volumes may take
// some of others, which hold something of the same type. It returns those that its
// extents name, as if each followed the one before it.
type Opener func(v fsys.Volume, others []fsys.Volume, fsType, subvolume string) (f fsys.FileSystem, on []fsys.Volume, err error)

// Node is an inode of one of the file systems. The zero Node is the top of the
// tree by position.
type Node struct {
	// FS is 0 in the tree by position. Else it is a number of the file system, which
	// is the same in every process: an even one where it is reached by position, the
	// odd one behind it in the guest's own tree, where others are mounted on it.
	FS int     `cbor:"1,keyasint"`
	ID fsys.ID `cbor:"2,keyasint"`
}

// System is what the disks of a machine hold. Its methods may be called
// concurrently.
type System struct {
	open    Opener
	disks   []volume.Disk
	names   *names
	root    Node
	hasRoot bool
	lost    error // what kept the guest's own tree from being found, of the disks
	os      OS
	drives  []drive // of Windows
	places  []place // by number of the volume
	notes   []string

	mu      sync.Mutex // guards the fields below
	hives   []openHive // those used last
	volumes []Volume
	mounted map[int]*mounted // by the even number
	over    map[Node]Node    // directories on which something is mounted
}

// Open makes a System of what a scan found on disks. It reads what it takes to find
// the guest's own tree; whatever is wrong with one volume leaves the others alone.
func Open(disks []volume.Disk, nodes []*volume.Node, open Opener) *System {
	s := &System{open: open, disks: disks, over: map[Node]Node{}, mounted: map[int]*mounted{}}
	s.volumes, s.places, s.notes = collect(disks, nodes)
	for i := range s.volumes {
		s.volumes[i].Free = -1
		s.mountIndex(i, "")
	}
	s.names = newNames(s.volumes)
	s.assemble()
	return s
}

// Volumes returns what was found, with what was learnt of it by now.
func (s *System) Volumes() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Volume(nil), s.volumes...)
}

// Notes are about what is no volume of its own: disks with partition tables, volume
// groups, arrays and their members.
func (s *System) Notes() []string { return s.notes }

// OS says what runs on the machine.
func (s *System) OS() OS { return s.os }

// Stat returns the attributes of a node.
func (s *System) Stat(n Node) (fsys.Attr, error) {
	if n.FS == 0 {
		return s.names.stat(n.ID)
	}
	f, id, err := s.inode(n)
	if err != nil {
		return fsys.Attr{}, err
	}
	return f.Stat(id)
}

// Lookup returns what a name in a directory stands for.
func (s *System) Lookup(dir Node, name string) (Node, error) {
	if dir.FS == 0 {
		return s.lookupName(dir.ID, name)
	}
	if n, ok := s.drive(dir, name); ok {
		return n, nil
	}
	f, id, err := s.inode(dir)
	if err != nil {
		return Node{}, err
	}
	id, err = f.Lookup(id, name)
	if err != nil {
		return Node{}, err
	}
	return s.crossed(Node{dir.FS, id}), nil
}

// Entry is a name in a directory.
type Entry struct {
	Name string      `cbor:"1,keyasint"`
	Node Node        `cbor:"2,keyasint"`
	Type fs.FileMode `cbor:"3,keyasint"` // type bits, or fs.ModeIrregular if not known
}

// ReadDir returns the entries of a directory, in the order of the disk. An error
// beside them says that some are missing.
func (s *System) ReadDir(dir Node) ([]Entry, error) {
	list, err := s.entries(dir)
	return s.shown(dir, list), err
}

// shown returns entries of a directory with what is mounted on them.
func (s *System) shown(dir Node, list []Entry) []Entry {
	shown := slices.Clone(list)
	for i := range shown {
		shown[i].Node = s.crossed(shown[i].Node)
	}
	return append(shown, s.driveEntries(dir)...)
}

// entries is ReadDir of one file system.
func (s *System) entries(dir Node) ([]Entry, error) {
	if dir.FS == 0 {
		return s.readNames(dir.ID)
	}
	f, id, err := s.inode(dir)
	if err != nil {
		return nil, err
	}
	var list []Entry
	bad := 0
	err = f.ReadDir(id, func(e fsys.Entry) bool {
		if !validName(e.Name) {
			bad++
			return true
		}
		list = append(list, Entry{e.Name, Node{dir.FS, e.ID}, e.Type})
		return true
	})
	if bad > 0 {
		err = errors.Join(err, fmt.Errorf("%d entries with names that no path can have: %w", bad, fsys.ErrCorrupt))
	}
	return list, err
}

// validName keeps out what no path can name: an entry that calls itself "..", or
// has a slash in it, is not shown to anybody.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && strings.IndexByte(name, '/') < 0 && strings.IndexByte(name, 0) < 0
}

// Readlink returns the target of a symbolic link.
func (s *System) Readlink(n Node) (string, error) {
	f, id, err := s.inode(n)
	if err != nil {
		return "", err
	}
	return f.Readlink(id)
}

// Xattrs returns extended attributes.
func (s *System) Xattrs(n Node) ([]fsys.Xattr, error) {
	if n.FS == 0 {
		return nil, nil
	}
	f, id, err := s.inode(n)
	if err != nil {
		return nil, err
	}
	return f.Xattrs(id)
}

// ReadAt reads content, as fsys.FileSystem does.
func (s *System) ReadAt(n Node, p []byte, off int64) (int, error) {
	f, id, err := s.inode(n)
	if err != nil {
		return 0, err
	}
	return f.ReadAt(id, p, off)
}

// Extent is a run of content with its place on a disk of the machine.
type Extent struct {
	Kind fsys.Kind `cbor:"1,keyasint"`
	Len  int64     `cbor:"2,keyasint"`
	Disk int       `cbor:"3,keyasint"` // of Data: its Index
	At   int64     `cbor:"4,keyasint"` // byte of that disk
}

// maxExtents is how many extents are enough for one answer.
const maxExtents = 8192

// Extents returns where content lies on the disks of the machine, from off on. It
// may return fewer than there are.
func (s *System) Extents(n Node, off, length int64) ([]Extent, error) {
	f, id, err := s.inode(n)
	if err != nil {
		return nil, err
	}
	list, err := f.Extents(id, off, length)
	if err != nil {
		return nil, err
	}
	located, _ := s.device(n.FS).(volume.Located)
	var exts []Extent
	for _, e := range list {
		if len(exts) >= maxExtents {
			break
		}
		if e.Len <= 0 || e.Off != off {
			return nil, errors.New("the file system gives extents that do not follow each other")
		}
		off += e.Len
		switch {
		case e.Kind == fsys.Data && located != nil:
			pieces, err := located.Locate(e.At, e.Len)
			if err != nil {
				return nil, err
			}
			covered := int64(0)
			for _, p := range pieces {
				x := Extent{Kind: fsys.Data, Len: p.Len, Disk: p.Disk, At: p.Off}
				if p.Disk == volume.Zeroes {
					x = Extent{Kind: fsys.Hole, Len: p.Len}
				}
				exts = append(exts, x)
				covered += p.Len
			}
			if covered < e.Len {
				return exts, nil
			}
		case e.Kind == fsys.Data:
			exts = append(exts, Extent{Kind: fsys.Opaque, Len: e.Len})
		default:
			exts = append(exts, Extent{Kind: e.Kind, Len: e.Len})
		}
	}
	return exts, nil
}
