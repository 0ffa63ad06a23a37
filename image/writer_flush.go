package image

import (
	"context"
	"fmt"
)

// tidyAfter is how many references may wait to be given up before a flush.
const tidyAfter = 64 << 10

// sync makes what was written durable. If that fails the Writer is done for: the
// kernel may have dropped the pages, and a second sync would lie.
func (w *Writer) sync() error {
	w.unsynced.Store(false)
	if err := w.st.Sync(); err != nil {
		return w.fail(fmt.Errorf("sync %s: %w", w.path, err))
	}
	return nil
}

// Flush makes every write that returned before it durable. Flushes asked for at
// the same time share the work.
func (w *Writer) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	seen := w.started.Load()
	w.flushMu.Lock()
	defer w.flushMu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if w.succeeded > seen {
		return nil // it began after this call did
	}
	return w.flush()
}

// flushed is the state of the metadata at one moment, on its way to the file.
type flushed struct {
	refs     []metaWrite
	l2       []metaWrite
	refTable []byte // part of the refcount table, or all of it if moved
	refPos   int64
	moved    bool
	refRoot  []byte // offset and clusters of the moved table, for the header
	refLo    int
	refHi    int
	l1       []byte
	l1lo     int
	l1hi     int
	given    []hostRun
}

// flush is Flush with flushMu held.
func (w *Writer) flush() (err error) {
	number := w.started.Add(1)
	f := w.collect()
	defer func() {
		if err = w.settle(f, err); err == nil {
			w.succeeded = number
		}
	}()
	if err := w.pad(); err != nil {
		return err
	}
	// What new references refer to, and the counts of those references.
	if err := writeTables(w.st, f.refs); err != nil {
		return err
	}
	if w.unsynced.Load() || len(f.refs) > 0 {
		if err := w.sync(); err != nil {
			return err
		}
	}
	if err := w.flushRefTable(f); err != nil {
		return err
	}
	// The references.
	if len(f.l2) > 0 {
		if err := writeTables(w.st, f.l2); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
	}
	if len(f.l1) > 0 {
		if err := writeAll(w.st, f.l1, w.header.L1Offset+int64(f.l1lo)*8); err != nil {
			return err
		}
		return w.sync()
	}
	return nil
}

// pad makes the file as long as what is allocated in it, for clusters whose end
// was left out because it is zeroes.
func (w *Writer) pad() error {
	// Nothing is written beyond what is allocated, and nothing is allocated while
	// mu is held: this cannot cut off a write under way.
	w.mu.Lock()
	defer w.mu.Unlock()
	want := w.refs.virgin << w.header.ClusterBits
	if w.length.Load() >= want {
		return nil
	}
	size, err := w.st.Size()
	if err != nil {
		return err
	}
	if size >= want {
		w.length.Store(want)
		return nil
	}
	if err := w.st.Truncate(want); err != nil {
		return fmt.Errorf("extend file to %d bytes: %w", want, err)
	}
	w.unsynced.Store(true)
	w.length.Store(want)
	return nil
}

func (w *Writer) flushRefTable(f *flushed) error {
	if len(f.refTable) == 0 {
		return nil
	}
	if err := writeAll(w.st, f.refTable, f.refPos); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	if !f.moved {
		return nil
	}
	return w.patchHeader(48, f.refRoot)
}

// collect takes down all that is dirty, as of now.
func (w *Writer) collect() *flushed {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.refs
	f := &flushed{refs: r.blocks.collect(), l2: w.l2.cache.collect(), given: w.given,
		moved: r.moved, refLo: r.lo, refHi: r.hi, l1lo: w.l1lo, l1hi: w.l1hi}
	switch {
	case r.moved:
		f.refTable, f.refPos = encodeEntries(r.table), r.tableOff
		f.refRoot = headerEntry(r.tableOff, uint32(r.tableClusters()))
		f.given = append(f.given, r.retired...)
		r.retired = nil
	case r.lo != r.hi:
		f.refTable, f.refPos = encodeEntries(r.table[r.lo:r.hi]), r.tableOff+int64(r.lo)*8
	}
	if w.l1lo != w.l1hi {
		f.l1 = encodeEntries(w.l2.l1[w.l1lo:w.l1hi])
	}
	r.lo, r.hi, r.moved = 0, 0, false
	w.l1lo, w.l1hi, w.given = 0, 0, nil
	return f
}

// settle notes what became of a flush. After a successful one nothing on disk
// refers any more to what was given up before it.
func (w *Writer) settle(f *flushed, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	ok := err == nil
	w.refs.blocks.settle(f.refs, ok)
	w.l2.cache.settle(f.l2, ok)
	if ok {
		for i, run := range f.given {
			if err := w.refs.release(run); err != nil {
				w.given = append(w.given, f.given[i+1:]...)
				w.failed = err
				return err
			}
		}
		return nil
	}
	if f.moved {
		w.refs.moved = true
	}
	if f.refLo != f.refHi {
		w.refs.touchTable(f.refLo)
		w.refs.touchTable(f.refHi - 1)
	}
	if f.l1lo != f.l1hi {
		w.touchL1(f.l1lo)
		w.touchL1(f.l1hi - 1)
	}
	w.given = append(f.given, w.given...)
	return err
}

func (w *Writer) touchL1(i int) {
	if w.l1lo == w.l1hi {
		w.l1lo, w.l1hi = i, i+1
		return
	}
	w.l1lo, w.l1hi = min(w.l1lo, i), max(w.l1hi, i+1)
}

// give notes that references to a host range were removed from memory; the
// counts follow once the file has forgotten them too.
func (w *Writer) give(off, n int64) {
	bits := w.header.ClusterBits
	first := off >> bits
	run := hostRun{first, (off+n-1)>>bits - first + 1}
	if k := len(w.given); k > 0 && w.given[k-1].first+w.given[k-1].n == run.first {
		w.given[k-1].n += run.n
		return
	}
	w.given = append(w.given, run)
}

// relieve flushes if too much waits for it in memory. No lock is held.
func (w *Writer) relieve(ctx context.Context) error {
	w.mu.Lock()
	full := w.l2.cache.dirty > w.l2.cache.capacity/2 || len(w.given) > tidyAfter
	w.mu.Unlock()
	if !full {
		return nil
	}
	return w.Flush(ctx)
}
