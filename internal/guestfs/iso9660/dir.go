package iso9660

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// name returns what a record is called.
func (f *FS) name(r record, k *rock) string {
	switch {
	case k.name != nil:
		return string(k.name)
	case f.joliet:
		return jolietName(r.name())
	}
	return plainName(r.name())
}

// plainName makes a name of a file identifier as Linux does: in lower case, without
// version 1 and without the dot that has nothing behind it (ECMA-119, 7.5).
func plainName(b []byte) string {
	if cut, ok := bytes.CutSuffix(b, []byte(";1")); ok {
		b = bytes.TrimSuffix(cut, []byte("."))
	}
	name := make([]byte, len(b))
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c == ';' || c == '/':
			c = '.'
		}
		name[i] = c
	}
	return string(name)
}

// jolietName makes a name of UCS-2, of which most writers make UTF-16.
func jolietName(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		units = append(units, be.Uint16(b))
	}
	s := strings.TrimSuffix(string(utf16.Decode(units)), ";1")
	for len(s) >= 2 && s[len(s)-1] == '.' {
		s = s[:len(s)-1]
	}
	return s
}

// dirEnd returns the bytes of the volume between which the records of a directory
// lie.
func (f *FS) dirEnd(id fsys.ID) (int64, error) {
	r, err := f.record(id)
	if err != nil {
		return 0, err
	}
	if r.flags()&flagDirectory == 0 {
		return 0, fmt.Errorf("inode %d is not a directory: %w", id, fs.ErrInvalid)
	}
	if err := f.checkDir(r, id); err != nil {
		return 0, err
	}
	return int64(id) + r.size(), nil
}

// checkDir verifies the first record of a directory.
func (f *FS) checkDir(r record, id fsys.ID) error {
	if !r.itself() || r.flags()&flagMore != 0 || int64(id)%f.block != 0 || r.size() > f.vol.Size()-int64(id) {
		return fmt.Errorf("a directory at byte %d that does not begin with itself: %w", id, fsys.ErrCorrupt)
	}
	return nil
}

// empty says whether a directory has nothing in it.
func (f *FS) empty(dir fsys.ID) (bool, error) {
	end, err := f.dirEnd(dir)
	if err != nil {
		return false, err
	}
	empty := true
	err = f.records(int64(dir), end, func(r record, _ int64) bool {
		empty = r.dots()
		return empty
	})
	return empty, err
}

// names calls yield for each name in a directory. What cannot be read is left out,
// and is an error at the end.
func (f *FS) names(dir fsys.ID, yield func(e fsys.Entry) bool) error {
	end, err := f.dirEnd(dir)
	if err != nil {
		return err
	}
	var bad error
	more := false // the record belongs to the file of the one before
	err = f.records(int64(dir), end, func(r record, at int64) bool {
		follows := more
		more = r.flags()&flagMore != 0
		if follows || r.dots() || r.flags()&flagAssociated != 0 {
			return true
		}
		e, shown, err := f.entry(r, at)
		if err != nil {
			bad = err
			return true
		}
		return !shown || yield(e)
	})
	if err == nil {
		err = bad
	}
	return err
}

// entry returns what a record stands for, unless that is shown elsewhere.
func (f *FS) entry(r record, at int64) (e fsys.Entry, shown bool, err error) {
	k, err := f.rockOf(r)
	if err != nil || k.relocated {
		return e, false, err
	}
	e = fsys.Entry{Name: f.name(r, &k), ID: fsys.ID(at)}
	switch {
	case k.isChild: // a directory that lies elsewhere (RRIP 4.1.5.1)
		e.ID, e.Type = fsys.ID(int64(k.child)*f.block), fs.ModeDir
	case r.flags()&flagDirectory != 0:
		e.ID, e.Type = fsys.ID(r.start(f.block)), fs.ModeDir
	case k.hasMode:
		e.Type = k.mode.Type()
	}
	return e, true, nil
}

// ReadDir implements fsys.FileSystem.
func (f *FS) ReadDir(dir fsys.ID, yield func(fsys.Entry) bool) error { return f.names(dir, yield) }

// Lookup implements fsys.FileSystem. Only Joliet folds case; a name as it is written
// goes before one that differs in that.
func (f *FS) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	var found fsys.ID
	err := f.names(dir, func(e fsys.Entry) bool {
		if e.Name == name {
			found = e.ID
			return false
		}
		if found == 0 && f.joliet && strings.EqualFold(e.Name, name) {
			found = e.ID
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
