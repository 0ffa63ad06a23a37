package image

import (
	"context"
	"fmt"
)

// WriteCompressed writes one whole cluster at off in compressed form, by the
// file's type of compression. A last cluster that the disk ends in the middle of
// may be given in full or up to that end. Where compression gains nothing the
// cluster is written plainly, and stored is false. Compressing is done in the
// caller's goroutine and holds up nobody.
func (w *Writer) WriteCompressed(ctx context.Context, cluster []byte, off int64) (stored bool, err error) {
	cs := w.ClusterSize()
	inDisk := min(cs, w.Size()-off)
	if off < 0 || off&(cs-1) != 0 || inDisk <= 0 || int64(len(cluster)) != cs && int64(len(cluster)) != inDisk {
		return false, fmt.Errorf("write compressed: %d bytes at %d are not one cluster of %d", len(cluster), off, cs)
	}
	whole := cluster
	if int64(len(cluster)) < cs {
		buf := w.buffer()
		defer w.bufs.Put(buf)
		whole = *buf
		clear(whole[copy(whole, cluster):])
	}
	out := w.buffer()
	defer w.bufs.Put(out)
	stream, err := w.compressor.compress((*out)[:0], whole)
	if err != nil {
		return false, err
	}
	if int64(len(stream)) >= cs {
		return false, w.WriteAt(ctx, cluster[:inDisk], off)
	}
	lock, err := w.begin(ctx, off, inDisk, false)
	if err != nil {
		return false, err
	}
	defer w.locks.unlock(lock)
	if err := w.relieve(ctx); err != nil {
		return false, err
	}
	return true, w.storeStream(off, int64(len(stream)), 1, func(host int64) error {
		return w.put(stream, host)
	})
}

// storeStream gives the cluster at off a compressed stream of n bytes, which put
// writes to a host offset that is a multiple of align.
func (w *Writer) storeStream(off, n, align int64, put func(host int64) error) error {
	bits := w.header.ClusterBits
	c := off >> bits
	per := w.l2.perTable()
	w.mu.Lock()
	table, err := w.tableFor(c/per, false)
	var host int64
	if err == nil {
		host, err = w.pack(n, align)
	}
	if err != nil {
		w.mu.Unlock()
		return err
	}
	table.pins++
	w.mu.Unlock()

	err = put(host)

	w.mu.Lock()
	defer w.mu.Unlock()
	table.pins--
	if err != nil {
		first := host >> bits
		if err := w.refs.release(hostRun{first, (host+n-1)>>bits - first + 1}); err != nil && w.failed == nil {
			w.failed = err
		}
		return err
	}
	old, err := w.l2.entry(table, c%per)
	if err != nil {
		return err
	}
	w.l2.setEntry(table, c%per, guestCluster{desc: encodeCompressed(host, n, bits)})
	w.giveCluster(old)
	w.stats.Compressed++
	w.stats.CompressedBytes += n
	return nil
}

// pack finds n bytes for a stream, behind the previous one if it can, and counts
// the reference to each cluster they lie in.
func (w *Writer) pack(n, align int64) (host int64, err error) {
	bits, cs := w.header.ClusterBits, w.ClusterSize()
	if at := (w.packing + align - 1) &^ (align - 1); w.packing != 0 {
		host, err = w.packBehind(at, n)
		if host != 0 || err != nil {
			return host, err
		}
	}
	count := (n + cs - 1) >> bits
	var run hostRun
	if count == 1 {
		run, err = w.refs.alloc(1)
	} else {
		run, err = w.refs.allocExactly(count)
	}
	if err != nil {
		return 0, err
	}
	host = run.first << bits
	if host+n > w.maxStream() {
		if err := w.refs.release(run); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("the file is too long for compressed clusters of %d bytes", cs)
	}
	w.packing = host + n
	return host, nil
}

// maxStream is the first offset that a compressed cluster descriptor cannot hold.
func (w *Writer) maxStream() int64 { return min(maxHost, int64(1)<<(62-(w.header.ClusterBits-8))) }

// packBehind places a stream at the offset at, in a cluster that holds streams
// already and, if need be, the free one behind it; 0 if that is not possible.
func (w *Writer) packBehind(at, n int64) (int64, error) {
	bits := w.header.ClusterBits
	shared := (w.packing - 1) >> bits
	first, last := at>>bits, (at+n-1)>>bits
	if at+n > w.maxStream() || first > shared || last > shared+1 {
		return 0, nil
	}
	count, err := w.refs.get(shared)
	if err != nil || count == 0 || count == w.refs.limit() {
		return 0, err
	}
	if last > shared {
		free, err := w.refs.takeAt(last)
		if err != nil || !free {
			return 0, err
		}
	}
	if _, err := w.refs.add(shared, 1); err != nil {
		return 0, err
	}
	w.packing = at + n
	return at, nil
}
