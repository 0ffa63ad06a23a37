package appliance

import (
	"context"
	"errors"
	"time"

	"github.com/sendense/sendense/internal/instant"
)

// How often a session is looked at. Where that is in vain, or its machine pauses
// again at once, it is left alone longer and longer.
const (
	lookEvery  = 250 * time.Millisecond
	lookAtMost = 2 * time.Second
)

// abandonTime is how long a machine may take to be stopped before that is left to
// the session's watcher.
const abandonTime = 10 * time.Second

// beginWatch has somebody look after the session: its machine goes on whenever it
// paused because its disks were not there for a while, and what could not be brought
// to an end before is. The caller holds s.busy.
func (a *Appliance) beginWatch(s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unwatch != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.unwatch = cancel
	s.watching.Go(func() { (&watcher{a: a, s: s}).run(ctx) })
}

// endWatch waits until nobody looks after the session any more. The caller holds
// s.busy.
func (s *session) endWatch() {
	s.mu.Lock()
	stop := s.unwatch
	s.unwatch = nil
	s.mu.Unlock()
	if stop != nil {
		stop()
		s.watching.Wait()
	}
}

// watcher looks after one session. What changes the session waits for nobody who is
// changing it already.
type watcher struct {
	a       *Appliance
	s       *session
	h       *instant.Hypervisor // nil: not connected
	wait    time.Duration
	resumed bool // since the machine paused
	warned  bool // that the hypervisor cannot be used
}

func (w *watcher) run(ctx context.Context) {
	defer w.hangUp()
	w.wait = lookEvery
	for ctx.Err() == nil && !w.look(ctx) {
		select {
		case <-ctx.Done():
		case <-time.After(w.wait):
		}
	}
}

func (w *watcher) hangUp() {
	if w.h != nil {
		w.h.Close()
		w.h = nil
	}
}

// look looks at the session once, and reports whether that has ended.
func (w *watcher) look(ctx context.Context) (over bool) {
	if !w.serve(ctx) {
		w.wait = lookAtMost
		return false
	}
	w.s.mu.Lock()
	m, ending := w.s.doc.Machine, w.s.ending
	w.s.mu.Unlock()
	if m == nil {
		w.wait = lookAtMost
		return ending && w.change(func() (bool, error) { return true, w.a.conclude(w.s) })
	}
	state, err := w.ask(ctx, m)
	if ctx.Err() != nil {
		return false
	}
	w.s.saw(state, err)
	switch {
	case err != nil:
		w.wait = min(2*w.wait, lookAtMost)
		return false
	case ending:
		w.wait = lookAtMost
		return w.change(func() (bool, error) { return w.end(ctx, m) })
	case state == instant.Failing && !w.s.full.Load():
		w.resume(ctx, m)
		w.wait = min(2*w.wait, lookAtMost)
	default:
		w.resumed, w.wait = false, lookEvery
	}
	if w.s.adrift() {
		return w.change(func() (bool, error) { return w.settle(ctx) })
	}
	return false
}

// ask asks how the machine is, over a connection that it makes if need be. What the
// machine needs to reach its disks is done for each anew.
func (w *watcher) ask(ctx context.Context, m *SessionMachine) (state instant.State, err error) {
	if w.h == nil {
		if w.h, err = instant.Dial(ctx, m.Connect); err == nil {
			err = w.a.lendSocket(ctx, w.h, w.s.doc.Socket)
		}
	}
	if err == nil {
		state, err = w.h.State(ctx, m.UUID)
	}
	if err == nil {
		w.warned = false
		return state, nil
	}
	if !w.warned && ctx.Err() == nil {
		w.warned = true
		w.a.log.Warn("machine of session cannot be looked at", "session", w.s.doc.ID, "connect", m.Connect, "err", err)
	}
	w.hangUp()
	return "", err
}

func (w *watcher) resume(ctx context.Context, m *SessionMachine) {
	if err := w.h.Resume(ctx, m.UUID); err == nil && !w.resumed {
		w.resumed = true
		w.a.log.Info("machine goes on after an error of its disks", "session", w.s.doc.ID, "err", w.s.failed.recent())
	}
}

// change calls fn unless somebody is changing the session, and reports whether that
// has ended it.
func (w *watcher) change(fn func() (over bool, err error)) bool {
	if !w.s.busy.TryLock() {
		return false
	}
	defer w.s.busy.Unlock()
	over, err := fn()
	if err != nil {
		w.wait = lookAtMost
		w.a.log.Debug("session could not be changed yet", "session", w.s.doc.ID, "err", err)
	}
	return over && err == nil
}

// end stops the machine of a session that is to end.
func (w *watcher) end(ctx context.Context, m *SessionMachine) (bool, error) {
	if err := w.h.Destroy(ctx, m.UUID); err != nil {
		return false, err
	}
	return true, w.a.conclude(w.s)
}

// adrift reports whether a migration of the session was not brought to its end.
func (s *session) adrift() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.work == "" && (s.doc.Migration != nil || s.moved())
}

// settle brings a migration to its end, one way or the other.
func (w *watcher) settle(ctx context.Context) (over bool, err error) {
	s := w.s
	if err = w.a.settleMigration(ctx, w.h, s); err == nil && s.moved() {
		err = w.a.finishMove(ctx, w.h, s)
		over = err == nil
	}
	if ctx.Err() == nil {
		s.setUnsettled(err)
	}
	return over, err
}

// serve has the session be served again after a failure that is not for good: for
// want of room, or one to make something durable, after which an overlay takes
// nothing until it is opened again. It reports whether there is none.
func (w *watcher) serve(ctx context.Context) (ok bool) {
	s := w.s
	s.mu.Lock()
	again := noRoom(s.problem)
	for _, o := range s.over {
		again = again || o.Err() != nil
	}
	s.mu.Unlock()
	if !again {
		return true
	}
	w.change(func() (bool, error) {
		why := s.close() // what that did not make durable is in the logs of the overlays
		err := w.a.reopen(ctx, s)
		if ctx.Err() != nil {
			return false, err
		}
		if s.setProblem(err); err == nil {
			ok = true
			w.hangUp() // the socket is a new one
			w.a.log.Info("session is served again", "session", s.doc.ID, "err", why)
		}
		return false, err
	})
	return ok
}

// abandon discards a session that nobody asked to stay. Where its machine cannot be
// stopped now that is done as soon as it can be, also by another process. The caller
// holds s.busy.
func (a *Appliance) abandon(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	err := a.discard(ctx, s, false)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	s.ending, s.doc.Passing = true, true
	doc := s.doc
	s.mu.Unlock()
	a.log.Warn("session ends as soon as its machine can be stopped", "session", s.doc.ID, "err", err)
	err = errors.Join(err, a.opts.Journal.PutSession(doc))
	a.beginWatch(s)
	return err
}
