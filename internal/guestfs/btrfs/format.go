package btrfs

import (
	"encoding/binary"
	"fmt"
)

// Names and numbers are those of the "On-disk format" page of the btrfs
// documentation.

// Objects of keys, and trees.
const (
	rootTreeID  = 1
	chunkTreeID = 3
	topLevelID  = 5 // the subvolume that all others hang below
	csumTreeID  = 7
	firstFreeID = 256 // of inodes, of chunks, and of subvolumes but the topmost
	// Objects that the kernel counts from the end.
	treeLogObject    = ^uint64(5) // -6
	extentCsumObject = ^uint64(9) // -10
)

// Kinds of items.
const (
	inodeItem      = 1
	inodeRef       = 12
	inodeExtref    = 13
	xattrItem      = 24
	dirLogIndex    = 72
	dirItem        = 84
	dirIndex       = 96
	extentData     = 108
	extentCsum     = 128
	rootItem       = 132
	rootRef        = 156
	devItem        = 216
	chunkItem      = 228
	maxLevel       = 8
	maxOffset      = ^uint64(0)
	headerSize     = 101
	itemSize       = 25
	pointerSize    = 33
	keySize        = 17
	deviceItemSize = 98
	inodeSize      = 160
	dirEntrySize   = 30
)

// key is what items are sorted by.
type key struct {
	object uint64
	kind   uint8
	offset uint64
}

func (k key) String() string { return fmt.Sprintf("(%d %d %d)", int64(k.object), k.kind, k.offset) }

// compare returns a negative number, zero or a positive one as k sorts before o,
// is it, or sorts behind it.
func (k key) compare(o key) int {
	switch {
	case k.object != o.object:
		return order(k.object < o.object)
	case k.kind != o.kind:
		return order(k.kind < o.kind)
	case k.offset != o.offset:
		return order(k.offset < o.offset)
	}
	return 0
}

func order(less bool) int {
	if less {
		return -1
	}
	return 1
}

// next returns the key that follows k.
func (k key) next() key {
	if k.offset++; k.offset == 0 {
		if k.kind++; k.kind == 0 {
			k.object++
		}
	}
	return k
}

func keyAt(b []byte) key {
	return key{le64(b), b[8], le64(b[9:])}
}

func (k key) put(b []byte) {
	binary.LittleEndian.PutUint64(b, k.object)
	b[8] = k.kind
	binary.LittleEndian.PutUint64(b[9:], k.offset)
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
