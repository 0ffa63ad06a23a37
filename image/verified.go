package image

import (
	"context"
	"fmt"
	"sync"
	"syscall"

	"github.com/sendense/sendense/block"
)

// DamageError says that a cluster does not read as its digest says. It wraps
// syscall.EIO.
type DamageError struct {
	File    string // layer that holds the cluster, or the top one if none does
	Cluster int64  // number of the cluster
	Off     int64  // guest bytes
	Err     error  // why it could not be read; nil if it was, and is wrong
}

// Error names the file, the cluster and its offset.
func (e *DamageError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("cluster %d (offset %d) of %s cannot be read: %v", e.Cluster, e.Off, e.File, e.Err)
	}
	return fmt.Sprintf("cluster %d (offset %d) of %s is not what its digest says", e.Cluster, e.Off, e.File)
}

// Unwrap returns syscall.EIO and the cause.
func (e *DamageError) Unwrap() []error {
	if e.Err != nil {
		return []error{syscall.EIO, e.Err}
	}
	return []error{syscall.EIO}
}

// Verified is a chain that is checked as it is read: a read gives the bytes that
// were once written, or an error that wraps a [DamageError]. It reads and hashes
// whole clusters, and does not tell where bytes lie, for they would be fetched
// past it.
type Verified struct {
	chain   *Chain
	digests *digestMap
	cs      int64
	bufs    sync.Pool
}

var (
	_ block.Mapper  = (*Verified)(nil)
	_ block.Changer = (*Verified)(nil)
)

// NewVerified puts the check before a chain. digests are those of its layers, in
// the same order; it closes neither.
func NewVerified(chain *Chain, digests []*Digests) (*Verified, error) {
	m, err := newDigestMap(digests)
	if err != nil {
		return nil, err
	}
	layers := chain.Layers()
	if len(layers) != len(digests) || digests[0].opts.Size != chain.Size() {
		return nil, fmt.Errorf("verify %s: the digests are not those of the chain", layers[0].Path)
	}
	v := &Verified{chain: chain, digests: m, cs: digests[0].opts.ClusterSize}
	v.bufs.New = func() any { b := make([]byte, v.cs); return &b }
	return v, nil
}

// Size returns the virtual size in bytes.
func (v *Verified) Size() int64 { return v.chain.Size() }

// Map implements block.Mapper.
func (v *Verified) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	return v.chain.Map(ctx, off, n)
}

// Changed implements block.Changer.
func (v *Verified) Changed(ctx context.Context, since string, off, n int64) ([]block.Range, error) {
	return v.chain.Changed(ctx, since, off, n)
}

// ReadAt implements block.Device.
func (v *Verified) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(v.Size(), off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		start := off / v.cs * v.cs
		if start == off && int64(len(p)) >= v.cs {
			n := int64(len(p)) / v.cs * v.cs
			if err := v.readWhole(ctx, p[:n], off); err != nil {
				return err
			}
			p, off = p[n:], off+n
			continue
		}
		n, err := v.readPart(ctx, p, off, start)
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readPart fills p as far as the cluster at start goes.
func (v *Verified) readPart(ctx context.Context, p []byte, off, start int64) (int64, error) {
	buf := v.bufs.Get().(*[]byte)
	defer v.bufs.Put(buf)
	size := min(v.cs, v.Size()-start)
	b := (*buf)[:size]
	if err := v.chain.ReadAt(ctx, b, start); err != nil {
		return 0, v.unreadable(ctx, start/v.cs, err)
	}
	clear((*buf)[size:])
	if err := v.check(ctx, *buf, start/v.cs); err != nil {
		return 0, err
	}
	return int64(copy(p, b[off-start:])), nil
}

// readWhole fills p with whole clusters.
func (v *Verified) readWhole(ctx context.Context, p []byte, off int64) error {
	if err := v.chain.ReadAt(ctx, p, off); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return v.firstUnreadable(ctx, p, off, err)
	}
	for c := off / v.cs; len(p) > 0; c, p = c+1, p[v.cs:] {
		if err := v.check(ctx, p[:v.cs], c); err != nil {
			return err
		}
	}
	return nil
}

// firstUnreadable finds the cluster that made a longer read fail.
func (v *Verified) firstUnreadable(ctx context.Context, p []byte, off int64, err error) error {
	for ; len(p) > 0; p, off = p[v.cs:], off+v.cs {
		if err := v.chain.ReadAt(ctx, p[:v.cs], off); err != nil {
			return v.unreadable(ctx, off/v.cs, err)
		}
	}
	return err
}

func (v *Verified) unreadable(ctx context.Context, c int64, err error) error {
	if ctx.Err() != nil {
		return err
	}
	e, _ := v.digests.get(ctx, c)
	return v.damage(c, e, err)
}

// check compares a whole cluster with what it has to be.
func (v *Verified) check(ctx context.Context, b []byte, c int64) error {
	e, err := v.digests.get(ctx, c)
	if err != nil {
		return err
	}
	if e == nil && isZero(b) || e != nil && Sum(b) == e.sum {
		return nil
	}
	return v.damage(c, e, nil)
}

func (v *Verified) damage(c int64, e *expected, cause error) error {
	layer := 0
	if e != nil {
		layer = e.layer
	}
	return &DamageError{File: v.chain.Layers()[layer].Path, Cluster: c, Off: c * v.cs, Err: cause}
}
