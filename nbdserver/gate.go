package nbdserver

import (
	"math/bits"
	"sync"
)

// gate bounds what a connection has in flight: requests, and bytes of payload.
// Whoever reads requests waits at the gate, so that a client which sends faster
// than it is served, or does not take its replies, is not listened to.
type gate struct {
	mu     sync.Mutex // guards the fields below
	room   sync.Cond
	slots  int
	bytes  int64
	limit  int64 // of bytes
	closed bool
}

// maxInFlight is how many requests of one connection are worked on at a time.
const maxInFlight = 64

func newGate(bytes int64) *gate {
	g := &gate{slots: maxInFlight, bytes: bytes, limit: bytes}
	g.room.L = &g.mu
	return g
}

// enter waits for room for one request with n bytes, and returns how many bytes
// it holds; more than there can be at a time count as all. It returns false once
// the gate is closed.
func (g *gate) enter(n int64) (held int64, ok bool) {
	n = min(n, g.limit)
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.closed && (g.slots == 0 || g.bytes < n) {
		g.room.Wait()
	}
	if g.closed {
		return 0, false
	}
	g.slots--
	g.bytes -= n
	return n, true
}

// leave gives back what a request held, and reports whether it was the last one.
func (g *gate) leave(held int64) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slots++
	g.bytes += held
	g.room.Signal()
	return g.slots == maxInFlight
}

// busy reports whether anything is inside.
func (g *gate) busy() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.slots < maxInFlight
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.room.Broadcast()
}

// bufferPool keeps buffers by size: powers of two from 4 KiB.
type bufferPool [40]sync.Pool

// get returns a buffer of n bytes with unspecified content.
func (bp *bufferPool) get(n int) *[]byte {
	class := max(12, bits.Len(uint(max(n, 1)-1)))
	if b, ok := bp[class].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<class)
	return &b
}

// put takes back a buffer from get; nil is ignored.
func (bp *bufferPool) put(b *[]byte) {
	if b != nil {
		bp[bits.Len(uint(cap(*b)-1))].Put(b)
	}
}
