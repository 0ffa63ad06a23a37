package blocktest

import (
	"context"
	"errors"

	"github.com/sendense/sendense/block"
)

// Filed is a device whose bytes lie in files: runs of them, as in a chain of
// images. What is InNothing reads as zeroes. What is Opaque has its place here,
// too, of which Locate does not tell.
type Filed struct {
	Locations []block.Location
}

// Size implements [block.Device].
func (d *Filed) Size() (n int64) {
	for _, l := range d.Locations {
		n += l.Len
	}
	return n
}

// each gives fn the locations of a range, one after the other.
func (d *Filed) each(off, n int64, fn func(block.Location)) error {
	if err := block.CheckRange(d.Size(), off, n); err != nil {
		return err
	}
	at := int64(0)
	for _, l := range d.Locations {
		if from, to := max(off, at), min(off+n, at+l.Len); from < to {
			fn(block.Location{Len: to - from, Kind: l.Kind, File: l.File, Off: l.Off + from - at})
		}
		at += l.Len
	}
	return nil
}

// ReadAt implements [block.Device].
func (d *Filed) ReadAt(_ context.Context, p []byte, off int64) (err error) {
	return errors.Join(d.each(off, int64(len(p)), func(l block.Location) {
		if l.Kind == block.InNothing {
			clear(p[:l.Len])
		} else if _, e := l.File.ReadAt(p[:l.Len], l.Off); e != nil {
			err = e
		}
		p = p[l.Len:]
	}), err)
}

// Locate implements [block.Locator].
func (d *Filed) Locate(_ context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	err := d.each(off, n, func(l block.Location) {
		if l.Kind == block.Opaque {
			l.File, l.Off = nil, 0
		}
		dst = append(dst, l)
	})
	return dst, err
}

// Map implements [block.Mapper].
func (d *Filed) Map(_ context.Context, off, n int64) (exts []block.Extent, err error) {
	err = d.each(off, n, func(l block.Location) {
		kind := block.Data
		if l.Kind == block.InNothing {
			kind = block.Hole
		}
		exts = append(exts, block.Extent{Off: off, Len: l.Len, Kind: kind})
		off += l.Len
	})
	return exts, err
}
