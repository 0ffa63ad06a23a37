package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Offsets in root items: "Root item" of the on-disk format.
const (
	rootGeneration = 160
	rootDirID      = 168
	rootBytenr     = 176
	rootRefs       = 216
	rootLevel      = 238
	rootMinSize    = 239
)

// parseRoot returns where the tree of a root item begins.
func parseRoot(b []byte) (blockRef, error) {
	if len(b) < rootMinSize || b[rootLevel] >= maxLevel {
		return blockRef{}, fmt.Errorf("root item of %d bytes: %w", len(b), fsys.ErrCorrupt)
	}
	return blockRef{le64(b[rootBytenr:]), le64(b[rootGeneration:]), b[rootLevel]}, nil
}

// tree returns the tree with a number, as it was committed.
func (s *store) tree(id uint64) (*tree, []byte, error) {
	k, b, err := s.root.floor(key{id, rootItem, maxOffset})
	if err == nil && (k.object != id || k.kind != rootItem) {
		err = fmt.Errorf("tree %d: %w", int64(id), fs.ErrNotExist)
	}
	if err != nil {
		return nil, nil, err
	}
	ref, err := parseRoot(b)
	if err != nil {
		return nil, nil, fmt.Errorf("tree %d: %w", int64(id), err)
	}
	return &tree{store: s, id: id, root: ref}, b, nil
}

// subvolume returns the tree of a subvolume, changed by the log if there is one.
func (s *store) subvolume(id uint64) (*tree, error) {
	if t, ok := s.subvolumes.Get(id); ok {
		return t, nil
	}
	if id != topLevelID && id < firstFreeID {
		return nil, fmt.Errorf("subvolume %d: %w", id, fs.ErrNotExist)
	}
	if _, err := pack(id, firstFreeID); err != nil {
		return nil, err
	}
	t, b, err := s.tree(id)
	if err != nil {
		return nil, err
	}
	if le32(b[rootRefs:]) == 0 {
		return nil, fmt.Errorf("subvolume %d was deleted: %w", id, fs.ErrNotExist)
	}
	if dir := le64(b[rootDirID:]); dir != firstFreeID {
		return nil, fmt.Errorf("subvolume %d with topmost directory %d: %w", id, dir, fsys.ErrCorrupt)
	}
	t.delta = s.replayed[id]
	s.subvolumes.Put(id, t, 1)
	return t, nil
}

// defaultSubvolume returns the number of the subvolume that is mounted without
// options: the directory of the root tree names it.
func (s *store) defaultSubvolume() (uint64, error) {
	name := []byte("default")
	b, err := s.root.get(key{s.super.rootDir, dirItem, nameHash(name)})
	if errors.Is(err, fs.ErrNotExist) {
		return topLevelID, nil
	}
	if err != nil {
		return 0, err
	}
	e, ok, err := findEntry(b, name)
	if err != nil {
		return 0, fmt.Errorf("default subvolume: %w", err)
	}
	if !ok {
		return topLevelID, nil
	}
	return e.location.object, nil
}

// OpenSubvolumeID shows the subvolume with a number, as mount's subvolid does: 5 is
// the one that all others hang below. IDs mean the same in all subvolumes. It
// returns fs.ErrNotExist if there is no such subvolume.
func (f *FS) OpenSubvolumeID(id uint64) (*FS, error) {
	if id == 0 {
		id = topLevelID
	}
	if _, err := f.store.subvolume(id); err != nil {
		return nil, err
	}
	top, err := pack(id, firstFreeID)
	if err != nil {
		return nil, err
	}
	return &FS{store: f.store, top: top}, nil
}

// OpenSubvolume shows the subvolume at a path from the topmost subvolume, as
// mount's subvol does, with or without a slash in front. It returns fs.ErrNotExist
// if there is nothing at the path, fs.ErrInvalid if that is no subvolume.
func (f *FS) OpenSubvolume(path string) (*FS, error) {
	at, err := f.OpenSubvolumeID(topLevelID)
	if err != nil {
		return nil, err
	}
	id := at.top
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if id, err = f.Lookup(id, name); err != nil {
			return nil, fmt.Errorf("subvolume %q: %w", path, err)
		}
	}
	tree, number := unpack(id)
	if number != firstFreeID || id&emptyDir != 0 {
		return nil, fmt.Errorf("%q is no subvolume: %w", path, fs.ErrInvalid)
	}
	return f.OpenSubvolumeID(tree)
}
