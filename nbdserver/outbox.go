package nbdserver

import "sync"

// frame is a reply, or a part of one, on its way to the socket: bytes, then the
// content of a pipe.
type frame struct {
	bufs  [][]byte
	pipe  *pipe
	piped int // bytes of pipe to send

	buf  *[]byte // to go back to the pool
	held int64   // bytes to leave the gate with, if last
	last bool    // the request leaves the gate with this frame
}

// outbox puts replies on the wire. Whoever has a reply while nobody is writing
// writes it, and then what others have left in the queue meanwhile: nobody waits
// for a turn, and small replies leave together.
type outbox struct {
	c   *conn
	vec [][]byte // of the writer

	mu    sync.Mutex // guards the fields below
	busy  bool       // somebody is writing
	queue []*frame
}

// send writes f or leaves it to whoever is writing.
func (o *outbox) send(f *frame) {
	o.mu.Lock()
	if o.busy {
		o.queue = append(o.queue, f)
		o.mu.Unlock()
		return
	}
	o.busy = true
	o.mu.Unlock()
	o.work([]*frame{f})
}

// begin makes the caller the writer, if nobody is.
func (o *outbox) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy {
		return false
	}
	o.busy = true
	return true
}

// next returns what is queued. If nothing is, the caller is no longer the writer.
func (o *outbox) next() []*frame {
	o.mu.Lock()
	defer o.mu.Unlock()
	frames := o.queue
	o.queue = nil
	if len(frames) == 0 {
		o.busy = false
	}
	return frames
}

// work writes frames and what is queued, for the writer, until nothing is left.
func (o *outbox) work(frames []*frame) {
	for len(frames) > 0 {
		for len(frames) > 0 {
			frames, _ = o.write(frames)
		}
		frames = o.next()
	}
}

// write makes some progress with frames, which are not empty, and returns what
// is left of them. A wire that fails takes the connection down, and everything
// on its way there is dropped.
func (o *outbox) write(frames []*frame) ([]*frame, error) {
	f := frames[0]
	var n int
	var err error
	if len(f.bufs) == 0 && f.pipe != nil {
		n, err = o.c.w.splice(f.pipe, f.piped)
		f.piped -= n
		f.pipe.n -= n
	} else {
		vec := o.vec[:0]
		for _, g := range frames {
			vec = append(vec, g.bufs...)
			if g.pipe != nil || len(vec) >= 64 {
				break
			}
		}
		n, err = o.c.w.writev(vec)
		clear(vec)
		o.vec = vec
	}
	if err != nil && err != errSlow {
		o.c.fail(err)
		for _, g := range frames {
			o.c.finish(g)
		}
		return nil, err
	}
	return o.advance(frames, n), err
}

// advance takes n bytes off the frames' buffers and finishes those that are
// done.
func (o *outbox) advance(frames []*frame, n int) []*frame {
	if len(frames[0].bufs) == 0 {
		n = 0
	}
	for len(frames) > 0 {
		f := frames[0]
		for len(f.bufs) > 0 && n >= len(f.bufs[0]) {
			n -= len(f.bufs[0])
			f.bufs = f.bufs[1:]
		}
		if len(f.bufs) > 0 {
			f.bufs[0] = f.bufs[0][n:]
			return frames
		}
		if f.pipe != nil && f.piped > 0 {
			return frames
		}
		o.c.finish(f)
		frames = frames[1:]
	}
	return nil
}
