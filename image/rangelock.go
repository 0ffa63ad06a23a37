package image

import (
	"context"
	"sync"
)

// rangeLocks lets operations on different guest clusters run side by side and
// keeps those on the same apart. Locks are granted in the order they were asked
// for, so that nobody starves. The zero value is ready for use.
type rangeLocks struct {
	mu   sync.Mutex
	held []*rangeLock // granted and waiting, in the order asked for
}

// rangeLock is the right to a range of clusters, alone or with other sharers.
type rangeLock struct {
	first, last int64
	shared      bool
	done        chan struct{} // made by the first who waits; closed on release
}

func (a *rangeLock) conflicts(b *rangeLock) bool {
	return a.first <= b.last && b.first <= a.last && !(a.shared && b.shared)
}

// lock waits until no conflicting lock asked for earlier is held. It returns
// ctx's error if ctx ends first.
func (l *rangeLocks) lock(ctx context.Context, first, last int64, shared bool) (*rangeLock, error) {
	r := &rangeLock{first: first, last: last, shared: shared}
	var wait []chan struct{}
	l.mu.Lock()
	for _, h := range l.held {
		if !h.conflicts(r) {
			continue
		}
		if h.done == nil {
			h.done = make(chan struct{})
		}
		wait = append(wait, h.done)
	}
	l.held = append(l.held, r)
	l.mu.Unlock()
	for _, c := range wait {
		select {
		case <-c:
		case <-ctx.Done():
			l.unlock(r)
			return nil, ctx.Err()
		}
	}
	return r, nil
}

func (l *rangeLocks) unlock(r *rangeLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, h := range l.held {
		if h == r {
			l.held = append(l.held[:i], l.held[i+1:]...)
			break
		}
	}
	if r.done != nil {
		close(r.done)
	}
}
