package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// expect returns what cluster c of the parent has to be, nil for zeroes; false if
// there are no digests to tell, or damaged ones: the content is looked at then.
func (d *Ingest) expect(ctx context.Context, c int64) (*expected, bool, error) {
	if d.digests == nil {
		return nil, false, nil
	}
	e, err := d.digests.get(ctx, c)
	if errors.Is(err, ErrBadDigests) {
		return nil, false, nil
	}
	return e, err == nil, err
}

// parentZero reports whether the parent reads as zeroes in a range inside one
// cluster. Without a parent everything does.
func (d *Ingest) parentZero(ctx context.Context, off, n int64) (bool, error) {
	if d.parent == nil || off >= d.parent.Size() {
		return true, nil
	}
	if e, ok, err := d.expect(ctx, off/d.cs); ok || err != nil {
		return err == nil && (e == nil || e.sum == d.zeroSum), err
	}
	n = min(n, d.parent.Size()-off)
	for n > 0 {
		list, err := d.parent.Sources(ctx, off, n)
		if err != nil {
			return false, err
		}
		for _, s := range list {
			if s.Content != Absent && s.Content != Zeroed {
				return false, nil
			}
			off, n = s.End(), n-s.Len
		}
	}
	return true, nil
}

// parentSame reports whether cluster c of the parent has content b, whose digest
// is sum. b is not all zeroes.
func (d *Ingest) parentSame(ctx context.Context, b []byte, c int64, sum Digest) (bool, error) {
	if e, ok, err := d.expect(ctx, c); ok || err != nil {
		return err == nil && e != nil && e.sum == sum, err
	}
	buf := d.bufs.Get().(*[]byte)
	defer d.bufs.Put(buf)
	have, err := d.readParent(ctx, *buf, c)
	if err != nil {
		return false, err
	}
	return bytes.Equal(have[:len(b)], b) && isZero(have[len(b):]), nil
}

// readParent reads cluster c of the parent into b, which is a cluster long, with
// zeroes behind the parent's end.
func (d *Ingest) readParent(ctx context.Context, b []byte, c int64) ([]byte, error) {
	n := max(0, min(d.cs, d.parent.Size()-c*d.cs))
	clear(b[n:])
	return b, d.parent.ReadAt(ctx, b[:n], c*d.cs)
}

// Differs reports for each cluster from first on, whose digests sums are, whether
// it differs from the parent's. Clusters that the parent does not have differ.
func (d *Ingest) Differs(ctx context.Context, first int64, sums []Digest) ([]bool, error) {
	n := clusterCount(d.size, d.cs)
	if first < 0 || first > n || int64(len(sums)) > n-first {
		return nil, fmt.Errorf("compare digests: %d clusters at %d of %d", len(sums), first, n)
	}
	differ := make([]bool, len(sums))
	for i := range sums {
		have, ok, err := d.parentSum(ctx, first+int64(i))
		if err != nil {
			return nil, fmt.Errorf("compare digests: %w", err)
		}
		differ[i] = !ok || have != sums[i]
	}
	return differ, nil
}

// parentSum returns the digest of cluster c of the parent; false if it has none.
func (d *Ingest) parentSum(ctx context.Context, c int64) (Digest, bool, error) {
	if d.parent == nil || c*d.cs >= d.parent.Size() {
		return Digest{}, false, nil
	}
	if e, ok, err := d.expect(ctx, c); ok || err != nil {
		if err != nil || e == nil {
			return d.zeroSum, err == nil, err
		}
		return e.sum, true, nil
	}
	buf := d.bufs.Get().(*[]byte)
	defer d.bufs.Put(buf)
	b, err := d.readParent(ctx, *buf, c)
	if err != nil {
		return Digest{}, false, err
	}
	return Sum(b), true, nil
}
