package ext4

import "errors"

const (
	indexEntrySize  = 8
	indexRootOffset = 32         // of the first entry in the root of an index, in bytes
	indexNodeOffset = 8          // in other nodes
	indexBlockMask  = 0x0fffffff // of the number of a block
)

// indexed says whether a directory has an index.
func (s *superblock) indexed(in *inode) bool {
	return s.compat&compatDirIndex != 0 && in.has(flagIndex) && !in.has(flagInlineData)
}

// index is a node of the index of a directory.
type index struct {
	version int // of hashes; of the root
	levels  int // of nodes below the root; of the root
	entries []byte
}

// hash returns the hash that the names below an entry begin with.
func (x index) hash(i int) uint32 {
	if i == 0 {
		return 0 // the room of the first is that of the number of entries
	}
	return le.Uint32(x.entries[indexEntrySize*i:])
}

func (x index) block(i int) uint64 {
	return uint64(le.Uint32(x.entries[indexEntrySize*i+4:]) & indexBlockMask)
}

func (x index) len() int { return len(x.entries) / indexEntrySize }

// find returns the last entry that names with a hash may be below.
func (x index) find(hash uint32) int {
	low, high := 0, x.len()
	for high-low > 1 {
		if mid := (low + high) / 2; x.hash(mid) > hash {
			high = mid
		} else {
			low = mid
		}
	}
	return low
}

// parseIndex parses a node of the index of a directory and checks its checksum
// ("Hash Tree Directories" in the kernel's documentation).
func (s *superblock) parseIndex(in *inode, b []byte) (x index, err error) {
	off := indexNodeOffset
	if s.recLen(b) != len(b) {
		off = indexRootOffset
		if s.recLen(b) != 12 || s.recLen(b[12:]) != len(b)-12 || le.Uint32(b[24:]) != 0 || b[29] != 8 {
			return index{}, corruptf("the root of the index begins with %x", b[:indexRootOffset])
		}
		x.version, x.levels = int(b[28]), int(b[30])
	}
	limit, count := int(le.Uint16(b[off:])), int(le.Uint16(b[off+2:]))
	room := len(b)
	if s.checksums() {
		room -= indexEntrySize
	}
	if count == 0 || count > limit || off+indexEntrySize*limit > room {
		return index{}, corruptf("a node of the index has %d of %d entries", count, limit)
	}
	x.entries = b[off : off+indexEntrySize*count]
	if s.checksums() {
		tail := b[off+indexEntrySize*limit:][:8]
		got := crc32c(crc32c(crc32c(in.seed, b[:off+indexEntrySize*count]), tail[:4]), make([]byte, 4))
		if want := le.Uint32(tail[4:]); got != want {
			return index{}, corruptf("the checksum of a node of the index is 0x%x instead of 0x%x", got, want)
		}
	}
	return x, nil
}

// maxLevels returns how many levels of nodes there may be below the root.
func (s *superblock) maxLevels() int {
	if s.has(incompatLargeDir) {
		return 2
	}
	return 1
}

// lookupIndexed looks for a name by the index, and returns its inode, or 0 if there
// is no such name. It returns false if the index cannot be trusted.
func (f *fileSystem) lookupIndexed(in *inode, name []byte) (id uint32, ok bool) {
	s := &search{f: f, in: in, name: name, left: f.blocks(in)}
	root, err := s.node(0)
	if err != nil || root.levels > f.super.maxLevels() {
		return 0, false
	}
	version := root.version
	if version <= hashTEA && f.super.hashFlags&unsignedHash != 0 {
		version += unsignedStep
	}
	for {
		if s.hash, ok = hashName(name, version, f.super.hashSeed); !ok {
			return 0, false
		}
		if err := s.below(root, root.levels); err != nil {
			return 0, false
		}
		// A superblock that does not tell which kind of char there was can have
		// been written by either kind of machine.
		if s.found != 0 || version > hashTEA || f.super.hashFlags&(signedHash|unsignedHash) != 0 {
			return s.found, true
		}
		version += unsignedStep
	}
}

// search is that for a name by the index.
type search struct {
	f     *fileSystem
	in    *inode
	name  []byte
	hash  uint32
	left  uint64 // blocks that may still be read: no more than there are
	found uint32
}

// read reads a block of the directory.
func (s *search) read(n uint64) ([]byte, error) {
	if s.left == 0 || n >= s.f.blocks(s.in) {
		return nil, corruptf("the index leads to block %d", n)
	}
	s.left--
	at, err := s.f.blockOf(s.in, n)
	if err != nil {
		return nil, err
	}
	if at == 0 {
		return nil, corruptf("there is nothing at block %d", n)
	}
	return s.f.readBlock(at)
}

func (s *search) node(n uint64) (index, error) {
	b, err := s.read(n)
	if err != nil {
		return index{}, err
	}
	return s.f.super.parseIndex(s.in, b)
}

// below searches the blocks below a node with as many levels of nodes under it.
// Names with the same hash may go on in the blocks that follow.
func (s *search) below(x index, levels int) error {
	first := x.find(s.hash)
	for i := first; i < x.len() && s.found == 0; i++ {
		if i > first && x.hash(i)&^1 != s.hash {
			break
		}
		if levels > 0 {
			child, err := s.node(x.block(i))
			if err == nil {
				err = s.below(child, levels-1)
			}
			if err != nil {
				return err
			}
			continue
		}
		if err := s.leaf(x.block(i)); err != nil {
			return err
		}
	}
	return nil
}

// leaf searches a block of entries.
func (s *search) leaf(n uint64) error {
	b, err := s.read(n)
	if err == nil {
		err = s.f.super.checkTail(s.in, b)
	}
	if err != nil {
		return err
	}
	err = s.f.super.dirents(b, func(d dirent) bool {
		if string(d.name) == string(s.name) {
			s.found = d.inode
		}
		return s.found == 0
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}
