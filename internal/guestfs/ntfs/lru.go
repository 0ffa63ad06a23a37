package ntfs

import (
	"container/list"
	"sync"
)

// lru keeps what was used last, up to a total cost.
type lru[K comparable, V any] struct {
	mu    sync.Mutex // guards the fields below
	max   int
	cost  int
	items map[K]*list.Element
	used  list.List // of kept[K, V], the last one used in front
}

type kept[K comparable, V any] struct {
	key   K
	value V
	cost  int
}

func newLRU[K comparable, V any](maximum int) *lru[K, V] {
	return &lru[K, V]{max: maximum, items: map[K]*list.Element{}}
}

func (l *lru[K, V]) get(key K) (v V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	el := l.items[key]
	if el == nil {
		return v, false
	}
	l.used.MoveToFront(el)
	return el.Value.(kept[K, V]).value, true
}

func (l *lru[K, V]) put(key K, v V, cost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.items[key] != nil {
		return
	}
	l.items[key] = l.used.PushFront(kept[K, V]{key, v, cost})
	for l.cost += cost; l.cost > l.max && l.used.Len() > 1; {
		last := l.used.Remove(l.used.Back()).(kept[K, V])
		delete(l.items, last.key)
		l.cost -= last.cost
	}
}
