package guestfs

import (
	"context"
	"slices"
	"sync"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/tree"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// Keys unlock encrypted containers. They may be used by several Opens, also at a
// time: what one unlocks the others need not derive from a passphrase again.
type Keys struct {
	mu   sync.Mutex // guards the field below
	keys volume.Keys
}

// NewKeys returns Keys that try passphrases, which are theirs from then on.
func NewKeys(passphrases [][]byte) *Keys {
	return &Keys{keys: volume.Keys{Passphrases: passphrases}}
}

// Clear overwrites the passphrases, and what they unlocked.
func (k *Keys) Clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys.Clear()
}

// copies returns what may be sent to a process that found volumes locked: of what was
// unlocked before only what concerns these. It is for the caller to overwrite.
func (k *Keys) copies(locked []Volume) *volume.Keys {
	k.mu.Lock()
	defer k.mu.Unlock()
	var c volume.Keys
	for _, p := range k.keys.Passphrases {
		c.Passphrases = append(c.Passphrases, slices.Clone(p))
	}
	for _, known := range k.keys.Known {
		if slices.ContainsFunc(locked, func(v Volume) bool { return v.UUID == known.UUID }) {
			c.Known = append(c.Known, volume.Key{UUID: known.UUID, Key: slices.Clone(known.Key)})
		}
	}
	return &c
}

func (k *Keys) remember(list []volume.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys.Passphrases != nil { // they have not been cleared meanwhile
		k.keys.Remember(list...)
	}
}

// lockedOf returns the volumes of machines that are locked.
func lockedOf(machines []proto.Machine) []Volume {
	var list []Volume
	for _, m := range machines {
		for _, v := range m.Volumes {
			if v.Locked {
				list = append(list, v)
			}
		}
	}
	return list
}

// unlock asks a process with more memory and time to open disks with keys, some of
// which, as it was found without them, are locked.
func unlock(ctx context.Context, o Options, r *proto.Request, devices []block.Device, locked []Volume) (*client, proto.Reply, error) {
	if o.Unlocking != nil {
		select {
		case o.Unlocking <- struct{}{}:
			defer func() { <-o.Unlocking }()
		case <-ctx.Done():
			return nil, proto.Reply{}, ctx.Err()
		}
	}
	o.MemoryBytes += volume.DefaultKeyMemory
	c, err := startClient(devices, o)
	if err != nil {
		return nil, proto.Reply{}, err
	}
	var reply proto.Reply
	with := *r
	keys := o.Keys.copies(locked)
	with.Passphrases, with.Keys = keys.Passphrases, keys.Known
	reply, err = c.callFor(ctx, &with, unlockFactor*c.timeout)
	if err == nil && !opened(locked, lockedOf(reply.Machines)) {
		err = tree.NewLockedError(lockedOf(reply.Machines))
	}
	if err != nil {
		c.close() // nothing is being sent any more
	}
	keys.Clear()
	if err != nil {
		return nil, reply, err
	}
	o.Keys.remember(reply.Keys)
	return c, reply, nil
}

// unlockFactor is how much longer an answer may take for which keys are derived.
const unlockFactor = 10

// opened reports whether any of the volumes that were locked is not any more.
func opened(before, after []Volume) bool {
	left := map[string]int{}
	for _, v := range after {
		left[v.Path]++
	}
	for _, v := range before {
		if left[v.Path]--; left[v.Path] < 0 {
			return true
		}
	}
	return false
}

// ErrLocked says that what is asked for is encrypted, and was not unlocked.
var ErrLocked = tree.ErrLocked
