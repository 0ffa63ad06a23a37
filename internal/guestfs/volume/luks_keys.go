package volume

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Keys unlock containers of LUKS.
type Keys struct {
	// Passphrases are tried in this order.
	Passphrases [][]byte
	// Known are keys of containers that were unlocked before, in another state of
	// the same disks: a container takes one that fits without a passphrase.
	Known []Key
}

// Key is what a container's content is encrypted with.
type Key struct {
	UUID string `cbor:"1,keyasint"` // of the container
	Key  []byte `cbor:"2,keyasint"`
}

// MaxKnownKeys is how many known keys are kept.
const MaxKnownKeys = 64

// Remember adds keys that are not known yet, as long as there is room.
func (k *Keys) Remember(list ...Key) {
	for _, n := range list {
		known := len(k.Known) >= MaxKnownKeys || len(n.Key) > maxKeyBytes || len(n.UUID) > 64
		for _, old := range k.Known {
			known = known || old.UUID == n.UUID && bytes.Equal(old.Key, n.Key)
		}
		if !known {
			k.Known = append(k.Known, n)
		}
	}
}

// Clear overwrites all that is known.
func (k *Keys) Clear() {
	for _, p := range k.Passphrases {
		clear(p)
	}
	for _, n := range k.Known {
		clear(n.Key)
	}
	k.Passphrases, k.Known = nil, nil
}

// DefaultKeyMemory is what cryptsetup asks for where there is enough of it, in
// bytes.
const DefaultKeyMemory = 1 << 30

// budget is the work that is left for deriving keys, and how much memory it may
// take.
type budget struct {
	work   int64
	memory int64 // bytes
}

func newBudget(o Options) budget {
	if o.KeyMemoryBytes == 0 {
		o.KeyMemoryBytes = DefaultKeyMemory
	}
	return budget{maxWork, o.KeyMemoryBytes}
}

// spend takes n from the work that is left.
func (b *budget) spend(n int64) error {
	if n > b.work {
		return errors.New("deriving its key takes too much time, with that of the others")
	}
	b.work -= n
	return nil
}

// unlock adds the inside of a container that a key fits.
func (s *scan) unlock(n *Node, h *luksHeader) {
	if h.refusal != "" {
		n.refuse(h.refusal)
		return
	}
	k := s.opts.Keys
	if k == nil || len(k.Passphrases) == 0 && len(k.Known) == 0 {
		n.Locked = true
		n.refuse("It is encrypted with LUKS, and no passphrase was given.")
		return
	}
	v, key, err := h.unlock(n.Volume, k, &s.budget)
	switch {
	case errors.Is(err, errPassphrase):
		n.Locked = true
		n.refuse("It is encrypted with LUKS, and no passphrase given fits.")
	case err != nil:
		n.Locked = true
		n.refuse(fmt.Sprintf("It is encrypted with LUKS and cannot be unlocked: %v.", err))
	default:
		k.Remember(Key{h.uuid, key})
		s.add(n, &Node{Name: "crypt", Kind: KindCrypt, Size: v.Size(), Volume: v, ID: h.uuid}, "")
	}
}

// unlock opens the content with a key that is known, or with the first passphrase
// that fits a slot. It returns the key with it.
func (h *luksHeader) unlock(v fsys.Volume, k *Keys, b *budget) (fsys.Volume, []byte, error) {
	for _, known := range k.Known {
		if known.UUID == h.uuid && h.check(anySlot, known.Key, b) == nil {
			content, err := h.content(v, known.Key)
			return content, known.Key, err
		}
	}
	var problem error
	for _, p := range k.Passphrases {
		for i := range h.slots {
			key, err := h.open(v, &h.slots[i], p, b)
			if err == nil {
				content, err := h.content(v, key)
				return content, key, err
			}
			if !errors.Is(err, errPassphrase) {
				problem = fmt.Errorf("keyslot %d: %w", h.slots[i].number, err)
			}
		}
	}
	if problem != nil {
		return nil, nil, problem
	}
	return nil, nil, errPassphrase
}
