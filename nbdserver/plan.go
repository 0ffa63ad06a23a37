package nbdserver

import (
	"errors"

	"github.com/sendense/sendense/block"
)

// plan says how a read is answered: the chunks of the reply, and the files that
// their data lies in.
type plan struct {
	parts  []part
	pieces []piece
}

// piece is a run of bytes in a file.
type piece struct {
	f      *file
	off, n int64
}

// part is what one chunk says: a hole, or data that lies in files or has to be
// read through the device.
type part struct {
	kind     partKind
	off, n   int64
	from, to int // pieces of partFiles
	slots    int // buffers of a pipe that it takes, with its head
}

type partKind uint8

const (
	partHole partKind = iota
	partFiles
	partOpaque
)

const (
	maxPart = 512 << 10 // bytes of one chunk where there may be several
	minHole = 4 << 10   // bytes from which on a hole is worth a chunk
)

var errNoRoom = errors.New("reply does not fit a pipe")

// make plans the reply to a read whose range lies at locs. It returns false where
// the reply has to be one chunk and not all of it lies in files.
func (pl *plan) make(c *conn, req *request, locs []block.Location) bool {
	pl.parts, pl.pieces = pl.parts[:0], pl.pieces[:0]
	fragments := c.style.fragments(req)
	off := int64(req.off)
	for _, l := range locs {
		for l.Len > 0 {
			p := part{kind: partOpaque, off: off, n: l.Len, slots: 1}
			hole := l.Kind == block.InNothing && fragments && l.Len >= minHole
			if fragments && !hole {
				p.n = min(p.n, maxPart)
			}
			switch f, ok := c.fileOf(l); {
			case hole:
				p.kind = partHole
			case ok:
				p.kind = partFiles
				p.slots += pages(l.Off, p.n)
				p.from = len(pl.pieces)
				pl.pieces = append(pl.pieces, piece{f, l.Off, p.n})
				p.to = len(pl.pieces)
			case !fragments:
				return false
			}
			pl.add(p, fragments)
			off += p.n
			l.Len -= p.n
			l.Off += p.n
		}
	}
	return true
}

// makeOpaque plans to read everything through the device.
func (pl *plan) makeOpaque(c *conn, req *request) {
	pl.parts, pl.pieces = pl.parts[:0], pl.pieces[:0]
	step := int64(req.n)
	if c.style.fragments(req) {
		step = maxPart
	}
	end := int64(req.off + req.n)
	for off := int64(req.off); off < end; off += step {
		pl.parts = append(pl.parts, part{kind: partOpaque, off: off, n: min(step, end-off)})
	}
}

// fileOf returns the file that a location is in. Zeroes are in one, too.
func (c *conn) fileOf(l block.Location) (f *file, ok bool) {
	var err error
	switch l.Kind {
	case block.InFile:
		f, err = c.x.file(l.File)
	case block.InNothing:
		f, err = c.srv.zeroes()
	default:
		return nil, false
	}
	return f, err == nil
}

// add appends p, or makes it part of the last part.
func (pl *plan) add(p part, fragments bool) {
	if len(pl.parts) > 0 {
		last := &pl.parts[len(pl.parts)-1]
		if last.kind == p.kind && (p.kind == partHole || !fragments || last.n+p.n <= maxPart) {
			last.n += p.n
			last.to = p.to
			last.slots += p.slots - 1
			return
		}
	}
	pl.parts = append(pl.parts, p)
}

// fill puts the chunk of part i, which is not opaque and fits, into a pipe.
func (pl *plan) fill(p *pipe, c *conn, req *request, i int, done bool) error {
	var head [maxDataHead + 4]byte
	pt := &pl.parts[i]
	if pt.kind == partHole {
		return p.write(c.style.appendHole(head[:0], req, done, pt.off, pt.n))
	}
	if err := p.write(c.style.appendDataHead(head[:0], req, done, pt.off, pt.n)); err != nil {
		return err
	}
	for _, one := range pl.pieces[pt.from:pt.to] {
		if err := p.load(one.f, one.off, one.n); err != nil {
			return err
		}
	}
	return nil
}

// prefetch has the disk work on pt's data, which is not waited for.
func (pl *plan) prefetch(pt *part) {
	for _, p := range pl.pieces[pt.from:pt.to] {
		_ = p.f.prefetch(p.off, p.n) // advice: a file that is gone is reported when it is read
	}
}
