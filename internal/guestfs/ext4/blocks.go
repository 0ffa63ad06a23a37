package ext4

import "fmt"

// run is a part of a file in blocks.
type run struct {
	first, n uint64
	at       uint64 // where it lies on the volume; 0: nowhere, it reads as zeroes
}

func (r run) end() uint64 { return r.first + r.n }

// appendRun adds a run, joined with the one before it if it goes on where that ends.
func appendRun(runs []run, r run) []run {
	if len(runs) > 0 {
		last := &runs[len(runs)-1]
		if last.end() == r.first && (last.at == 0 && r.at == 0 || last.at != 0 && last.at+last.n == r.at) {
			last.n += r.n
			return runs
		}
	}
	return append(runs, r)
}

// runs returns runs of a file without gaps from block first on: at least one, and
// as many as one block of its map tells of.
func (f *fileSystem) runs(in *inode, first uint64) ([]run, error) {
	get := f.indirectRuns
	if in.has(flagExtents) {
		get = f.extentRuns
	}
	runs, err := get(in, first)
	if err == nil && (len(runs) == 0 || runs[0].first != first) {
		err = corruptf("nothing tells of block %d", first)
	}
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w", in.number, err)
	}
	return runs, nil
}

// eachRun calls yield for the runs of blocks [from, to) of a file, until it returns
// false.
func (f *fileSystem) eachRun(in *inode, from, to uint64, yield func(run) bool) error {
	for from < to {
		runs, err := f.runs(in, from)
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.first >= to {
				return nil
			}
			r.n = min(r.n, to-r.first)
			if !yield(r) {
				return nil
			}
			from = r.end()
		}
	}
	return nil
}

// blockOf returns where a block of a directory lies, or 0 for a hole.
func (f *fileSystem) blockOf(in *inode, n uint64) (at uint64, err error) {
	err = f.eachRun(in, n, n+1, func(r run) bool {
		at = r.at
		return false
	})
	return at, err
}

const (
	extentMagic     = 0xf30a
	extentSize      = 12              // bytes of a header and of each entry
	maxExtentDepth  = 5               // of the tree
	maxExtentBlocks = uint64(1) << 32 // of a file
	unwritten       = 1 << 15         // lengths above it are of blocks that were never written
)

// extentRuns finds the leaf of an extent tree that tells of block first, and returns
// what it says from there on ("Extent Tree" in the kernel's documentation).
func (f *fileSystem) extentRuns(in *inode, first uint64) ([]run, error) {
	node := in.block()
	depth := int(le.Uint16(node[6:]))
	if depth > maxExtentDepth {
		return nil, corruptf("the extent tree has a depth of %d", depth)
	}
	if first >= maxExtentBlocks {
		return nil, corruptf("block %d is more than can be told of", first)
	}
	low, high := uint64(0), maxExtentBlocks // what node tells of
	for ; ; depth-- {
		entries, err := extentEntries(node, depth)
		if err != nil {
			return nil, err
		}
		if depth == 0 {
			return f.extentLeaf(entries, first, low, high)
		}
		at, found := uint64(0), false
		for ; len(entries) > 0; entries = entries[extentSize:] {
			start := uint64(le.Uint32(entries))
			if start < low || start >= high || found && start == low {
				return nil, corruptf("the extent tree is out of order at block %d", start)
			}
			if start > first {
				high = start
				break
			}
			low, at, found = start, uint64(le.Uint32(entries[4:]))|uint64(le.Uint16(entries[8:]))<<32, true
		}
		if !found {
			return []run{{first: first, n: high - first}}, nil
		}
		if node, err = f.extentNode(in, at); err != nil {
			return nil, err
		}
	}
}

// extentNode reads a block of an extent tree.
func (f *fileSystem) extentNode(in *inode, at uint64) ([]byte, error) {
	if !f.super.holds(at, 1) {
		return nil, corruptf("the extent tree goes on in block %d", at)
	}
	node, err := f.readBlock(at)
	if err != nil || !f.super.checksums() {
		return node, err
	}
	tail := extentSize * (1 + int(le.Uint16(node[4:])))
	if tail+4 > len(node) {
		return nil, corruptf("block %d of the extent tree has room for %d entries", at, le.Uint16(node[4:]))
	}
	if got, want := crc32c(in.seed, node[:tail]), le.Uint32(node[tail:]); got != want {
		return nil, corruptf("the checksum of block %d of the extent tree is 0x%x instead of 0x%x", at, got, want)
	}
	return node, nil
}

