package image

import (
	"context"
	"fmt"
)

// digestMap is the digests files of a chain seen as one: for each cluster of the
// top layer's disk, what its content has to be. It is built piece by piece on
// first use and kept in bounded memory, so that a lookup costs the same at any
// depth.
type digestMap struct {
	layers   []*Digests // top first
	clusters int64
	segments *cache[*digestSegment]
}

const (
	segmentClusters = 4096
	digestMapBytes  = 32 << 20
)

// digestSegment describes segmentClusters clusters. index gives for each of them
// where its digest is in sums, or one of the negative values below; it is nil if
// no layer holds any.
type digestSegment struct {
	index []int32
	sums  []expected
}

const (
	expectNothing = -1 // no layer holds the cluster: it reads as zeroes
	expectZeroes  = -2
)

// expected is the digest of a cluster and the layer that it comes from.
type expected struct {
	sum   Digest
	layer int
}

// newDigestMap joins the digests of a chain's layers, top first. It is an error
// if one is missing or is about another cluster size.
func newDigestMap(layers []*Digests) (*digestMap, error) {
	if len(layers) == 0 {
		return nil, fmt.Errorf("join digests: there are none")
	}
	for i, d := range layers {
		if d == nil {
			return nil, fmt.Errorf("join digests: layer %d of %d has none", i, len(layers))
		}
		if a, b := d.opts.ClusterSize, layers[0].opts.ClusterSize; a != b {
			return nil, fmt.Errorf("join digests: %s is about clusters of %d bytes, not %d", d.name, a, b)
		}
	}
	m := &digestMap{layers: layers, clusters: layers[0].clusters}
	m.segments = newCache(digestMapBytes, func(s *digestSegment) int64 {
		return 64 + int64(4*cap(s.index)) + int64((DigestSize+8)*cap(s.sums))
	})
	return m, nil
}

func (m *digestMap) segment(ctx context.Context, i int64) (*digestSegment, error) {
	return m.segments.get(ctx, uint64(i), func() (*digestSegment, error) { return m.build(ctx, i*segmentClusters) })
}

// build makes the segment that begins with cluster first. A layer above hides
// those below, also with its end.
func (m *digestMap) build(ctx context.Context, first int64) (*digestSegment, error) {
	s := &digestSegment{}
	limit := min(m.clusters-first, segmentClusters)
	left := limit
	for layer, d := range m.layers {
		limit = min(limit, d.clusters-first)
		if limit <= 0 || left == 0 {
			break
		}
		err := d.Range(ctx, first, limit, func(r *DigestRun) error {
			if s.index == nil {
				s.index = make([]int32, segmentClusters)
				for i := range s.index {
					s.index[i] = expectNothing
				}
			}
			for c := r.First - first; c < r.First-first+r.Count; c++ {
				if s.index[c] != expectNothing {
					continue
				}
				left--
				if r.Zero {
					s.index[c] = expectZeroes
					continue
				}
				s.index[c] = int32(len(s.sums))
				s.sums = append(s.sums, expected{r.Digest, layer})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// get returns what a cluster has to be: a digest, or nil for zeroes. Clusters
// behind the end of the disk are zeroes.
func (m *digestMap) get(ctx context.Context, cluster int64) (*expected, error) {
	if cluster >= m.clusters {
		return nil, nil
	}
	s, err := m.segment(ctx, cluster/segmentClusters)
	if err != nil || s.index == nil {
		return nil, err
	}
	i := s.index[cluster%segmentClusters]
	if i < 0 {
		return nil, nil
	}
	return &s.sums[i], nil
}
