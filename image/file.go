package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/sendense/sendense/block"
)

// Content says how a file, or a layer of a chain, holds a range of the disk.
type Content uint8

// The kinds of content. Of a range that is Absent a file says nothing: it reads
// as what lies below, in the end as zeroes.
const (
	Absent     Content = iota
	Stored             // bytes as they are
	Compressed         // bytes in compressed clusters
	Zeroed             // zeroes, explicitly
)

// String returns the kind's name in lower case.
func (c Content) String() string {
	switch c {
	case Absent:
		return "absent"
	case Stored:
		return "stored"
	case Compressed:
		return "compressed"
	case Zeroed:
		return "zeroed"
	}
	return fmt.Sprintf("content(%d)", uint8(c))
}

// content translates what an L2 entry says.
func (k clusterKind) content() Content {
	switch k {
	case normal:
		return Stored
	case compressed:
		return Compressed
	case zeroPlain, zeroAlloc:
		return Zeroed
	}
	return Absent
}

// Run is a range of one kind of content.
type Run struct {
	Off     int64 // guest bytes
	Len     int64 // guest bytes, > 0
	Content Content
}

// keepL1Alone is up to how many bytes of L1 table a file that is open alone
// keeps in memory. A chain shares its budget among its layers.
const keepL1Alone = 1 << 20

// File is one QCOW2 file, open for reading, without what backs it. Its methods
// may be called concurrently.
type File struct {
	path   string
	header *Header
	meta   *os.File
	data   *os.File // where guest data lie: meta, or the external data file

	metaEnd atomic.Int64 // length of meta when last looked at
	dataEnd atomic.Int64

	keepL1 bool
	l1     atomic.Pointer[[]byte] // the table as stored, once it was read; nil before

	pools *pools
}

// OpenFile opens the QCOW2 file at path, and its external data file if it has
// one, but not its backing file. The error wraps ErrNotQCOW2, ErrCorrupt or
// ErrUnsupported where the content of the file is the cause.
func OpenFile(path string) (*File, error) {
	meta, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	f, err := newFile(path, meta, new(pools))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image %s: %w", path, err), meta.Close())
	}
	f.keepL1 = f.header.l1Needed()*8 <= keepL1Alone
	return f, nil
}

// newFile takes over meta if it succeeds.
func newFile(path string, meta *os.File, pools *pools) (*File, error) {
	h, err := ReadHeader(meta)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, header: h, meta: meta, data: meta, pools: pools}
	if h.hasDataFile() {
		if f.data, err = f.openDataFile(); err != nil {
			return nil, err
		}
	}
	err = f.measure()
	if end := h.L1Offset + h.l1Needed()*8; err == nil && end > f.metaEnd.Load() {
		err = corrupt("L1 table ends at %d, beyond the end of the file (%d bytes)", end, f.metaEnd.Load())
	}
	if err != nil && f.data != meta {
		err = errors.Join(err, f.data.Close())
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) openDataFile() (*os.File, error) {
	name := f.header.DataFile()
	if name == "" {
		return nil, corrupt("the external data file has no name")
	}
	path, err := resolveName(f.path, name)
	if err != nil {
		return nil, fmt.Errorf("external data file %q: %w", name, err)
	}
	data, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its external data file %s is missing: %w", path, fs.ErrNotExist)
	}
	return data, err
}

// measure looks at the lengths of the host files. They only grow.
func (f *File) measure() error {
	st, err := f.meta.Stat()
	if err != nil {
		return err
	}
	f.metaEnd.Store(st.Size())
	if f.data != f.meta {
		if st, err = f.data.Stat(); err != nil {
			return err
		}
	}
	f.dataEnd.Store(st.Size())
	return nil
}

// Close closes the file. Reads under way may fail.
func (f *File) Close() error {
	err := f.meta.Close()
	if f.data != f.meta {
		err = errors.Join(err, f.data.Close())
	}
	return err
}

// Header returns the file's header as it was when the file was opened. The
// caller must not change it.
func (f *File) Header() *Header { return f.header }

// Path returns the name under which the file was opened.
func (f *File) Path() string { return f.path }

// Size returns the virtual size in bytes.
func (f *File) Size() int64 { return f.header.Size }

// Backing returns the path of the backing file, relative names being relative to
// the file's own folder, or "" where there is none. A name that is not a file's
// gives an error that wraps ErrUnsupported.
func (f *File) Backing() (string, error) {
	if f.header.BackingFile == "" {
		return "", nil
	}
	path, err := resolveName(f.path, f.header.BackingFile)
	if err != nil {
		return "", fmt.Errorf("image %s: backing file %q: %w", f.path, f.header.BackingFile, err)
	}
	return path, nil
}

// Runs calls fn for each run of [off, off+n) that the file itself holds, in
// ascending order, neighbours of one kind joined; what is Absent is left out.
// The L2 tables are read as the walk proceeds; memory is bounded. It stops at
// the first error, be it of fn, of ctx, or because a table is damaged.
func (f *File) Runs(ctx context.Context, off, n int64, fn func(Run) error) error {
	if err := block.CheckRange(f.Size(), off, n); err != nil {
		return err
	}
	var pending Run
	emit := func(off, n int64, c Content) error {
		if pending.Len > 0 && pending.Content == c && pending.Off+pending.Len == off {
			pending.Len += n
			return nil
		}
		done := pending
		pending = Run{Off: off, Len: n, Content: c}
		if done.Len == 0 || done.Content == Absent {
			return nil
		}
		return fn(done)
	}
	err := f.walk(ctx, off, off+n, func(off int64, p piece) error {
		return emit(off, p.end-off, p.kind.content())
	})
	if err != nil {
		return err
	}
	return emit(off+n, 0, Absent)
}

