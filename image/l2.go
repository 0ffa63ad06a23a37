package image

import (
	"encoding/binary"
	"fmt"
)

// guestCluster is an L2 entry, standard or extended, taken apart. A standard
// entry is treated as one with a single subcluster.
type guestCluster struct {
	desc   uint64 // the compressed cluster descriptor; the rest is empty then
	host   int64  // 0: none
	copied bool
	alloc  uint32 // subclusters with data at host
	zero   uint32 // subclusters that read as zeroes
}

// holds reports whether the entry refers to host clusters.
func (g guestCluster) holds() bool { return g.desc != 0 || g.host != 0 }

// private reports whether the host cluster may be written in place.
func (g guestCluster) private() bool { return g.host != 0 && g.copied }

// kindAt says what subcluster i is, and up to which subcluster that holds.
func (g guestCluster) kindAt(i, count int) (clusterKind, int) {
	if g.desc != 0 {
		return compressed, count
	}
	kind := func(i int) clusterKind {
		switch bit := uint32(1) << i; {
		case g.alloc&bit != 0:
			return normal
		case g.zero&bit != 0:
			return zeroPlain
		}
		return unallocated
	}
	k, end := kind(i), i+1
	for end < count && kind(end) == k {
		end++
	}
	if k == zeroPlain && g.host != 0 {
		k = zeroAlloc
	}
	return k, end
}

// l2Tables finds the clusters of a guest through the active L1 table. Its user
// holds a lock.
type l2Tables struct {
	st          storage
	version     uint32
	clusterBits uint32
	extended    bool
	l1          []uint64
	cache       *metaCache
}

func newL2Tables(st storage, h *Header, cacheBytes int64) (*l2Tables, error) {
	t := &l2Tables{
		st: st, version: h.Version, clusterBits: h.ClusterBits, extended: h.hasExtendedL2(),
		cache: newMetaCache(cacheBytes, h.ClusterSize()),
	}
	var err error
	if t.l1, err = readEntries(st, h.L1Offset, int64(h.L1Size)); err != nil {
		return nil, fmt.Errorf("read L1 table: %w", err)
	}
	return t, nil
}

