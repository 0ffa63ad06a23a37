package xfs

import (
	"io/fs"
	"math/bits"
	"sort"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Lookup implements fsys.FileSystem.
func (f *FS) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	d, err := f.directory(dir)
	if err != nil {
		return 0, err
	}
	if dots([]byte(name)) || name == "" || len(name) > 255 {
		return 0, fs.ErrNotExist
	}
	m := &match{name: []byte(name), folds: f.foldsCase}
	switch {
	case d.fork == nil:
		err = d.short(m.try)
	default:
		err = d.find(m)
	}
	if err != nil {
		return 0, err
	}
	if !m.found {
		return 0, fs.ErrNotExist
	}
	return fsys.ID(m.ino), nil
}

// match looks for a name among entries.
type match struct {
	name  []byte
	folds bool
	found bool
	ino   uint64
	tried int
}

// try takes an entry, and returns whether a better one may come.
func (m *match) try(e dirEntry) bool {
	if string(e.name) == string(m.name) {
		m.found, m.ino = true, e.ino
		return false
	}
	if m.folds && len(e.name) == len(m.name) && !m.found {
		for i := range e.name {
			if fold(e.name[i]) != fold(m.name[i]) {
				return true
			}
		}
		m.found, m.ino = true, e.ino
	}
	return true
}

// fold is the lower case of a letter of Latin 1.
func fold(b byte) byte {
	if b >= 'A' && b <= 'Z' || b >= 0xc0 && b <= 0xde && b != 0xd7 {
		return b + 32
	}
	return b
}

// hash is what names are indexed by (Directory Hash).
func (m *match) hash() uint32 {
	var h uint32
	if m.folds {
		for _, c := range m.name {
			h = uint32(fold(c)) ^ bits.RotateLeft32(h, 7)
		}
		return h
	}
	name := m.name
	for ; len(name) >= 4; name = name[4:] {
		h = uint32(name[0])<<21 ^ uint32(name[1])<<14 ^ uint32(name[2])<<7 ^ uint32(name[3]) ^ bits.RotateLeft32(h, 28)
	}
	tail := uint32(0)
	for _, c := range name {
		tail = tail<<7 ^ uint32(c)
	}
	return tail ^ bits.RotateLeft32(h, 7*len(name))
}

// find looks a name up in the index of a directory that is not in its inode.
func (d *directory) find(m *match) error {
	hash := m.hash()
	if d.in.size == int64(d.fs.dirSize()) {
		b, stop, err := d.names(0)
		if err != nil {
			return err
		}
		if d.single(b) {
			_, err = d.candidates(b[stop:len(b)-8], hash, m)
			return err
		}
	}
	t := newTree(d.fork, d.fs.dirSize(), dirLeafAt>>d.fs.blockLog, kindDir)
	block, err := t.descend(hash)
	for err == nil {
		var more bool
		if more, err = d.candidates(block.entries, hash, m); err != nil || !more || block.next == 0 {
			return err
		}
		block, err = t.leaf(block.next)
	}
	return err
}

// maxCandidates is how many names with the same hash are compared.
const maxCandidates = 1 << 18

// candidates compares the names that a sorted index has for a hash: pairs of
// hash and place. It returns whether there may be more in the next one.
func (d *directory) candidates(index raw, hash uint32, m *match) (more bool, err error) {
	n := len(index) / 8
	i := sort.Search(n, func(i int) bool { return index.u32(i*8) >= hash })
	for ; i < n && index.u32(i*8) == hash; i++ {
		place := uint64(index.u32(i*8+4)) * 8
		if place == 0 {
			continue // deleted
		}
		if m.tried++; m.tried > maxCandidates {
			return false, unsupported("inode %d: more than %d names with one hash", d.in.ino, maxCandidates)
		}
		size := uint64(d.fs.dirSize())
		b, stop, err := d.names(place / size << d.fs.dirLog)
		if err != nil {
			return false, err
		}
		at := int(place % size)
		if at < d.head() || at >= stop {
			return false, corrupt("inode %d: the index names byte %d", d.in.ino, place)
		}
		e, _, err := d.entry(b[:stop], at)
		if err != nil {
			return false, err
		}
		if !m.try(e) {
			return false, nil
		}
	}
	return i == n, nil
}
