package nbdserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sendense/sendense/block"
)

// Bounds on the work for one BLOCK_STATUS. A client asks on from where the answer
// ends.
const (
	maxExtents     = 64 << 10 // in one chunk; the protocol asks for at most 2^20
	maxStatusSteps = 256      // questions to the device
	statusStep     = 16 << 30 // bytes that the device is asked about at a time
)

// extent is a descriptor in a reply to BLOCK_STATUS.
type extent struct {
	n     int64
	state uint32
}

// status answers BLOCK_STATUS. With extended headers the request may name the
// contexts that it is about in a payload.
func (r *reader) status(ctx context.Context, req request, payload int64) error {
	c := r.c
	contexts := c.contexts
	if payload > 0 || req.flags&flagPayloadLen != 0 {
		var ok bool
		var err error
		if contexts, ok, err = r.statusPayload(&req, payload); err != nil {
			return err
		}
		if !ok {
			return r.answer(&req, ErrnoInvalid, "malformed payload")
		}
		if req.n == 0 {
			return r.answer(&req, ErrnoInvalid, "length is zero")
		}
		if errno, why := c.checkRange(&req); errno != 0 {
			return r.answer(&req, errno, why)
		}
	}
	r.spawned = true
	return c.start(ctx, req, 0, func(t *task, ctx context.Context) { t.status(ctx, contexts) })
}

// statusPayload reads the payload of BLOCK_STATUS: the length, which it sets in
// req, and context IDs.
func (r *reader) statusPayload(req *request, payload int64) (contexts []metaContext, ok bool, err error) {
	if payload < 8 || payload > int64(8+4*len(r.c.contexts)) || payload%4 != 0 {
		return nil, false, r.skip(payload)
	}
	data := make([]byte, payload)
	if err := r.take(data); err != nil {
		return nil, false, err
	}
	req.n = binary.BigEndian.Uint64(data)
	for data = data[8:]; len(data) > 0; data = data[4:] {
		id := binary.BigEndian.Uint32(data)
		same := func(m metaContext) bool { return m.id == id }
		i := slices.IndexFunc(r.c.contexts, same)
		if i < 0 || slices.ContainsFunc(contexts, same) {
			return nil, false, nil
		}
		contexts = append(contexts, r.c.contexts[i])
	}
	return contexts, len(contexts) > 0, nil
}

// status sends one chunk for each context.
func (t *task) status(ctx context.Context, contexts []metaContext) {
	c := t.c
	var out []byte
	for i, m := range contexts {
		exts, err := c.extents(ctx, m, int64(t.off), int64(t.n), t.flags&flagReqOne != 0)
		if err != nil {
			t.reply(err)
			return
		}
		out = c.style.appendExtents(out, &t.request, i == len(contexts)-1, m.id, exts)
	}
	c.observe(&t.request, 0)
	c.out.send(&frame{bufs: [][]byte{out}, held: t.held, last: true})
}

// appendExtents appends a chunk that describes consecutive extents. With compact
// headers their lengths have 32 bits, as the request's had.
func (s replyStyle) appendExtents(b []byte, r *request, done bool, id uint32, exts []extent) []byte {
	be := binary.BigEndian
	if s == extendedReplies {
		b = s.appendChunk(b, r, done, chunkBlockStatusExt, 8+16*len(exts))
		b = be.AppendUint32(b, id)
		b = be.AppendUint32(b, uint32(len(exts)))
		for _, e := range exts {
			b = be.AppendUint64(b, uint64(e.n))
			b = be.AppendUint64(b, uint64(e.state))
		}
		return b
	}
	b = s.appendChunk(b, r, done, chunkBlockStatus, 4+8*len(exts))
	b = be.AppendUint32(b, id)
	for _, e := range exts {
		b = be.AppendUint32(b, uint32(e.n))
		b = be.AppendUint32(b, e.state)
	}
	return b
}

