package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// ref is a name of an inode, as the inode knows it: "Inode ref" and "Inode extref"
// of the on-disk format.
type ref struct {
	parent, index uint64
	name          []byte
}

func parseRefs(k key, b []byte) ([]ref, error) {
	var refs []ref
	head := 10
	if k.kind == inodeExtref {
		head = 18
	}
	for len(b) > 0 {
		if len(b) < head || len(b) < head+int(le16(b[head-2:])) {
			return nil, fmt.Errorf("reference of inode %d: %d bytes are too few: %w", k.object, len(b), fsys.ErrCorrupt)
		}
		n := head + int(le16(b[head-2:]))
		x := ref{k.offset, le64(b[head-10:]), b[head:n]}
		if k.kind == inodeExtref {
			x.parent = le64(b)
		}
		refs = append(refs, x)
		b = b[n:]
	}
	return refs, nil
}

// appendRef appends a reference to an item with a key.
func appendRef(b []byte, k key, x ref) []byte {
	if k.kind == inodeExtref {
		b = binary.LittleEndian.AppendUint64(b, x.parent)
	}
	b = binary.LittleEndian.AppendUint64(b, x.index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.name)))
	return append(b, x.name...)
}

// eachRaw is eachEntry that also tells the bytes of the entry.
func eachRaw(b []byte, yield func(entry, []byte) bool) error {
	return eachEntry(b, func(e entry) bool {
		n := dirEntrySize + len(e.name) + len(e.data)
		raw := b[:n]
		b = b[n:]
		return yield(e, raw)
	})
}

// findRef returns the reference of an inode to a name, and the key of its item, in
// a tree or a log.
func findRef(t *tree, inode, parent uint64, name []byte) (ref, key, bool, error) {
	for _, k := range []key{{inode, inodeRef, parent}, {inode, inodeExtref, refHash(parent, name)}} {
		b, err := t.get(k)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return ref{}, key{}, false, err
		}
		refs, err := parseRefs(k, b)
		if err != nil {
			return ref{}, key{}, false, err
		}
		for _, x := range refs {
			if x.parent == parent && bytes.Equal(x.name, name) {
				return x, k, true, nil
			}
		}
	}
	return ref{}, key{}, false, nil
}

// named returns the entry of an item of the tree that has a name.
func (r *replay) named(t *tree, k key, name []byte) (entry, bool, error) {
	b, err := t.get(k)
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, false, nil
	}
	if err != nil {
		return entry{}, false, err
	}
	return findEntry(b, name)
}

func byName(dir uint64, name []byte) key { return key{dir, dirItem, nameHash(name)} }

// dropNames deletes the names of a directory that are in a range of which the log
// has everything, and not in the log.
func (r *replay) dropNames(dir uint64) error {
	if inode, err := r.load(dir); err != nil || inode == nil {
		return err
	}
	for from := uint64(0); ; {
		first, last, ok, err := r.logged(dir, from)
		if err != nil || !ok {
			return err
		}
		if err := r.dropRange(dir, max(first, from), last, r.log); err != nil || last == maxOffset {
			return err
		}
		from = last + 1
	}
}

// logged returns the first range of a directory that the log has everything of and
// that does not end before from.
func (r *replay) logged(dir, from uint64) (first, last uint64, ok bool, err error) {
	k, b, err := r.log.floor(key{dir, dirLogIndex, from})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, err
	}
	ok = err == nil && k.object == dir && k.kind == dirLogIndex && len(b) >= 8 && le64(b) >= from
	if !ok {
		if k, b, ok, err = r.log.first(key{dir, dirLogIndex, from}, key{dir, dirLogIndex, maxOffset}); err != nil || !ok {
			return 0, 0, false, err
		}
	}
	if len(b) < 8 || le64(b) < k.offset {
		return 0, 0, false, fmt.Errorf("range %s of directory %d in the log: %w", k, dir, fsys.ErrCorrupt)
	}
	return k.offset, le64(b), true, nil
}

// dropRange deletes the names of a directory from one index to another that are
// not in the log, which may be nil.
func (r *replay) dropRange(dir, from, to uint64, log *tree) error {
	for {
		k, b, ok, err := r.t.first(key{dir, dirIndex, from}, key{dir, dirIndex, to})
		if err != nil || !ok {
			return err
		}
		var e entry
		if err := eachEntry(b, func(first entry) bool { e = first; return false }); err != nil {
			return err
		}
		keep := false
		if log != nil {
			if _, keep, err = r.named(log, k, e.name); err != nil {
				return err
			}
		}
		if !keep {
			if err := r.unlink(dir, e); err != nil {
				return err
			}
		}
		if err := r.bounded(); err != nil {
			return err
		}
		if k.offset == to {
			return nil
		}
		from = k.offset + 1
	}
}

