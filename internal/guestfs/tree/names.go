package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// names is the tree by position: directories that exist only to lead to file
// systems. Node 0 is its top.
type names struct {
	dirs []nameDir
}

type nameDir struct {
	entries []nameEntry
}

// nameEntry leads to another directory of names, or to a volume.
type nameEntry struct {
	name   string
	dir    fsys.ID
	volume int // -1: none
}

func newNames(volumes []Volume) *names {
	n := &names{dirs: []nameDir{{}}}
	for i, v := range volumes {
		at := fsys.ID(0)
		parts := strings.Split(v.Path, "/")
		for _, part := range parts[:len(parts)-1] {
			at = n.child(at, part)
		}
		n.dirs[at].entries = append(n.dirs[at].entries, nameEntry{name: parts[len(parts)-1], volume: i})
	}
	return n
}

// child returns the directory that name stands for, which it makes if need be. It takes
// the place of a volume, which can only be one that cannot be read.
func (n *names) child(dir fsys.ID, name string) fsys.ID {
	i := slices.IndexFunc(n.dirs[dir].entries, func(e nameEntry) bool { return e.name == name })
	if i >= 0 && n.dirs[dir].entries[i].volume < 0 {
		return n.dirs[dir].entries[i].dir
	}
	id := fsys.ID(len(n.dirs))
	n.dirs = append(n.dirs, nameDir{})
	if i < 0 {
		n.dirs[dir].entries = append(n.dirs[dir].entries, nameEntry{name, id, -1})
	} else {
		n.dirs[dir].entries[i] = nameEntry{name, id, -1}
	}
	return id
}

func (n *names) stat(id fsys.ID) (fsys.Attr, error) {
	if id >= fsys.ID(len(n.dirs)) {
		return fsys.Attr{}, fs.ErrNotExist
	}
	return fsys.Attr{Mode: fs.ModeDir | 0o555, Links: 2}, nil
}

// lookupName returns what a name by position leads to.
func (s *System) lookupName(dir fsys.ID, name string) (Node, error) {
	if dir >= fsys.ID(len(s.names.dirs)) {
		return Node{}, fs.ErrNotExist
	}
	for _, e := range s.names.dirs[dir].entries {
		if e.name != name {
			continue
		}
		if e.volume < 0 {
			return Node{ID: e.dir}, nil
		}
		return s.rootOf(s.mountIndex(e.volume, ""))
	}
	return Node{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// readNames lists names by position. Volumes without a readable file system are
// not among them: opening one says why it cannot be read. The error beside them is of
// those that the disks fail for.
func (s *System) readNames(dir fsys.ID) ([]Entry, error) {
	if dir >= fsys.ID(len(s.names.dirs)) {
		return nil, fs.ErrNotExist
	}
	var list []Entry
	var lost error
	for _, e := range s.names.dirs[dir].entries {
		n := Node{ID: e.dir}
		if e.volume >= 0 {
			root, err := s.rootOf(s.mountIndex(e.volume, ""))
			if errors.Is(err, fsys.ErrVolume) {
				lost = errors.Join(lost, err)
			}
			if err != nil {
				continue
			}
			n = root
		}
		list = append(list, Entry{e.name, n, fs.ModeDir})
	}
	return list, lost
}
