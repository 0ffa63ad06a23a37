package image

// metaTable is one L2 table or refcount block in memory.
type metaTable struct {
	key  int64 // index in the L1 or refcount table
	off  int64 // where it lies in the file
	data []byte
	// data[lo:hi] differs from the file; nothing does if lo == hi.
	lo, hi int
	// pins keeps the table in memory: it is being written out, or somebody will
	// come back to it.
	pins       int
	prev, next *metaTable
}

func (t *metaTable) dirty() bool { return t.lo != t.hi }

// metaCache holds tables of one kind, the most recently used ones in front. It
// is no larger than its capacity unless more tables are dirty or pinned.
type metaCache struct {
	tables   map[int64]*metaTable
	capacity int       // tables
	dirty    int       // tables that wait to be written
	root     metaTable // of the ring
}

func newMetaCache(bytes, tableBytes int64) *metaCache {
	c := &metaCache{tables: make(map[int64]*metaTable), capacity: int(max(bytes/tableBytes, 8))}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

// get returns the table with the key, or nil.
func (c *metaCache) get(key int64) *metaTable {
	t := c.tables[key]
	if t != nil && c.root.next != t {
		c.unlink(t)
		c.front(t)
	}
	return t
}

// add takes a table in, in place of one with the same key.
func (c *metaCache) add(key, off int64, data []byte) *metaTable {
	if old := c.tables[key]; old != nil {
		c.unlink(old)
	}
	t := &metaTable{key: key, off: off, data: data}
	c.tables[key] = t
	c.front(t)
	return t
}

func (c *metaCache) front(t *metaTable) {
	t.prev, t.next = &c.root, c.root.next
	t.prev.next, t.next.prev = t, t
}

func (c *metaCache) unlink(t *metaTable) {
	t.prev.next, t.next.prev = t.next, t.prev
}

// shrink makes room for one more table: it drops the least recently used ones
// that nobody needs. write is asked to write dirty ones out first; without it
// they stay. It returns the memory of a dropped table for reuse, or nil.
func (c *metaCache) shrink(write func(*metaTable) error) ([]byte, error) {
	var spare []byte
	for t := c.root.prev; t != &c.root && len(c.tables) >= c.capacity; {
		victim := t
		t = t.prev
		if victim.pins > 0 || victim.dirty() && write == nil {
			continue
		}
		if victim.dirty() {
			if err := write(victim); err != nil {
				return spare, err
			}
			c.clean(victim)
		}
		c.unlink(victim)
		delete(c.tables, victim.key)
		spare = victim.data
	}
	return spare, nil
}

// touch notes that data[lo:hi] of t has changed.
func (c *metaCache) touch(t *metaTable, lo, hi int) {
	// Whole sectors are written, which spares the page cache small pieces.
	lo, hi = lo&^511, min((hi+511)&^511, len(t.data))
	if !t.dirty() {
		t.lo, t.hi = lo, hi
		c.dirty++
		return
	}
	t.lo, t.hi = min(t.lo, lo), max(t.hi, hi)
}

// clean notes that t is as in the file.
func (c *metaCache) clean(t *metaTable) {
	if t.dirty() {
		t.lo, t.hi = 0, 0
		c.dirty--
	}
}

// metaWrite is part of a table as it was at one moment, on its way to the file.
type metaWrite struct {
	table *metaTable
	lo    int
	data  []byte
}

// collect copies what is dirty and pins it; settle has to follow.
func (c *metaCache) collect() []metaWrite {
	var ws []metaWrite
	for _, t := range c.tables {
		if t.dirty() {
			ws = append(ws, metaWrite{t, t.lo, append([]byte(nil), t.data[t.lo:t.hi]...)})
			c.clean(t)
			t.pins++
		}
	}
	return ws
}

// settle ends what collect began; the parts are dirty again unless written.
func (c *metaCache) settle(ws []metaWrite, written bool) {
	for _, m := range ws {
		m.table.pins--
		if !written {
			c.touch(m.table, m.lo, m.lo+len(m.data))
		}
	}
}

// writeTables writes what collect returned.
func writeTables(st storage, ws []metaWrite) error {
	for _, m := range ws {
		if err := writeAll(st, m.data, m.table.off+int64(m.lo)); err != nil {
			return err
		}
	}
	return nil
}
