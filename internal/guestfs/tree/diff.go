package tree

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Change is what differs between two states of a machine.
type Change struct {
	Path string    `cbor:"1,keyasint"` // below where the comparison began
	What What      `cbor:"2,keyasint"`
	Old  fsys.Attr `cbor:"3,keyasint"` // of what was added: none
	New  fsys.Attr `cbor:"4,keyasint"` // of what was removed: none
	Err  string    `cbor:"5,keyasint"` // why it could not be compared
}

// What happened to a path.
type What string

// What may have happened to a path.
const (
	Added   What = "added"
	Removed What = "removed"
	Changed What = "changed"    // its content, target or type
	Touched What = "attributes" // owner, mode, times, links, extended attributes
	Unknown What = "unreadable"
)

// Dirty tells whether a range of a disk differs between the two states. Nil means
// that nothing is known: everything is compared.
type Dirty func(disk int, off, n int64) bool

// differ compares two Systems.
type differ struct {
	old, new *System
	dirty    Dirty
	goOn     func() error
	visit    func(Change) error
	inside   map[Node]bool

	oldRecords, newRecords *records
}

// Diff calls visit for each path at or below a and b that differs, a being of s
// and older than b of other, in the order of names. Inodes whose records are
// what they were are taken to be so, too. goOn is asked at each path, and ends it with
// an error.
func (s *System) Diff(a Node, other *System, b Node, dirty Dirty, goOn func() error, visit func(Change) error) error {
	d := &differ{old: s, new: other, dirty: dirty, goOn: goOn, visit: visit, inside: map[Node]bool{},
		oldRecords: &records{s, map[int]*table{}}, newRecords: &records{other, map[int]*table{}}}
	return d.pair(".", a, b, fs.ModeIrregular)
}

// same reports that an inode is surely the same in both states, with all that it
// says of its content.
func (d *differ) same(a, b Node) bool {
	if d.dirty == nil || a != b || a.FS == 0 {
		return false
	}
	x, ok := d.oldRecords.of(a)
	if !ok {
		return false
	}
	y, ok := d.newRecords.of(b)
	if !ok || x.disk != y.disk || x.at != y.at || x.n != y.n {
		return false
	}
	// What differs is told by clusters, which hold many records.
	return !d.dirty(x.disk, x.at, x.n) || equal(x, y)
}

// pair compares what a path stands for in both states. kind is its type in both,
// if that is known and the same.
func (d *differ) pair(name string, a, b Node, kind fs.FileMode) error {
	if err := d.goOn(); err != nil {
		return err
	}
	same := d.same(a, b)
	if same && kind == fs.ModeDir {
		return d.dirs(name, a, b, true)
	}
	if same && kind != fs.ModeIrregular && !d.suspect(a, kind) {
		return nil
	}
	x, xErr := d.old.Stat(a)
	y, yErr := d.new.Stat(b)
	if err := errors.Join(xErr, yErr); err != nil {
		return d.visit(Change{Path: name, What: Unknown, Old: x, New: y, Err: err.Error()})
	}
	what := What("")
	if !same {
		what = d.compare(a, b, x, y)
	}
	if what != Changed && a == b && d.late(a, x.Mode.Type()) {
		rewritten, err := d.rewritten(a, min(x.Size, y.Size))
		if err != nil {
			return d.visit(Change{Path: name, What: Unknown, Old: x, New: y, Err: err.Error()})
		}
		if rewritten {
			what = Changed
		}
	}
	if what != "" {
		if err := d.visit(Change{Path: name, What: what, Old: x, New: y}); err != nil {
			return err
		}
	}
	if x.Mode.IsDir() && y.Mode.IsDir() {
		return d.dirs(name, a, b, same)
	}
	if err := d.whole(name, d.old, a, x, Removed); err != nil {
		return err
	}
	return d.whole(name, d.new, b, y, Added)
}

// late reports whether content of a file may differ though its record does not.
func (d *differ) late(n Node, kind fs.FileMode) bool {
	if d.dirty == nil || n.FS == 0 || kind != 0 {
		return false
	}
	f, err := d.new.fsAt(n.FS)
	_, ok := f.(fsys.Late)
	return err == nil && ok
}

// suspect reports whether content of a file lies where the disks differ, though its
// record says that it is what it was, which may come late.
func (d *differ) suspect(n Node, kind fs.FileMode) bool {
	if !d.late(n, kind) {
		return false
	}
	for off := int64(0); ; {
		exts, err := d.new.Extents(n, off, math.MaxInt64-off)
		if err != nil {
			return true
		}
		if len(exts) == 0 {
			return false
		}
		for _, e := range exts {
			if e.Kind == fsys.Data && d.dirty(e.Disk, e.At, e.Len) {
				return true
			}
			off += e.Len
		}
	}
}

