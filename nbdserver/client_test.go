package nbdserver_test

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// The protocol as the tests understand it, written down apart from the server so
// that a wrong number in one of them shows.
const (
	optExportName, optAbort, optList, optStartTLS, optInfo, optGo        = 1, 2, 3, 5, 6, 7
	optStructured, optListMeta, optSetMeta, optExtended                  = 8, 9, 10, 11
	repAck, repServer, repInfo, repMeta                                  = 1, 2, 3, 4
	repUnsup, repPolicy, repInvalid, repTLSReqd, repUnknown, repShutdown = 0x80000001, 0x80000002, 0x80000003, 0x80000005, 0x80000006, 0x80000007
	repTooBig, repExtReqd                                                = 0x80000009, 0x8000000a
	cmdRead, cmdWrite, cmdDisc, cmdFlush, cmdTrim, cmdCache              = 0, 1, 2, 3, 4, 5
	cmdZeroes, cmdStatus                                                 = 6, 7
	fFUA, fNoHole, fDF, fReqOne, fFastZero, fPayload                     = 1, 2, 4, 8, 16, 32
	ePerm, eIO, eInval, eNoSpc, eOverflow, eNotSup, eShutdown            = 1, 5, 22, 28, 75, 95, 108
)

// style is how a client of the tests wants replies to look.
type style int

const (
	simple style = iota
	structured
	extended
)

var be = binary.BigEndian

// client speaks the protocol byte by byte.
type client struct {
	t     testing.TB
	conn  net.Conn
	style style
	size  uint64
	flags uint16
}

// connect opens a connection and exchanges flags.
func connect(t testing.TB, addr net.Addr) *client {
	t.Helper()
	c := dial(t, addr)
	if got := c.read(18); be.Uint64(got) != 0x4e42444d41474943 || be.Uint64(got[8:]) != 0x49484156454F5054 || be.Uint16(got[16:]) != 3 {
		t.Fatalf("hello: got %x", got)
	}
	c.write(be.AppendUint32(nil, 3))
	return c
}

func dial(t testing.TB, addr net.Addr) *client {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t: t, conn: conn}
}

// attach connects to an export in a style.
func attach(t testing.TB, addr net.Addr, name string, s style, contexts ...string) *client {
	t.Helper()
	c := connect(t, addr)
	c.negotiate(s)
	if len(contexts) > 0 {
		c.must(optSetMeta, metaData(name, contexts...))
	}
	c.enter(name)
	return c
}

// negotiate agrees on a style of replies.
func (c *client) negotiate(s style) {
	c.t.Helper()
	c.style = s
	switch s {
	case structured:
		c.must(optStructured, nil)
	case extended:
		c.must(optExtended, nil)
	}
}

// enter goes to the transmission phase.
func (c *client) enter(name string) {
	c.t.Helper()
	for _, r := range c.must(optGo, infoData(name)) {
		if r.kind == repInfo && be.Uint16(r.data) == 0 {
			c.size, c.flags = be.Uint64(r.data[2:]), be.Uint16(r.data[10:])
		}
	}
}

