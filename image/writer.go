package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/sendense/sendense/block"
)

// WriterOptions say how a file is opened for writing.
type WriterOptions struct {
	// Backing is what unallocated clusters read as; beyond its end they read as
	// zeroes, as they all do if it is nil. It is not closed with the Writer.
	Backing block.Device
	// CacheBytes bounds the memory for L2 tables and, on top, a quarter of that
	// for refcounts; default 32 MiB. With clusters of 64 KiB, 1 MiB of tables
	// describes 8 GiB of disk.
	CacheBytes int64
	// Direct has large writes go to the disk past the page cache, where the file
	// system can: for a file that is written once and not read soon.
	Direct bool
	// CompressionLevel is for zstd, 1 to 22; default 3.
	CompressionLevel int
}

// Writer is a QCOW2 file open for writing. It is a block.Device with every
// capability but block.Changer. All methods may be called concurrently; writes
// to different clusters go to the file in parallel.
//
// Between flushes, and through a crash or a power loss at any instant, the file
// is one that qemu-img check calls at most leaked, with everything readable that
// was flushed: data and refcounts become durable first, then the L2 tables that
// refer to them, then the L1 table. A host cluster that was given up is used
// again only after the flush by which the file has forgotten it.
//
// A failed write leaves the Writer usable and the file as described. After a
// failed sync nobody knows what is on disk: the Writer then refuses everything
// but Close, with the same error.
type Writer struct {
	path       string
	st         storage
	header     Header // as opened; what changes later is in the fields below
	backing    block.Device
	compressor *compressor
	pools      pools
	hasBacking bool // unallocated may read as something else than zeroes
	size       atomic.Int64
	limit      atomic.Int64 // size, or what Resize is about to make it
	locks      rangeLocks
	bufs       sync.Pool // of *[]byte, one cluster each

	length    atomic.Int64 // the file is at least so long
	unsynced  atomic.Bool  // something was written since the last sync
	started   atomic.Int64 // flushes
	flushMu   sync.Mutex   // held to flush or to change the header; guards the next field
	succeeded int64        // number of the latest flush that went well

	mu      sync.Mutex // guards the fields below; taken after flushMu
	l2      *l2Tables
	l1lo    int // l2.l1[l1lo:l1hi] differs from the file
	l1hi    int
	refs    *refcounts
	given   []hostRun // references given up since the last flush
	packing int64     // where the next compressed stream may go; 0: nowhere
	stats   Stats
	failed  error
	closed  bool
}

var (
	_ block.Mapper  = (*Writer)(nil)
	_ block.Writer  = (*Writer)(nil)
	_ block.Zeroer  = (*Writer)(nil)
	_ block.Trimmer = (*Writer)(nil)
	_ block.Flusher = (*Writer)(nil)
	_ block.Locator = (*Writer)(nil)
)

// OpenWriter opens the QCOW2 file at path for writing. Files that cannot be
// written safely are refused: those marked dirty or corrupt, and those that keep
// their data in an external file. It clears all autoclear feature bits, as the
// format demands of who does not maintain what they vouch for; bitmaps in the
// file are void from then on.
//
// A new file is durable after the first Flush.
func OpenWriter(path string, o WriterOptions) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s for writing: %w", path, err)
	}
	st := storage(diskFile{f})
	if o.Direct {
		st = openDirect(diskFile{f})
	}
	w, err := newWriter(path, st, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s for writing: %w", path, err), st.Close())
	}
	return w, nil
}

