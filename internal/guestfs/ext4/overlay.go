package ext4

import (
	"cmp"
	"slices"
	"sort"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// logged is a block of the file system whose content lies in the journal.
type logged struct {
	block uint64 // of the file system
	at    uint64 // where it lies, in blocks
	// escaped says that the journal holds zeroes in place of its own magic number,
	// with which the block begins.
	escaped bool
}

// overlay is a Volume with blocks from the journal in their places.
type overlay struct {
	fsys.Volume
	blocks    []logged // by their number, each once
	blockSize int64    // bytes
}

// from returns the index of the first block that is not below a number.
func (o *overlay) from(block uint64) int {
	return sort.Search(len(o.blocks), func(i int) bool { return o.blocks[i].block >= block })
}

// ReadAt implements fsys.Volume.
func (o *overlay) ReadAt(p []byte, off int64) error {
	if err := o.Volume.ReadAt(p, off); err != nil {
		return err
	}
	end := off + int64(len(p))
	for i := o.from(uint64(off / o.blockSize)); i < len(o.blocks); i++ {
		b := o.blocks[i]
		start := int64(b.block) * o.blockSize
		if start >= end {
			break
		}
		from, to := max(start, off), min(start+o.blockSize, end)
		part := p[from-off : to-off]
		if err := o.Volume.ReadAt(part, int64(b.at)*o.blockSize+from-start); err != nil {
			return err
		}
		if n := from - start; b.escaped && n < 4 {
			copy(part, be.AppendUint32(nil, journalMagic)[n:])
		}
	}
	return nil
}

// at returns where the byte at off lies on the volume below.
func (o *overlay) at(off int64) int64 {
	if o == nil {
		return off
	}
	block := uint64(off / o.blockSize)
	if i := o.from(block); i < len(o.blocks) && o.blocks[i].block == block {
		return int64(o.blocks[i].at)*o.blockSize + off%o.blockSize
	}
	return off
}

// split returns how many of n blocks from block on are alike, and whether they lie
// in the journal.
func (o *overlay) split(block, n uint64) (held bool, alike uint64) {
	if o == nil {
		return false, n
	}
	i := o.from(block)
	if i == len(o.blocks) || o.blocks[i].block >= block+n {
		return false, n
	}
	if first := o.blocks[i].block; first > block {
		return false, first - block
	}
	for alike < n && i < len(o.blocks) && o.blocks[i].block == block+alike {
		alike++
		i++
	}
	return true, alike
}

// latest sorts blocks in the order of their writing by number, and keeps the last
// of each.
func latest(blocks []logged) []logged {
	slices.SortStableFunc(blocks, func(a, b logged) int { return cmp.Compare(a.block, b.block) })
	kept := blocks[:0]
	for i, b := range blocks {
		if i+1 == len(blocks) || blocks[i+1].block != b.block {
			kept = append(kept, b)
		}
	}
	return kept
}