// extentEntries checks the header of a node of an extent tree and returns its
// entries.
func extentEntries(node []byte, depth int) ([]byte, error) {
	n, room := int(le.Uint16(node[2:])), int(le.Uint16(node[4:]))
	if le.Uint16(node) != extentMagic || int(le.Uint16(node[6:])) != depth || n > room || extentSize*(1+room) > len(node) || n == 0 && depth > 0 {
		return nil, corruptf("a node of the extent tree begins with %x", node[:8])
	}
	return node[extentSize : extentSize*(1+n)], nil
}

// extentLeaf returns the runs from block first to high that a leaf tells of.
func (f *fileSystem) extentLeaf(entries []byte, first, low, high uint64) (runs []run, err error) {
	next := low // block that the entries before told of
	for ; len(entries) > 0; entries = entries[extentSize:] {
		r := run{
			first: uint64(le.Uint32(entries)),
			n:     uint64(le.Uint16(entries[4:])),
			at:    uint64(le.Uint16(entries[6:]))<<32 | uint64(le.Uint32(entries[8:])),
		}
		written := r.n <= unwritten
		if !written {
			r.n -= unwritten
		}
		if r.first < next || r.n == 0 || r.end() > high || !f.super.holds(r.at, r.n) {
			return nil, corruptf("an extent of %d blocks from %d is said to lie at block %d", r.n, r.first, r.at)
		}
		if next = r.end(); next <= first {
			continue
		}
		if skip := first - min(first, r.first); skip > 0 {
			r.first, r.n, r.at = first, r.n-skip, r.at+skip
		}
		if r.first > first {
			runs = appendRun(runs, run{first: first, n: r.first - first})
		}
		if !written {
			r.at = 0
		}
		runs, first = appendRun(runs, r), next
	}
	if first < high {
		runs = appendRun(runs, run{first: first, n: high - first})
	}
	return runs, nil
}

// directBlocks is how many blocks an inode tells of itself.
const directBlocks = 12

// indirectRuns returns what one block of the map of ext2 tells from block first on
// ("Direct/Indirect Block Addressing").
func (f *fileSystem) indirectRuns(in *inode, first uint64) ([]run, error) {
	area := in.block()
	if first < directBlocks {
		return f.pointers(area[4*first:4*directBlocks], first)
	}
	perBlock := uint64(f.super.blockSize) / 4
	base, span := uint64(directBlocks), perBlock
	for level := range 3 {
		if first-base < span {
			return f.indirect(area[4*(directBlocks+level):][:4], level+1, first, base, span)
		}
		base += span
		span *= perBlock
	}
	return nil, corruptf("block %d is more than can be told of", first)
}

// indirect goes down from a pointer that tells of span blocks from base, through as
// many levels.
func (f *fileSystem) indirect(pointers []byte, levels int, first, base, span uint64) ([]run, error) {
	perBlock := uint64(f.super.blockSize) / 4
	for ; levels > 0; levels-- {
		nth := (first - base) / span
		base += nth * span
		at := uint64(le.Uint32(pointers[4*nth:]))
		if at == 0 {
			end := base
			for holes := pointers[4*nth:]; len(holes) > 0 && le.Uint32(holes) == 0; holes = holes[4:] {
				end += span
			}
			return []run{{first: first, n: end - first}}, nil
		}
		if !f.super.holds(at, 1) {
			return nil, corruptf("pointers are said to be in block %d", at)
		}
		var err error
		if pointers, err = f.readBlock(at); err != nil {
			return nil, err
		}
		span /= perBlock
	}
	return f.pointers(pointers[4*(first-base):], first)
}

// pointers returns the runs that pointers to blocks tell of, from block first on.
func (f *fileSystem) pointers(p []byte, first uint64) (runs []run, err error) {
	for ; len(p) > 0; p, first = p[4:], first+1 {
		at := uint64(le.Uint32(p))
		if at != 0 && !f.super.holds(at, 1) {
			return nil, corruptf("block %d is said to lie at %d", first, at)
		}
		runs = appendRun(runs, run{first: first, n: 1, at: at})
	}
	return runs, nil
}
