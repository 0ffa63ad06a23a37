package xfs

import (
	"fmt"
	"sort"
)

// endOfFork is above the numbers that blocks of a fork can have, of 54 bits.
const endOfFork = 1 << 54

// run is an extent (Extent List): blocks of a fork that lie side by side. Block
// is the first one's number in the file system.
type run struct {
	off, n    uint64
	block     uint64
	unwritten bool
	hole      bool
}

// fork finds the blocks of a data or attribute fork. It remembers where it was,
// and is not for concurrent use.
type fork struct {
	fs   *FS
	ino  uint64
	tree bool
	area raw

	// What is known: the extents in [from, to).
	runs     []run
	from, to uint64
	// Scratch space of reads.
	buf raw
}

// newFork returns a fork whose blocks an extent list or an extent tree holds.
func (f *FS) newFork(ino uint64, format uint8, area raw, extents uint64) (*fork, error) {
	k := &fork{fs: f, ino: ino, area: area, tree: format == formatBtree}
	switch {
	case format == formatBtree:
		return k, nil
	case format != formatExtents:
		return nil, corrupt("inode %d: a fork of format %d has no extents", ino, format)
	case extents > uint64(len(area)/16):
		return nil, corrupt("inode %d: %d extents in a place for %d", ino, extents, len(area)/16)
	}
	k.to = endOfFork
	return k, k.decode(area, int(extents))
}

// dataFork returns the data fork of an inode.
func (f *FS) dataFork(in *inode) (*fork, error) {
	return f.newFork(in.ino, in.format, in.data, in.extents)
}

// decode decodes n extents, which have to be in order inside of [from, to).
func (k *fork) decode(b raw, n int) error {
	k.runs = k.runs[:0]
	end := k.from
	for i := range n {
		hi, lo := b.u64(i*16), b.u64(i*16+8)
		r := run{off: hi << 1 >> 10, block: hi&(1<<9-1)<<43 | lo>>21, n: lo & (1<<21 - 1), unwritten: hi>>63 != 0}
		if r.n == 0 || r.off < end || r.off+r.n > k.to {
			return corrupt("inode %d: an extent of %d blocks from %d, in [%d, %d)", k.ino, r.n, r.off, end, k.to)
		}
		if _, ok := k.fs.blockAt(r.block, r.n); !ok {
			return corrupt("inode %d: an extent of %d blocks at block %d", k.ino, r.n, r.block)
		}
		end = r.off + r.n
		k.runs = append(k.runs, r)
	}
	return nil
}

// find returns the extent that has a block of the fork, or the hole around it up
// to where the next extent begins, or more is to be read.
func (k *fork) find(off uint64) (run, error) {
	if off >= endOfFork {
		return run{}, corrupt("inode %d: block %d of a fork", k.ino, off)
	}
	if off < k.from || off >= k.to {
		if err := k.descend(off); err != nil {
			return run{}, err
		}
	}
	i := sort.Search(len(k.runs), func(i int) bool { return k.runs[i].off+k.runs[i].n > off })
	hole := run{off: k.from, hole: true}
	if i > 0 {
		hole.off = k.runs[i-1].off + k.runs[i-1].n
	}
	if i == len(k.runs) {
		hole.n = k.to - hole.off
		return hole, nil
	}
	if k.runs[i].off <= off {
		return k.runs[i], nil
	}
	hole.n = k.runs[i].off - hole.off
	return hole, nil
}

// maxDepth bounds the levels of an extent tree: 2^48 extents in blocks of 1 KiB
// that are half full.
const maxDepth = 16

