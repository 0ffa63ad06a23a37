package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
)

// Report is the outcome of a check.
type Report struct {
	// Corruptions is how many contradictions were found that put data at risk.
	Corruptions int64
	// Errors describes the first of them, a hundred at most.
	Errors []Problem
	// Leaks is how many host clusters are counted as used more often than they
	// are: space lost, nothing else.
	Leaks int64
	// Unexplained takes the place of Leaks in files with autoclear features that
	// this package does not know, to which those clusters may belong.
	Unexplained int64
	// Stored, Compressed and Zeroed count the guest clusters of these kinds, and
	// Clusters all that the disk has.
	Stored, Compressed, Zeroed, Clusters int64
	// End is where the last host cluster in use ends, in bytes.
	End int64
}

// Problem is one contradiction in a file.
type Problem struct {
	Off int64  // the host offset concerned, bytes
	Msg string // what is wrong there
}

// String returns the problem as a line for people.
func (p Problem) String() string { return fmt.Sprintf("at %#x: %s", p.Off, p.Msg) }

// Clean reports whether nothing at all was found.
func (r *Report) Clean() bool { return r.Corruptions == 0 && r.Leaks == 0 && r.Unexplained == 0 }

// maxProblems is how many problems a report describes.
const maxProblems = 100

// checkWindow is how many host clusters are counted in one pass over the
// metadata. Four bytes of memory are needed for each.
const checkWindow = 16 << 20

// Check compares the refcounts of the QCOW2 file at path with the references that
// its tables make: those of the active disk, of internal snapshots and of
// bitmaps. It comes to the verdict of qemu-img check, and also calls metadata
// that something else overlaps corrupt. Nothing is changed. Memory is bounded:
// large files take a pass for each TiB (with 64 KiB clusters).
//
// The error says that the file could not be checked; what is wrong with it is in
// the report. Nobody should write to the file meanwhile.
func Check(ctx context.Context, path string) (*Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("check image: %w", err)
	}
	defer f.Close()
	r, err := check(ctx, diskFile{f}, checkWindow)
	if err != nil {
		return nil, fmt.Errorf("check image %s: %w", path, err)
	}
	return r, nil
}

// checker is a check under way.
type checker struct {
	st       storage
	h        *Header
	size     int64 // of the file
	clusters int64 // of the file, a last one in part counts
	report   *Report

	refTable []uint64
	own      []hostBytes        // metadata that nothing else may overlap
	shared   []hostBytes        // L1 tables of snapshots, and of bitmaps what has a fixed place
	l2       map[int64]*l2Users // by offset
	l2Order  []int64
	bitmaps  []hostBytes // bitmap tables, whose entries refer to more

	// The window: clusters lo to hi.
	lo, hi  int64
	first   bool     // it is the first; what is wrong with an entry is said once
	counted []uint16 // references found; 65535 for that many or more
	stored  []uint16 // refcounts, likewise
}

// hostBytes is a range of the file.
type hostBytes struct {
	off, n int64
	what   string
}

// l2Users says who refers to an L2 table.
type l2Users struct {
	refs   uint32 // L1 entries
	active bool   // the active L1 table is among them
}

func check(ctx context.Context, st storage, window int64) (*Report, error) {
	h, err := ReadHeader(st)
	if err != nil {
		return nil, err
	}
	size, err := st.Size()
	if err != nil {
		return nil, err
	}
	c := &checker{st: st, h: h, size: size, report: &Report{}, l2: map[int64]*l2Users{}}
	c.clusters = size>>h.ClusterBits + min(1, size&(h.ClusterSize()-1))
	c.report.Clusters = h.Size>>h.ClusterBits + min(1, h.Size&(h.ClusterSize()-1))
	if err := c.findRoots(ctx); err != nil {
		return nil, err
	}
	for lo := int64(0); lo < c.clusters; lo += window {
		c.lo, c.hi, c.first = lo, min(lo+window, c.clusters), lo == 0
		if c.first {
			c.counted = make([]uint16, c.hi-c.lo)
			c.stored = make([]uint16, c.hi-c.lo)
		}
		if err := c.pass(ctx); err != nil {
			return nil, err
		}
	}
	if h.Autoclear&^(AutoclearBitmaps|AutoclearRawData) != 0 {
		c.report.Leaks, c.report.Unexplained = 0, c.report.Leaks
	}
	return c.report, nil
}

