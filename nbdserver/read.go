package nbdserver

import (
	"context"
	"fmt"

	"github.com/sendense/sendense/block"
)

// read answers a read on the spot if nothing needs to be waited for.
func (r *reader) read(ctx context.Context, req request) error {
	done, err := r.readNow(ctx, &req)
	if done || err != nil {
		return err
	}
	r.spawned = true
	return r.c.start(ctx, req, int64(req.n), (*task).read)
}

// readNow reports whether it answered the request.
func (r *reader) readNow(ctx context.Context, req *request) (done bool, err error) {
	c := r.c
	off, n := int64(req.off), int64(req.n)
	locs, err := r.locate(ctx, off, n)
	if err != nil || len(locs) == 0 {
		return false, nil // to be tried again, and reported, by a task
	}
	r.locs = locs
	if n <= smallRead {
		return r.readSmall(req, locs)
	}
	if !c.w.zeroCopy() {
		return false, nil
	}
	return r.readLarge(req, locs)
}

// locate asks the device where a range lies. Nothing means that the range has to
// be read through the device.
func (r *reader) locate(ctx context.Context, off, n int64) (locs []block.Location, err error) {
	defer r.guard(&err)
	return r.c.locate(ctx, r.locs[:0], off, n)
}

// locate appends where a range lies to dst, having checked that it is covered.
func (c *conn) locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	if _, ok := c.dev.(block.Locator); !ok {
		return dst[:0], nil
	}
	locs, err := block.Locate(ctx, c.dev, dst, off, n)
	if err != nil {
		return nil, err
	}
	left := n
	for _, l := range locs {
		if l.Len <= 0 || l.Len > left || l.Kind == block.InFile && l.File == nil {
			return nil, fmt.Errorf("locate of %T at %d gave %+v with %d bytes to go", c.dev, off, l, left)
		}
		left -= l.Len
	}
	if left != 0 {
		return nil, fmt.Errorf("locate of %T at %d left %d bytes out", c.dev, off, left)
	}
	return locs, nil
}

// readSmall copies what is in page cache to the batch.
func (r *reader) readSmall(req *request, locs []block.Location) (bool, error) {
	c := r.c
	off, n := int64(req.off), int64(req.n)
	if err := r.reserve(maxDataHead + int(n)); err != nil {
		return false, err
	}
	if c.style.fragments(req) && allZero(locs) {
		r.batch = c.style.appendHole(r.batch, req, true, off, n)
		c.observe(req, 0)
		return true, nil
	}
	start := len(r.batch)
	r.batch = c.style.appendDataHead(r.batch, req, true, off, n)
	at := len(r.batch)
	r.batch = r.batch[:at+int(n)]
	for _, l := range locs {
		p := r.batch[at : at+int(l.Len)]
		at += int(l.Len)
		if l.Kind == block.InNothing {
			clear(p)
			continue
		}
		if !r.copyNow(l, p) {
			r.batch = r.batch[:start]
			return false, nil
		}
	}
	c.observe(req, 0)
	return true, nil
}

func (r *reader) copyNow(l block.Location, p []byte) bool {
	if l.Kind != block.InFile {
		return false
	}
	f, err := r.c.x.file(l.File)
	return err == nil && r.nowait.read(f, p, l.Off)
}

func allZero(locs []block.Location) bool {
	for _, l := range locs {
		if l.Kind != block.InNothing {
			return false
		}
	}
	return true
}

// readLarge splices what seems to be in page cache to the wire, if the reply fits
// one pipe and nobody else is writing.
func (r *reader) readLarge(req *request, locs []block.Location) (bool, error) {
	c := r.c
	if !r.plan.make(c, req, locs) || !r.hot() {
		return false, nil
	}
	p := c.pipeNow()
	if p == nil {
		return false, nil
	}
	if err := r.fillNow(p, req); err != nil {
		// Nothing was sent: a task tries again, and reports.
		p.dirty = true
		c.putPipe(p)
		return false, nil
	}
	if err := r.flush(); err != nil {
		c.putPipe(p)
		return false, err
	}
	c.observe(req, 0)
	f := &frame{pipe: p, piped: p.n}
	if !c.out.begin() {
		return true, r.enqueue(f, p.n)
	}
	return true, r.writeOut(f)
}

// fillNow puts the reply into one pipe.
func (r *reader) fillNow(p *pipe, req *request) error {
	last := len(r.plan.parts) - 1
	for i := range r.plan.parts {
		if !p.fits(r.plan.parts[i].slots) {
			return errNoRoom
		}
		if err := r.plan.fill(p, r.c, req, i, i == last); err != nil {
			return err
		}
	}
	return nil
}

// hot reports whether the planned reply seems to be in page cache.
func (r *reader) hot() bool {
	for i := range r.plan.parts {
		if r.plan.parts[i].kind == partOpaque {
			return false
		}
	}
	for _, p := range r.plan.pieces {
		if !r.nowait.hot(p.f, p.off, p.n) {
			return false
		}
	}
	return true
}
