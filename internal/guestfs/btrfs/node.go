package btrfs

import (
	"fmt"
	"sort"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// node is a tree block whose structure was checked: "B-tree node" and "leaf" of
// the on-disk format. It is not changed any more.
type node struct {
	b          []byte
	logical    uint64
	generation uint64
	level      uint8
	n          int // items, or pointers
}

// blockRef is what points to a tree block.
type blockRef struct {
	logical, generation uint64
	level               uint8
}

func (n *node) key(i int) key {
	if n.level > 0 {
		return keyAt(n.b[headerSize+i*pointerSize:])
	}
	return keyAt(n.b[headerSize+i*itemSize:])
}

// child returns pointer i of a node.
func (n *node) child(i int) blockRef {
	b := n.b[headerSize+i*pointerSize+keySize:]
	return blockRef{le64(b), le64(b[8:]), n.level - 1}
}

// item returns the data of item i of a leaf.
func (n *node) item(i int) []byte {
	from, size := n.bounds(i)
	return n.b[from : from+size : from+size]
}

// bounds returns where in the block the data of item i lie.
func (n *node) bounds(i int) (from, size uint64) {
	b := n.b[headerSize+i*itemSize+keySize:]
	return headerSize + uint64(le32(b)), uint64(le32(b[4:]))
}

// search returns how many keys of the block are less than k.
func (n *node) search(k key) int {
	return sort.Search(n.n, func(i int) bool { return n.key(i).compare(k) >= 0 })
}

// parseNode checks the structure of a block and of what it says about itself.
func (s *store) parseNode(b []byte, ref blockRef) (*node, error) {
	fail := func(format string, args ...any) (*node, error) {
		return nil, fmt.Errorf("tree block at %d: %s: %w", ref.logical, fmt.Sprintf(format, args...), fsys.ErrCorrupt)
	}
	if !s.opts.trusting && !s.super.sum.matches(b[32:], b) {
		return fail("its checksum is wrong")
	}
	n := &node{b: b, logical: ref.logical, generation: le64(b[80:]), level: b[100], n: int(min(le32(b[96:]), 1<<16))}
	switch fsid := uuid(b[32:48]); {
	case le64(b[48:]) != ref.logical:
		return fail("it says that it lies at %d", le64(b[48:]))
	case fsid != s.super.metadataFSID && !s.seeds[fsid]:
		return fail("it belongs to file system %s", fsid)
	case n.generation != ref.generation || n.level != ref.level:
		return fail("got generation %d, level %d, want %d, %d", n.generation, n.level, ref.generation, ref.level)
	}
	size, room := itemSize, uint64(len(b))
	if n.level > 0 {
		size = pointerSize
	}
	if n.n > (len(b)-headerSize)/size || n.level > 0 && n.n == 0 {
		return fail("%d items", le32(b[96:]))
	}
	for i := range n.n {
		if i > 0 && n.key(i-1).compare(n.key(i)) >= 0 {
			return fail("keys %s and %s are not in order", n.key(i-1), n.key(i))
		}
		if n.level > 0 {
			continue
		}
		if from, size := n.bounds(i); from < uint64(headerSize+n.n*itemSize) || from+size > room {
			return fail("item %s at %d, %d bytes", n.key(i), from, size)
		}
	}
	return n, nil
}

// node returns the tree block that ref points to.
func (s *store) node(ref blockRef) (*node, error) {
	if n, ok := s.nodes.Get(ref.logical); ok {
		if n.generation != ref.generation || n.level != ref.level {
			return nil, fmt.Errorf("tree block at %d: generation and level differ from those of a pointer to it: %w", ref.logical, fsys.ErrCorrupt)
		}
		return n, nil
	}
	var n *node
	b := make([]byte, s.super.nodeSize)
	err := s.space.read(b, ref.logical, true, func(b []byte) (err error) {
		n, err = s.parseNode(b, ref)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read tree block: %w", err)
	}
	s.nodes.Put(ref.logical, n, int64(len(b))+256)
	return n, nil
}
