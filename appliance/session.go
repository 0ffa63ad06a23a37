package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/nbdserver"
)

// MaxSessions is how many sessions there may be at a time, unless Options say
// otherwise.
const MaxSessions = 16

// SessionSpec says what session to begin.
type SessionSpec struct {
	VM    string `json:"vm"`    // name or UUID
	Point string `json:"point"` // as in Appliance.Point
	// QuotaBytes bounds the files of the session, give or take what is being
	// written and a log of that: then writes fail for want of room, and the machine
	// pauses. 0: none.
	QuotaBytes int64 `json:"quota_bytes,omitempty"`
	// Machine is started on the disks; nil: they are served, and that is all.
	Machine *MachineSpec `json:"machine,omitempty"`
}

// MachineSpec says where and how a session's machine runs.
type MachineSpec struct {
	Connect string `json:"connect,omitempty"` // URI of libvirt on this host; default qemu:///system
	Name    string `json:"name,omitempty"`    // default the VM's with the session's id
	Network string `json:"network,omitempty"` // of libvirt; default "isolated": no network interface
}

// SessionState says how a session is.
type SessionState string

// The states of sessions.
const (
	SessionServed  SessionState = "served"        // its disks can be used; there is no machine
	SessionRunning SessionState = "running"       // its machine runs
	SessionPaused  SessionState = "paused"        // its machine was paused
	SessionStopped SessionState = "stopped"       // its machine has ended
	SessionFull    SessionState = "quota reached" // writes fail until it is raised; the machine pauses
	SessionNoSpace SessionState = "no space"      // writes fail until there is room; the machine pauses
	SessionKeeping SessionState = "being kept"    // what it wrote becomes a point
	SessionMoving  SessionState = "migrating"     // its disks move elsewhere, while its machine runs
	SessionUnknown SessionState = "unknown"       // its hypervisor has not answered yet
	SessionStored  SessionState = "not served"    // its control plane does not run
	SessionBroken  SessionState = "broken"        // it cannot be served; Problem says why
)

// Session is a point with disks that take writes, and the machine that runs on
// them. The point stays as it is.
type Session struct {
	ID         string          `json:"id"`
	VM         string          `json:"vm"`    // UUID
	Name       string          `json:"name"`  // of the VM
	Point      string          `json:"point"` // id
	Created    time.Time       `json:"created"`
	State      SessionState    `json:"state"`
	Problem    string          `json:"problem,omitempty"` // a sentence
	QuotaBytes int64           `json:"quota_bytes,omitempty"`
	Socket     string          `json:"socket"` // of all disks, the same for the session's life
	Disks      []SessionDisk   `json:"disks"`
	Machine    *SessionMachine `json:"machine,omitempty"`
	// Notes are sentences on what of the machine could not be carried over.
	Notes []string `json:"notes,omitempty"`
	// Passing says that it is part of a check and ends with that, or that it ends as
	// soon as its machine can be stopped.
	Passing bool `json:"passing,omitempty"`
	// Migration is one that has begun and did not end yet.
	Migration *SessionMigration `json:"migration,omitempty"`
	// ReadySeconds is how long it took until the disks could be used.
	ReadySeconds float64 `json:"ready_seconds,omitempty"`
}

// SessionDisk is one disk of a session.
type SessionDisk struct {
	Index     int    `json:"index"`
	Key       string `json:"key"`
	Size      int64  `json:"size"` // bytes
	URI       string `json:"uri"`  // NBD, writable
	File      string `json:"file"` // of what was written
	FileBytes int64  `json:"file_bytes"`
	Clients   int    `json:"clients"`
	// Target is the name that it has in the session's machine; empty: Key.
	Target string `json:"target,omitempty"`
	// Moved is the file or device that the machine uses instead, since a migration.
	Moved string `json:"moved,omitempty"`
}

func (d SessionDisk) target() string { return cmp.Or(d.Target, d.Key) }

// SessionMachine is the machine of a session.
type SessionMachine struct {
	MachineSpec
	UUID        string `json:"uuid"`
	Accelerated bool   `json:"accelerated"` // by KVM; else it is emulated
	// Variables is the file of its firmware's variables, which goes with the session.
	Variables string `json:"variables,omitempty"`
	// Consoles are URIs of screens and paths of serial ports, as of its start.
	Consoles []string `json:"consoles,omitempty"`
}

