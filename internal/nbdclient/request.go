package nbdclient

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/sendense/sendense/block"
	"libguestfs.org/libnbd"
)

type opcode uint8

const (
	opRead opcode = iota
	opWrite
	opZero
	opTrim
	opFlush
	opStatus
)

func (o opcode) String() string {
	return [...]string{"read", "write", "zero", "trim", "flush", "map"}[o]
}

// request is one command. Whoever makes it owns buf again when done delivers.
type request struct {
	op     opcode
	off, n int64
	buf    []byte // of opRead and opWrite
	flags  libnbd.CmdFlag
	extent libnbd.ExtentCallback // of opStatus

	conn *conn
	pin  runtime.Pinner
	done chan error // delivers once, has room for it
}

// issue hands the command to the library, which sends it as soon as it can. The
// memory is Go's, pinned until finish: nothing is copied.
func (r *request) issue(h *libnbd.Libnbd) (cookie uint64, err error) {
	var b libnbd.AioBuffer
	if len(r.buf) > 0 {
		r.pin.Pin(&r.buf[0])
		b = libnbd.AioBuffer{P: unsafe.Pointer(&r.buf[0]), Size: uint(len(r.buf))}
	}
	off, n := uint64(r.off), uint64(r.n)
	switch r.op {
	case opRead:
		return h.AioPread(b, off, nil)
	case opWrite:
		return h.AioPwrite(b, off, nil)
	case opZero:
		return h.AioZero(n, off, &libnbd.AioZeroOptargs{FlagsSet: true, Flags: r.flags})
	case opTrim:
		return h.AioTrim(n, off, nil)
	case opFlush:
		return h.AioFlush(nil)
	}
	return h.AioBlockStatus(n, off, r.extent, nil)
}

// finish gives the memory back and delivers the outcome. The library no longer
// knows of the command.
func (r *request) finish(err error) {
	r.pin.Unpin()
	r.conn.load.Add(-1)
	r.done <- err
}

// explain turns the outcome of a command into the words of package block.
func (r *request) explain(err error) error {
	e, ok := err.(*libnbd.LibnbdError) // not one wrapped in the loss of the connection
	if !ok {
		return err
	}
	var cause error = e
	switch {
	case e.Errno == syscall.EPERM && r.op != opRead && r.op != opStatus:
		cause = block.ErrReadOnly
	case e.Errno == syscall.ENOTSUP && r.flags&libnbd.CMD_FLAG_FAST_ZERO != 0:
		cause = block.ErrNotFast
	case e.Errno != 0:
		cause = fmt.Errorf("server: %w", e.Errno)
	}
	if r.op == opFlush {
		return fmt.Errorf("flush: %w", cause)
	}
	return fmt.Errorf("%s %d bytes at %d: %w", r.op, r.n, r.off, cause)
}

// transfer reads or writes b, in pieces that the server takes.
func (d *Device) transfer(ctx context.Context, op opcode, b []byte, off int64) error {
	if int64(len(b)) <= d.maxBlock {
		if len(b) == 0 {
			return ctx.Err()
		}
		return d.do(ctx, []*request{{op: op, buf: b, off: off, n: int64(len(b))}})
	}
	var rs []*request
	for len(b) > 0 {
		l := min(int64(len(b)), d.maxBlock)
		rs = append(rs, &request{op: op, buf: b[:l], off: off, n: l})
		b, off = b[l:], off+l
	}
	return d.do(ctx, rs)
}

// ranges zeroes or trims, in pieces that the protocol takes.
func (d *Device) ranges(ctx context.Context, op opcode, off, n int64, flags libnbd.CmdFlag) error {
	for n > 0 {
		l := min(n, maxRange)
		if err := d.do(ctx, []*request{{op: op, off: off, n: l, flags: flags}}); err != nil {
			return err
		}
		off, n = off+l, n-l
	}
	return ctx.Err()
}

// do sends the requests and waits for every one of them. It returns the first
// error.
func (d *Device) do(ctx context.Context, rs []*request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var first error
	sent := rs
	for i, r := range rs {
		r.done = make(chan error, 1)
		if err := d.leastLoaded().submit(r); err != nil {
			first, sent = err, rs[:i]
			break
		}
	}
	for _, r := range sent {
		if err := r.wait(ctx); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// wait returns when the request is over and its memory is the caller's again.
func (r *request) wait(ctx context.Context) error {
	select {
	case err := <-r.done:
		return r.explain(err)
	case <-ctx.Done():
	}
	return r.conn.abandon(ctx, r)
}

func (d *Device) leastLoaded() *conn {
	best := d.conns[0]
	for _, c := range d.conns[1:] {
		if c.load.Load() < best.load.Load() {
			best = c
		}
	}
	return best
}
