package hive

import (
	"fmt"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Key is a key of a hive ("Key node").
type Key struct {
	h          *Hive
	name       string
	keys       uint32 // how many are below it
	keyList    uint32
	values     uint32 // how many it has
	valueList  uint32
	redirected bool
}

// Flags of a key.
const (
	keyLink   = 0x0010
	keyNarrow = 0x0020
)

// Limits of one key. Windows has none for keys; more than this is no real hive.
const (
	maxKeys   = 1 << 20
	maxValues = 1 << 20
)

// nodeBytes is the length of a key node in front of its name, in bytes.
const nodeBytes = 76

// node reads the key in a cell.
func (h *Hive) node(offset uint32) (*Key, error) {
	b, err := h.record(offset, "nk", nodeBytes, nodeBytes+512)
	if err != nil {
		return nil, err
	}
	n := int(le.Uint16(b[72:]))
	if n > len(b)-nodeBytes {
		return nil, fmt.Errorf("key at %#x with a name of %d bytes: %w", offset, n, fsys.ErrCorrupt)
	}
	flags := le.Uint16(b[2:])
	return &Key{
		h: h, name: text(b[nodeBytes:nodeBytes+n], flags&keyNarrow != 0), keys: le.Uint32(b[20:]), keyList: le.Uint32(b[28:]),
		values: le.Uint32(b[36:]), valueList: le.Uint32(b[40:]), redirected: flags&keyLink != 0,
	}, nil
}

// Name returns the key's own name.
func (k *Key) Name() string { return k.name }

// sub returns a key below by name.
func (k *Key) sub(name string) (*Key, error) {
	if k.redirected {
		return nil, fmt.Errorf("%s is a link to another key: %w", k.name, fsys.ErrUnsupported)
	}
	var found *Key
	err := k.Keys(func(x *Key) bool {
		if strings.EqualFold(x.name, name) {
			found = x
		}
		return found == nil
	})
	if found != nil {
		return found, nil
	}
	if err == nil {
		err = fmt.Errorf("key %w", errMissing)
	}
	return nil, err
}

// Keys calls yield for each key below until it returns false. Damaged ones are left
// out, and are an error at the end.
func (k *Key) Keys(yield func(*Key) bool) error {
	if k.keys == 0 {
		return nil
	}
	if k.keys > maxKeys {
		return fmt.Errorf("%d keys below %s: %w", k.keys, k.name, fsys.ErrCorrupt)
	}
	left, bad := int(k.keys), error(nil)
	err := k.h.list(k.keyList, true, func(offset uint32) bool {
		if left--; left < 0 {
			return false
		}
		x, err := k.h.node(offset)
		if err != nil {
			bad = err
			return true
		}
		return yield(x)
	})
	if err != nil {
		return err
	}
	return bad
}

// list calls yield for the offsets in a list of keys ("Index leaf" to "Index root"),
// until it returns false.
func (h *Hive) list(offset uint32, top bool, yield func(uint32) bool) error {
	head, size, err := h.cell(offset, 4)
	if err != nil {
		return err
	}
	if len(head) < 4 {
		return fmt.Errorf("list of keys at %#x: %w", offset, fsys.ErrCorrupt)
	}
	kind, n, each := string(head[:2]), int(le.Uint16(head[2:])), 4
	switch {
	case kind == "lf" || kind == "lh":
		each = 8
	case kind == "li", kind == "ri" && top:
	default:
		return fmt.Errorf("list of keys at %#x is of type %q: %w", offset, kind, fsys.ErrCorrupt)
	}
	if 4+n*each > size {
		return fmt.Errorf("list of %d keys in %d bytes: %w", n, size, fsys.ErrCorrupt)
	}
	b, _, err := h.cell(offset, 4+n*each)
	if err != nil {
		return err
	}
	more := true
	for b = b[4:]; len(b) >= each && more; b = b[each:] {
		at := le.Uint32(b)
		if kind != "ri" {
			more = yield(at)
			continue
		}
		err := h.list(at, false, func(offset uint32) bool {
			more = yield(offset)
			return more
		})
		if err != nil {
			return err
		}
	}
	return nil
}
