package nbdserver

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/sendense/sendense/block"
)

// read answers a read that the reader did not want to wait for.
func (t *task) read(ctx context.Context) {
	c := t.c
	locs, err := c.locate(ctx, nil, int64(t.off), int64(t.n))
	if err != nil {
		t.reply(err)
		return
	}
	var pl plan
	if len(locs) == 0 || !pl.make(c, &t.request, locs) {
		pl.makeOpaque(c, &t.request)
	}
	var f *frame // with a pipe that is being filled
	for i := range pl.parts {
		last := i == len(pl.parts)-1
		if f, err = t.readPart(ctx, f, &pl, i, last); err != nil {
			t.reply(err)
			return
		}
	}
}

// readPart sends part i of a reply, or adds it to f, and returns what is still to
// be sent. After the last part, or an error, that is nothing.
func (t *task) readPart(ctx context.Context, f *frame, pl *plan, i int, last bool) (*frame, error) {
	pt := &pl.parts[i]
	f = t.pipeFor(ctx, f, pl, pt)
	if f == nil {
		return nil, t.copyPart(ctx, pt, last)
	}
	before := f.pipe.n
	if err := pl.fill(f.pipe, t.c, &t.request, i, last); err != nil {
		f.pipe.dirty = true
		f.pipe.n = before
		t.sendPipe(f, false)
		return nil, err
	}
	if last {
		t.sendPipe(f, true)
		return nil, nil
	}
	return f, nil
}

// pipeFor returns a frame with a pipe that has room for pt: f, or a new one when
// f is sent for being full. It returns nil where pt has to be copied.
func (t *task) pipeFor(ctx context.Context, f *frame, pl *plan, pt *part) *frame {
	c := t.c
	if pt.kind != partOpaque && f != nil && f.pipe.fits(pt.slots) {
		return f
	}
	if f != nil {
		t.sendPipe(f, false)
	}
	if !c.w.zeroCopy() || pt.kind != partFiles || t.n <= smallRead {
		return nil
	}
	p := c.pipeNow()
	if p == nil {
		pl.prefetch(pt)
		p = c.waitPipe(ctx)
	}
	if p == nil {
		return nil
	}
	if !p.fits(pt.slots) {
		c.putPipe(p)
		return nil
	}
	return &frame{pipe: p}
}

func (t *task) sendPipe(f *frame, last bool) {
	f.piped = f.pipe.n
	if last {
		f.last, f.held = true, t.held
		t.c.observe(&t.request, 0)
	} else if f.piped == 0 {
		t.c.finish(f)
		return
	}
	t.c.out.send(f)
}

// copyPart sends a part from a buffer.
func (t *task) copyPart(ctx context.Context, pt *part, last bool) error {
	c := t.c
	f := &frame{last: last, held: t.held}
	if pt.kind == partHole {
		f.bufs = [][]byte{c.style.appendHole(nil, &t.request, last, pt.off, pt.n)}
	} else {
		f.buf = c.srv.buffers.get(maxDataHead + int(pt.n))
		head := c.style.appendDataHead((*f.buf)[:0], &t.request, last, pt.off, pt.n)
		whole := (*f.buf)[:len(head)+int(pt.n)]
		if err := c.dev.ReadAt(ctx, whole[len(head):], pt.off); err != nil {
			c.srv.buffers.put(f.buf)
			return err
		}
		f.bufs = [][]byte{whole}
	}
	if last {
		c.observe(&t.request, 0)
	}
	c.out.send(f)
	return nil
}

// change carries out a request without payload in either direction.
func (t *task) change(ctx context.Context) {
	d, off, n := t.c.dev, int64(t.off), int64(t.n)
	var err error
	switch t.cmd {
	case CmdFlush:
		err = block.Flush(ctx, d)
	case CmdTrim:
		err = block.Trim(ctx, d, off, n)
	case CmdWriteZeroes:
		err = block.WriteZeroes(ctx, d, off, n, t.zeroFlags())
	case CmdCache:
		err = t.c.cache(ctx, off, n)
	}
	if err == nil && t.flags&flagFUA != 0 && (t.cmd == CmdTrim || t.cmd == CmdWriteZeroes) {
		err = block.Flush(ctx, d)
	}
	t.reply(err)
}

// maxCache is how much of a CACHE request is heeded: it is advice.
const maxCache = 64 << 20

// cache asks for page cache to be filled with what lies in files.
func (c *conn) cache(ctx context.Context, off, n int64) error {
	locs, err := c.locate(ctx, nil, off, min(n, maxCache))
	if err != nil {
		return err
	}
	for _, l := range locs {
		if l.Kind != block.InFile {
			continue
		}
		f, err := c.x.file(l.File)
		if err != nil {
			return err
		}
		if err := f.prefetch(l.Off, l.Len); err != nil {
			return err
		}
	}
	return nil
}

// maxWritePiece is how much of a write is held by one task. Pieces of a longer
// one are written while the rest is received.
const maxWritePiece = 1 << 20

// writing is a write whose pieces may be under way at the same time.
type writing struct {
	left  atomic.Int32 // pieces not written yet, or not received
	first atomic.Pointer[error]
}

// write takes the payload off the wire and has it written.
func (r *reader) write(ctx context.Context, req request) error {
	off, end := int64(req.off), int64(req.off+req.n)
	w := new(writing)
	// Pieces end where a device's own units are likely to end.
	w.left.Store(int32((end+maxWritePiece-1)/maxWritePiece - off/maxWritePiece))
	for off < end {
		n := min(end-off, maxWritePiece-off%maxWritePiece)
		if err := r.writePiece(ctx, req, w, off, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (r *reader) writePiece(ctx context.Context, req request, w *writing, off, n int64) error {
	c := r.c
	held, ok := c.gate.enter(n)
	if !ok {
		return errGone
	}
	buf := c.srv.buffers.get(int(n))
	if err := r.take(*buf); err != nil {
		c.srv.buffers.put(buf)
		c.leave(held)
		return err
	}
	t := &task{request: req, c: c, held: held}
	r.spawned = true
	c.wg.Go(func() { t.writePiece(ctx, w, buf, off) })
	return nil
}

// writePiece writes a piece, and answers the request if it was the last one.
func (t *task) writePiece(ctx context.Context, w *writing, buf *[]byte, off int64) {
	c := t.c
	err := t.protect(func() error { return block.Write(ctx, c.dev, *buf, off) })
	c.srv.buffers.put(buf)
	if err != nil {
		w.first.CompareAndSwap(nil, &err)
	}
	if w.left.Add(-1) > 0 {
		c.leave(t.held)
		return
	}
	if first := w.first.Load(); first != nil {
		t.reply(*first)
		return
	}
	if t.flags&flagFUA != 0 {
		err = t.protect(func() error { return block.Flush(ctx, c.dev) })
	}
	t.reply(err)
}

// protect turns a panic of the device into an error.
func (t *task) protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.logPanic(p)
			err = fmt.Errorf("device panicked: %v", p)
		}
	}()
	return f()
}
