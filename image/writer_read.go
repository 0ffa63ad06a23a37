package image

import (
	"context"
	"fmt"

	"github.com/sendense/sendense/block"
)

// ReadAt implements block.Device.
func (w *Writer) ReadAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return block.CheckRange(w.Size(), off, 0)
	}
	lock, err := w.begin(ctx, off, int64(len(p)), true)
	if err != nil {
		return err
	}
	defer w.locks.unlock(lock)
	return w.read(ctx, p, off)
}

// lookup says what is at off, as l2Tables.lookup does.
func (w *Writer) lookup(off, n int64) (guestRun, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.l2.lookup(off, n)
}

// read fills p; the caller has a lock on its clusters. Beyond the end of the disk
// it reads zeroes.
func (w *Writer) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		run, err := w.lookup(off, int64(len(p)))
		if err != nil {
			return err
		}
		part := p[:run.n]
		switch run.kind {
		case normal:
			err = readPadded(w.st, part, run.host)
		case compressed:
			err = w.readCompressed(part, off, run.desc)
		case unallocated:
			err = w.readBacking(ctx, part, off)
		default:
			clear(part)
		}
		if err != nil {
			return err
		}
		p, off = p[run.n:], off+run.n
	}
	return nil
}

// readBacking fills p from the backing device, with zeroes beyond its end and
// beyond the end of this one.
func (w *Writer) readBacking(ctx context.Context, p []byte, off int64) error {
	n := w.backed(off, int64(len(p)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return w.backing.ReadAt(ctx, p[:n], off)
}

// backed returns how many of the n bytes at off the backing device has.
func (w *Writer) backed(off, n int64) int64 {
	if w.backing == nil {
		return 0
	}
	return max(0, min(n, min(w.backing.Size(), w.limit.Load())-off))
}

// readCompressed fills p with bytes of the compressed cluster that holds off.
func (w *Writer) readCompressed(p []byte, off int64, desc uint64) error {
	host, size := decodeCompressed(desc, w.header.ClusterBits)
	stream := make([]byte, size)
	if err := readPadded(w.st, stream, host); err != nil {
		return err
	}
	buf := w.buffer()
	defer w.bufs.Put(buf)
	if err := w.pools.decompress(*buf, stream, w.header.Compression); err != nil {
		return fmt.Errorf("compressed cluster at %d: %w", off&^(w.ClusterSize()-1), err)
	}
	copy(p, (*buf)[off&(w.ClusterSize()-1):])
	return nil
}

// buffer returns memory for a cluster, to be given back to bufs.
func (w *Writer) buffer() *[]byte { return w.bufs.Get().(*[]byte) }

// Map implements block.Mapper. Clusters that read as zeroes are Zero if the file
// keeps a host cluster for them, else Hole.
func (w *Writer) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	if n == 0 {
		return nil, block.CheckRange(w.Size(), off, 0)
	}
	lock, err := w.begin(ctx, off, n, true)
	if err != nil {
		return nil, err
	}
	defer w.locks.unlock(lock)
	const maxExtents = 4096
	var exts []block.Extent
	for end := off + n; off < end && len(exts) < maxExtents; {
		run, err := w.lookup(off, end-off)
		if err != nil {
			return nil, err
		}
		e := block.Extent{Off: off, Len: run.n, Kind: block.Data}
		switch run.kind {
		case zeroAlloc:
			e.Kind = block.Zero
		case zeroPlain:
			e.Kind = block.Hole
		case unallocated:
			e.Kind = block.Hole
			if k := w.backed(off, run.n); k > 0 {
				below, err := block.Map(ctx, w.backing, off, k)
				if err != nil {
					return nil, err
				}
				for _, e := range below {
					exts = addExtent(exts, e)
					off = e.End()
				}
				continue
			}
		}
		exts = addExtent(exts, e)
		off += run.n
	}
	return exts, nil
}

// addExtent appends e, or lets the last extent take it in.
func addExtent(exts []block.Extent, e block.Extent) []block.Extent {
	if k := len(exts) - 1; k >= 0 && exts[k].Kind == e.Kind {
		exts[k].Len += e.Len
		return exts
	}
	return append(exts, e)
}

// Locate implements block.Locator.
func (w *Writer) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	if n == 0 {
		return dst, block.CheckRange(w.Size(), off, 0)
	}
	lock, err := w.begin(ctx, off, n, true)
	if err != nil {
		return dst, err
	}
	defer w.locks.unlock(lock)
	file := onDisk(w.st)
	for n > 0 {
		run, err := w.lookup(off, n)
		if err != nil {
			return dst, err
		}
		switch {
		case run.kind == normal && file != nil:
			// Others can read there only what is not left out at the file's end.
			if run.host+run.n > w.length.Load() {
				if err := w.pad(); err != nil {
					return dst, err
				}
			}
			dst = append(dst, block.Location{Len: run.n, Kind: block.InFile, File: file, Off: run.host})
		case run.kind == normal || run.kind == compressed:
			dst = append(dst, block.Location{Len: run.n, Kind: block.Opaque})
		case run.kind == unallocated && w.backed(off, run.n) > 0:
			run.n = w.backed(off, run.n)
			if dst, err = block.Locate(ctx, w.backing, dst, off, run.n); err != nil {
				return dst, err
			}
		default:
			dst = append(dst, block.Location{Len: run.n, Kind: block.InNothing})
		}
		off, n = off+run.n, n-run.n
	}
	return dst, nil
}
