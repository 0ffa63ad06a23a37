package fusemount

import (
	"context"
	"sync"
	"time"
)

// grace is for how long a request goes on after its caller was interrupted. The
// kernel tells of every signal, harmless ones included, and a program that gets
// EINTR where disks never give it may take it for damage; what reads a mapping dies
// of it. Only what would keep a killed program waiting is given up.
const grace = time.Second

// call is the context of a request. It costs nothing unless somebody waits for its
// end, or the request was interrupted.
type call struct {
	cancel <-chan struct{} // closed when the caller was interrupted

	mu   sync.Mutex // guards the fields below
	done chan struct{}
	over chan struct{} // closed when the request has been answered
}

func newCall(cancel <-chan struct{}) *call { return &call{cancel: cancel} }

// end has to be called when the request has been dealt with.
func (c *call) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		close(c.over)
	}
}

// Deadline implements context.Context.
func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (c *call) Value(any) any { return nil }

// Done implements context.Context.
func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done, c.over = make(chan struct{}), make(chan struct{})
		go c.watch(c.done, c.over)
	}
	return c.done
}

// Err implements context.Context.
func (c *call) Err() error {
	select {
	case <-c.cancel:
	default:
		return nil
	}
	select {
	case <-c.Done():
		return context.Canceled
	default:
		return nil
	}
}

// watch ends with the request.
func (c *call) watch(done, over chan struct{}) {
	select {
	case <-c.cancel:
	case <-over:
		return
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-t.C:
		close(done)
	case <-over:
	}
}