func infoData(name string, infos ...uint16) []byte {
	b := append(be.AppendUint32(nil, uint32(len(name))), name...)
	b = be.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = be.AppendUint16(b, i)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := append(be.AppendUint32(nil, uint32(len(name))), name...)
	b = be.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = append(be.AppendUint32(b, uint32(len(q))), q...)
	}
	return b
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// closed fails the test unless the server hangs up without another byte.
func (c *client) closed() {
	c.t.Helper()
	if n, err := c.conn.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		c.t.Fatalf("connection: got %d bytes and %v, want it closed", n, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// optReply is one reply to an option.
type optReply struct {
	kind uint32
	data []byte
}

func optionBytes(opt uint32, data []byte) []byte {
	b := be.AppendUint64(nil, 0x49484156454F5054)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// option sends an option and returns all replies to it.
func (c *client) option(opt uint32, data []byte) []optReply {
	c.t.Helper()
	c.write(optionBytes(opt, data))
	return c.replies(opt)
}

func (c *client) replies(opt uint32) []optReply {
	c.t.Helper()
	var all []optReply
	for {
		h := c.read(20)
		if be.Uint64(h) != 0x3e889045565a9 || be.Uint32(h[8:]) != opt {
			c.t.Fatalf("option %d: got reply head %x", opt, h)
		}
		r := optReply{kind: be.Uint32(h[12:]), data: c.read(int(be.Uint32(h[16:])))}
		all = append(all, r)
		if r.kind == repAck || r.kind&0x80000000 != 0 {
			return all
		}
	}
}

// must sends an option that has to succeed.
func (c *client) must(opt uint32, data []byte) []optReply {
	c.t.Helper()
	all := c.option(opt, data)
	if last := all[len(all)-1]; last.kind != repAck {
		c.t.Fatalf("option %d: got reply %#x %q, want an ack", opt, last.kind, last.data)
	}
	return all
}

// requestBytes encodes a request. With extended headers a write gets the flag
// that says so.
func (c *client) requestBytes(cmd, flags uint16, cookie, off, n uint64, payload []byte) []byte {
	magic := uint32(0x25609513)
	if c.style == extended {
		magic = 0x21e41c71
		if cmd == cmdWrite {
			flags |= fPayload
		}
	}
	b := be.AppendUint32(nil, magic)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, cmd)
	b = be.AppendUint64(b, cookie)
	b = be.AppendUint64(b, off)
	if c.style == extended {
		b = be.AppendUint64(b, n)
	} else {
		b = be.AppendUint32(b, uint32(n))
	}
	return append(b, payload...)
}

func (c *client) send(cmd, flags uint16, cookie, off, n uint64, payload []byte) {
	c.t.Helper()
	c.write(c.requestBytes(cmd, flags, cookie, off, n, payload))
}

// result is the whole answer to a request.
type result struct {
	cookie uint64
	errno  uint32
	data   []byte // of a read
	chunks []int  // types, in order
	status map[uint32][]descriptor
}

type descriptor struct{ n, state uint64 }

// do sends a request and returns the answer.
func (c *client) do(cmd, flags uint16, off, n uint64, payload []byte) result {
	c.t.Helper()
	cookie := off ^ n<<20 ^ uint64(cmd)<<56
	c.send(cmd, flags, cookie, off, n, payload)
	r := c.result(cmd, off, n)
	if r.cookie != cookie {
		c.t.Fatalf("cookie: got %#x, want %#x", r.cookie, cookie)
	}
	return r
}

// result reads the answer to a request when no other is in flight.
func (c *client) result(cmd uint16, off, n uint64) result {
	c.t.Helper()
	var r result
	if cmd == cmdRead && c.style != simple {
		r.data = make([]byte, n)
	}
	covered := uint64(0)
	for {
		magic := be.Uint32(c.read(4))
		if magic == 0x67446698 {
			if c.style == extended || c.style == structured && cmd == cmdRead {
				c.t.Fatalf("simple reply to command %d", cmd)
			}
			h := c.read(12)
			r.errno, r.cookie = be.Uint32(h), be.Uint64(h[4:])
			if cmd == cmdRead && r.errno == 0 {
				r.data = c.read(int(n))
			}
			return r
		}
		done, kind, payload := c.chunk(magic, off, &r)
		r.chunks = append(r.chunks, int(kind))
		covered += c.content(&r, kind, payload, off, n)
		if done {
			if cmd == cmdRead && r.errno == 0 && covered != n {
				c.t.Fatalf("read: chunks cover %d bytes of %d", covered, n)
			}
			return r
		}
	}
}

// chunk reads the rest of a chunk.
func (c *client) chunk(magic uint32, off uint64, r *result) (done bool, kind uint16, payload []byte) {
	c.t.Helper()
	var length uint64
	var h []byte
	switch {
	case magic == 0x668e33ef && c.style == structured:
		h = c.read(16)
		length = uint64(be.Uint32(h[12:]))
	case magic == 0x6e8a278c && c.style == extended:
		h = c.read(28)
		if got := be.Uint64(h[12:]); got != off {
			c.t.Fatalf("offset in reply head: got %d, want %d", got, off)
		}
		length = be.Uint64(h[20:])
	default:
		c.t.Fatalf("reply magic: got %#x in style %d", magic, c.style)
	}
	if length > 64<<20 {
		c.t.Fatalf("chunk length: got %d", length)
	}
	r.cookie = be.Uint64(h[4:])
	return be.Uint16(h)&1 != 0, be.Uint16(h[2:]), c.read(int(length))
}

// content takes in a chunk's payload and returns how many bytes of data it
// stands for.
func (c *client) content(r *result, kind uint16, p []byte, off, n uint64) uint64 {
	c.t.Helper()
	switch kind {
	case 0:
		return 0
	case 1, 2:
		at, l := be.Uint64(p), uint64(len(p)-8)
		if kind == 2 {
			l = uint64(be.Uint32(p[8:]))
		}
		if l == 0 || at < off || at+l > off+n {
			c.t.Fatalf("chunk %d: covers %d+%d of %d+%d", kind, at, l, off, n)
		}
		if kind == 1 {
			copy(r.data[at-off:], p[8:])
		}
		return l
	case 5, 6:
		if r.status == nil {
			r.status = make(map[uint32][]descriptor)
		}
		id := be.Uint32(p)
		if r.status[id] != nil {
			c.t.Fatalf("two status chunks for context %d", id)
		}
		r.status[id] = c.descriptors(kind, p[4:])
		return 0
	case 0x8001:
		r.errno = be.Uint32(p)
		if int(be.Uint16(p[4:])) != len(p)-6 {
			c.t.Fatalf("error chunk: message length %d in %d bytes", be.Uint16(p[4:]), len(p))
		}
		return 0
	}
	c.t.Fatalf("chunk type: got %#x", kind)
	return 0
}

func (c *client) descriptors(kind uint16, p []byte) []descriptor {
	c.t.Helper()
	var ds []descriptor
	if kind == 6 {
		if int(be.Uint32(p))*16 != len(p)-4 || c.style != extended {
			c.t.Fatalf("status chunk: %d descriptors in %d bytes", be.Uint32(p), len(p)-4)
		}
		for p = p[4:]; len(p) > 0; p = p[16:] {
			ds = append(ds, descriptor{be.Uint64(p), be.Uint64(p[8:])})
		}
		return ds
	}
	if c.style == extended || len(p)%8 != 0 {
		c.t.Fatalf("status chunk: compact, %d bytes", len(p))
	}
	for ; len(p) > 0; p = p[8:] {
		ds = append(ds, descriptor{uint64(be.Uint32(p)), uint64(be.Uint32(p[4:]))})
	}
	return ds
}

func netDial(addr net.Addr) (net.Conn, error) { return net.Dial(addr.Network(), addr.String()) }

// head is what the beginning of a reply says.
type head struct {
	cookie uint64
	read   bool
}

// peekHead looks at the head of the next reply without taking it; cookie 1 means
// a read.
func (c *client) peekHead() head {
	c.t.Helper()
	b := c.read(16)
	c.conn = &peeked{Conn: c.conn, b: b}
	cookie := be.Uint64(b[8:])
	return head{cookie, cookie == 1}
}

type peeked struct {
	net.Conn
	b []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.b) > 0 {
		n := copy(b, p.b)
		p.b = p.b[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
