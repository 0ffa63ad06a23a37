package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// extent replays an extent of a file in place of those that it overlaps.
func (r *replay) extent(k key, b []byte) error {
	e, err := r.t.store.parseExtent(k, b)
	if err != nil {
		return err
	}
	if inode, err := r.load(k.object); err != nil || inode == nil {
		return errors.Join(err, fmt.Errorf("extent of inode %d, which is not there: %w", k.object, fsys.ErrCorrupt))
	}
	end := (e.to + r.sector - 1) &^ (r.sector - 1)
	if e.kind != extentInline {
		old, err := r.t.get(k)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Equal(old, b) {
			return nil
		}
	}
	if err := r.cut(k.object, e.from, end); err != nil {
		return err
	}
	if e.kind != extentInline && e.disk == 0 {
		return nil // nothing is a hole too
	}
	r.t.delta.set(k, bytes.Clone(b))
	return r.change(k.object, inodeBytesAt, int64(e.to-e.from))
}

// cut takes [from, to) out of the extents of a file.
func (r *replay) cut(number, from, to uint64) error {
	freed := uint64(0)
	at, _, err := r.t.floor(key{number, extentData, from})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || at.object != number || at.kind != extentData {
		at = key{number, extentData, from}
	}
	for {
		k, b, ok, err := r.t.first(at, key{number, extentData, to - 1})
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		e, err := r.t.store.parseExtent(k, b)
		if err != nil {
			return err
		}
		if e.to > from {
			if err := r.cutOne(k, bytes.Clone(b), e, from, to); err != nil {
				return err
			}
			if e.kind == extentInline || e.disk != 0 {
				freed += min(e.to, to) - max(e.from, from)
			}
		}
		if err := r.bounded(); err != nil {
			return err
		}
		at = k.next()
	}
	return r.change(number, inodeBytesAt, -int64(freed))
}

// cutOne leaves of an extent what lies before from and behind to.
func (r *replay) cutOne(k key, b []byte, e extent, from, to uint64) error {
	if e.kind == extentInline && (e.from < from || e.to > to) {
		return fmt.Errorf("part of the inline extent of inode %d is replaced: %w", k.object, fsys.ErrCorrupt)
	}
	r.t.delta.set(k, nil)
	if e.from < from {
		front := bytes.Clone(b)
		binary.LittleEndian.PutUint64(front[45:], from-e.from)
		r.t.delta.set(k, front)
	}
	if e.to > to {
		if e.disk != 0 {
			binary.LittleEndian.PutUint64(b[37:], e.offset+to-e.from)
		}
		binary.LittleEndian.PutUint64(b[45:], e.to-to)
		r.t.delta.set(key{k.object, extentData, to}, b)
	}
	return nil
}
