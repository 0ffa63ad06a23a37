package blocktest

import (
	"context"
	"fmt"
	"sync"

	"github.com/sendense/sendense/block"
)

// memoryGrain is the unit in which a Memory knows zeroes from data, in bytes.
const memoryGrain = 512

// Memory is a writable device in memory that has every capability but locate and
// changed. Ranges that were never written, or zeroed since, map as holes.
type Memory struct {
	mu   sync.RWMutex // guards the fields below
	data []byte
	used []bool // for each grain, whether it was written
}

// NewMemory returns a device of size bytes that reads as zeroes.
func NewMemory(size int64) *Memory {
	return &Memory{data: make([]byte, size), used: make([]bool, (size+memoryGrain-1)/memoryGrain)}
}

// Size implements [block.Device].
func (m *Memory) Size() int64 { return int64(len(m.data)) }

// ReadAt implements [block.Device].
func (m *Memory) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := block.CheckRange(m.Size(), off, int64(len(p))); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}

// WriteAt implements [block.Writer].
func (m *Memory) WriteAt(_ context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := block.CheckRange(m.Size(), off, n); err != nil || n == 0 {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	for g := off / memoryGrain; g <= (off+n-1)/memoryGrain; g++ {
		m.used[g] = true
	}
	return nil
}

// WriteZeroes implements [block.Zeroer].
func (m *Memory) WriteZeroes(_ context.Context, off, n int64, _ block.ZeroFlags) error {
	if err := block.CheckRange(m.Size(), off, n); err != nil || n == 0 {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	for g := (off + memoryGrain - 1) / memoryGrain; (g+1)*memoryGrain <= off+n; g++ {
		m.used[g] = false
	}
	return nil
}

// Trim implements [block.Trimmer] by zeroing.
func (m *Memory) Trim(ctx context.Context, off, n int64) error {
	return m.WriteZeroes(ctx, off, n, block.MayTrim)
}

// Flush implements [block.Flusher]; memory has nothing to make durable.
func (m *Memory) Flush(context.Context) error { return nil }

// Map implements [block.Mapper].
func (m *Memory) Map(_ context.Context, off, n int64) ([]block.Extent, error) {
	if err := block.CheckRange(m.Size(), off, n); err != nil || n == 0 {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var exts []block.Extent
	for end := off + n; off < end; {
		g := off / memoryGrain
		e := block.Extent{Off: off, Kind: block.Hole}
		if m.used[g] {
			e.Kind = block.Data
		}
		used := m.used[g]
		for g++; g < int64(len(m.used)) && g*memoryGrain < end && m.used[g] == used; {
			g++
		}
		e.Len = min(g*memoryGrain, end) - off
		exts = append(exts, e)
		off += e.Len
	}
	return exts, nil
}

// Faulty wraps a device and fails requests as told. The zero Fault never fails.
type Faulty struct {
	block.Wrapped
	// Fault is asked before each request and returns the error it is to fail
	// with, or nil. It may block, to make a device slow. op is "read", "write",
	// "zero", "trim", "flush", "map", "locate" or "changed".
	Fault func(ctx context.Context, op string, off, n int64) error
}

// NewFaulty returns d with faults.
func NewFaulty(d block.Device, fault func(ctx context.Context, op string, off, n int64) error) *Faulty {
	return &Faulty{Wrapped: block.Wrapped{Inner: d}, Fault: fault}
}

func (f *Faulty) check(ctx context.Context, op string, off, n int64) error {
	if f.Fault == nil {
		return nil
	}
	if err := f.Fault(ctx, op, off, n); err != nil {
		return fmt.Errorf("%s %d bytes at %d: %w", op, n, off, err)
	}
	return nil
}

// ReadAt implements [block.Device].
func (f *Faulty) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := f.check(ctx, "read", off, int64(len(p))); err != nil {
		return err
	}
	return f.Wrapped.ReadAt(ctx, p, off)
}

// WriteAt implements [block.Writer].
func (f *Faulty) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := f.check(ctx, "write", off, int64(len(p))); err != nil {
		return err
	}
	return f.Wrapped.WriteAt(ctx, p, off)
}

// WriteZeroes implements [block.Zeroer].
func (f *Faulty) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	if err := f.check(ctx, "zero", off, n); err != nil {
		return err
	}
	return f.Wrapped.WriteZeroes(ctx, off, n, flags)
}

// Trim implements [block.Trimmer].
func (f *Faulty) Trim(ctx context.Context, off, n int64) error {
	if err := f.check(ctx, "trim", off, n); err != nil {
		return err
	}
	return f.Wrapped.Trim(ctx, off, n)
}

// Flush implements [block.Flusher].
func (f *Faulty) Flush(ctx context.Context) error {
	if err := f.check(ctx, "flush", 0, 0); err != nil {
		return err
	}
	return f.Wrapped.Flush(ctx)
}

// Map implements [block.Mapper].
func (f *Faulty) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	if err := f.check(ctx, "map", off, n); err != nil {
		return nil, err
	}
	return f.Wrapped.Map(ctx, off, n)
}

// Locate implements [block.Locator].
func (f *Faulty) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	if err := f.check(ctx, "locate", off, n); err != nil {
		return dst, err
	}
	return f.Wrapped.Locate(ctx, dst, off, n)
}

// Changed implements [block.Changer].
func (f *Faulty) Changed(ctx context.Context, since string, off, n int64) ([]block.Range, error) {
	if err := f.check(ctx, "changed", off, n); err != nil {
		return nil, err
	}
	return f.Wrapped.Changed(ctx, since, off, n)
}
