package cluster

import (
	"errors"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Cache keeps the chains that were followed last, which take some MiB at most.
type Cache struct {
	mu   sync.Mutex // guards the fields below
	kept [64]cached
	next int // to be replaced
}

type cached struct {
	first, n uint32
	chain    *Chain
	err      error
}

// Follow is [Table.Follow], from memory where that is possible.
func (c *Cache) Follow(t *Table, first, n uint32) (*Chain, error) {
	c.mu.Lock()
	for _, k := range c.kept {
		if k.chain != nil && k.first == first && k.n == n {
			c.mu.Unlock()
			return k.chain, k.err
		}
	}
	c.mu.Unlock()
	chain, err := t.Follow(first, n)
	if err != nil && !errors.Is(err, fsys.ErrCorrupt) {
		return chain, err // reading may succeed the next time
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept[c.next] = cached{first, n, chain, err}
	c.next = (c.next + 1) % len(c.kept)
	return chain, err
}
