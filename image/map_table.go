package image

import (
	"encoding/binary"
	"fmt"
)

// piece is what one file says of a range: how it holds the bytes up to end.
type piece struct {
	end  int64 // guest offset
	kind clusterKind
	host int64 // for normal: where the first byte lies
}

// view is a slice of the L2 entries of a file, as stored, across tables. It is
// valid until the merge it was loaded into is used again.
type view struct {
	first   int64  // guest cluster of the first entry
	entries []byte // nil: no table describes any of the clusters
}

// badTable stands for every entry of an L2 table that cannot be found: an offset
// beyond the end of any file and, in the second word of an extended entry, the
// contradiction of subclusters being allocated and zero.
const (
	badTable    = entryOffset
	badSubTable = 1<<64 - 1
)

// load reads the L2 entries that describe [off, end) into m. Tables that lie
// where none can be give invalid entries; only failing reads are errors.
func (f *File) load(m *merge, off, end int64) (view, error) {
	h := f.header
	cover, perTable, size := h.l2Coverage(), h.l2Entries(), h.l2EntrySize()
	lo, hi := off/cover, (end-1)/cover
	l1, err := f.l1Entries(m, lo, hi+1)
	if err != nil {
		return view{}, err
	}
	if allZero(l1) {
		return view{}, nil
	}
	first, last := off>>h.ClusterBits, (end-1)>>h.ClusterBits
	m.l2 = sized(m.l2, (last-first+1)*size)
	for i := lo; i <= hi; i++ {
		from, to := max(first, i*perTable), min(last+1, (i+1)*perTable)
		dst := m.l2[(from-first)*size : (to-first)*size]
		table := int64(binary.BigEndian.Uint64(l1[(i-lo)*8:]) & entryOffset)
		switch {
		case table == 0:
			clear(dst)
		case table&(h.ClusterSize()-1) != 0:
			fillBad(dst, size)
		default:
			if err := f.loadSlice(dst, table+(from-i*perTable)*size); err != nil {
				return view{}, fmt.Errorf("read L2 table of image %s: %w", f.path, err)
			}
		}
	}
	return view{first: first, entries: m.l2}, nil
}

// loadSlice fills dst with L2 entries from host offset at on. Those behind the end
// of the file are invalid: to read them as zero would uncover the backing file.
func (f *File) loadSlice(dst []byte, at int64) error {
	size := f.header.l2EntrySize()
	if n := int64(len(dst)); !f.inMeta(at + n - 1) {
		n = min(n, max(0, f.metaEnd.Load()-at)) / size * size
		fillBad(dst[n:], size)
		dst = dst[:n]
	}
	return readFull(f.meta, dst, at)
}

func fillBad(dst []byte, size int64) {
	for ; len(dst) > 0; dst = dst[size:] {
		binary.BigEndian.PutUint64(dst, badTable)
		if size == 16 {
			binary.BigEndian.PutUint64(dst[8:], badSubTable)
		}
	}
}

// l1Entries returns entries lo to hi of the L1 table as stored, from memory if
// the file keeps its table there.
func (f *File) l1Entries(m *merge, lo, hi int64) ([]byte, error) {
	if !f.keepL1 {
		m.l1 = sized(m.l1, (hi-lo)*8)
		if err := readFull(f.meta, m.l1, f.header.L1Offset+lo*8); err != nil {
			return nil, fmt.Errorf("read L1 table of image %s: %w", f.path, err)
		}
		return m.l1, nil
	}
	t := f.l1.Load()
	if t == nil {
		b := make([]byte, f.header.l1Needed()*8)
		if err := readFull(f.meta, b, f.header.L1Offset); err != nil {
			return nil, fmt.Errorf("read L1 table of image %s: %w", f.path, err)
		}
		t = &b
		f.l1.Store(t)
	}
	return (*t)[lo*8 : hi*8], nil
}