// ReadAt reads what the file alone holds; what is Absent reads as zeroes. It
// implements block.Device. A [Chain] is what to use for many small reads.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(f.Size(), off, int64(len(p))); err != nil {
		return err
	}
	return f.walk(ctx, off, off+int64(len(p)), func(at int64, r piece) error {
		dst := p[at-off : r.end-off]
		switch r.kind {
		case normal:
			return readFull(f.data, dst, r.host)
		case compressed:
			return f.readCompressed(dst, at)
		}
		clear(dst)
		return nil
	})
}

// walk calls fn for the pieces of [off, end).
func (f *File) walk(ctx context.Context, off, end int64, fn func(off int64, p piece) error) error {
	const entries = 2048
	window := int64(entries) << f.header.ClusterBits
	m := f.pools.merge()
	defer f.pools.merges.Put(m)
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		to := end
		if to-off > window {
			to = (off + window) &^ (f.header.ClusterSize() - 1)
		}
		v, err := f.load(m, off, to)
		if err != nil {
			return err
		}
		if v.entries == nil {
			// No table describes the window: go on behind the last such one.
			if to < end {
				next, err := f.nextHeld(m, to, end)
				if err != nil {
					return err
				}
				to = next
			}
			if err := fn(off, piece{end: to}); err != nil {
				return err
			}
			off = to
			continue
		}
		for off < to {
			p := f.piece(v, off, to)
			if p.kind == invalidEntry {
				return f.explain(off)
			}
			if err := fn(off, p); err != nil {
				return err
			}
			off = p.end
		}
	}
	return nil
}

// explain returns the error that reading the guest cluster at off ends in.
func (f *File) explain(off int64) error {
	e, bitmap, err := f.entryAt(off)
	if err == nil {
		err = f.judge(e, bitmap, off)
	}
	return fmt.Errorf("read image %s at guest offset %d: %w", f.path, off, err)
}

// entryAt reads the L2 entry of the guest cluster at off, with an error that
// says what is wrong with the way there.
func (f *File) entryAt(off int64) (e, bitmap uint64, err error) {
	h := f.header
	var b [16]byte
	at := h.L1Offset + off/h.l2Coverage()*8
	if err := readFull(f.meta, b[:8], at); err != nil {
		return 0, 0, fmt.Errorf("read L1 entry: %w", err)
	}
	l1 := binary.BigEndian.Uint64(b[:])
	table := int64(l1 & entryOffset)
	if table == 0 {
		return 0, 0, nil
	}
	if table&(h.ClusterSize()-1) != 0 {
		return 0, 0, corrupt("L1 entry %#x is not aligned to a cluster", l1)
	}
	size := h.l2EntrySize()
	at = table + off>>h.ClusterBits%h.l2Entries()*size
	if !f.inMeta(at + size - 1) {
		return 0, 0, corrupt("L2 table at %d lies beyond the end of the file (%d bytes)", table, f.metaEnd.Load())
	}
	if err := readFull(f.meta, b[:size], at); err != nil {
		return 0, 0, fmt.Errorf("read L2 entry: %w", err)
	}
	return binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:]), nil
}

// judge returns what is wrong with an L2 entry that piece found invalid.
func (f *File) judge(e, bitmap uint64, off int64) error {
	h := f.header
	host := int64(e & entryOffset)
	start := off &^ (h.ClusterSize() - 1)
	switch {
	case e&entryCompressed != 0:
		return corrupt("compressed cluster in an external data file")
	case host&(h.ClusterSize()-1) != 0:
		return corrupt("L2 entry %#x is not aligned to a cluster", e)
	case h.hasDataFile() && host != start:
		return corrupt("host offset %d in an external data file is not the guest offset", host)
	case !f.inData(host):
		return corrupt("host offset %d lies beyond the end of the file (%d bytes)", host, f.dataEnd.Load())
	case h.hasExtendedL2():
		return corrupt("L2 entry %#x has subcluster bitmap %#x", e, bitmap)
	}
	return corrupt("L2 entry is %#x", e)
}

// inMeta reports whether offset off of the file exists, looking at the file
// again before it says no.
func (f *File) inMeta(off int64) bool { return f.within(off, &f.metaEnd) }

// inData is inMeta for the file that holds the guest's data.
func (f *File) inData(off int64) bool { return f.within(off, &f.dataEnd) }

func (f *File) within(off int64, end *atomic.Int64) bool {
	return off < end.Load() || f.measure() == nil && off < end.Load()
}

// openRegular opens a regular file for reading. It does not block on a FIFO.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.EMFILE) {
		return nil, fmt.Errorf("%w (a chain takes one descriptor for each layer; "+
			"raise the limit with ulimit -n, or LimitNOFILE= of the service)", err)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// resolveName turns the name by which the file at path refers to another one
// into a path, as QEMU does: relative to the folder of path.
func resolveName(path, name string) (string, error) {
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		scheme, rest := name[:i], name[i+1:]
		if scheme != "file" || strings.HasPrefix(rest, "//") {
			return "", fmt.Errorf("%w: %s: is not the name of a file; copy what it refers to into a file "+
				"and name that with qemu-img rebase -u", ErrUnsupported, scheme)
		}
		name = rest
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	// Not cleaned: ".." behind a symbolic link means what the kernel says.
	return filepath.Dir(path) + string(filepath.Separator) + name, nil
}

// readFull fills b from f at off.
func readFull(f *os.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("read %s: %d bytes at %d: %w", f.Name(), len(b), off, io.ErrUnexpectedEOF)
	}
	return err
}