// problem adds to the report what is wrong at a host offset.
func (c *checker) problem(off int64, format string, args ...any) {
	c.report.Corruptions++
	if len(c.report.Errors) < maxProblems {
		c.report.Errors = append(c.report.Errors, Problem{off, fmt.Sprintf(format, args...)})
	}
}

// findRoots reads the tables that everything else is found by.
func (c *checker) findRoots(ctx context.Context) error {
	h := c.h
	c.own = append(c.own, hostBytes{0, h.ClusterSize(), "header"})
	tableBytes := int64(h.RefcountTableClusters) << h.ClusterBits
	c.own = append(c.own, hostBytes{h.RefcountTableOffset, tableBytes, "refcount table"})
	var err error
	if c.refTable, err = readEntries(c.st, h.RefcountTableOffset, tableBytes/8); err != nil {
		return err
	}
	for i, e := range c.refTable {
		if off := c.checkRefTableEntry(i, e); off != 0 {
			c.own = append(c.own, hostBytes{off, h.ClusterSize(), "refcount block"})
		} else {
			c.refTable[i] = 0
		}
	}
	if err := c.findL2(h.L1Offset, int64(h.L1Size), 1, true); err != nil {
		return err
	}
	c.own = append(c.own, hostBytes{h.L1Offset, int64(h.L1Size) * 8, "L1 table"})
	if err := c.findSnapshots(ctx); err != nil {
		return err
	}
	if err := c.findBitmaps(ctx); err != nil {
		return err
	}
	c.l2Order = slices.Sorted(maps.Keys(c.l2))
	return nil
}

func (c *checker) checkRefTableEntry(i int, e uint64) int64 {
	off := int64(e &^ 0x1ff)
	switch {
	case e == 0:
		return 0
	case e&0x1ff != 0:
		c.problem(off, "refcount table entry %d has reserved bits set: %#x", i, e)
	}
	switch {
	case off&(c.h.ClusterSize()-1) != 0:
		c.problem(off, "refcount block %d does not begin on a cluster", i)
	case off < 0 || off>>c.h.ClusterBits >= c.clusters:
		c.problem(off, "refcount block %d lies beyond the end of the file", i)
	default:
		return off
	}
	return 0
}

// l1Reserved and the like are the bits that are zero in entries.
const (
	l1Reserved  = 0x7f000000000001ff
	l2Reserved  = 0x3f000000000001fe
	l2Reserved2 = 0x3f000000000001ff // with subclusters
)

// findL2 notes the L2 tables that an L1 table of n entries refers to, users times.
func (c *checker) findL2(off, n int64, users uint32, active bool) error {
	const chunk = 64 << 10
	for i := int64(0); i < n; i += chunk {
		es, err := readEntries(c.st, off+i*8, min(chunk, n-i))
		if err != nil {
			return err
		}
		for k, e := range es {
			c.noteL2(off+(i+int64(k))*8, e, users, active)
		}
	}
	return nil
}

func (c *checker) noteL2(at int64, e uint64, users uint32, active bool) {
	off := int64(e & entryOffset)
	if e&l1Reserved != 0 {
		c.problem(at, "L1 entry has reserved bits set: %#x", e)
	}
	switch {
	case off == 0:
		return
	case off&(c.h.ClusterSize()-1) != 0:
		c.problem(at, "L2 table at %#x does not begin on a cluster", off)
		return
	case off>>c.h.ClusterBits >= c.clusters:
		c.problem(at, "L2 table at %#x lies beyond the end of the file", off)
		return
	}
	u := c.l2[off]
	if u == nil {
		u = &l2Users{}
		c.l2[off] = u
	}
	u.refs = addSaturated(u.refs, users)
	if active {
		u.active = true
		v, err := c.storedCount(off >> c.h.ClusterBits)
		if copied := e&entryCopied != 0; err == nil && copied != (v == 1) {
			c.problem(at, "L1 entry %#x: copied flag is %v, refcount %d", e, copied, v)
		}
	}
}

