package fsys

import (
	"container/list"
	"sync"
)

// pageSize is the unit of caching, in bytes.
const pageSize = 64 << 10

// Cached returns v with a cache of what was read last, which takes up to about
// size bytes. It is meant for structures: reads of more than a few pages go
// around it.
func Cached(v Volume, size int64) Volume {
	return &cache{vol: v, max: max(int(size/pageSize), 2), pages: map[int64]*list.Element{}}
}

// cache is a Volume that keeps pages.
type cache struct {
	vol Volume
	max int // pages

	mu    sync.Mutex // guards the fields below
	pages map[int64]*list.Element
	used  list.List // of *page, the last one used in front
	spare []byte    // memory of a page that was dropped last; nil if it is in use again
}

// page is a part of a volume. Whoever asks for it first reads it.
type page struct {
	number int64
	once   sync.Once
	data   []byte
	err    error

	users   int  // who read from it now, guarded by the cache
	dropped bool // guarded by the cache
}

// Size implements Volume.
func (c *cache) Size() int64 { return c.vol.Size() }

// ReadAt implements Volume.
func (c *cache) ReadAt(p []byte, off int64) error {
	if err := CheckRange(off, int64(len(p)), c.vol.Size()); err != nil {
		return err
	}
	if len(p) > 4*pageSize {
		return c.vol.ReadAt(p, off)
	}
	for len(p) > 0 {
		pg := c.page(off / pageSize)
		n, err := 0, pg.err
		if err == nil {
			n = copy(p, pg.data[off%pageSize:])
		}
		c.release(pg)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// page returns a page that was read, or that has an error. It has to be released.
func (c *cache) page(number int64) *page {
	c.mu.Lock()
	el := c.pages[number]
	if el == nil {
		el = c.used.PushFront(&page{number: number})
		c.pages[number] = el
		for c.used.Len() > c.max {
			c.drop(c.used.Back())
		}
	} else {
		c.used.MoveToFront(el)
	}
	pg := el.Value.(*page)
	pg.users++
	c.mu.Unlock()
	pg.once.Do(func() { c.load(pg, el) })
	return pg
}

// release gives a page back. The memory of one that was dropped meanwhile is used
// again: taking new memory costs more than filling it.
func (c *cache) release(pg *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pg.users--
	c.reuse(pg)
}

// reuse keeps the memory of a page that nobody has any more. The lock is held.
func (c *cache) reuse(pg *page) {
	if pg.users == 0 && pg.dropped && len(pg.data) == pageSize {
		c.spare, pg.data = pg.data, nil
	}
}

// memory returns n bytes for a page.
func (c *cache) memory(n int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n != pageSize || c.spare == nil {
		return make([]byte, n)
	}
	b := c.spare
	c.spare = nil
	return b
}

// load reads a page. One that cannot be read is not kept.
func (c *cache) load(pg *page, el *list.Element) {
	at := pg.number * pageSize
	data := c.memory(min(pageSize, c.vol.Size()-at))
	err := c.vol.ReadAt(data, at)
	c.mu.Lock()
	defer c.mu.Unlock()
	if pg.err = err; err == nil {
		pg.data = data
		return
	}
	if c.pages[pg.number] == el {
		c.drop(el)
	}
}

// drop forgets a page. The lock is held.
func (c *cache) drop(el *list.Element) {
	c.used.Remove(el)
	pg := el.Value.(*page)
	delete(c.pages, pg.number)
	pg.dropped = true
	c.reuse(pg)
}
