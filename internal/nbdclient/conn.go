package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"libguestfs.org/libnbd"
)

// conn is one connection. Its event loop, run, is the only user of the handle.
type conn struct {
	h      *libnbd.Libnbd
	depth  int
	limits Options
	lost   func(error) // told why the connection ended
	done   chan struct{}

	load     atomic.Int64 // requests queued and in flight
	wake     int          // eventfd that gets the loop out of poll
	sleeping atomic.Bool  // the loop is in poll, or about to be

	mu      sync.Mutex // guards the fields below
	queue   []*request // not yet handed to the library
	stopped error      // why no more is taken
	ended   bool       // wake is closed

	inFlight map[uint64]*request // by cookie; the loop's own
	watchdog *time.Timer         // runs while something is in flight
}

// newConn makes a connection of a handle that is ready, for run to drive. lost is
// called, from the loop or not, with the reason why the connection is unusable.
func newConn(h *libnbd.Libnbd, o Options, lost func(error)) (*conn, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	c := &conn{
		h: h, depth: o.Depth, limits: o, lost: lost, wake: wake,
		done: make(chan struct{}), inFlight: map[uint64]*request{},
	}
	c.watchdog = time.AfterFunc(o.Timeout, func() {
		lost(fmt.Errorf("%w: no reply in %v", ErrTimeout, o.Timeout))
	})
	c.watchdog.Stop()
	return c, nil
}

// discard undoes newConn where run is not going to.
func (c *conn) discard() {
	_ = unix.Close(c.wake)
	_ = c.h.Close()
}

// submit queues a request.
func (c *conn) submit(r *request) error {
	r.conn = c
	c.mu.Lock()
	if c.stopped != nil {
		c.mu.Unlock()
		return c.stopped
	}
	c.queue = append(c.queue, r)
	c.load.Add(1)
	c.mu.Unlock()
	c.rouse()
	return nil
}

// abandon ends a request whose caller gave up, and returns with what: at once if
// the server has not been sent it, else when its reply is there or the connection
// is given up.
func (c *conn) abandon(ctx context.Context, r *request) error {
	c.mu.Lock()
	if i := slices.Index(c.queue, r); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
		c.load.Add(-1)
		c.mu.Unlock()
		return context.Cause(ctx)
	}
	c.mu.Unlock()
	grace := time.NewTimer(c.limits.CancelGrace)
	defer grace.Stop()
	select {
	case err := <-r.done:
		return r.explain(err)
	case <-grace.C:
	}
	c.lost(fmt.Errorf("%w: a cancelled command got no reply in %v", ErrTimeout, c.limits.CancelGrace))
	return errors.Join(context.Cause(ctx), <-r.done)
}

// stop makes the loop end. Requests get why.
func (c *conn) stop(why error) {
	c.mu.Lock()
	if c.stopped == nil {
		c.stopped = why
	}
	c.mu.Unlock()
	c.rouse()
}

// rouse gets the loop out of poll.
func (c *conn) rouse() {
	if !c.sleeping.Swap(false) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		one := [8]byte{1}                 // in either byte order more than zero
		_, _ = unix.Write(c.wake, one[:]) // full already says the same
	}
}

// run drives the connection until it is stopped or lost, and then ends every
// request.
func (c *conn) run() {
	defer close(c.done)
	err := c.loop()
	c.watchdog.Stop()
	c.lost(err) // stops this connection too, so that the queue grows no more
	c.mu.Lock()
	queued, why := c.queue, c.stopped
	c.queue = nil
	c.ended = true
	_ = unix.Close(c.wake)
	c.mu.Unlock()
	c.hangUp(len(c.inFlight) == 0 && errors.Is(why, ErrClosed))
	for _, r := range c.inFlight {
		r.finish(why)
	}
	for _, r := range queued {
		r.finish(why)
	}
}

