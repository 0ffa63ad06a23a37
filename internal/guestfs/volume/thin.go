package volume

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// thinPool is a pool of dm-thin (torvalds/linux
// Documentation/admin-guide/device-mapper/thin-provisioning.rst,
// drivers/md/dm-thin-metadata.c, struct thin_disk_superblock).
type thinPool struct {
	tree        btree
	data        fsys.Volume
	block       int64 // bytes
	blocks      uint64
	transaction uint64
	devices     uint64 // root of the mappings, by device and block
	notes       []string
}

func openThinPool(meta, data fsys.Volume) (*thinPool, error) {
	const (
		magic       = 27022010
		salt        = 160774
		needsCheck  = 1
		nodeSectors = nodeSize / 512
	)
	b := make([]byte, nodeSize)
	if err := meta.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("metadata of its pool: %w", err)
	}
	if le.Uint64(b[32:]) != magic {
		return nil, errors.New("its pool has no metadata")
	}
	if le.Uint32(b) != thinSum(b[4:], salt) || le.Uint64(b[8:]) != 0 {
		return nil, errors.New("its pool's metadata has a wrong checksum")
	}
	if v := le.Uint32(b[40:]); v < 1 || v > 2 {
		return nil, fmt.Errorf("its pool's metadata has version %d", v)
	}
	if x := le.Uint32(b[360:]); x != 0 {
		return nil, fmt.Errorf("its pool has features %#x, which are not known", x)
	}
	sectors, unit := int64(le.Uint32(b[336:])), le.Uint32(b[340:])
	if sectors < 1 || sectors > 1<<21 || unit != nodeSectors {
		return nil, fmt.Errorf("its pool has blocks of %d sectors, its metadata of %d", sectors, unit)
	}
	p := &thinPool{
		tree: btree{vol: fsys.Cached(meta, thinCache)}, data: data, block: sectors * 512,
		transaction: le.Uint64(b[48:]), devices: le.Uint64(b[320:]),
	}
	p.blocks = uint64(data.Size() / p.block)
	if le.Uint32(b[4:])&needsCheck != 0 {
		p.notes = append(p.notes, "The metadata of the pool is marked as needing a check.")
	}
	return p, nil
}

// device returns the root of a device's mappings.
func (p *thinPool) device(id uint64) (uint64, error) {
	e, err := p.tree.find(p.devices, id)
	if err != nil {
		return 0, fmt.Errorf("its pool's metadata: %w", err)
	}
	if !e.found {
		return 0, fmt.Errorf("its pool does not have device %d", id)
	}
	return e.value, nil
}

// thinDevice is the layout of a thin volume.
type thinDevice struct {
	pool   *thinPool
	root   uint64
	origin fsys.Volume // what shows where nothing is mapped; nil: zeroes
}

func (t *thinDevice) volumes(yield func(fsys.Volume)) {
	yield(t.pool.data)
	if t.origin != nil {
		yield(t.origin)
	}
}

func (t *thinDevice) run(off, max int64) (run, error) {
	p := t.pool
	key, in := uint64(off/p.block), off%p.block
	e, err := p.tree.find(t.root, key)
	if err != nil {
		return run{}, fmt.Errorf("mappings of a thin volume: %w", err)
	}
	if !e.found {
		n := max
		if gap := e.next - key; e.next != 0 && gap <= uint64(max/p.block)+1 {
			n = min(n, int64(gap)*p.block-in)
		}
		return t.unmapped(off, n), nil
	}
	// The low 24 bits of a mapping are the time at which the block was shared.
	const shift = 24
	block := e.value >> shift
	n := uint64(1)
	for n < uint64(len(e.follow))+1 && e.follow[n-1]>>shift == block+n {
		n++
	}
	if block >= p.blocks || n > p.blocks-block {
		return run{}, fmt.Errorf("thin volume has a block past the end of its pool: %w", fsys.ErrCorrupt)
	}
	return run{p.data, int64(block)*p.block + in, min(max, int64(n)*p.block-in)}, nil
}