// session is a Session at work.
type session struct {
	pin    pin
	server *nbdserver.Server // nil unless served
	disks  []repository.Disk // backing the overlays
	over   []*instant.Overlay
	stop   context.CancelFunc // ends serving
	done   chan struct{}      // closed when serving has ended
	full   atomic.Bool        // the quota is reached
	failed failures           // of its disks

	busy sync.Mutex // held while the session is changed: started, kept, discarded

	watching sync.WaitGroup

	mu        sync.Mutex         // guards the fields below
	doc       Session            // as it is recorded; changed by who holds busy, too
	unwatch   context.CancelFunc // nil unless it is watched; changed by who holds busy, too
	problem   error              // why its disks are not served
	unsettled error              // why nobody knows where its disks are
	unasked   error              // why the hypervisor did not tell how its machine is
	ending    bool               // it ends as soon as its machine can be stopped
	work      SessionState       // SessionKeeping, SessionMoving or ""
	machine   instant.State      // "": not known
}

// pin is a point that is not to be deleted, or is being.
type pin struct{ vm, point string }

// view returns the session as it is.
func (s *session) view() Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.doc
	x.Disks = append([]SessionDisk(nil), s.doc.Disks...)
	if s.doc.Machine != nil {
		m := *s.doc.Machine
		x.Machine = &m
	}
	for i := range x.Disks {
		if i < len(s.over) {
			x.Disks[i].FileBytes, _ = s.over[i].FileBytes() // 0 once it is closed
			x.Disks[i].Clients = s.server.Connections(diskExport(x.Disks[i].Index))
		}
	}
	x.State, x.Problem = s.state()
	return x
}

// state tells how the session is, and what is wrong with it: a sentence. The caller
// holds s.mu.
func (s *session) state() (state SessionState, problem string) {
	failed := s.failed.recent()
	switch {
	case noRoom(s.problem), s.problem == nil && s.work == "" && !s.full.Load() && noRoom(failed):
		return SessionNoSpace, sentence(fmt.Sprintf("there is no space left for what the session writes, in %s; free some, and it goes on by itself", filepath.Dir(s.doc.Disks[0].File)))
	case s.problem != nil:
		return SessionBroken, sentence(s.problem.Error())
	case s.work != "":
		return s.work, ""
	case s.unsettled != nil:
		return SessionBroken, sentence(s.unsettled.Error())
	case s.ending:
		return SessionUnknown, sentence(fmt.Sprintf("it ends as soon as its machine can be stopped: %v", cmp.Or(s.unasked, errNotYet)))
	case s.full.Load():
		return SessionFull, fmt.Sprintf("The quota of %d bytes is reached. Go on with more: sendense-control session resume %s --quota BYTES", s.doc.QuotaBytes, s.doc.ID)
	case s.doc.Machine == nil:
		return SessionServed, ""
	case s.machine == "", s.doc.Migration != nil:
		return SessionUnknown, sentence(cmp.Or(s.unasked, errNotYet).Error())
	case s.machine == instant.Running:
		return SessionRunning, ""
	case s.machine == instant.Stopped:
		return SessionStopped, ""
	case s.machine == instant.Failing && failed != nil:
		return SessionPaused, sentence("a request to a disk failed, and is tried again: " + failed.Error())
	case s.machine == instant.Failing:
		return SessionPaused, sentence("a request to a disk failed, and is tried again; the hypervisor's log may tell more")
	}
	return SessionPaused, ""
}

var errNotYet = errors.New("its hypervisor has not answered yet")

// noRoom reports whether an error is for want of space.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// setProblem says why the session's disks are not served; nil: they are.
func (s *session) setProblem(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problem = why
}

// setUnsettled says why nobody knows where the session's disks are; nil: that is
// known.
func (s *session) setUnsettled(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsettled = why
}

// saw notes how the machine was seen, or why it was not.
func (s *session) saw(state instant.State, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unasked = err; err == nil {
		s.machine = state
	}
}

func diskExport(index int) string { return fmt.Sprintf("disk-%d", index) }

// Sessions lists the sessions, oldest first.
func (a *Appliance) Sessions(context.Context) ([]Session, error) {
	var out []Session
	if a.opts.RestoreExports {
		a.mu.Lock()
		for _, s := range a.sessions {
			out = append(out, s.view())
		}
		a.mu.Unlock()
	} else {
		docs, err := a.opts.Journal.Sessions()
		if err != nil {
			return nil, err
		}
		for _, s := range docs {
			s.State = SessionStored
			out = append(out, s)
		}
	}
	sort.Slice(out, func(i, k int) bool {
		if !out[i].Created.Equal(out[k].Created) {
			return out[i].Created.Before(out[k].Created)
		}
		return out[i].ID < out[k].ID
	})
	return out, nil
}

