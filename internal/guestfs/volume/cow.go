package volume

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// thinSum is the checksum of dm's persistent data library: CRC-32C that is not
// inverted, with a salt for each kind of block.
func thinSum(b []byte, salt uint32) uint32 { return ^crc32.Checksum(b, castagnoli) ^ salt }

// maxExceptions is how many runs of exceptions are kept: of 24 bytes each.
const maxExceptions = 1 << 20

// cow is the layout of a snapshot of dm-snapshot: chunks that have changed since
// lie in the store, the others in the origin (torvalds/linux
// drivers/md/dm-snap-persistent.c). The table of exceptions is read when the first
// byte is asked for: it may be large.
type cow struct {
	store, origin fsys.Volume
	chunk         int64 // bytes

	once       sync.Once
	exceptions []exception // in order
	err        error
}

// exception is a run of chunks that lie in the store.
type exception struct{ old, at, n uint64 }

// openCOW checks the header of a store; chunk is what the group says that its
// chunks have.
func openCOW(store, origin fsys.Volume, chunk int64) (*cow, error) {
	b := make([]byte, 512)
	if err := store.ReadAt(b, 0); err != nil {
		return nil, err
	}
	if string(b[:4]) != "SnAp" {
		return nil, errors.New("the snapshot was never active")
	}
	if v := le.Uint32(b[8:]); v != 1 {
		return nil, fmt.Errorf("the snapshot's store has version %d", v)
	}
	if le.Uint32(b[4:]) == 0 {
		return nil, errors.New("the snapshot is invalid: it has run out of space")
	}
	own := int64(le.Uint32(b[12:])) * 512
	if own < 512*8 || own > 16<<20 || own&(own-1) != 0 || own != chunk {
		return nil, fmt.Errorf("the snapshot has chunks of %d bytes, the volume group says %d", own, chunk)
	}
	return &cow{store: store, origin: origin, chunk: own}, nil
}

func (c *cow) volumes(yield func(fsys.Volume)) {
	yield(c.store)
	yield(c.origin)
}

func (c *cow) run(off, max int64) (run, error) {
	c.once.Do(func() { c.err = c.load() })
	if c.err != nil {
		return run{}, c.err
	}
	key, in := uint64(off/c.chunk), off%c.chunk
	i, _ := slices.BinarySearchFunc(c.exceptions, key, func(e exception, key uint64) int { return cmp.Compare(e.old+e.n-1, key) })
	if i == len(c.exceptions) {
		return run{c.origin, off, max}, nil
	}
	e := c.exceptions[i]
	if e.old <= key {
		return run{c.store, int64(e.at+key-e.old)*c.chunk + in, min(max, int64(e.old+e.n-key)*c.chunk-in)}, nil
	}
	return run{c.origin, off, min(max, int64(e.old-key)*c.chunk-in)}, nil
}

// load reads the table: chunks of it, each followed by the chunks that it tells
// of, up to an entry that is zero.
func (c *cow) load() error {
	perChunk := c.chunk / 16
	table := make([]byte, c.chunk)
	for at := int64(1); at < c.store.Size()/c.chunk; at += perChunk + 1 {
		if err := c.store.ReadAt(table, at*c.chunk); err != nil {
			return fmt.Errorf("exceptions of a snapshot: %w", err)
		}
		for b := table; len(b) > 0; b = b[16:] {
			old, new := le.Uint64(b), le.Uint64(b[8:])
			if new == 0 {
				return c.sort()
			}
			if err := c.add(old, new); err != nil {
				return err
			}
		}
	}
	return c.sort()
}

func (c *cow) add(old, at uint64) error {
	if old >= uint64(c.origin.Size()/c.chunk)+1 || at >= uint64(c.store.Size()/c.chunk) {
		return fmt.Errorf("snapshot has an exception past the end of its volumes: %w", fsys.ErrCorrupt)
	}
	if n := len(c.exceptions); n > 0 {
		if e := &c.exceptions[n-1]; e.old+e.n == old && e.at+e.n == at {
			e.n++
			return nil
		}
	}
	if len(c.exceptions) == maxExceptions {
		return fmt.Errorf("snapshot has more than %d runs of exceptions: %w", maxExceptions, fsys.ErrUnsupported)
	}
	c.exceptions = append(c.exceptions, exception{old, at, 1})
	return nil
}

func (c *cow) sort() error {
	slices.SortFunc(c.exceptions, func(a, b exception) int { return cmp.Compare(a.old, b.old) })
	for i := 1; i < len(c.exceptions); i++ {
		if a := c.exceptions[i-1]; a.old+a.n > c.exceptions[i].old {
			return fmt.Errorf("snapshot has two exceptions for chunk %d: %w", c.exceptions[i].old, fsys.ErrCorrupt)
		}
	}
	return nil
}