// extents describes [off, off+n) in a context, or the beginning of it: at least
// one extent, none beyond the range, neighbours of different states. With one
// set there is a single extent.
func (c *conn) extents(ctx context.Context, m metaContext, off, n int64, one bool) ([]extent, error) {
	l := extentList{limit: maxExtents, pos: off, grain: max(statusGrain, int64(c.x.MinBlock)), dirty: m.since != ""}
	if one {
		l.limit = 1
	}
	for step := 0; n > 0 && step < maxStatusSteps && !l.full; step++ {
		var did int64
		var err error
		if m.since == "" {
			did, err = c.allocation(ctx, &l, off, n)
		} else {
			did, err = c.changed(ctx, &l, m.since, off, min(n, statusStep))
		}
		if err != nil {
			return nil, err
		}
		off, n = off+did, n-did
	}
	if n == 0 || len(l.exts) == 0 {
		l.emit(l.part, l.state)
	}
	return l.exts, nil
}

// statusGrain is the least length of an extent in bytes, but for those at the
// ends of a request. Clients are known to think in sectors, and to round the end
// of an extent of zeroes up.
const statusGrain = 512

// extentList gathers extents up to a limit. Where a state ends within a grain,
// the grain gets a state that is safe for both sides: data wins over zeroes, zeroes
// over a hole, dirty over clean.
type extentList struct {
	exts  []extent
	limit int
	full  bool  // what was emitted last, and follows, is not in exts
	pos   int64 // in the device, of the end of what was added
	grain int64
	dirty bool // states are those of a dirty bitmap

	part  int64 // bytes of a grain that is not complete
	state uint32
}

// add continues the list with n bytes in a state.
func (l *extentList) add(n int64, state uint32) {
	for n > 0 && !l.full {
		step := n - n%l.grain
		if into := l.pos % l.grain; into != 0 || step == 0 {
			step = min(n, l.grain-into)
			l.mix(step, state)
		} else {
			l.emit(step, state)
		}
		l.pos += step
		n -= step
		if l.part > 0 && l.pos%l.grain == 0 {
			l.emit(l.part, l.state)
			l.part = 0
		}
	}
}

// mix adds n bytes to the grain that is not complete.
func (l *extentList) mix(n int64, state uint32) {
	switch {
	case l.part == 0:
		l.state = state
	case l.dirty:
		l.state |= state
	default:
		l.state &= state
	}
	l.part += n
}

func (l *extentList) emit(n int64, state uint32) {
	last := len(l.exts) - 1
	switch {
	case n == 0 || l.full:
	case last >= 0 && l.exts[last].state == state:
		l.exts[last].n += n
	case len(l.exts) == l.limit:
		l.full = true
	default:
		l.exts = append(l.exts, extent{n, state})
	}
}

// allocation adds what base:allocation says, and returns for how many bytes.
func (c *conn) allocation(ctx context.Context, l *extentList, off, n int64) (int64, error) {
	exts, err := block.Map(ctx, c.dev, off, n)
	if err != nil {
		return 0, err
	}
	at := off
	for _, e := range exts {
		if e.Off != at || e.Len <= 0 || e.Len > off+n-at {
			return 0, fmt.Errorf("map of %T gave extent %d+%d where %d was next", c.dev, e.Off, e.Len, at)
		}
		at = e.End()
		switch e.Kind {
		case block.Zero:
			l.add(e.Len, stateZero)
		case block.Hole:
			l.add(e.Len, stateHole|stateZero)
		default:
			l.add(e.Len, 0)
		}
	}
	if at == off {
		return 0, fmt.Errorf("map of %T at %d made no progress", c.dev, off)
	}
	return at - off, nil
}

// changed adds what qemu:dirty-bitmap:since-… says, and returns for how many
// bytes.
func (c *conn) changed(ctx context.Context, l *extentList, since string, off, n int64) (int64, error) {
	ranges, err := block.Changed(ctx, c.dev, since, off, n)
	if err != nil {
		return 0, err
	}
	at := off
	for _, r := range ranges {
		if r.Off < at || r.Len <= 0 || r.Off > off+n || r.Len > off+n-r.Off {
			return 0, fmt.Errorf("changes of %T since %s gave range %d+%d where %d was next", c.dev, since, r.Off, r.Len, at)
		}
		l.add(r.Off-at, 0)
		l.add(r.Len, stateDirty)
		at = r.End()
	}
	l.add(off+n-at, 0)
	return n, nil
}
