package fsys

import (
	"container/list"
	"sync"
)

// LRU keeps what was used last, up to a sum of costs. It may be used concurrently.
type LRU[K comparable, V any] struct {
	most, largest int64

	mu    sync.Mutex // guards the fields below
	cost  int64
	items map[K]*list.Element
	used  list.List // of kept[K, V], the last one used in front
}

type kept[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

// NewLRU returns an LRU of items that cost most together, but for one that costs more
// alone. What costs more than largest is not kept.
func NewLRU[K comparable, V any](most, largest int64) *LRU[K, V] {
	return &LRU[K, V]{most: most, largest: largest, items: map[K]*list.Element{}}
}

// Get returns what is kept.
func (l *LRU[K, V]) Get(k K) (v V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	el := l.items[k]
	if el == nil {
		return v, false
	}
	l.used.MoveToFront(el)
	return el.Value.(kept[K, V]).value, true
}

// Put keeps v.
func (l *LRU[K, V]) Put(k K, v V, cost int64) {
	if cost > l.largest {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if el := l.items[k]; el != nil {
		l.drop(el)
	}
	l.items[k] = l.used.PushFront(kept[K, V]{k, v, cost})
	for l.cost += cost; l.cost > l.most && l.used.Len() > 1; {
		l.drop(l.used.Back())
	}
}

// drop forgets an item. The lock is held.
func (l *LRU[K, V]) drop(el *list.Element) {
	it := l.used.Remove(el).(kept[K, V])
	delete(l.items, it.key)
	l.cost -= it.cost
}
