package image

import (
	"encoding/binary"
	"fmt"
)

// refcounts allocates host clusters and counts the references to them
// (qcow2.txt, "Host cluster management"). It changes memory only; what is dirty
// goes to the file in the order that Writer.Flush keeps. Its user holds a lock.
type refcounts struct {
	st          storage
	clusterBits uint32
	order       uint32

	table    []uint64 // the refcount table: host offsets of the blocks
	tableOff int64    // where the table lies, or will lie if moved
	lo, hi   int      // table[lo:hi] differs from the file
	moved    bool     // the whole table has to be written and the header told
	blocks   *metaCache

	// tables are the clusters that hold the header and the tables of the active
	// disk. Refcounts that call them free, and L2 entries that refer to them, are
	// damage that must not be acted upon.
	tables map[int64]struct{}

	next    int64     // no cluster below it is free
	virgin  int64     // no cluster from here on was ever written
	retired []hostRun // old places of the table; free once the header forgot them

	// wrote is called when a block was written out of order to make room.
	wrote func()
	// freed is called for each cluster whose last reference went away.
	freed func(cluster int64)
}

// hostRun is a run of host clusters.
type hostRun struct{ first, n int64 }

func (r *refcounts) clusterSize() int64   { return 1 << r.clusterBits }
func (r *refcounts) perBlock() int64      { return 8 << r.clusterBits >> r.order }
func (r *refcounts) limit() uint64        { return 1<<(1<<r.order-1)<<1 - 1 }
func (r *refcounts) tableClusters() int64 { return int64(len(r.table)) * 8 >> r.clusterBits }

// maxHost is the offset below which clusters have to lie to be referred to.
const maxHost = 1 << 56

// countAt returns refcount i of a block whose refcounts have 1<<order bits.
func countAt(block []byte, order uint32, i int64) uint64 {
	switch order {
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(block[i*8:])
	}
	bit := i << order
	return uint64(block[bit/8]) >> (bit % 8) & (1<<(1<<order) - 1)
}