// hangUp closes the handle, after which the library touches no request's memory.
// A connection that is idle says good-bye first.
func (c *conn) hangUp(politely bool) {
	if politely && c.h.AioDisconnect(nil) == nil {
		for range 10 {
			closed, err := c.h.AioIsClosed()
			if closed || err != nil {
				break
			}
			if _, err := c.h.Poll(50); err != nil {
				break
			}
		}
	}
	_ = c.h.Close()
}

// loop returns why the connection ended.
func (c *conn) loop() error {
	for {
		if err := c.issueQueued(); err != nil {
			return err
		}
		c.reap()
		if err := c.alive(); err != nil {
			return err
		}
		if err := c.wait(); err != nil {
			return err
		}
	}
}

// issueQueued hands queued requests to the library, as many as Depth allows.
func (c *conn) issueQueued() error {
	for len(c.inFlight) < c.depth {
		c.mu.Lock()
		why := c.stopped
		var r *request
		if why == nil && len(c.queue) > 0 {
			r = c.queue[0]
			c.queue[0] = nil
			c.queue = c.queue[1:]
		}
		c.mu.Unlock()
		if r == nil {
			return why
		}
		cookie, err := r.issue(c.h)
		if err != nil { // refused by the library: nothing was sent
			r.finish(err)
			continue
		}
		if len(c.inFlight) == 0 {
			c.watchdog.Reset(c.limits.Timeout)
		}
		c.inFlight[cookie] = r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped
}

// reap ends the requests whose commands have completed, with the error they
// completed with.
func (c *conn) reap() {
	progress := false
	for len(c.inFlight) > 0 {
		cookie, err := c.h.AioPeekCommandCompleted()
		if err != nil || cookie == 0 {
			break
		}
		_, err = c.h.AioCommandCompleted(cookie)
		if err != nil && c.alive() != nil {
			return // loop finds out too, and run ends them all for one reason
		}
		r := c.inFlight[cookie]
		delete(c.inFlight, cookie)
		r.finish(err)
		progress = true
	}
	switch {
	case len(c.inFlight) == 0:
		c.watchdog.Stop()
	case progress:
		c.watchdog.Reset(c.limits.Timeout)
	}
}

// alive returns an error if the library has given the connection up.
func (c *conn) alive() error {
	dead, err := c.h.AioIsDead()
	if err != nil {
		return err
	}
	closed, err := c.h.AioIsClosed()
	if err != nil {
		return err
	}
	if dead || closed {
		return ErrLost
	}
	return nil
}

// wait sleeps until the server or a caller wants something, and lets the library
// move on.
func (c *conn) wait() error {
	c.sleeping.Store(true)
	c.mu.Lock()
	busy := c.stopped != nil || len(c.queue) > 0 && len(c.inFlight) < c.depth
	c.mu.Unlock()
	if busy {
		c.sleeping.Store(false)
		return nil
	}
	fd, err := c.h.AioGetFd()
	if err != nil {
		return err
	}
	direction, err := c.h.AioGetDirection()
	if err != nil {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: pollEvents(direction)}, {Fd: int32(c.wake), Events: unix.POLLIN}}
	_, err = unix.Poll(fds, -1)
	c.sleeping.Store(false)
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("poll: %w", err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(c.wake, count[:])
	}
	if err := notify(c.h, direction, fds[0].Revents); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// pollEvents says what to poll for.
func pollEvents(direction uint) (events int16) {
	if uint32(direction)&libnbd.AIO_DIRECTION_READ != 0 {
		events |= unix.POLLIN
	}
	if uint32(direction)&libnbd.AIO_DIRECTION_WRITE != 0 {
		events |= unix.POLLOUT
	}
	return events
}

// notify tells the library what poll found. Reading comes first, since what is
// read can change what there is to be written.
func notify(h *libnbd.Libnbd, direction uint, got int16) error {
	const gone = unix.POLLHUP | unix.POLLERR | unix.POLLNVAL
	reads := uint32(direction)&libnbd.AIO_DIRECTION_READ != 0
	switch {
	case got&(unix.POLLIN|gone) != 0 && reads:
		return h.AioNotifyRead()
	case got&(unix.POLLOUT|gone) != 0:
		return h.AioNotifyWrite()
	}
	return nil
}
