package xfs

import (
	"errors"
	"fmt"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// maxOverlay bounds what a replay may change, in bytes.
const maxOverlay = 128 << 20

var errTooLarge = errors.New("the log holds more than can be kept in memory")

// overlay is a volume with blocks changed in memory. It is not changed any more
// once it is shared.
type overlay struct {
	fsys.Volume
	blockLog uint8
	blocks   map[int64]raw
	inodes   map[uint64]bool // whose records were changed
}

func newOverlay(v fsys.Volume, blockLog uint8) *overlay {
	return &overlay{Volume: v, blockLog: blockLog, blocks: map[int64]raw{}, inodes: map[uint64]bool{}}
}

// touches returns whether any of n bytes were changed.
func (o *overlay) touches(at int64, n int) bool {
	for i := at >> o.blockLog; i<<o.blockLog < at+int64(n); i++ {
		if o.blocks[i] != nil {
			return true
		}
	}
	return false
}

// ReadAt implements fsys.Volume.
func (o *overlay) ReadAt(p []byte, off int64) error {
	if err := o.Volume.ReadAt(p, off); err != nil {
		return err
	}
	for i := off >> o.blockLog; i<<o.blockLog < off+int64(len(p)); i++ {
		if b := o.blocks[i]; b != nil {
			if start := i << o.blockLog; start < off {
				copy(p, b[off-start:])
			} else {
				copy(p[start-off:], b)
			}
		}
	}
	return nil
}

// write changes bytes.
func (o *overlay) write(p []byte, off int64) error {
	for len(p) > 0 {
		i := off >> o.blockLog
		b := o.blocks[i]
		if b == nil {
			if (len(o.blocks)+1)<<o.blockLog > maxOverlay {
				return errTooLarge
			}
			b = make(raw, 1<<o.blockLog)
			if err := o.Volume.ReadAt(b, i<<o.blockLog); err != nil {
				return err
			}
			o.blocks[i] = b
		}
		n := copy(b[off-i<<o.blockLog:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// pending is what a replay leaves to be done: it takes a file system that can
// allocate.
type pending struct {
	intents map[intent][]uint64 // inodes that each is about
	inodes  map[uint64]bool     // those of all intents
	// reowned are inodes that exchanged extent trees with others, whose blocks may
	// still name those.
	reowned map[uint64]bool
}

// intent is something that was to be done, and logged before.
type intent struct {
	kind uint16
	id   uint64
}

// finish takes down the inodes whose changes were not completed.
func (p *pending) finish() {
	p.inodes = map[uint64]bool{}
	for _, list := range p.intents {
		for _, ino := range list {
			p.inodes[ino] = true
		}
	}
}

// refused returns an error for an inode that was being changed.
func (p *pending) refused(ino uint64) error {
	if p.inodes[ino] {
		return unsupported("inode %d was being changed, and that has to be completed by mounting the file system", ino)
	}
	return nil
}

// notes say which inodes cannot be read.
func (p *pending) notes() []string {
	if len(p.inodes) == 0 {
		return nil
	}
	var list []uint64
	for ino := range p.inodes {
		list = append(list, ino)
	}
	slices.Sort(list)
	return []string{fmt.Sprintf("Changes of %d files were begun and not completed; these cannot be read before Linux has mounted the file system, the first is inode %d.", len(list), list[0])}
}