// setCountAt changes refcount i of a block.
func setCountAt(block []byte, order uint32, i int64, v uint64) {
	switch order {
	case 3:
		block[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(block[i*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(block[i*4:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(block[i*8:], v)
	default:
		bit := i << order
		mask := byte(1<<(1<<order)-1) << (bit % 8)
		block[bit/8] = block[bit/8]&^mask | byte(v)<<(bit%8)
	}
}

// block returns the block that counts cluster c, nil if there is none.
func (r *refcounts) block(c int64) (*metaTable, error) {
	i := c / r.perBlock()
	if i >= int64(len(r.table)) || r.table[i] == 0 {
		return nil, nil
	}
	if b := r.blocks.get(i); b != nil {
		return b, nil
	}
	off := int64(r.table[i])
	data, err := r.room()
	if err != nil {
		return nil, err
	}
	if err := readPadded(r.st, data, off); err != nil {
		return nil, fmt.Errorf("refcount block %d: %w", i, err)
	}
	return r.blocks.add(i, off, data), nil
}

// room makes room for one more block in the cache and returns memory for it. A
// dirty block may be written at any time: increments come before any reference,
// and decrements are made only after the last reference is gone for good.
func (r *refcounts) room() ([]byte, error) {
	spare, err := r.blocks.shrink(func(b *metaTable) error {
		r.wrote()
		return writeAll(r.st, b.data[b.lo:b.hi], b.off+int64(b.lo))
	})
	if err != nil {
		return nil, fmt.Errorf("write refcounts: %w", err)
	}
	if spare == nil {
		spare = make([]byte, r.clusterSize())
	}
	return spare, nil
}

// ensureBlock makes the block that counts cluster c, in place of the free
// cluster at. It reports whether there was none.
func (r *refcounts) ensureBlock(c, at int64) (made bool, err error) {
	i := c / r.perBlock()
	if i >= int64(len(r.table)) {
		return true, r.growTable(i)
	}
	if r.table[i] != 0 {
		return false, nil
	}
	if err := r.guard(at, 1); err != nil {
		return false, err
	}
	data, err := r.room()
	if err != nil {
		return false, err
	}
	clear(data)
	b := r.blocks.add(i, at<<r.clusterBits, data)
	r.reserve(b.off, 1)
	r.blocks.touch(b, 0, len(data))
	r.table[i] = uint64(b.off)
	r.touchTable(int(i))
	return true, r.set(at, 1, 1)
}

func (r *refcounts) touchTable(i int) {
	if r.lo == r.hi {
		r.lo, r.hi = i, i+1
		return
	}
	r.lo, r.hi = min(r.lo, i), max(r.hi, i+1)
}

// reserve notes that a range of the file holds a table.
func (r *refcounts) reserve(off, n int64) {
	for c := off >> r.clusterBits; c<<r.clusterBits < off+n; c++ {
		r.tables[c] = struct{}{}
	}
}

// claim is reserve for a table that an existing file is said to have. Tables of
// the active disk lie inside the file, on clusters that are theirs alone, or the
// file is damaged.
func (r *refcounts) claim(off, n int64) error {
	if off&(r.clusterSize()-1) != 0 || off < 0 || off+n > r.virgin<<r.clusterBits {
		return corrupt("table of %d bytes at %#x; repair the file with: qemu-img check -r all", n, off)
	}
	if err := r.guard(off>>r.clusterBits, (n+r.clusterSize()-1)>>r.clusterBits); err != nil {
		return err
	}
	r.reserve(off, n)
	return nil
}

// guard returns an error if one of n clusters from c on holds a table.
func (r *refcounts) guard(c, n int64) error {
	for i := c; i < c+n; i++ {
		if _, ok := r.tables[i]; ok {
			return corrupt("something else overlaps the table at %#x; repair the file with: qemu-img check -r all", i<<r.clusterBits)
		}
	}
	return nil
}

// set gives n clusters from c on, of one block that exists, the refcount v.
func (r *refcounts) set(c, n int64, v uint64) error {
	b, err := r.block(c)
	if err != nil {
		return err
	}
	if b == nil {
		return corrupt("no refcount block for the cluster at %#x", c<<r.clusterBits)
	}
	i := c % r.perBlock()
	for k := i; k < i+n; k++ {
		setCountAt(b.data, r.order, k, v)
	}
	r.blocks.touch(b, int(i<<r.order/8), int(((i+n)<<r.order+7)/8))
	r.virgin = max(r.virgin, c+n)
	return nil
}

// get returns the refcount of cluster c.
func (r *refcounts) get(c int64) (uint64, error) {
	b, err := r.block(c)
	if b == nil || err != nil {
		return 0, err
	}
	return countAt(b.data, r.order, c%r.perBlock()), nil
}

// alloc takes at most want free clusters that lie side by side, at least one.
func (r *refcounts) alloc(want int64) (hostRun, error) {
	c := r.next
	for {
		made, err := r.ensureBlock(c, c)
		if err != nil {
			return hostRun{}, err
		}
		if made {
			continue // c itself may be in use now
		}
		b, err := r.block(c)
		if err != nil {
			return hostRun{}, err
		}
		per := r.perBlock()
		i := c % per
		for i < per && countAt(b.data, r.order, i) != 0 {
			i++
		}
		c += i - c%per
		if i == per {
			r.next = c
			continue
		}
		n := int64(1)
		for n < want && i+n < per && countAt(b.data, r.order, i+n) == 0 {
			n++
		}
		if (c+n)<<r.clusterBits >= maxHost {
			return hostRun{}, fmt.Errorf("allocate %d clusters: the file would grow beyond 64 PiB", want)
		}
		if err := r.guard(c, n); err != nil {
			return hostRun{}, err
		}
		r.next = c + n
		return hostRun{c, n}, r.set(c, n, 1)
	}
}

// allocExactly takes n free clusters that lie side by side.
func (r *refcounts) allocExactly(n int64) (hostRun, error) {
	c := r.next
search:
	for {
		for i := c; i < c+n; i++ {
			made, err := r.ensureBlock(i, c)
			if err != nil {
				return hostRun{}, err
			}
			if made {
				continue search
			}
			v, err := r.get(i)
			if err != nil {
				return hostRun{}, err
			}
			if v != 0 {
				c = i + 1
				continue search
			}
		}
		break
	}
	if err := r.guard(c, n); err != nil {
		return hostRun{}, err
	}
	for i := c; i < c+n; i++ {
		if err := r.set(i, 1, 1); err != nil {
			return hostRun{}, err
		}
	}
	if c == r.next {
		r.next = c + n
	}
	return hostRun{c, n}, nil
}

// add changes the refcount of cluster c by delta, 1 or -1, and returns it.
func (r *refcounts) add(c int64, delta int) (uint64, error) {
	v, err := r.get(c)
	if err != nil {
		return 0, err
	}
	if delta < 0 && v == 0 || delta > 0 && (v == 0 || v == r.limit()) {
		return 0, corrupt("refcount %d of the cluster at %#x cannot change by %d", v, c<<r.clusterBits, delta)
	}
	v += uint64(delta)
	if err := r.set(c, 1, v); err != nil {
		return 0, err
	}
	if v == 0 {
		delete(r.tables, c)
		r.next = min(r.next, c)
		r.freed(c)
	}
	return v, nil
}

// release gives back one reference to each cluster of the run.
func (r *refcounts) release(run hostRun) error {
	for c := run.first; c < run.first+run.n; c++ {
		if _, err := r.add(c, -1); err != nil {
			return err
		}
	}
	return nil
}

// growTable makes room in the table for block i, by moving it.
func (r *refcounts) growTable(i int64) error {
	perCluster := r.clusterSize() / 8
	old := r.table
	was := hostRun{r.tableOff >> r.clusterBits, r.tableClusters()}
	// Twice the size, and enough to count what comes to lie at the end: block i's
	// clusters, the table itself and the blocks for it.
	n := max(2*was.n, (i+2)/perCluster+1)
	enough := func() bool { return n*perCluster >= i+3+2*n/r.perBlock() }
	for !enough() {
		n++
	}
	if n<<r.clusterBits > maxRefTableSize {
		if n = maxRefTableSize >> r.clusterBits; !enough() {
			return fmt.Errorf("allocate clusters: the file would grow beyond what %d byte clusters can count", r.clusterSize())
		}
	}
	r.table = make([]uint64, n*perCluster)
	copy(r.table, old)
	run, err := r.allocExactly(n)
	if err != nil {
		if int64(len(r.table)) == n*perCluster && !r.usedBeyond(len(old)) {
			r.table = old
		}
		return fmt.Errorf("grow refcount table: %w", err)
	}
	r.tableOff, r.moved = run.first<<r.clusterBits, true
	r.reserve(r.tableOff, n<<r.clusterBits)
	r.retired = append(r.retired, was)
	return nil
}

// usedBeyond reports whether the table has blocks from index i on.
func (r *refcounts) usedBeyond(i int) bool {
	for _, b := range r.table[i:] {
		if b != 0 {
			return true
		}
	}
	return false
}

// takeAt takes cluster c if it is free and there is a block to count it.
func (r *refcounts) takeAt(c int64) (bool, error) {
	b, err := r.block(c)
	if b == nil || err != nil || countAt(b.data, r.order, c%r.perBlock()) != 0 {
		return false, err
	}
	if err := r.guard(c, 1); err != nil {
		return false, err
	}
	if c == r.next {
		r.next++
	}
	return true, r.set(c, 1, 1)
}
