package guestfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs/child"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/sandbox"
)

// client is the near end of a confined process.
type client struct {
	process *sandbox.Child
	conn    *proto.Conn
	sockets []net.Conn
	timeout time.Duration
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	dead    chan struct{} // closed when there are no more answers

	mu      sync.Mutex // guards the fields below
	last    uint64
	waiting map[uint64]chan proto.Reply
	failed  error
}

var errProtocol = errors.New("the process that reads the guest's file systems gives answers that make no sense")

func hasSlash(s string) bool { return strings.ContainsAny(s, "/\x00") }

// startClient starts a confined process that may read devices.
func startClient(devices []block.Device, o Options) (*client, error) {
	c := &client{timeout: o.Timeout, dead: make(chan struct{}), waiting: map[uint64]chan proto.Reply{}}
	if c.timeout == 0 {
		c.timeout = 2 * time.Minute
	}
	requests, reads, err := c.start(o)
	if err != nil {
		return nil, err
	}
	c.serve(requests, reads, devices)
	return c, nil
}

// serve begins to talk to a process through two connections.
func (c *client) serve(requests, reads net.Conn, devices []block.Device) {
	c.sockets = []net.Conn{requests, reads}
	c.conn = proto.NewConn(requests)
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.wg.Go(func() { c.receive() })
	c.wg.Go(func() { c.fail(c.why(serveReads(ctx, reads, devices, func(err error) { c.fail(c.why(err)) }))) })
}

// start starts the process and returns what connects to it.
func (c *client) start(o Options) (requests, reads net.Conn, err error) {
	var ends [2]net.Conn
	near, far, err := sandbox.Pair()
	if err != nil {
		return nil, nil, err
	}
	near2, far2, err := sandbox.Pair()
	if err != nil {
		return nil, nil, errors.Join(err, near.Close(), far.Close())
	}
	defer near.Close()
	defer far.Close()
	defer near2.Close()
	defer far2.Close()
	if ends[0], err = net.FileConn(near); err == nil {
		ends[1], err = net.FileConn(near2)
	}
	if err == nil {
		c.process, err = sandbox.Start(child.Task, sandbox.Limits{MemoryBytes: o.MemoryBytes}, far, far2)
	}
	if err != nil {
		for _, e := range ends {
			if e != nil {
				e.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}

// close ends the process, and everything here that talks to it.
func (c *client) close() {
	c.fail(errors.New("closed"))
	c.wg.Wait()
}

// fail gives the process up.
func (c *client) fail(err error) {
	c.mu.Lock()
	first := c.failed == nil
	if first {
		c.failed = err
	}
	c.mu.Unlock()
	if !first {
		return
	}
	if c.process != nil {
		c.process.Close()
	}
	c.cancel()
	for _, s := range c.sockets {
		s.Close()
	}
	close(c.dead)
}

// receive hands answers to those who wait for them.
func (c *client) receive() {
	for {
		var r proto.Reply
		if err := c.conn.Receive(&r); err != nil {
			c.fail(c.why(err))
			return
		}
		c.mu.Lock()
		ch := c.waiting[r.ID]
		delete(c.waiting, r.ID)
		c.mu.Unlock()
		if ch == nil {
			c.fail(errProtocol)
			return
		}
		ch <- r
	}
}

// why says what became of the process if nothing can be said to it or heard of it any
// more, at either socket. Answers that make no sense are another matter.
func (c *client) why(err error) error {
	if errors.Is(err, errProtocol) || errors.Is(err, proto.ErrMessage) {
		return err
	}
	if c.process == nil {
		return fmt.Errorf("%w: %w", ErrDied, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if end := c.process.Wait(ctx); end != nil && !errors.Is(end, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrDied, end)
	}
	return ErrDied
}

// call sends a request and waits for its answer.
func (c *client) call(ctx context.Context, r *proto.Request) (proto.Reply, error) {
	return c.callFor(ctx, r, c.timeout)
}

// callFor is call with a bound of its own.
func (c *client) callFor(ctx context.Context, r *proto.Request, timeout time.Duration) (proto.Reply, error) {
	answer := make(chan proto.Reply, 1)
	c.mu.Lock()
	if c.failed != nil {
		defer c.mu.Unlock()
		return proto.Reply{}, c.failed
	}
	c.last++
	r.ID = c.last
	c.waiting[r.ID] = answer
	// A process that hears nothing keeps nobody waiting for longer than one that does not
	// answer.
	c.wg.Go(func() {
		if err := c.conn.Send(r); err != nil {
			c.fail(c.why(err))
		}
	})
	c.mu.Unlock()
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case reply := <-answer:
		return reply, reply.Err.Unpack()
	case <-c.dead:
		c.mu.Lock()
		defer c.mu.Unlock()
		return proto.Reply{}, c.failed
	case <-late.C:
		c.fail(fmt.Errorf("%w: no answer within %v", ErrDied, timeout))
		return proto.Reply{}, c.failed
	case <-ctx.Done():
		return proto.Reply{}, ctx.Err() // the answer goes nowhere
	}
}

// maxRead is how much of a disk one request may ask for, in bytes.
const maxRead = 1 << 20

// serveReads answers the process's reads of disks until there are no more. failed is
// told of answers that cannot be sent.
func serveReads(ctx context.Context, conn net.Conn, devices []block.Device, failed func(error)) error {
	s := readServer{conn: conn, failed: failed, slots: make(chan struct{}, 8)}
	defer s.wg.Wait()
	r := bufio.NewReader(conn)
	var head [24]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		id, number := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint32(head[8:])
		n, off := binary.LittleEndian.Uint32(head[12:]), binary.LittleEndian.Uint64(head[16:])
		if int(number) >= len(devices) || n > maxRead {
			return errProtocol
		}
		s.slots <- struct{}{}
		s.wg.Go(func() {
			s.read(ctx, id, devices[number], int64(off), int(n))
			<-s.slots
		})
	}
}

type readServer struct {
	conn   net.Conn
	failed func(error)
	slots  chan struct{} // a token for each read under way
	wg     sync.WaitGroup
	mu     sync.Mutex // held to send
	spare  sync.Pool  // of *[]byte, for most answers
}

const (
	answerHead = 16
	// mostReads is the length of reads whose answers are made in memory that is used
	// again: that of a page of the readers' cache.
	mostReads = 64 << 10
)

// answer returns memory for an answer with n bytes, and what gives it back.
func (s *readServer) answer(n int) (b []byte, done func()) {
	if n > mostReads {
		return make([]byte, answerHead+n), func() {}
	}
	p, ok := s.spare.Get().(*[]byte)
	if !ok {
		whole := make([]byte, answerHead+mostReads)
		p = &whole
	}
	return (*p)[:answerHead+n], func() { s.spare.Put(p) }
}

func (s *readServer) read(ctx context.Context, id uint64, d block.Device, off int64, n int) {
	b, done := s.answer(n)
	defer done()
	clear(b[:answerHead])
	binary.LittleEndian.PutUint64(b, id)
	if err := d.ReadAt(ctx, b[answerHead:], off); err != nil {
		binary.LittleEndian.PutUint32(b[8:], 1)
		b = b[:answerHead]
	} else {
		binary.LittleEndian.PutUint32(b[12:], uint32(n))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.conn.Write(b); err != nil {
		s.failed(err)
	}
}