// unlink deletes a name of a directory, and of the inode that it stands for.
func (r *replay) unlink(dir uint64, e entry) error {
	number := e.location.object
	inode, err := r.load(number)
	if err != nil {
		return err
	}
	if inode == nil || e.location.kind != inodeItem {
		return fmt.Errorf("%q in directory %d stands for %s, which is not there: %w", e.name, dir, e.location, fsys.ErrCorrupt)
	}
	x, k, ok, err := findRef(r.t, number, dir, e.name)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("inode %d does not know its name %q in directory %d: %w", number, e.name, dir, fsys.ErrCorrupt)
	}
	if err := r.dropRef(k, x); err != nil {
		return err
	}
	if err := r.dropEntry(byName(dir, e.name), e.name); err != nil {
		return err
	}
	if err := r.dropEntry(key{dir, dirIndex, x.index}, e.name); err != nil {
		return err
	}
	r.recount[number] = true
	return r.change(dir, inodeSizeAt, -2*int64(len(e.name)))
}

// dropRef takes a reference out of its item.
func (r *replay) dropRef(k key, x ref) error {
	b, err := r.t.get(k)
	if err != nil {
		return err
	}
	refs, err := parseRefs(k, b)
	if err != nil {
		return err
	}
	var keep []byte
	for _, other := range refs {
		if other.parent != x.parent || !bytes.Equal(other.name, x.name) {
			keep = appendRef(keep, k, other)
		}
	}
	r.t.delta.set(k, keep)
	return nil
}

// dropEntry takes a name out of an item of a directory.
func (r *replay) dropEntry(k key, name []byte) error {
	b, err := r.t.get(k)
	if err != nil {
		return err
	}
	var keep []byte
	err = eachRaw(b, func(e entry, raw []byte) bool {
		if !bytes.Equal(e.name, name) {
			keep = append(keep, raw...)
		}
		return true
	})
	if err == nil {
		r.t.delta.set(k, keep)
	}
	return err
}

// link gives an inode a name, and a reference to it if that is not in the log. It
// says whether it did: not if the directory has the name, or there is no inode.
func (r *replay) link(dir, number uint64, name []byte, index uint64, reference bool) (bool, error) {
	inode, err := r.load(number)
	if err != nil || inode == nil {
		return false, err
	}
	if _, ok, err := r.named(r.t, byName(dir, name), name); err != nil || ok {
		return false, err
	}
	mode, _ := modeOf(le32(inode[inodeModeAt:]))
	raw := make([]byte, dirEntrySize, dirEntrySize+len(name))
	key{number, inodeItem, 0}.put(raw)
	binary.LittleEndian.PutUint16(raw[27:], uint16(len(name)))
	for kind, t := range entryTypes {
		if kind > 0 && t == mode.Type() {
			raw[29] = uint8(kind)
		}
	}
	raw = append(raw, name...)
	add := []struct {
		k key
		b []byte
	}{{byName(dir, name), raw}, {key{dir, dirIndex, index}, raw}}
	if reference {
		k := key{number, inodeRef, dir}
		add = append(add, struct {
			k key
			b []byte
		}{k, appendRef(nil, k, ref{dir, index, name})})
	}
	for _, a := range add {
		old, err := r.t.get(a.k)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		r.t.delta.set(a.k, append(bytes.Clone(old), a.b...))
	}
	return true, r.change(dir, inodeSizeAt, 2*int64(len(name)))
}

