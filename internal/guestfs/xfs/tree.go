package xfs

import "sort"

// Magic numbers of blocks of an index (Leaf Directories, Node Directories,
// Attribute Fork), and those of version 5.
const (
	magicDirLeaf    = 0xd2f1
	magicDirLeafV5  = 0x3df1
	magicDirLeafN   = 0xd2ff // below a node
	magicDirLeafNV5 = 0x3dff
	magicNode       = 0xfebe
	magicNodeV5     = 0x3ebe
	magicAttr       = 0xfbee
	magicAttrV5     = 0x3bee
)

// kind is what a block of an index is.
type kind uint8

const (
	kindNode kind = iota
	kindDir
	kindAttr
)

// kindOf returns what a magic number stands for.
func kindOf(magic uint16, v5 bool) (kind, bool) {
	switch magic {
	case magicDirLeaf, magicDirLeafN:
		return kindDir, !v5
	case magicDirLeafV5, magicDirLeafNV5:
		return kindDir, v5
	case magicNode:
		return kindNode, !v5
	case magicNodeV5:
		return kindNode, v5
	case magicAttr:
		return kindAttr, !v5
	case magicAttrV5:
		return kindAttr, v5
	}
	return 0, false
}

// maxTreeDepth bounds the levels of nodes.
const maxTreeDepth = 5

// tree is an index by hash: of names in a directory, or of attributes.
type tree struct {
	fork   *fork
	size   int    // of a block, in bytes
	root   uint64 // block of the fork
	leaves kind
	seen   map[uint64]bool
	buf    raw
}

// treeLeaf is a leaf of a tree.
type treeLeaf struct {
	raw     raw
	entries raw    // 8 bytes each, sorted by the hash that they begin with
	next    uint64 // leaf with higher hashes; 0: none
}

// newTree returns the tree of one kind whose root is at a block of a fork.
func newTree(k *fork, size int, root uint64, leaves kind) *tree {
	return &tree{fork: k, size: size, root: root, leaves: leaves, seen: map[uint64]bool{}}
}

// block reads a block of the tree. No block is read twice.
func (t *tree) block(off uint64) (b raw, is kind, err error) {
	ino := t.fork.ino
	if t.seen[off] || off%uint64(max(t.size>>t.fork.fs.blockLog, 1)) != 0 {
		return nil, 0, corrupt("inode %d: the index comes to block %d again, or inside of it", ino, off)
	}
	t.seen[off] = true
	if t.buf == nil {
		t.buf = make(raw, t.size)
	}
	b = t.buf
	at, replayed, err := t.fork.read(b, off)
	if err != nil {
		return nil, 0, err
	}
	if t.fork.fs.v5 {
		if err := t.fork.fs.sane(b, headerTree, at, ino, replayed); err != nil {
			return nil, 0, err
		}
	}
	is, ok := kindOf(b.u16(8), t.fork.fs.v5)
	if !ok || is != kindNode && is != t.leaves {
		return nil, 0, corrupt("inode %d: block %d of the index is none", ino, off)
	}
	return b, is, nil
}

// descend returns the first leaf that may have a hash.
func (t *tree) descend(hash uint32) (treeLeaf, error) {
	off := t.root
	for level := -1; level != 0; {
		b, is, err := t.block(off)
		if err != nil {
			return treeLeaf{}, err
		}
		if is != kindNode {
			if level > 0 {
				return treeLeaf{}, corrupt("inode %d: block %d of the index is a leaf above level 0", t.fork.ino, off)
			}
			return t.parse(b, is)
		}
		count, entries := t.entries(b, is)
		at := int(b.u16(t.info() + 2))
		if count == 0 || count > len(entries)/8 || at == 0 || at > maxTreeDepth || level > 0 && at != level {
			return treeLeaf{}, corrupt("inode %d: node %d of the index has %d entries, on level %d", t.fork.ino, off, count, at)
		}
		i := min(sort.Search(count, func(i int) bool { return entries.u32(i*8) >= hash }), count-1)
		off, level = uint64(entries.u32(i*8+4)), at-1
	}
	return t.leaf(off)
}

// leaf reads a leaf.
func (t *tree) leaf(off uint64) (treeLeaf, error) {
	b, is, err := t.block(off)
	if err != nil {
		return treeLeaf{}, err
	}
	if is == kindNode {
		return treeLeaf{}, corrupt("inode %d: block %d of the index is not a leaf", t.fork.ino, off)
	}
	return t.parse(b, is)
}

func (t *tree) parse(b raw, is kind) (treeLeaf, error) {
	count, entries := t.entries(b, is)
	if count > len(entries)/8 {
		return treeLeaf{}, corrupt("inode %d: a leaf of the index has %d entries", t.fork.ino, count)
	}
	return treeLeaf{raw: b, entries: entries[:count*8], next: uint64(b.u32(0))}, nil
}

// info is how long what all blocks of a tree begin with is, in bytes.
func (t *tree) info() int {
	if t.fork.fs.v5 {
		return 56
	}
	return 12
}

// entries returns how many entries a block claims to have, and where they begin.
func (t *tree) entries(b raw, is kind) (int, raw) {
	head := 16
	if is == kindAttr {
		head = 32
	}
	if t.fork.fs.v5 {
		head += 48
	}
	return int(b.u16(t.info())), b[head:]
}