// rewritten reports whether the first size bytes of a file are others. Content that
// is compressed is taken to be the same.
func (d *differ) rewritten(n Node, size int64) (bool, error) {
	for off := int64(0); off < size; {
		exts, err := d.new.Extents(n, off, size-off)
		if err != nil || len(exts) == 0 {
			return false, err
		}
		for _, e := range exts {
			if e.Kind == fsys.Data && d.dirty(e.Disk, e.At, e.Len) {
				if other, err := d.differs(n, off, e); other || err != nil {
					return other, err
				}
			}
			off += e.Len
		}
	}
	return false, nil
}

// differs reads what an extent of a file holds from off on, where clusters differ:
// these hold content of its neighbours, too.
func (d *differ) differs(n Node, off int64, e Extent) (bool, error) {
	const piece = 64 << 10
	p, q := make([]byte, min(piece, e.Len)), make([]byte, min(piece, e.Len))
	for at := int64(0); at < e.Len; at += piece {
		k := min(piece, e.Len-at)
		if !d.dirty(e.Disk, e.At+at, k) {
			continue
		}
		_, xErr := d.old.ReadAt(n, p[:k], off+at)
		_, yErr := d.new.ReadAt(n, q[:k], off+at)
		if err := errors.Join(notEOF(xErr), notEOF(yErr)); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:k], q[:k]) {
			return true, nil
		}
	}
	return false, nil
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// whole reports everything below a directory that has become something else.
func (d *differ) whole(name string, s *System, n Node, a fsys.Attr, what What) error {
	if !a.Mode.IsDir() {
		return nil
	}
	return s.Walk(n, func(below string, _ Node, a fsys.Attr, err error) (bool, error) {
		if below == "." {
			return false, nil
		}
		return false, d.visit(change(path.Join(name, below), what, a, err))
	})
}

func change(name string, what What, a fsys.Attr, err error) Change {
	c := Change{Path: name, What: what, New: a}
	if what == Removed {
		c.Old, c.New = a, fsys.Attr{}
	}
	if err != nil {
		c.What, c.Err = Unknown, err.Error()
	}
	return c
}

// compare says what differs between two inodes; empty if nothing does.
func (d *differ) compare(a, b Node, x, y fsys.Attr) What {
	switch {
	case x.Mode.Type() != y.Mode.Type():
		return Changed
	case x.Mode.IsRegular() && (x.Size != y.Size || !x.Modified.Equal(y.Modified) || a.ID != b.ID):
		return Changed
	case x.Mode.Type() == fs.ModeSymlink:
		s, sErr := d.old.Readlink(a)
		t, tErr := d.new.Readlink(b)
		if s != t || sErr != nil || tErr != nil {
			return Changed
		}
	case x.Mode.Type()&fs.ModeDevice != 0 && (x.Major != y.Major || x.Minor != y.Minor):
		return Changed
	}
	if x.Mode != y.Mode || x.UID != y.UID || x.GID != y.GID || !x.Mode.IsDir() && (!x.Modified.Equal(y.Modified) || !x.Changed.Equal(y.Changed) ||
		x.Links != y.Links) {
		return Touched
	}
	return ""
}

// dirs compares the entries of two directories. Those of one that is the same are
// read once.
func (d *differ) dirs(name string, a, b Node, same bool) error {
	if d.inside[b] {
		return d.visit(Change{Path: name, What: Unknown, Err: errLoop.Error()})
	}
	d.inside[b] = true
	defer delete(d.inside, b)
	x, xErr := d.old.entries(a)
	y, yErr := x, xErr
	if same && xErr == nil {
		x = slices.DeleteFunc(x, func(e Entry) bool {
			return e.Type != fs.ModeDir && e.Type != fs.ModeIrregular && d.same(e.Node, e.Node) && !d.suspect(e.Node, e.Type)
		})
		y = x
	} else {
		y, yErr = d.new.entries(b)
	}
	// What is mounted on them may differ where they do not.
	x, y = d.old.shown(a, x), d.new.shown(b, y)
	sortEntries(x)
	sortEntries(y)
	if err := errors.Join(xErr, yErr); err != nil {
		if err := d.visit(Change{Path: name, What: Unknown, Err: err.Error()}); err != nil {
			return err
		}
	}
	for len(x) > 0 || len(y) > 0 {
		var err error
		switch {
		case len(y) == 0 || len(x) > 0 && x[0].Name < y[0].Name:
			err = d.alone(path.Join(name, x[0].Name), d.old, x[0].Node, Removed)
			x = x[1:]
		case len(x) == 0 || y[0].Name < x[0].Name:
			err = d.alone(path.Join(name, y[0].Name), d.new, y[0].Node, Added)
			y = y[1:]
		default:
			kind := fs.ModeIrregular
			if x[0].Type == y[0].Type {
				kind = x[0].Type
			}
			err = d.pair(path.Join(name, x[0].Name), x[0].Node, y[0].Node, kind)
			x, y = x[1:], y[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// alone reports what only one of the states has.
func (d *differ) alone(name string, s *System, n Node, what What) error {
	return s.Walk(n, func(below string, _ Node, a fsys.Attr, err error) (bool, error) {
		return false, d.visit(change(path.Join(name, below), what, a, err))
	})
}

// sortEntries puts entries into the order of names.
func sortEntries(list []Entry) {
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
}