// unmapped is a run of what was never written.
func (t *thinDevice) unmapped(off, n int64) run {
	if t.origin == nil || off >= t.origin.Size() {
		return run{n: n}
	}
	return run{t.origin, off, min(n, t.origin.Size()-off)}
}

// Limits of the B+ trees of dm's persistent data library.
const (
	nodeSize  = 4096
	maxHeight = 16
	thinCache = 8 << 20 // bytes of nodes that are kept for a pool
)

// btree reads B+ trees whose values are 64-bit numbers (torvalds/linux
// drivers/md/persistent-data/dm-btree-internal.h, struct disk_node).
type btree struct {
	vol fsys.Volume
}

// hit is what a search found.
type hit struct {
	found  bool
	value  uint64
	follow []uint64 // values of the keys that follow without a gap, as far as the leaf goes
	next   uint64   // not found: no key is less than this and more than the one sought; 0: not known
}

// find looks a key up in the tree whose root is in block root.
func (t *btree) find(root, key uint64) (hit, error) {
	next := uint64(0) // of the nodes above
	for range maxHeight {
		n, err := t.node(root)
		if err != nil {
			return hit{}, err
		}
		i, ok := slices.BinarySearchFunc(n.keys, key, cmp.Compare)
		if n.leaf {
			if !ok {
				if i < len(n.keys) {
					next = n.keys[i]
				}
				return hit{next: next}, nil
			}
			last := i + 1
			for last < len(n.keys) && n.keys[last] == key+uint64(last-i) {
				last++
			}
			return hit{found: true, value: n.values[i], follow: n.values[i+1 : last]}, nil
		}
		if !ok {
			i--
		}
		if i < 0 { // less than every key
			if len(n.keys) > 0 {
				next = n.keys[0]
			}
			return hit{next: next}, nil
		}
		if i+1 < len(n.keys) {
			next = n.keys[i+1]
		}
		root = n.values[i]
	}
	return hit{}, fmt.Errorf("tree is too high: %w", fsys.ErrCorrupt)
}

// node is a node of a tree. The values of one that is no leaf are blocks.
type node struct {
	leaf         bool
	keys, values []uint64
}

func (t *btree) node(block uint64) (node, error) {
	if block >= uint64(t.vol.Size()/nodeSize) {
		return node{}, fmt.Errorf("block %d lies past the end: %w", block, fsys.ErrCorrupt)
	}
	b := make([]byte, nodeSize)
	if err := t.vol.ReadAt(b, int64(block)*nodeSize); err != nil {
		return node{}, err
	}
	return parseNode(b, block)
}

// parseNode parses the node that was read from a block.
func parseNode(b []byte, block uint64) (node, error) {
	const (
		header   = 32
		internal = 1
		leaf     = 2
		salt     = 121107
	)
	if le.Uint32(b) != thinSum(b[4:], salt) || le.Uint64(b[8:]) != block {
		return node{}, fmt.Errorf("block %d has a wrong checksum: %w", block, fsys.ErrCorrupt)
	}
	flags, count, most, size := le.Uint32(b[4:]), le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
	if size != 8 || most > (nodeSize-header)/16 || count > most || (flags != internal && flags != leaf) || (flags == internal && count == 0) {
		return node{}, fmt.Errorf("block %d is no node of a tree: %w", block, fsys.ErrCorrupt)
	}
	n := node{leaf: flags == leaf, keys: make([]uint64, count), values: make([]uint64, count)}
	for i := range n.keys {
		n.keys[i] = le.Uint64(b[header+8*i:])
		n.values[i] = le.Uint64(b[header+8*int(most)+8*i:])
		if i > 0 && n.keys[i] <= n.keys[i-1] {
			return node{}, fmt.Errorf("block %d has keys out of order: %w", block, fsys.ErrCorrupt)
		}
	}
	return n, nil
}