// readEntries reads n table entries at off.
func readEntries(st storage, off, n int64) ([]uint64, error) {
	b := make([]byte, n*8)
	if err := readPadded(st, b, off); err != nil {
		return nil, err
	}
	es := make([]uint64, n)
	for i := range es {
		es[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return es, nil
}

// encodeEntries is the inverse of readEntries.
func encodeEntries(es []uint64) []byte {
	b := make([]byte, 0, len(es)*8)
	for _, e := range es {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	return b
}

func (t *l2Tables) clusterSize() int64 { return 1 << t.clusterBits }

// perCluster is how many subclusters the entries tell apart.
func (t *l2Tables) perCluster() int {
	if t.extended {
		return subclusters
	}
	return 1
}

// all is the set of all subclusters of a cluster.
func (t *l2Tables) all() uint32 { return uint32(1<<t.perCluster() - 1) }

// granule is the size of a subcluster.
func (t *l2Tables) granule() int64 { return t.clusterSize() / int64(t.perCluster()) }

func (t *l2Tables) entryBytes() int64 {
	if t.extended {
		return 16
	}
	return 8
}

// perTable is how many clusters an L2 table describes.
func (t *l2Tables) perTable() int64 { return t.clusterSize() / t.entryBytes() }

// checkHost refuses host offsets that no table or cluster can have.
func (t *l2Tables) checkHost(host int64) error {
	if host&(t.clusterSize()-1) != 0 || host == 0 {
		return corrupt("host offset %#x in an L1 or L2 table", host)
	}
	return nil
}

// load returns the L2 table with index i in the L1 table, nil if there is none.
func (t *l2Tables) load(i int64) (*metaTable, error) {
	if m := t.cache.get(i); m != nil {
		return m, nil
	}
	if i >= int64(len(t.l1)) || t.l1[i]&entryOffset == 0 {
		return nil, nil
	}
	off := int64(t.l1[i] & entryOffset)
	if err := t.checkHost(off); err != nil {
		return nil, err
	}
	data := t.room()
	if err := readPadded(t.st, data, off); err != nil {
		return nil, fmt.Errorf("L2 table %d: %w", i, err)
	}
	return t.cache.add(i, off, data), nil
}

// room makes room for one more table in the cache and returns memory for it.
// Dirty tables stay: only a flush may write them.
func (t *l2Tables) room() []byte {
	spare, _ := t.cache.shrink(nil)
	if spare == nil {
		spare = make([]byte, t.clusterSize())
	}
	return spare
}

// entry returns entry i of a table, or says why it is not valid.
func (t *l2Tables) entry(m *metaTable, i int64) (guestCluster, error) {
	b := m.data[i*t.entryBytes():]
	e := binary.BigEndian.Uint64(b)
	if t.extended {
		return t.extendedEntry(e, binary.BigEndian.Uint64(b[8:]))
	}
	kind, host := decodeEntry(e, t.version)
	g := guestCluster{host: host, copied: e&entryCopied != 0}
	switch kind {
	case compressed:
		return guestCluster{desc: e &^ entryCopied}, nil
	case unallocated, zeroPlain:
		g.copied = false
	case invalidEntry:
		return g, corrupt("L2 entry %#x", e)
	}
	if kind == normal {
		g.alloc = 1
	}
	if kind == zeroAlloc || kind == zeroPlain {
		g.zero = 1
	}
	if host != 0 {
		return g, t.checkHost(host)
	}
	return g, nil
}

func (t *l2Tables) extendedEntry(e, bitmap uint64) (guestCluster, error) {
	if e&entryCompressed != 0 {
		return guestCluster{desc: e &^ entryCopied}, nil
	}
	g := guestCluster{host: int64(e & entryOffset), copied: e&entryCopied != 0,
		alloc: uint32(bitmap), zero: uint32(bitmap >> 32)}
	if g.alloc&g.zero != 0 || e&entryZero != 0 || g.alloc != 0 && g.host == 0 {
		return g, corrupt("L2 entry %#x with bitmap %#x", e, bitmap)
	}
	if g.host == 0 {
		g.copied = false
		return g, nil
	}
	return g, t.checkHost(g.host)
}

// setEntry changes entry i of a table.
func (t *l2Tables) setEntry(m *metaTable, i int64, g guestCluster) {
	pos := i * t.entryBytes()
	b := m.data[pos:]
	e := g.desc
	if e == 0 {
		e = uint64(g.host)
		if g.copied {
			e |= entryCopied
		}
		if g.zero != 0 && !t.extended {
			e |= entryZero
		}
	}
	binary.BigEndian.PutUint64(b, e)
	if t.extended {
		binary.BigEndian.PutUint64(b[8:], uint64(g.zero)<<32|uint64(g.alloc))
	}
	t.cache.touch(m, int(pos), int(pos+t.entryBytes()))
}

// guestRun is a run of guest bytes of one kind.
type guestRun struct {
	n    int64
	kind clusterKind
	host int64  // of the first byte, for normal
	desc uint64 // for compressed: one cluster's
}

// lookup says what the run that begins at off is; it is at most n bytes long.
func (t *l2Tables) lookup(off, n int64) (guestRun, error) {
	c := off >> t.clusterBits
	per := t.perTable()
	m, err := t.load(c / per)
	if err != nil {
		return guestRun{}, err
	}
	tableEnd := (c/per + 1) * per << t.clusterBits
	n = min(n, tableEnd-off)
	if m == nil {
		return guestRun{n: n, kind: unallocated}, nil
	}
	run := guestRun{}
	for pos, end := off, off+n; pos < end; {
		g, err := t.entry(m, pos>>t.clusterBits%per)
		if err != nil {
			if run.n > 0 {
				break
			}
			return run, err
		}
		in := pos & (t.clusterSize() - 1)
		kind, upTo := g.kindAt(int(in/t.granule()), t.perCluster())
		next := guestRun{n: min(int64(upTo)*t.granule()-in, end-pos), kind: kind, desc: g.desc}
		if kind == normal {
			next.host = g.host + in
		}
		if run.n > 0 && !run.joins(next) {
			break
		}
		if run.n == 0 {
			run = next
		} else {
			run.n += next.n
		}
		pos += next.n
	}
	return run, nil
}

// joins reports whether next continues the run.
func (r guestRun) joins(next guestRun) bool {
	return r.kind == next.kind && r.kind != compressed && (r.kind != normal || r.host+r.n == next.host)
}
