package image

import (
	"context"
	"fmt"
	"io"
)

// MergeDigests writes to out the digests of exactly what the QCOW2 file at path
// holds after a merge. They come from known, the digests of the layers that were
// merged, top first, so that a mistake in copying shows against them; what those
// do not know is read.
func MergeDigests(ctx context.Context, path string, known []*Digests, out io.Writer) (DigestSummary, error) {
	s, err := mergeDigests(ctx, path, known, out)
	if err != nil {
		return DigestSummary{}, fmt.Errorf("merge digests of %s: %w", path, err)
	}
	return s, nil
}

func mergeDigests(ctx context.Context, path string, known []*Digests, out io.Writer) (DigestSummary, error) {
	m, err := newDigestMap(known)
	if err != nil {
		return DigestSummary{}, err
	}
	f, err := OpenFile(path)
	if err != nil {
		return DigestSummary{}, err
	}
	defer f.Close()
	cs := f.Header().ClusterSize()
	if cs != known[0].opts.ClusterSize {
		return DigestSummary{}, fmt.Errorf("the digests are about clusters of %d bytes, not %d", known[0].opts.ClusterSize, cs)
	}
	w, err := NewDigestWriter(out, DigestOptions{ClusterSize: cs, Size: f.Size()})
	if err != nil {
		return DigestSummary{}, err
	}
	buf := make([]byte, cs)
	err = f.Runs(ctx, 0, f.Size(), func(r Run) error {
		first, n := r.Off/cs, clusterCount(r.Len, cs)
		if r.Content == Zeroed {
			return w.AddZeroes(first, n)
		}
		for c := first; c < first+n; c++ {
			e, err := m.get(ctx, c)
			if err != nil {
				return err
			}
			if e != nil {
				if err := w.Add(c, e.sum); err != nil {
					return err
				}
				continue
			}
			size := min(cs, f.Size()-c*cs)
			if err := f.ReadAt(ctx, buf[:size], c*cs); err != nil {
				return err
			}
			clear(buf[size:])
			if err := w.Add(c, Sum(buf)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return DigestSummary{}, err
	}
	return w.Finish()
}
