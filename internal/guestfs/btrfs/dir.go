package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// entry is one name in a directory item or an item of extended attributes: "Dir
// item" of the on-disk format.
type entry struct {
	location   key
	kind       uint8
	name, data []byte
}

// eachEntry calls yield for each entry of an item until it returns false.
func eachEntry(b []byte, yield func(entry) bool) error {
	for len(b) > 0 {
		if len(b) < dirEntrySize {
			return fmt.Errorf("entry of %d bytes: %w", len(b), fsys.ErrCorrupt)
		}
		data, name := int(le16(b[25:])), int(le16(b[27:]))
		if len(b) < dirEntrySize+name+data || name == 0 {
			return fmt.Errorf("entry with a name of %d bytes, data of %d in %d: %w", name, data, len(b), fsys.ErrCorrupt)
		}
		e := entry{location: keyAt(b), kind: b[29], name: b[dirEntrySize : dirEntrySize+name]}
		b = b[dirEntrySize+name:]
		e.data, b = b[:data], b[data:]
		if !yield(e) {
			return nil
		}
	}
	return nil
}

// entryTypes are the types of entries by their number.
var entryTypes = []fs.FileMode{fs.ModeIrregular, 0, fs.ModeDir, fs.ModeDevice | fs.ModeCharDevice, fs.ModeDevice, fs.ModeNamedPipe,
	fs.ModeSocket, fs.ModeSymlink}

// validName says whether a file can have a name.
func validName(name []byte) bool {
	return len(name) <= 255 && !bytes.ContainsAny(name, "/\x00") && string(name) != "." && string(name) != ".."
}

// target returns what an entry of a directory stands for.
func (t *tree) target(dir uint64, e entry) (fsys.ID, error) {
	switch {
	case e.location.kind == rootItem:
		return t.nested(dir, e)
	case e.location.kind != inodeItem || e.location.object < firstFreeID:
		return 0, fmt.Errorf("entry %q of directory %d stands for %s: %w", e.name, dir, e.location, fsys.ErrCorrupt)
	}
	return pack(t.id, e.location.object)
}

// nested returns the topmost directory of the subvolume that an entry leads to, or
// the empty directory that is in its place: where a snapshot was made of the
// directory, the subvolume in it belongs to the original.
func (t *tree) nested(dir uint64, e entry) (fsys.ID, error) {
	here, err := pack(t.id, dir)
	if err != nil {
		return 0, err
	}
	ref, err := t.store.root.get(key{t.id, rootRef, e.location.object})
	if err == nil && (len(ref) < 18 || le64(ref) != dir || !bytes.Equal(ref[18:], e.name)) {
		err = fs.ErrNotExist
	}
	if err == nil {
		_, err = t.store.subvolume(e.location.object)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return here | emptyDir, nil
	}
	if err != nil {
		return 0, fmt.Errorf("subvolume %d at %q: %w", e.location.object, e.name, err)
	}
	return pack(e.location.object, firstFreeID)
}

// Lookup implements fsys.FileSystem.
func (f *FS) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	t, number, _, err := f.ofType(dir, fs.ModeDir, "directory")
	if err != nil {
		return 0, err
	}
	absent := fmt.Errorf("look up %q in directory %d: %w", name, number, fs.ErrNotExist)
	if dir&emptyDir != 0 || len(name) > 255 {
		return 0, absent
	}
	b, err := t.get(key{number, dirItem, nameHash([]byte(name))})
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = absent
		}
		return 0, err
	}
	found, ok, err := findEntry(b, []byte(name))
	if err != nil {
		return 0, fmt.Errorf("directory %d: %w", number, err)
	}
	if !ok {
		return 0, absent
	}
	return t.target(number, found)
}

// findEntry returns the entry of an item that has a name.
func findEntry(b, name []byte) (found entry, ok bool, err error) {
	err = eachEntry(b, func(e entry) bool {
		if ok = bytes.Equal(e.name, name); ok {
			found = e
		}
		return !ok
	})
	return found, ok, err
}

// ReadDir implements fsys.FileSystem.
func (f *FS) ReadDir(dir fsys.ID, yield func(fsys.Entry) bool) error {
	t, number, _, err := f.ofType(dir, fs.ModeDir, "directory")
	if err != nil || dir&emptyDir != 0 {
		return err
	}
	var bad error
	err = t.scan(key{number, dirIndex, 0}, key{number, dirIndex, maxOffset}, func(_ key, b []byte) (more bool) {
		more = true
		e := eachEntry(b, func(e entry) bool {
			if !validName(e.name) {
				bad = fmt.Errorf("the name %q: %w", e.name, fsys.ErrCorrupt)
				return true
			}
			id, err := t.target(number, e)
			if err != nil {
				bad = err
				return true
			}
			kind := fs.ModeIrregular
			if int(e.kind) < len(entryTypes) {
				kind = entryTypes[e.kind]
			}
			more = yield(fsys.Entry{Name: string(e.name), ID: id, Type: kind})
			return more
		})
		if e != nil {
			bad = e
		}
		return more
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return fmt.Errorf("directory %d: %w", number, err)
	}
	return nil
}
