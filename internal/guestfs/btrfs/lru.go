package btrfs

import (
	"container/list"
	"sync"
)

// lru keeps what was used last, up to a sum of costs.
type lru[K comparable, V any] struct {
	max int64

	mu    sync.Mutex // guards the fields below
	used  int64
	items map[K]*list.Element
	order list.List // of *kept[K, V], the last one used in front
}

type kept[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

func newLRU[K comparable, V any](maxCost int64) *lru[K, V] {
	return &lru[K, V]{max: maxCost, items: map[K]*list.Element{}}
}

func (c *lru[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.items[k]
	if el == nil {
		return v, false
	}
	c.order.MoveToFront(el)
	return el.Value.(*kept[K, V]).value, true
}

// put keeps v, unless it costs more than a quarter of everything.
func (c *lru[K, V]) put(k K, v V, cost int64) {
	if cost > c.max/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.items[k]; el != nil {
		c.drop(el)
	}
	c.items[k] = c.order.PushFront(&kept[K, V]{k, v, cost})
	for c.used += cost; c.used > c.max; {
		c.drop(c.order.Back())
	}
}

// drop forgets an item. The lock is held.
func (c *lru[K, V]) drop(el *list.Element) {
	it := c.order.Remove(el).(*kept[K, V])
	delete(c.items, it.key)
	c.used -= it.cost
}