// Session returns a session, with its machine as it is now. CodeNotFound if there
// is none.
func (a *Appliance) Session(ctx context.Context, id string) (Session, error) {
	if !a.opts.RestoreExports {
		all, err := a.Sessions(ctx)
		if err != nil {
			return Session{}, err
		}
		for _, s := range all {
			if s.ID == id {
				return s, nil
			}
		}
		return Session{}, noSession(id)
	}
	s, err := a.session(id)
	if err != nil {
		return Session{}, err
	}
	s.look(ctx)
	return s.view(), nil
}

func (a *Appliance) session(id string) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sessions[id]; s != nil {
		return s, nil
	}
	return nil, noSession(id)
}

func noSession(id string) error {
	return &Error{Code: CodeNotFound, Msg: fmt.Sprintf("There is no session %s.", id),
		Hint: "List the sessions with: sendense-control session list"}
}

// sessionOwner returns an error unless this appliance keeps sessions.
func (a *Appliance) sessionOwner() error {
	if a.opts.RestoreExports && a.opts.SessionDir != "" {
		return nil
	}
	return &Error{Code: CodeInvalid, Msg: "Sessions are kept by a control plane, and none owns the repository.",
		Hint: "Start sendense-control-plane, and name its socket with --control unless it is the default one."}
}

func (a *Appliance) sessionDir(id string) string { return filepath.Join(a.opts.SessionDir, id) }

// pinned returns why a point cannot be deleted: a session stands on it. Points
// that it builds on may be: what it needs of them is merged into it, and open
// chains read the same through that.
func (a *Appliance) pinned(ctx context.Context, p pin, name string) error {
	sessions, err := a.Sessions(ctx)
	if err != nil {
		return &Error{Code: CodeBusy, Err: err, Msg: sentence("nobody knows whether a session uses the point: " + err.Error()),
			Hint: "Put the record right, or start the control plane and give the session up there, with: sendense-control session discard ID --force"}
	}
	for _, s := range sessions {
		if s.VM == "" {
			return &Error{Code: CodeBusy, Msg: fmt.Sprintf("The record of session %s cannot be read: it may run from any point.", s.ID),
				Hint: "Put the record right and start the control plane again, or give the session up, with: sendense-control session discard " + s.ID + " --force"}
		}
		if s.VM == p.vm && s.Point == p.point {
			return &Error{Code: CodeBusy, Msg: fmt.Sprintf("Session %s runs from point %s of VM %s.", s.ID, p.point, name),
				Hint: fmt.Sprintf("Keep or discard it first, with: sendense-control session keep %s, or: session discard %s", s.ID, s.ID)}
		}
	}
	return nil
}

// deleteUnpinned deletes a point that no session stands on; none begins meanwhile.
func (a *Appliance) deleteUnpinned(ctx context.Context, v VM, id repository.PointID) error {
	p := pin{string(v.ID), string(id)}
	a.mu.Lock()
	a.deleting[p]++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.deleting[p]--; a.deleting[p] == 0 {
			delete(a.deleting, p)
		}
	}()
	if err := a.pinned(ctx, p, v.Name); err != nil {
		return err
	}
	return userError(a.repo.Delete(ctx, v.ID, id))
}

// admit takes a session in, unless there are too many or its point is going.
func (a *Appliance) admit(s *session) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	limit := a.opts.MaxSessions
	if limit == 0 {
		limit = MaxSessions
	}
	switch {
	case a.closed:
		return errShutdown
	case len(a.sessions) >= limit:
		return &Error{Code: CodeBusy, Msg: fmt.Sprintf("There are %d sessions, as many as there may be.", len(a.sessions)),
			Hint: "Keep or discard one of them: sendense-control session list"}
	case a.deleting[s.pin] > 0:
		return &Error{Code: CodeBusy, Msg: fmt.Sprintf("Point %s is being deleted.", s.pin.point), Hint: "Choose another point."}
	}
	a.sessions[s.doc.ID] = s
	return nil
}

func (a *Appliance) forget(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sessions, s.doc.ID)
}

// closeSessions ends serving all sessions. Their machines wait: they pause at the
// next request, and go on when the sessions are served again.
func (a *Appliance) closeSessions() error {
	a.mu.Lock()
	all := make([]*session, 0, len(a.sessions))
	for _, s := range a.sessions {
		all = append(all, s)
	}
	a.mu.Unlock()
	var errs []error
	for _, s := range all { // first: one may be at a hypervisor that does not answer
		s.mu.Lock()
		if s.unwatch != nil {
			s.unwatch()
		}
		s.mu.Unlock()
	}
	for _, s := range all {
		s.busy.Lock()
		s.endWatch()
		errs = append(errs, s.close())
		s.busy.Unlock()
	}
	return errors.Join(errs...)
}
