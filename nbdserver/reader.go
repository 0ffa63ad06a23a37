package nbdserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/sendense/sendense/block"
)

const (
	readAhead  = 16 << 10  // bytes of requests taken off the wire at a time
	smallRead  = 32 << 10  // longest read that is copied to the batch
	batchBytes = 128 << 10 // replies gathered before they are sent
	bigWrite   = 8 << 10   // payload from which on requests are not read ahead
)

var (
	errLeave = errors.New("client disconnected") // in order
	errGone  = errors.New("connection is over")
)

// reader takes requests off the wire. All its fields are its own.
type reader struct {
	c     *conn
	buf   []byte // received and not looked at
	space []byte // where buf lies
	lean  bool   // read heads only: large payloads follow

	batch   []byte // replies to be sent
	spawned bool   // tasks were started since the last wait

	locs   []block.Location
	plan   plan
	nowait nowait
}

func newReader(c *conn) *reader {
	return &reader{c: c, space: make([]byte, readAhead), batch: make([]byte, 0, batchBytes)}
}

// run serves requests until the connection ends, and says why it did.
func (r *reader) run(ctx context.Context) error {
	err := r.loop(ctx)
	if flushErr := r.flush(); flushErr != nil {
		err = errors.Join(err, flushErr)
	}
	return err
}

func (r *reader) loop(ctx context.Context) error {
	headLen := r.c.style.headLen()
	for {
		for len(r.buf) >= headLen {
			req, ok := r.c.style.parse(r.buf)
			if !ok {
				return fmt.Errorf("request magic %#x", r.buf[:4])
			}
			r.buf = r.buf[headLen:]
			if err := r.dispatch(ctx, req); err != nil {
				return err
			}
		}
		if err := r.flush(); err != nil {
			return err
		}
		if r.spawned {
			// The reader is about to sit in a system call, and would keep what it
			// started from running until somebody takes notice.
			r.spawned = false
			runtime.Gosched()
		}
		if err := r.fill(headLen); err != nil {
			return err
		}
	}
}

// fill waits for more bytes of requests.
func (r *reader) fill(headLen int) error {
	have := copy(r.space, r.buf)
	limit := len(r.space)
	if r.lean {
		limit = headLen
	}
	for {
		n, err := r.c.w.read(r.space[have:limit])
		switch {
		case (err == errIdle || err == errWoken) && r.c.gate.busy():
			continue
		case err == io.EOF && have > 0:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
		r.buf = r.space[:have+n]
		return nil
	}
}

// dispatch checks a request and answers it or has it answered.
func (r *reader) dispatch(ctx context.Context, req request) error {
	c := r.c
	if req.cmd == CmdDisconnect {
		return errLeave
	}
	payload, err := r.payload(&req)
	if err != nil {
		return err
	}
	r.lean = payload >= bigWrite
	errno, why := c.check(&req, payload)
	if c.stopping.Load() {
		errno, why = ErrnoShutdown, "server is shutting down"
	}
	if errno != 0 {
		if err := r.skip(payload); err != nil {
			return err
		}
		return r.answer(&req, errno, why)
	}
	if req.n == 0 && req.cmd != CmdFlush && req.cmd != CmdBlockStatus {
		return r.answer(&req, 0, "")
	}
	switch req.cmd {
	case CmdRead:
		return r.read(ctx, req)
	case CmdWrite:
		return r.write(ctx, req)
	case CmdBlockStatus:
		return r.status(ctx, req, payload)
	}
	r.spawned = true
	return c.start(ctx, req, 0, (*task).change)
}

// payload returns how many bytes follow the head of a request. One that is too
// long to be skipped ends the connection.
func (r *reader) payload(req *request) (int64, error) {
	follows := req.cmd == CmdWrite
	if r.c.style == extendedReplies {
		follows = req.flags&flagPayloadLen != 0
	}
	if !follows {
		return 0, nil
	}
	if req.n > uint64(max(r.c.srv.opt.MaxRequest, 32<<20)) {
		return 0, fmt.Errorf("%s with %d bytes of payload", req.cmd, req.n)
	}
	return int64(req.n), nil
}

// take moves the next len(p) bytes of the stream to p.
func (r *reader) take(p []byte) error {
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	if n == len(p) {
		return nil
	}
	return r.c.w.readFull(p[n:])
}

// skip drops the next n bytes of the stream.
func (r *reader) skip(n int64) error {
	if n == 0 {
		return nil
	}
	buf := r.c.srv.buffers.get(int(min(n, 64<<10)))
	defer r.c.srv.buffers.put(buf)
	for n > 0 {
		p := (*buf)[:min(n, int64(len(*buf)))]
		if err := r.take(p); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}

// answer replies to a request without payload.
func (r *reader) answer(req *request, errno Errno, why string) error {
	r.c.observe(req, errno)
	if err := r.reserve(maxDataHead + maxString); err != nil {
		return err
	}
	if errno == 0 {
		r.batch = r.c.style.appendDone(r.batch, req)
	} else {
		r.batch = r.c.style.appendError(r.batch, req, errno, why)
	}
	return nil
}

// reserve makes room for n bytes in the batch.
func (r *reader) reserve(n int) error {
	if len(r.batch)+n <= cap(r.batch) {
		return nil
	}
	return r.flush()
}

// flush sends the batch.
func (r *reader) flush() error {
	if len(r.batch) == 0 {
		return nil
	}
	c := r.c
	if !c.w.zeroCopy() || !c.out.begin() {
		buf := c.srv.buffers.get(len(r.batch))
		copy(*buf, r.batch)
		r.batch = r.batch[:0]
		return r.enqueue(&frame{bufs: [][]byte{*buf}, buf: buf}, len(*buf))
	}
	f := &frame{bufs: [][]byte{r.batch}}
	err := r.writeOut(f)
	if len(f.bufs) == 0 {
		r.batch = r.batch[:0]
	} else {
		r.batch = make([]byte, 0, batchBytes)
	}
	return err
}

// enqueue has f, which holds n bytes, written by somebody else.
func (r *reader) enqueue(f *frame, n int) error {
	c := r.c
	held, ok := c.gate.enter(int64(n))
	if !ok {
		c.finish(f)
		return errGone
	}
	f.held, f.last = held, true
	r.spawned = true
	c.wg.Go(func() { c.out.send(f) })
	return nil
}

// writeOut writes f as the writer. A peer that is slow to take it is left to
// another goroutine, for the reader has requests to listen to.
func (r *reader) writeOut(f *frame) error {
	c := r.c
	rest, err := []*frame{f}, error(nil)
	for len(rest) > 0 && err == nil {
		rest, err = c.out.write(rest)
	}
	if len(rest) == 0 {
		rest = c.out.next()
	}
	if len(rest) > 0 {
		// What others have left in the queue may take its time as well.
		r.spawned = true
		c.wg.Go(func() { c.out.work(rest) })
	}
	if err != nil && err != errSlow {
		return errGone
	}
	return nil
}

// guard turns a panic of the device in the reader into an error. The request is
// tried again by a task, which reports it.
func (r *reader) guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("device panicked: %v", p)
	}
}
