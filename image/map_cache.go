package image

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// cache keeps values that can be made again, up to a number of bytes. A hit takes
// no lock and allocates nothing. A value is made once even if several ask for it
// at the same time; the longest unused go first, about (CLOCK).
type cache[V any] struct {
	limit int64
	cost  func(V) int64

	table atomic.Pointer[[]bucket[V]] // a power of two of them; replaced when it grows

	mu      sync.Mutex // guards the fields below and changes of table
	used    int64
	ring    []*slot[V] // all slots, in no order
	hand    int
	flights map[uint64]*flight[V]
}

type bucket[V any] struct{ head atomic.Pointer[link[V]] }

// link is an element of a bucket's list. Links are immutable once published.
type link[V any] struct {
	slot *slot[V]
	next *link[V]
}

type slot[V any] struct {
	key   uint64
	value V
	cost  int64
	hot   atomic.Bool // used since the hand passed
}

// flight is a value being made.
type flight[V any] struct {
	done  chan struct{}
	value V
	err   error
}

func newCache[V any](limit int64, cost func(V) int64) *cache[V] {
	c := &cache[V]{limit: limit, cost: cost, flights: make(map[uint64]*flight[V])}
	table := make([]bucket[V], 16)
	c.table.Store(&table)
	return c
}

func spread(key uint64, n int) uint64 {
	return key * 0x9e3779b97f4a7c15 >> 32 & uint64(n-1)
}

// lookup returns the value of key if it is there.
func (c *cache[V]) lookup(key uint64) (v V, ok bool) {
	table := *c.table.Load()
	for l := table[spread(key, len(table))].head.Load(); l != nil; l = l.next {
		if l.slot.key == key {
			if !l.slot.hot.Load() {
				l.slot.hot.Store(true)
			}
			return l.slot.value, true
		}
	}
	return v, false
}

// get returns the value of key, from build if it is not there. An error is
// returned to all who wait for it and not kept. Who waits for another's build
// leaves when ctx ends.
func (c *cache[V]) get(ctx context.Context, key uint64, build func() (V, error)) (V, error) {
	for {
		if v, ok := c.lookup(key); ok {
			return v, nil
		}
		c.mu.Lock()
		if v, ok := c.lookup(key); ok {
			c.mu.Unlock()
			return v, nil
		}
		f, ok := c.flights[key]
		if !ok {
			f = &flight[V]{done: make(chan struct{})}
			c.flights[key] = f
			c.mu.Unlock()
			c.fly(key, f, build)
			return f.value, f.err
		}
		c.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
		if f.err == nil || !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) {
			return f.value, f.err
		}
		// It was given up for a reason that is not ours.
	}
}

func (c *cache[V]) fly(key uint64, f *flight[V], build func() (V, error)) {
	f.err = errors.New("making a cached value panicked")
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.flights, key)
		if f.err == nil {
			c.insert(key, f.value)
		}
		close(f.done)
	}()
	f.value, f.err = build()
}

// put keeps a value that did not have to be waited for.
func (c *cache[V]) put(key uint64, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.lookup(key); !ok {
		c.insert(key, v)
	}
}

// insert adds a value, and drops others to make room. c.mu is held.
func (c *cache[V]) insert(key uint64, v V) {
	s := &slot[V]{key: key, value: v, cost: c.cost(v)}
	c.used += s.cost
	for c.used > c.limit && len(c.ring) > 0 {
		c.evict()
	}
	if table := *c.table.Load(); len(c.ring) >= 2*len(table) {
		c.grow(4 * len(table))
	}
	c.ring = append(c.ring, s)
	c.link(*c.table.Load(), s)
}

func (c *cache[V]) link(table []bucket[V], s *slot[V]) {
	b := &table[spread(s.key, len(table))].head
	b.Store(&link[V]{slot: s, next: b.Load()})
}

// grow publishes a table of n buckets. c.mu is held.
func (c *cache[V]) grow(n int) {
	table := make([]bucket[V], n)
	for _, s := range c.ring {
		c.link(table, s)
	}
	c.table.Store(&table)
}

// evict drops the first slot from the hand on that was not used since the hand
// was there last. c.mu is held and there is at least one slot.
func (c *cache[V]) evict() {
	for {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		s := c.ring[c.hand]
		if !s.hot.Swap(false) {
			break
		}
		c.hand++
	}
	s, last := c.ring[c.hand], len(c.ring)-1
	c.ring[c.hand], c.ring[last] = c.ring[last], nil
	c.ring = c.ring[:last]
	c.used -= s.cost
	table := *c.table.Load()
	b := &table[spread(s.key, len(table))].head
	b.Store(without(b.Load(), s))
}

// without returns the list l less the link to s; readers may be on the old one.
func without[V any](l *link[V], s *slot[V]) *link[V] {
	if l == nil || l.slot == s {
		if l == nil {
			return nil
		}
		return l.next
	}
	return &link[V]{slot: l.slot, next: without(l.next, s)}
}
