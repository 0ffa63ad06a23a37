package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrNoRoom says that the first cluster of a file has no room for what should go
// into the header.
var ErrNoRoom = errors.New("no room in the header")

// Rebase changes the name of the backing file in the header, and nothing else:
// the caller vouches that the disk reads the same over the new one. An empty name
// leaves the file without a backing file. A crash leaves the old name or the new
// one: the new name is written to unused bytes of the first cluster and made
// durable, then its position is changed by one write inside a sector.
//
// A format other than the present one is possible as far as it takes the same
// room in the header; if not the error wraps ErrNoRoom, as it does if the cluster
// has no place for the name beside the old one.
func (w *Writer) Rebase(ctx context.Context, backingFile, format string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.flushMu.Lock()
	defer w.flushMu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if err := w.rebase(backingFile, format); err != nil {
		return fmt.Errorf("rebase to %q: %w", backingFile, err)
	}
	return nil
}

func (w *Writer) rebase(name, format string) error {
	if len(name) > maxBackingName || bytes.IndexByte([]byte(name), 0) >= 0 {
		return fmt.Errorf("a backing file's name has up to %d bytes, none of them zero", maxBackingName)
	}
	sector := make([]byte, 512)
	if err := readPadded(w.st, sector, 0); err != nil {
		return err
	}
	extEnd, err := w.setBackingFormat(sector, name, format)
	if err != nil {
		return err
	}
	oldOff := int64(binary.BigEndian.Uint64(sector[8:]))
	oldLen := int64(binary.BigEndian.Uint32(sector[16:]))
	var off int64
	if name != "" {
		if off, err = w.nameOffset(extEnd, oldOff, oldLen, int64(len(name))); err != nil {
			return err
		}
		if err := writeAll(w.st, []byte(name), off); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
	}
	// The name may lie in this sector.
	if off < 512 {
		copy(sector[off:], name)
	}
	binary.BigEndian.PutUint64(sector[8:], uint64(off))
	binary.BigEndian.PutUint32(sector[16:], uint32(len(name)))
	if err := w.patchHeader(0, sector); err != nil {
		return w.fail(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.header.BackingFile = name
	return nil
}

// nameOffset finds n unused bytes behind the extensions, beside the old name.
func (w *Writer) nameOffset(extEnd, oldOff, oldLen, n int64) (int64, error) {
	if oldOff == 0 || oldOff-extEnd >= n {
		if oldOff == 0 && w.ClusterSize()-extEnd < n {
			return 0, fmt.Errorf("%w: %d bytes are left for a name of %d", ErrNoRoom, w.ClusterSize()-extEnd, n)
		}
		return extEnd, nil
	}
	if off := oldOff + oldLen; w.ClusterSize()-off >= n {
		return off, nil
	}
	return 0, fmt.Errorf("%w: no %d bytes beside the present name", ErrNoRoom, n)
}

// setBackingFormat changes the format's name in the header's first sector, as far
// as that moves nothing, and returns where the extensions end.
func (w *Writer) setBackingFormat(sector []byte, name, format string) (int64, error) {
	length := int64(headerLengthV2)
	if w.header.Version >= 3 {
		length = int64(binary.BigEndian.Uint32(sector[100:]))
	}
	pos, set := length, false
	for _, e := range w.header.Extensions {
		padded := int64(len(e.Data)+7) &^ 7
		if e.Type == extBackingFormat && name != "" {
			if int64(len(format)+7)&^7 != padded || pos+8+padded > 512 {
				return 0, fmt.Errorf("%w: format %q in place of %q", ErrNoRoom, format, e.Data)
			}
			binary.BigEndian.PutUint32(sector[pos+4:], uint32(len(format)))
			clear(sector[pos+8 : pos+8+padded])
			copy(sector[pos+8:], format)
			set = true
		}
		pos += 8 + padded
	}
	pos += 8 // the end marker
	if set || name == "" || format == "" {
		return pos, nil
	}
	// There is none yet: it goes where the end marker is, with a new one behind.
	need := 8 + int64(len(format)+7)&^7
	at := pos - 8
	oldOff := int64(binary.BigEndian.Uint64(sector[8:]))
	if at+need+8 > 512 || oldOff != 0 && at+need+8 > oldOff {
		return 0, fmt.Errorf("%w: format %q", ErrNoRoom, format)
	}
	clear(sector[at : at+need+8])
	binary.BigEndian.PutUint32(sector[at:], extBackingFormat)
	binary.BigEndian.PutUint32(sector[at+4:], uint32(len(format)))
	copy(sector[at+8:], format)
	return at + need + 8, nil
}
