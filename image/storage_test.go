package image_test

import (
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
)

// op is one thing done to a memFile: a write, a truncation or a sync.
type op struct {
	off  int64
	data []byte // nil unless it is a write
	size int64  // of a truncation, else -1
	sync bool
}

// memFile is storage in memory that keeps a log of what was done to it and fails
// when told to.
type memFile struct {
	mu   sync.Mutex
	data []byte
	log  []op
	// fault, if not nil, is asked before each operation; n counts them from 0.
	fault func(n int, o op) error
	n     int
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// do asks for a fault, logs o and applies it.
func (f *memFile) do(o op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil {
		f.n++
		if err := f.fault(f.n-1, o); err != nil {
			return err
		}
	}
	if max(o.off+int64(len(o.data)), o.size) > 256<<20 {
		return syscall.EFBIG
	}
	f.data = o.apply(f.data)
	if o.data != nil {
		// Disks write whole sectors, with what else is in them by now.
		end := min((o.off+int64(len(o.data))+511)&^511, int64(len(f.data)))
		o.off &^= 511
		o.data = append([]byte{}, f.data[o.off:end]...)
	}
	f.log = append(f.log, o)
	return nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.do(op{off: off, data: append([]byte{}, p...), size: -1}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *memFile) Truncate(size int64) error { return f.do(op{size: size}) }

func (f *memFile) Sync() error { return f.do(op{size: -1, sync: true}) }

func (f *memFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *memFile) Close() error { return nil }

// apply does o to a file's content.
func (o op) apply(b []byte) []byte {
	switch {
	case o.data != nil:
		if end := o.off + int64(len(o.data)); end > int64(len(b)) {
			b = append(b, make([]byte, end-int64(len(b)))...)
		}
		copy(b[o.off:], o.data)
	case o.size > int64(len(b)):
		b = append(b, make([]byte, o.size-int64(len(b)))...)
	case o.size >= 0:
		b = b[:o.size]
	}
	return b
}

// tear returns the parts of o that reach the disk when power fails: sectors of a
// write, as luck has it.
func (o op) tear(rng *rand.Rand) []op {
	luck := rng.IntN(4)
	if luck == 0 {
		return nil
	}
	if luck < 3 || o.data == nil {
		return []op{o}
	}
	var parts []op
	for pos := int64(0); pos < int64(len(o.data)); {
		end := min(int64(len(o.data)), (o.off+pos)&^511+512-o.off)
		if rng.IntN(2) == 0 {
			parts = append(parts, op{off: o.off + pos, data: o.data[pos:end], size: -1})
		}
		pos = end
	}
	return parts
}

// prefix returns as much of o as a kill lets through, in whole sectors.
func (o op) prefix(rng *rand.Rand) []op {
	if o.data == nil {
		return nil
	}
	n := rng.Int64N(int64(len(o.data)) + 1)
	n = max(0, (o.off+n)&^511-o.off)
	return []op{{off: o.off, data: o.data[:n], size: -1}}
}