// dirIndex replays a name that a directory in the log has got.
func (r *replay) dirIndex(k key, b []byte) error {
	if k.kind != dirIndex {
		return nil
	}
	var e entry
	if err := eachEntry(b, func(first entry) bool { e = first; return false }); err != nil {
		return err
	}
	if inode, err := r.load(k.object); err != nil || inode == nil {
		return errors.Join(err, fmt.Errorf("%q in directory %d, which is not there: %w", e.name, k.object, fsys.ErrCorrupt))
	}
	exists := false
	if e.location.kind == inodeItem {
		inode, err := r.load(e.location.object)
		if err != nil {
			return err
		}
		exists = inode != nil
	}
	same := 0
	for _, at := range []key{byName(k.object, e.name), k} {
		old, ok, err := r.named(r.t, at, e.name)
		switch {
		case err != nil:
			return err
		case !ok:
		case old.location == e.location && old.kind == e.kind:
			same++
		case exists:
			if err := r.unlink(k.object, old); err != nil {
				return err
			}
		}
	}
	if same == 2 || !exists {
		return nil
	}
	// A reference in the log brings the name with it.
	if _, _, ok, err := findRef(r.log, e.location.object, k.object, e.name); err != nil || ok {
		return err
	}
	added, err := r.link(k.object, e.location.object, e.name, k.offset, true)
	if added && e.kind != 2 {
		r.recount[e.location.object] = true
	}
	return err
}

// references replays the names that an inode in the log has in a directory.
func (r *replay) references(k key, b []byte) error {
	refs, err := parseRefs(k, b)
	if err != nil {
		return err
	}
	if inode, err := r.load(k.object); err != nil || inode == nil {
		return errors.Join(err, fmt.Errorf("reference of inode %d, which is not there: %w", k.object, fsys.ErrCorrupt))
	}
	for i, x := range refs {
		dir, err := r.load(x.parent)
		if err != nil {
			return err
		}
		if dir == nil { // it was not synced; the links are counted later
			if i == 0 {
				return nil
			}
			continue
		}
		if k.object == x.parent { // the topmost directory
			return nil
		}
		if err := r.reference(k.object, x); err != nil {
			return err
		}
	}
	if err := r.dropOldRefs(k, refs); err != nil {
		return err
	}
	r.t.delta.set(k, bytes.Clone(b))
	return nil
}

// reference gives an inode a name that it has in the log, if it does not have it.
func (r *replay) reference(number uint64, x ref) error {
	here := key{x.parent, dirIndex, x.index}
	for _, at := range []key{here, byName(x.parent, x.name)} {
		e, ok, err := r.named(r.t, at, x.name)
		if err != nil {
			return err
		}
		if ok && e.location.object == number {
			if at != here {
				return nil
			}
			continue
		}
		break
	}
	if err := r.dropConflicts(number, x); err != nil {
		return err
	}
	_, err := r.link(x.parent, number, x.name, x.index, false)
	return err
}

// dropConflicts deletes names of the inode in the directory that it does not have
// in the log, and what has its name or its place there.
func (r *replay) dropConflicts(number uint64, x ref) error {
	for _, k := range []key{{number, inodeRef, x.parent}, {number, inodeExtref, refHash(x.parent, x.name)}} {
		b, err := r.t.get(k)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		refs, err := parseRefs(k, b)
		if err != nil {
			return err
		}
		if err := r.dropRefsUnless(number, refs, func(old ref) (bool, error) {
			if old.parent != x.parent {
				return true, nil
			}
			_, _, ok, err := findRef(r.log, number, old.parent, old.name)
			return ok, err
		}); err != nil {
			return err
		}
	}
	for _, at := range []key{{x.parent, dirIndex, x.index}, byName(x.parent, x.name)} {
		e, ok, err := r.named(r.t, at, x.name)
		if err != nil {
			return err
		}
		if ok {
			if err := r.unlink(x.parent, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropOldRefs deletes the names that an item of the tree has and that of the log,
// which takes its place, does not have.
func (r *replay) dropOldRefs(k key, logged []ref) error {
	b, err := r.t.get(k)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	refs, err := parseRefs(k, b)
	if err != nil {
		return err
	}
	return r.dropRefsUnless(k.object, refs, func(old ref) (bool, error) {
		for _, x := range logged {
			if x.parent == old.parent && bytes.Equal(x.name, old.name) {
				return true, nil
			}
		}
		return false, nil
	})
}

// dropRefsUnless unlinks the names of an inode that keep does not want.
func (r *replay) dropRefsUnless(number uint64, refs []ref, keep func(ref) (bool, error)) error {
	for _, old := range refs {
		ok, err := keep(old)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		if dir, err := r.load(old.parent); err != nil {
			return err
		} else if dir == nil {
			continue
		}
		if err := r.unlink(old.parent, entry{location: key{number, inodeItem, 0}, name: old.name}); err != nil {
			return err
		}
	}
	return nil
}
