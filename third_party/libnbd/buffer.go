package libnbd

// #include <stdlib.h>
import "C"

import "unsafe"

// AioBuffer is memory that an asynchronous command reads from or writes to. It
// has to stay where it is until the command has completed: it comes from C's
// heap, or is Go memory that the caller has pinned (runtime.Pinner).
type AioBuffer struct {
	P    unsafe.Pointer
	Size uint // bytes
}

// MakeAioBuffer takes size bytes from C's heap, content unspecified.
func MakeAioBuffer(size uint) AioBuffer {
	return AioBuffer{P: C.malloc(C.size_t(size)), Size: size}
}

// MakeAioBufferZero takes size zeroed bytes from C's heap.
func MakeAioBufferZero(size uint) AioBuffer {
	return AioBuffer{P: C.calloc(1, C.size_t(size)), Size: size}
}

// FromBytes makes a buffer with a copy of b.
func FromBytes(b []byte) AioBuffer {
	r := MakeAioBuffer(uint(len(b)))
	copy(r.Slice(), b)
	return r
}

// Free gives the memory back to C's heap. Freeing twice does nothing.
func (b *AioBuffer) Free() {
	if b.P != nil {
		C.free(b.P)
		b.P = nil
	}
}

// Slice returns the buffer's memory itself, not to be used after Free.
func (b *AioBuffer) Slice() []byte {
	b.check()
	return unsafe.Slice((*byte)(b.P), b.Size)
}

// Bytes returns a copy of the buffer's content.
func (b *AioBuffer) Bytes() []byte {
	b.check()
	return append(make([]byte, 0, b.Size), b.Slice()...)
}

// Get returns a pointer to the byte at index i, not to be used after Free.
func (b *AioBuffer) Get(i uint) *byte { return &b.Slice()[i] }

func (b *AioBuffer) check() {
	if b.P == nil {
		panic("AioBuffer used after Free")
	}
}
