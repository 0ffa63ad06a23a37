package nbdserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sendense/sendense/block"
)

// conn is a client in the transmission phase.
//
// One goroutine, the reader, takes requests off the wire. It answers on the spot
// what needs no waiting: small reads of what is in page cache, many of which
// leave with one system call, and large ones by splicing. Everything else goes
// through the gate to a goroutine of its own, so that a slow request holds up
// nobody.
type conn struct {
	srv      *Server
	x        *export
	dev      block.Device
	size     int64
	style    replyStyle
	contexts []metaContext
	log      *slog.Logger

	w        wire
	gate     *gate
	out      outbox
	pipes    chan struct{}  // a token for each pipe in use
	wg       sync.WaitGroup // requests being worked on, and writers
	stopping atomic.Bool    // no new requests are taken
	errors   atomic.Int64   // requests that the device refused

	failOnce sync.Once
	cause    error // why the wire failed; read after wg
	cancel   context.CancelFunc
}

// serveSession runs the transmission phase and returns when the connection is
// closed and nothing uses the device any more. The error says why a connection
// ended that neither side ended in order.
func serveSession(ctx context.Context, s *Server, sess *session, log *slog.Logger) error {
	c := &conn{
		srv:      s,
		x:        sess.export,
		dev:      sess.export.Device,
		size:     sess.export.size,
		contexts: sess.contextsOf(sess.export),
		log:      log,
		w:        newWire(sess.conn, s.opt.IdleTimeout),
		gate:     newGate(s.opt.MaxRequest),
		pipes:    make(chan struct{}, connPipes),
	}
	c.out.c = c
	switch {
	case sess.extended:
		c.style = extendedReplies
	case sess.structured:
		c.style = structuredReplies
	}
	// Requests outlive the wish to stop, until the grace period is over.
	reqCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	c.cancel = cancel

	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() { c.watch(ctx, done) })
	err := newReader(c).run(reqCtx)
	c.wg.Wait()
	close(done)
	watcher.Wait()
	closeErr := c.w.close()
	if c.cause != nil {
		return c.cause
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errWoken) || errors.Is(err, errLeave) {
		return nil
	}
	if err == nil {
		return closeErr
	}
	return err
}

// watch ends the connection in order when the server or the export is going
// away, and by force when that takes too long.
func (c *conn) watch(ctx context.Context, done <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-c.x.stopping:
	case <-done:
		return
	}
	c.stopping.Store(true)
	c.w.wake()
	grace := time.NewTimer(c.srv.opt.Grace)
	defer grace.Stop()
	select {
	case <-grace.C:
	case <-c.x.killed:
	case <-done:
		return
	}
	c.fail(errors.New("requests in flight were cut off"))
}

// fail gives the connection up: nothing more is read or written.
func (c *conn) fail(err error) {
	c.failOnce.Do(func() {
		c.cause = err
		c.cancel()
		c.gate.close()
		c.w.cut()
		c.w.wake()
	})
}

// finish gives back what a frame held.
func (c *conn) finish(f *frame) {
	c.srv.buffers.put(f.buf)
	if f.pipe != nil {
		c.putPipe(f.pipe)
	}
	f.bufs, f.buf, f.pipe = nil, nil, nil
	if f.last {
		c.leave(f.held)
	}
}

// connPipes is how many pipes one connection uses at a time: enough for some to be
// filled while one is sent, and few enough that clients which do not take their
// replies leave pipes for others.
const connPipes = 4

// pipeNow returns an empty pipe, or nil if none can be had at once.
func (c *conn) pipeNow() *pipe {
	select {
	case c.pipes <- struct{}{}:
		return c.pooledPipe()
	default:
		return nil
	}
}

// waitPipe waits until the connection's replies move on, where they hold all the
// pipes that it may use. It returns nil if ctx ends, or if other connections hold
// all of the server's: they are not waited for.
func (c *conn) waitPipe(ctx context.Context) *pipe {
	select {
	case c.pipes <- struct{}{}:
		return c.pooledPipe()
	case <-ctx.Done():
		return nil
	}
}

// pooledPipe takes a pipe for the token that the caller put into pipes.
func (c *conn) pooledPipe() *pipe {
	p := c.srv.pipes.get()
	if p == nil {
		<-c.pipes
	}
	return p
}

// putPipe gives back a pipe.
func (c *conn) putPipe(p *pipe) {
	c.srv.pipes.put(p)
	<-c.pipes
}

// leave ends a request's stay at the gate. A reader that is to stop waits for the
// last of them, and answers meanwhile that there is no more to be had.
func (c *conn) leave(held int64) {
	if c.gate.leave(held) && c.stopping.Load() {
		c.w.wake()
	}
}

// task is a request being worked on outside of the reader.
type task struct {
	request
	c    *conn
	held int64 // bytes held at the gate
}

// start lets do work on r in a goroutine of its own, once the gate has room for
// it and n bytes of payload. do ends by calling reply or send with a last frame.
// An error says that the connection is over.
func (c *conn) start(ctx context.Context, r request, n int64, do func(*task, context.Context)) error {
	held, ok := c.gate.enter(n)
	if !ok {
		return errGone
	}
	t := &task{request: r, c: c, held: held}
	c.wg.Go(func() { t.run(ctx, do) })
	return nil
}

// run keeps a panic of the device from taking the other exports down: the
// request fails, and the log has the stack.
func (t *task) run(ctx context.Context, do func(*task, context.Context)) {
	defer func() {
		if p := recover(); p != nil {
			t.logPanic(p)
			t.fail(ErrnoIO, "device panicked")
		}
	}()
	do(t, ctx)
}

func (t *task) logPanic(p any) {
	t.c.log.Error("device panicked", "cmd", t.cmd.String(), "off", t.off, "len", t.n,
		"err", fmt.Sprint(p), "stack", string(debug.Stack()))
}

// reply answers the request with err's error, or with success and no payload.
func (t *task) reply(err error) {
	if err != nil {
		errno := errnoFor(t.cmd, err)
		t.c.complain(&t.request, errno, err)
		t.fail(errno, "")
		return
	}
	t.c.observe(&t.request, 0)
	t.c.out.send(&frame{bufs: [][]byte{t.c.style.appendDone(nil, &t.request)}, held: t.held, last: true})
}

func (t *task) fail(errno Errno, why string) {
	t.c.observe(&t.request, errno)
	t.c.out.send(&frame{bufs: [][]byte{t.c.style.appendError(nil, &t.request, errno, why)}, held: t.held, last: true})
}

func (c *conn) observe(r *request, errno Errno) {
	if o := c.srv.opt.Observer; o != nil {
		o.RequestDone(c.x.Name, r.cmd, int64(r.n), errno)
	}
}

// complaints is how many failed requests of one connection are logged.
const complaints = 16

// complain logs what a device said about a request. Refusals that a client can
// provoke at will are not worth a line.
func (c *conn) complain(r *request, errno Errno, err error) {
	if errno == ErrnoNotSup || errno == ErrnoPerm {
		return
	}
	switch n := c.errors.Add(1); {
	case n < complaints:
		c.log.Warn("request failed", "cmd", r.cmd.String(), "off", r.off, "len", r.n, "err", err)
	case n == complaints:
		c.log.Warn("request failed; further ones are not logged", "cmd", r.cmd.String(), "off", r.off, "len", r.n, "err", err)
	}
}
