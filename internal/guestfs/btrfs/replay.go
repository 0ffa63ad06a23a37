package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Bounds of what the logs of a file system may take.
const (
	maxReplay      = 32 << 20 // bytes of memory
	maxReplaySteps = 1 << 21  // items that are looked at
)

var errReplayTooLarge = fmt.Errorf("it takes more than %d MiB or %d steps", maxReplay>>20, maxReplaySteps)

// replayLogs applies what was synced since the last commit, in memory: "Log tree"
// of the developers' documentation. The log holds, for each subvolume, whole items
// of the inodes that fsync was called for. It returns the changes by subvolume, and
// the logs.
func (s *store) replayLogs() (map[uint64]*delta, []*tree, error) {
	roots := &tree{store: s, id: treeLogObject, root: blockRef{s.super.logRoot, s.super.generation + 1, s.super.logLevel}}
	deltas := map[uint64]*delta{}
	var logs []*tree
	var bad error
	left, steps := int64(maxReplay), 0
	err := roots.scan(key{treeLogObject, rootItem, 0}, key{treeLogObject, rootItem, maxOffset}, func(k key, b []byte) bool {
		var ref blockRef
		if ref, bad = parseRoot(b); bad != nil {
			return false
		}
		var t *tree
		t, _, bad = s.tree(k.offset)
		if errors.Is(bad, fs.ErrNotExist) { // it was deleted meanwhile
			bad = nil
			return true
		}
		if bad != nil {
			return false
		}
		t.delta = &delta{}
		log := &tree{store: s, id: treeLogObject, root: ref}
		r := replay{t: t, log: log, sector: uint64(s.super.sectorSize), max: left, steps: &steps, recount: map[uint64]bool{}}
		if bad = r.run(); bad != nil {
			bad = fmt.Errorf("subvolume %d: %w", k.offset, bad)
			return false
		}
		left -= t.delta.bytes
		deltas[k.offset] = t.delta
		logs = append(logs, log)
		return true
	})
	if err == nil {
		err = bad
	}
	return deltas, logs, err
}

// replay applies the log of one subvolume to it.
type replay struct {
	t       *tree
	log     *tree
	sector  uint64
	max     int64 // bytes that the changes may take
	steps   *int
	recount map[uint64]bool // inodes whose links are to be counted
}

// run takes the steps in the order that the log is written for: inodes with what
// was deleted, names of directories, and the rest.
func (r *replay) run() error {
	for _, step := range []func(key, []byte) error{r.inode, r.dirIndex, r.rest} {
		if err := r.each(step); err != nil {
			return err
		}
	}
	return r.countLinks()
}