// descend reads the leaf of an extent tree that has the block off (B+tree
// Extent List).
func (k *fork) descend(off uint64) error {
	k.from, k.to, k.runs = 0, endOfFork, k.runs[:0]
	level, count := int(k.area.u16(0)), int(k.area.u16(2))
	room := (len(k.area) - 4) / 16
	if level == 0 || level > maxDepth || count == 0 || count > room {
		return k.failed(corrupt("inode %d: extent tree of %d levels and %d entries", k.ino, level, count))
	}
	block, ok := k.choose(k.area[4:], count, room, off)
	for ; ok; level-- {
		b, err := k.node(block, level-1)
		if err != nil {
			return k.failed(err)
		}
		head := k.head()
		count, room = int(b.u16(6)), (len(b)-head)/16
		if count == 0 || count > room {
			return k.failed(corrupt("inode %d: block %d of the extent tree has %d entries", k.ino, block, count))
		}
		if level == 1 {
			if err := k.decode(b[head:], count); err != nil {
				return k.failed(err)
			}
			return nil
		}
		block, ok = k.choose(b[head:], count, room, off)
	}
	if k.from > off || off >= k.to {
		return k.failed(corrupt("inode %d: the extent tree is not in order", k.ino))
	}
	return nil
}

// failed makes the fork forget what it began to read.
func (k *fork) failed(err error) error {
	k.from, k.to, k.runs = 0, 0, k.runs[:0]
	return err
}

// choose narrows [from, to) to an entry of a node, of which there are count in a
// place for room: keys, then block numbers. It returns false where off is below
// all of them, for a hole.
func (k *fork) choose(b raw, count, room int, off uint64) (uint64, bool) {
	i := sort.Search(count, func(i int) bool { return b.u64(i*8) > off })
	if i < count {
		k.to = min(k.to, b.u64(i*8))
	}
	if i == 0 {
		return 0, false
	}
	k.from = max(k.from, b.u64(i*8-8))
	return b.u64(room*8 + i*8 - 8), true
}

// head is how long the header of an extent tree's block is, in bytes.
func (k *fork) head() int {
	if k.fs.v5 {
		return 72
	}
	return 24
}

const (
	magicBtree   = 0x424d4150 // BMAP
	magicBtreeV5 = 0x424d4133 // BMA3
)

// node reads a block of an extent tree.
func (k *fork) node(block uint64, level int) (raw, error) {
	at, ok := k.fs.blockAt(block, 1)
	if !ok {
		return nil, corrupt("inode %d: block %d of the extent tree", k.ino, block)
	}
	b := k.scratch(int(k.fs.blockSize()))
	if err := k.fs.meta.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read the extent tree of inode %d: %w", k.ino, err)
	}
	magic := uint32(magicBtree)
	if k.fs.v5 {
		magic = magicBtreeV5
	}
	if b.u32(0) != magic || int(b.u16(4)) != level {
		return nil, corrupt("inode %d: no block of its extent tree at byte %d", k.ino, at)
	}
	if k.fs.v5 {
		return b, k.fs.sane(b, headerBtree, at, k.ino, k.fs.replayed(at, len(b)))
	}
	return b, nil
}

func (k *fork) scratch(n int) raw {
	if cap(k.buf) < n {
		k.buf = make(raw, n)
	}
	return k.buf[:n]
}

// read fills b with blocks of the fork from the one at off, none of which may be
// missing. It returns where the first one lies and whether any was replayed.
func (k *fork) read(b []byte, off uint64) (at int64, replayed bool, err error) {
	at = -1
	for len(b) > 0 {
		r, err := k.find(off)
		if err != nil {
			return 0, false, err
		}
		if r.hole || r.unwritten {
			return 0, false, corrupt("inode %d: block %d of its structures is missing", k.ino, off)
		}
		start, _ := k.fs.blockAt(r.block+off-r.off, 1)
		n := int(min(uint64(len(b)), (r.off+r.n-off)<<k.fs.blockLog))
		if err := k.fs.meta.ReadAt(b[:n], start); err != nil {
			return 0, false, fmt.Errorf("read block %d of inode %d: %w", off, k.ino, err)
		}
		if at < 0 {
			at = start
		}
		replayed = replayed || k.fs.replayed(start, n)
		b, off = b[n:], off+uint64(n)>>k.fs.blockLog
	}
	return at, replayed, nil
}

// replayed returns whether any of n bytes of the volume came from the log.
func (f *FS) replayed(at int64, n int) bool { return f.replay != nil && f.replay.touches(at, n) }