// nextHeld returns the first offset in [off, end) that an L2 table describes, or
// end.
func (f *File) nextHeld(m *merge, off, end int64) (int64, error) {
	const atOnce = 512
	end = min(end, max(off, f.Size()))
	cover := f.header.l2Coverage()
	for i, n := off/cover, (end-1)/cover+1; off < end && i < n; {
		to := min(n, i+atOnce)
		l1, err := f.l1Entries(m, i, to)
		if err != nil {
			return 0, err
		}
		for ; len(l1) > 0; l1 = l1[8:] {
			if binary.BigEndian.Uint64(l1)&entryOffset != 0 {
				return max(off, i*cover), nil
			}
			i++
		}
	}
	return end, nil
}

// piece returns the piece of the file that begins at off, as far as it reaches
// but not beyond limit. v covers [off, limit).
func (f *File) piece(v view, off, limit int64) piece {
	if f.header.hasExtendedL2() {
		return f.subPiece(v, off, limit)
	}
	size := f.header.ClusterSize()
	start := off &^ (size - 1)
	i := (off>>f.header.ClusterBits - v.first) * 8
	kind, host := f.decode(binary.BigEndian.Uint64(v.entries[i:]), start)
	end := start + size
	for ; end < limit; end += size {
		i += 8
		k, at := f.decode(binary.BigEndian.Uint64(v.entries[i:]), end)
		if k != kind || kind == normal && at != host+end-start {
			break
		}
	}
	return f.clip(piece{end: min(end, limit), kind: kind, host: host + off - start}, off)
}

// subPiece is piece for extended L2 entries.
func (f *File) subPiece(v view, off, limit int64) piece {
	size := f.header.ClusterSize()
	sub := size / subclusters
	var p piece
	for at := off; at < limit; at = p.end {
		start := at &^ (size - 1)
		first := int((at - start) / sub)
		i := (at>>f.header.ClusterBits - v.first) * 16
		kind, host, n := f.decodeExtended(v.entries[i:], start, first)
		host += at - start
		if at > off && (kind != p.kind || kind == normal && host != p.host+at-off) {
			break
		}
		if at == off {
			p.kind, p.host = kind, host
		}
		p.end = min(limit, start+int64(first+n)*sub)
	}
	return f.clip(p, off)
}

// clip turns what of a piece of data lies behind the end of its file into
// zeroes: the last cluster of a file need not be there in full.
func (f *File) clip(p piece, off int64) piece {
	if p.kind != normal || f.inData(p.host+p.end-off-1) {
		return p
	}
	if end := f.dataEnd.Load(); p.host < end {
		p.end = off + end - p.host
		return p
	}
	size := f.header.ClusterSize()
	return piece{end: min(p.end, off&^(size-1)+size), kind: zeroAlloc}
}

// decode classifies the standard L2 entry of the guest cluster at start.
func (f *File) decode(e uint64, start int64) (clusterKind, int64) {
	if e == 0 {
		return unallocated, 0
	}
	kind, host := decodeEntry(e, f.header.Version)
	if kind == unallocated && e&entryCopied != 0 && f.header.hasDataFile() {
		kind = normal
	}
	return f.check(kind, host, start), host
}

// decodeExtended classifies the subclusters from first on of the guest cluster
// at start, whose extended L2 entry b begins with.
func (f *File) decodeExtended(b []byte, start int64, first int) (kind clusterKind, host int64, n int) {
	e, bitmap := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	if e == 0 && bitmap == 0 {
		return unallocated, 0, subclusters - first
	}
	host = int64(e & entryOffset)
	kind, n = decodeSubclusters(e, bitmap, first)
	return f.check(kind, host, start), host, n
}

// check turns kind into invalidEntry if the file contradicts it.
func (f *File) check(kind clusterKind, host, start int64) clusterKind {
	switch kind {
	case compressed:
		if f.header.hasDataFile() {
			return invalidEntry
		}
	case normal, zeroAlloc:
		if host&(f.header.ClusterSize()-1) != 0 ||
			f.header.hasDataFile() && host != start ||
			!f.header.hasDataFile() && host == 0 ||
			kind == normal && !f.inData(host) {
			return invalidEntry
		}
	}
	return kind
}

func allZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.BigEndian.Uint64(b)&entryOffset != 0 {
			return false
		}
	}
	return true
}

// sized returns b with length n, in new memory if it is too small.
func sized(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}