// each calls step for the items of the log, but those of inodes without a name.
func (r *replay) each(step func(key, []byte) error) error {
	var bad error
	skip := uint64(0)
	err := r.log.scan(key{}, key{maxOffset, 255, maxOffset}, func(k key, b []byte) bool {
		if k.kind == inodeItem {
			if len(b) < inodeSize || k.offset != 0 {
				bad = fmt.Errorf("inode item %s in the log has %d bytes: %w", k, len(b), fsys.ErrCorrupt)
				return false
			}
			if le32(b[40:]) == 0 {
				skip = k.object
			}
		}
		if k.object == skip {
			return true
		}
		if bad = step(k, b); bad == nil {
			bad = r.bounded()
		}
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	return err
}

// bounded is called for each step. It returns an error when there were too many.
func (r *replay) bounded() error {
	if *r.steps++; *r.steps > maxReplaySteps || r.t.delta.bytes > r.max {
		return errReplayTooLarge
	}
	return nil
}

// first returns the first item from one key to another.
func (t *tree) first(from, to key) (k key, b []byte, ok bool, err error) {
	err = t.scan(from, to, func(found key, data []byte) bool {
		k, b, ok = found, data, true
		return false
	})
	return k, b, ok, err
}

// load returns a copy of an inode item, or nil if there is none.
func (r *replay) load(number uint64) ([]byte, error) {
	b, err := r.t.get(key{number, inodeItem, 0})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && len(b) < inodeSize {
		err = fmt.Errorf("inode %d has %d bytes: %w", number, len(b), fsys.ErrCorrupt)
	}
	return bytes.Clone(b), err
}

// change adds to a number of 8 bytes in an inode item, such as its size. It is not
// made negative: what was committed may be wrong.
func (r *replay) change(number uint64, at int, by int64) error {
	b, err := r.load(number)
	if err != nil || b == nil || by == 0 {
		return err
	}
	binary.LittleEndian.PutUint64(b[at:], uint64(max(int64(le64(b[at:]))+by, 0)))
	r.t.delta.set(key{number, inodeItem, 0}, b)
	return nil
}

// Offsets in inode items.
const (
	inodeGeneration = 0
	inodeSizeAt     = 16
	inodeBytesAt    = 24
	inodeLinksAt    = 40
	inodeModeAt     = 52
)

func isDir(inode []byte) bool     { return le32(inode[inodeModeAt:])>>12 == 4 }
func isRegular(inode []byte) bool { return le32(inode[inodeModeAt:])>>12 == 8 }

// inode replays an inode item, and the deletions that an inode in the log implies.
func (r *replay) inode(k key, b []byte) error {
	if k.kind != inodeItem {
		return nil
	}
	if err := r.dropXattrs(k.object); err != nil {
		return err
	}
	if isDir(b) {
		if err := r.dropNames(k.object); err != nil {
			return err
		}
	}
	if err := r.overwriteInode(k, b); err != nil {
		return err
	}
	r.recount[k.object] = true
	if !isRegular(b) {
		return nil
	}
	now, err := r.load(k.object)
	if err != nil {
		return err
	}
	// What is behind the end goes: what was reserved there before is in the log.
	size := le64(now[inodeSizeAt:])
	return r.cut(k.object, (size+r.sector-1)&^(r.sector-1), maxOffset)
}

// overwriteInode puts an inode item of the log into the tree. Sizes of directories
// and bytes of files follow from what is replayed; so they start from what was
// committed. An item of generation 0 is there to say that the inode exists.
func (r *replay) overwriteInode(k key, logged []byte) error {
	old, err := r.load(k.object)
	if err != nil || bytes.Equal(old, logged) {
		return err
	}
	b := bytes.Clone(logged)
	size, held := uint64(0), uint64(0)
	if old != nil {
		held = le64(old[inodeBytesAt:])
		if isDir(old) {
			size = le64(old[inodeSizeAt:])
		}
	}
	if old != nil && le64(logged[inodeGeneration:]) == 0 {
		size := le64(logged[inodeSizeAt:])
		if isRegular(old) && isRegular(logged) && size != 0 {
			binary.LittleEndian.PutUint64(old[inodeSizeAt:], size)
			r.t.delta.set(k, old)
		}
		return nil
	}
	binary.LittleEndian.PutUint64(b[inodeBytesAt:], held)
	if isDir(b) {
		binary.LittleEndian.PutUint64(b[inodeSizeAt:], size)
	}
	r.t.delta.set(k, b)
	return nil
}

// dropXattrs deletes the extended attributes of an inode that the log does not
// have: it has all that there are.
func (r *replay) dropXattrs(number uint64) error {
	to := key{number, xattrItem, maxOffset}
	for from := (key{number, xattrItem, 0}); ; {
		k, b, ok, err := r.t.first(from, to)
		if err != nil || !ok {
			return err
		}
		logged, err := r.log.get(k)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var keep []byte
		var bad error
		err = eachRaw(b, func(e entry, raw []byte) bool {
			var ok bool
			if _, ok, bad = findEntry(logged, e.name); ok {
				keep = append(keep, raw...)
			}
			return bad == nil
		})
		if err = errors.Join(err, bad); err != nil {
			return err
		}
		if len(keep) != len(b) {
			r.t.delta.set(k, keep)
		}
		if k == to {
			return nil
		}
		from = k.next()
	}
}

// rest replays what is neither an inode nor a name of a directory.
func (r *replay) rest(k key, b []byte) error {
	switch k.kind {
	case xattrItem:
		r.t.delta.set(k, bytes.Clone(b))
	case inodeRef, inodeExtref:
		return r.references(k, b)
	case extentData:
		return r.extent(k, b)
	}
	return nil
}

// countLinks gives the inodes that have got or lost names as many links as they
// have names. A directory that has none any more loses what is in it.
func (r *replay) countLinks() error {
	for len(r.recount) > 0 {
		for number := range r.recount {
			delete(r.recount, number)
			if err := r.countLinksOf(number); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *replay) countLinksOf(number uint64) error {
	b, err := r.load(number)
	if err != nil || b == nil {
		return err
	}
	links := uint32(0)
	var bad error
	err = r.t.scan(key{number, inodeRef, 0}, key{number, inodeExtref, maxOffset}, func(k key, b []byte) bool {
		var refs []ref
		refs, bad = parseRefs(k, b)
		links += uint32(len(refs))
		return bad == nil
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	if links != le32(b[inodeLinksAt:]) {
		binary.LittleEndian.PutUint32(b[inodeLinksAt:], links)
		r.t.delta.set(key{number, inodeItem, 0}, b)
	}
	if links == 0 && isDir(b) {
		return r.dropRange(number, 0, maxOffset, nil)
	}
	return nil
}