// newWriter is OpenWriter on any storage, which the Writer closes if there is no
// error.
func newWriter(path string, st storage, o WriterOptions) (*Writer, error) {
	h, err := ReadHeader(st)
	if err != nil {
		return nil, err
	}
	if err := writable(h); err != nil {
		return nil, err
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	w := &Writer{
		path: path, st: st, header: *h, backing: o.Backing,
		hasBacking: h.BackingFile != "" || o.Backing != nil,
	}
	w.size.Store(h.Size)
	w.limit.Store(h.Size)
	w.unsynced.Store(true) // Create may have written it a moment ago
	w.bufs.New = func() any { b := make([]byte, h.ClusterSize()); return &b }
	if w.compressor, err = newCompressor(h.Compression, o.CompressionLevel); err != nil {
		return nil, err
	}
	if w.l2, err = newL2Tables(st, h, o.CacheBytes); err != nil {
		return nil, err
	}
	if w.refs, err = openRefcounts(st, h, o.CacheBytes/4); err != nil {
		return nil, err
	}
	if err := w.refs.claim(h.L1Offset, int64(h.L1Size)*8); err != nil {
		return nil, err
	}
	for _, e := range w.l2.l1 {
		if off := int64(e & entryOffset); off != 0 {
			if err := w.refs.claim(off, h.ClusterSize()); err != nil {
				return nil, err
			}
		}
	}
	w.refs.wrote = func() { w.unsynced.Store(true) }
	w.refs.freed = w.forgetPacking
	if h.Autoclear != 0 {
		if err := w.patchHeader(88, make([]byte, 8)); err != nil {
			return nil, err
		}
		w.header.Autoclear = 0
	}
	return w, nil
}

// writable says why a file must not be written, and what to do about it.
func writable(h *Header) error {
	switch {
	case h.Incompatible&IncompatCorrupt != 0:
		return fmt.Errorf("%w: it is marked corrupt; repair it with: qemu-img check -r all", ErrCorrupt)
	case h.Incompatible&IncompatDirty != 0:
		return fmt.Errorf("%w: it was not closed (lazy refcounts); repair it with: qemu-img check -r all", ErrUnsupported)
	case h.hasDataFile():
		return fmt.Errorf("%w: writing to an external data file; convert it with: qemu-img convert -O qcow2", ErrUnsupported)
	}
	return nil
}

// openRefcounts reads the refcount table of a file.
func openRefcounts(st storage, h *Header, cacheBytes int64) (*refcounts, error) {
	size, err := st.Size()
	if err != nil {
		return nil, err
	}
	table, err := readEntries(st, h.RefcountTableOffset, int64(h.RefcountTableClusters)<<h.ClusterBits/8)
	if err != nil {
		return nil, fmt.Errorf("read refcount table: %w", err)
	}
	r := &refcounts{
		st: st, clusterBits: h.ClusterBits, order: h.RefcountOrder,
		table: table, tableOff: h.RefcountTableOffset,
		blocks: newMetaCache(cacheBytes, h.ClusterSize()),
		tables: map[int64]struct{}{},
		virgin: (size + h.ClusterSize() - 1) >> h.ClusterBits,
	}
	r.reserve(0, h.ClusterSize())
	if err := r.claim(h.RefcountTableOffset, int64(len(table))*8); err != nil {
		return nil, err
	}
	for _, off := range table {
		if off != 0 {
			if err := r.claim(int64(off), h.ClusterSize()); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// patchHeader changes some bytes of the header's first sector with one write,
// which a crash cannot tear, and makes that durable.
func (w *Writer) patchHeader(off int64, b []byte) error {
	if off+int64(len(b)) > 512 {
		return fmt.Errorf("change header: %d bytes at %d are not in one sector", len(b), off)
	}
	if err := writeAll(w.st, b, off); err != nil {
		return fmt.Errorf("change header: %w", err)
	}
	return w.sync()
}

// Size returns the virtual size in bytes. Only Resize changes it.
func (w *Writer) Size() int64 { return w.size.Load() }

// ClusterSize returns the cluster size in bytes.
func (w *Writer) ClusterSize() int64 { return w.header.ClusterSize() }

// Path returns the name under which the file was opened.
func (w *Writer) Path() string { return w.path }

// Stats are counts since the file was opened.
type Stats struct {
	DataBytes       int64 // host bytes of plain clusters allocated, less those given up
	CompressedBytes int64 // bytes of compressed streams written
	Compressed      int64 // clusters compressed
	FileBytes       int64 // length of the file
}

// Stats returns counts since the file was opened, and the file's length.
func (w *Writer) Stats() (Stats, error) {
	w.mu.Lock()
	s := w.stats
	w.mu.Unlock()
	var err error
	s.FileBytes, err = w.st.Size()
	return s, err
}

// Err returns the error that ended the Writer's usefulness, if any.
func (w *Writer) Err() error { return w.usable() }

// usable returns the error that ended the Writer's usefulness, if any.
func (w *Writer) usable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.usableLocked()
}

func (w *Writer) usableLocked() error {
	if w.failed != nil {
		return w.failed
	}
	if w.closed {
		return fmt.Errorf("%s: %w", w.path, os.ErrClosed)
	}
	return nil
}

// fail makes err the answer to everything from now on.
func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
	}
	return err
}

// begin checks a request and waits for its clusters.
func (w *Writer) begin(ctx context.Context, off, n int64, shared bool) (*rangeLock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := block.CheckRange(w.Size(), off, n); err != nil {
		return nil, err
	}
	if err := w.usable(); err != nil {
		return nil, err
	}
	bits := w.header.ClusterBits
	return w.locks.lock(ctx, off>>bits, (off+n-1)>>bits, shared)
}

// Close flushes and closes the file, which is then consistent and without
// leaks. After a failed sync it only closes it, and returns that error.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.mu.Unlock()
	err := w.Flush(context.Background())
	if err == nil {
		err = w.Flush(context.Background()) // for what the first one set free
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	return errors.Join(err, w.st.Close())
}

// headerEntry encodes an offset and a count as they stand in the header.
func headerEntry(off int64, n uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(off)), n)
}