func addSaturated(a, b uint32) uint32 {
	if s := a + b; s >= a {
		return s
	}
	return 1<<32 - 1
}

// storedCount reads one refcount from the file.
func (c *checker) storedCount(cluster int64) (uint64, error) {
	per := 8 << c.h.ClusterBits >> c.h.RefcountOrder
	i := cluster / int64(per)
	if i >= int64(len(c.refTable)) || c.refTable[i] == 0 {
		return 0, nil
	}
	var b [8]byte
	bit := cluster % int64(per) << c.h.RefcountOrder
	if err := readPadded(c.st, b[:], int64(c.refTable[i]&^0x1ff)+bit/64*8); err != nil {
		return 0, err
	}
	return countAt(b[:], c.h.RefcountOrder, bit%64>>c.h.RefcountOrder), nil
}

// pass counts the references to the clusters of the window and compares.
func (c *checker) pass(ctx context.Context) error {
	clear(c.counted)
	clear(c.stored)
	if err := c.loadStored(ctx); err != nil {
		return err
	}
	for _, a := range slices.Concat(c.own, c.shared, c.bitmaps) {
		c.count(a.off, a.n, 1, a.what)
	}
	for _, a := range c.bitmaps {
		if err := c.countBitmap(ctx, a); err != nil {
			return err
		}
	}
	table := make([]byte, c.h.ClusterSize())
	for _, off := range c.l2Order {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.count(off, c.h.ClusterSize(), c.l2[off].refs, "L2 table")
		if err := readPadded(c.st, table, off); err != nil {
			return err
		}
		c.countL2(table, off, c.l2[off])
	}
	c.compare()
	return nil
}

// loadStored reads the refcounts of the window.
func (c *checker) loadStored(ctx context.Context) error {
	per := int64(8) << c.h.ClusterBits >> c.h.RefcountOrder
	block := make([]byte, c.h.ClusterSize())
	for i := c.lo / per; i*per < c.hi && i < int64(len(c.refTable)); i++ {
		if c.refTable[i] == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := readPadded(c.st, block, int64(c.refTable[i]&^0x1ff)); err != nil {
			return err
		}
		for k := max(i*per, c.lo); k < min((i+1)*per, c.hi); k++ {
			c.stored[k-c.lo] = uint16(min(countAt(block, c.h.RefcountOrder, k-i*per), 1<<16-1))
		}
	}
	return nil
}

// count adds refs references to the clusters of a range, as far as they are in
// the window.
func (c *checker) count(off, n int64, refs uint32, what string) {
	if n <= 0 {
		return
	}
	bits := c.h.ClusterBits
	if off < 0 || n > 1<<62-off || off+n-c.size >= c.h.ClusterSize() {
		if c.first {
			c.problem(off, "%s of %d bytes lies beyond the end of the file", what, n)
		}
		return
	}
	for k := max(off>>bits, c.lo); k <= (off+n-1)>>bits && k < c.hi; k++ {
		c.counted[k-c.lo] = uint16(min(uint64(c.counted[k-c.lo])+uint64(refs), 1<<16-1))
	}
}

// compare judges the window.
func (c *checker) compare() {
	for i, n := range c.counted {
		v := c.stored[i]
		off := (c.lo + int64(i)) << c.h.ClusterBits
		switch {
		case v < n:
			c.problem(off, "cluster has refcount %d and %d references", v, n)
		case v > n:
			c.report.Leaks++
		}
		if v != 0 || n != 0 {
			c.report.End = off + c.h.ClusterSize()
		}
	}
	for _, a := range c.own {
		for k := max(a.off>>c.h.ClusterBits, c.lo); k <= (a.off+a.n-1)>>c.h.ClusterBits && k < c.hi; k++ {
			if n := c.counted[k-c.lo]; n > 1 && n == c.stored[k-c.lo] {
				c.problem(k<<c.h.ClusterBits, "something else overlaps the %s", a.what)
			}
		}
	}
}

