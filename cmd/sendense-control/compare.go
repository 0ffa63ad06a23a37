package main

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/sendense/sendense/block"
	"golang.org/x/sync/errgroup"
)

// compareChunk is how many bytes are compared at a time.
const compareChunk = 1 << 20

// compareDevices returns the offset of the first byte in which two devices differ,
// as far as both reach, or -1. What both call zeroes is not read.
func compareDevices(ctx context.Context, a, b block.Device, progress func(done, total int64)) (int64, error) {
	size := min(a.Size(), b.Size())
	first, done := atomic.Int64{}, atomic.Int64{}
	first.Store(size)
	g, group := errgroup.WithContext(ctx)
	work := make(chan block.Range)
	g.Go(func() error {
		defer close(work)
		return unlikeRanges(group, a, b, size, func(r block.Range) bool {
			select {
			case work <- r:
				return r.Off < first.Load()
			case <-group.Done():
				return false
			}
		})
	})
	var told sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			bufs := [2][]byte{make([]byte, compareChunk), make([]byte, compareChunk)}
			for r := range work {
				at, err := compareRange(group, a, b, r, bufs)
				if err != nil {
					return err
				}
				for old := first.Load(); at >= 0 && at < old && !first.CompareAndSwap(old, at); old = first.Load() {
				}
				told.Lock()
				progress(max(done.Load(), r.End()), size)
				done.Store(max(done.Load(), r.End()))
				told.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return -1, err
	}
	if err := ctx.Err(); err != nil && first.Load() == size {
		return -1, err
	}
	if at := first.Load(); at < size {
		return at, nil
	}
	return -1, nil
}

// compareRange returns the offset of the first difference in r, or -1.
func compareRange(ctx context.Context, a, b block.Device, r block.Range, bufs [2][]byte) (int64, error) {
	x, y := bufs[0][:r.Len], bufs[1][:r.Len]
	if err := a.ReadAt(ctx, x, r.Off); err != nil {
		return -1, fmt.Errorf("read the first disk: %w", err)
	}
	if err := b.ReadAt(ctx, y, r.Off); err != nil {
		return -1, fmt.Errorf("read the second disk: %w", err)
	}
	if bytes.Equal(x, y) {
		return -1, nil
	}
	for i := range x {
		if x[i] != y[i] {
			return r.Off + int64(i), nil
		}
	}
	return -1, nil
}

// unlikeRanges calls fn, in ascending order and in chunks, for the ranges that
// not both devices call zeroes, until it returns false.
func unlikeRanges(ctx context.Context, a, b block.Device, size int64, fn func(block.Range) bool) error {
	ca, cb := &extents{dev: a, size: size}, &extents{dev: b, size: size}
	for off := int64(0); off < size; {
		ea, err := ca.at(ctx, off)
		if err != nil {
			return err
		}
		eb, err := cb.at(ctx, off)
		if err != nil {
			return err
		}
		end := min(ea.End(), eb.End())
		if ea.Kind != block.Data && eb.Kind != block.Data {
			off = end
			continue
		}
		n := min(end-off, compareChunk-off%compareChunk)
		if !fn(block.Range{Off: off, Len: n}) {
			return nil
		}
		off += n
	}
	return nil
}

// extents walks the map of a device.
type extents struct {
	dev  block.Device
	size int64
	list []block.Extent
}

// at returns the extent that holds off, which never descends.
func (e *extents) at(ctx context.Context, off int64) (block.Extent, error) {
	for len(e.list) > 0 && e.list[0].End() <= off {
		e.list = e.list[1:]
	}
	if len(e.list) == 0 {
		list, err := block.Map(ctx, e.dev, off, e.size-off)
		if err != nil {
			return block.Extent{}, err
		}
		e.list = list
	}
	return e.list[0], nil
}