// countL2 counts what the entries of an L2 table refer to.
func (c *checker) countL2(table []byte, off int64, u *l2Users) {
	step := int(c.h.l2EntrySize())
	for pos := 0; pos < len(table); pos += step {
		e, bitmap := binary.BigEndian.Uint64(table[pos:]), uint64(0)
		if step == 16 {
			bitmap = binary.BigEndian.Uint64(table[pos+8:])
		}
		if e|bitmap != 0 {
			c.countEntry(off+int64(pos), e, bitmap, u)
		}
	}
}

func (c *checker) countEntry(at int64, e, bitmap uint64, u *l2Users) {
	if e&entryCompressed != 0 {
		c.countCompressed(at, e, bitmap, u)
		return
	}
	host := int64(e & entryOffset)
	if c.first {
		c.judgeEntry(at, e, bitmap, host)
		if u.active {
			c.tally(e, bitmap, host)
		}
	}
	if host == 0 || c.h.hasDataFile() {
		return
	}
	c.count(host, c.h.ClusterSize(), u.refs, "cluster")
	if k := host >> c.h.ClusterBits; u.active && k >= c.lo && k < c.hi {
		v := c.stored[k-c.lo]
		if copied := e&entryCopied != 0; copied != (v == 1) {
			c.problem(at, "L2 entry %#x: copied flag is %v, refcount %d", e, copied, v)
		}
	}
}

// judgeEntry says what is wrong with a standard cluster's entry in itself.
func (c *checker) judgeEntry(at int64, e, bitmap uint64, host int64) {
	reserved, alloc, zero := uint64(l2Reserved), uint32(bitmap), uint32(bitmap>>32)
	if c.h.hasExtendedL2() {
		reserved = l2Reserved2
	} else if c.h.Version < 3 {
		reserved |= entryZero
	}
	switch {
	case e&reserved != 0:
		c.problem(at, "L2 entry has reserved bits set: %#x", e)
	case host&(c.h.ClusterSize()-1) != 0:
		c.problem(at, "L2 entry %#x: cluster does not begin on a cluster of the file", e)
	case alloc&zero != 0:
		c.problem(at, "L2 entry %#x: subclusters both allocated and zero: %#x", e, bitmap)
	case alloc != 0 && host == 0 && !c.h.hasDataFile():
		c.problem(at, "L2 entry %#x: allocated subclusters without a host cluster: %#x", e, bitmap)
	}
}

// tally counts a standard cluster of the active disk for the report.
func (c *checker) tally(e, bitmap uint64, host int64) {
	stored, zero := host != 0, e&entryZero != 0
	if c.h.hasExtendedL2() {
		stored, zero = uint32(bitmap) != 0, uint32(bitmap) == 0 && bitmap != 0
	} else if c.h.hasDataFile() {
		stored = e&entryCopied != 0
	}
	switch {
	case zero:
		c.report.Zeroed++
	case stored:
		c.report.Stored++
	}
}

func (c *checker) countCompressed(at int64, e, bitmap uint64, u *l2Users) {
	host, size := decodeCompressed(e&^entryCopied, c.h.ClusterBits)
	if c.first {
		switch {
		case e&entryCopied != 0:
			c.problem(at, "L2 entry %#x: compressed cluster with the copied flag", e)
		case c.h.hasDataFile():
			c.problem(at, "L2 entry %#x: compressed cluster in a file with an external data file", e)
		case bitmap != 0:
			c.problem(at, "L2 entry %#x: compressed cluster with subclusters: %#x", e, bitmap)
		}
		if u.active {
			c.report.Compressed++
		}
	}
	c.count(host, size, u.refs, "compressed cluster")
}
