package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/instant"
)

// How often a session's machine is looked at. Where that is in vain, or it pauses
// again at once, it is left alone longer and longer.
const (
	lookEvery  = 250 * time.Millisecond
	lookAtMost = 2 * time.Second
)

// StartSession starts the machine of a session again, or another in its place,
// once it has ended.
func (a *Appliance) StartSession(ctx context.Context, id string, spec MachineSpec) (Session, error) {
	s, err := a.changeable(id)
	if err != nil {
		return Session{}, err
	}
	defer s.busy.Unlock()
	if s.problem != nil {
		return Session{}, &Error{Code: CodeInvalid, Err: s.problem, Msg: fmt.Sprintf("Session %s is broken: %v.", id, s.problem),
			Hint: "Put right what it tells, and start the control plane again; or discard the session."}
	}
	if err := errors.Join(s.wantUnmoved(), a.wantStopped(ctx, s)); err != nil {
		return Session{}, err
	}
	_, point, err := a.Point(ctx, s.doc.VM, s.doc.Point)
	if err != nil {
		return Session{}, err
	}
	if m := s.doc.Machine; m != nil && spec == (MachineSpec{}) {
		spec = m.MachineSpec
	}
	s.endWatch()
	if err := a.startMachine(ctx, s, spec, point); err != nil {
		return Session{}, err
	}
	return s.view(), nil
}

// ResumeSession has the machine of a session go on after it paused, with another
// quota if one is given.
func (a *Appliance) ResumeSession(ctx context.Context, id string, quota *int64) (Session, error) {
	s, err := a.changeable(id)
	if err != nil {
		return Session{}, err
	}
	defer s.busy.Unlock()
	if quota != nil {
		if *quota < 0 {
			return Session{}, &Error{Code: CodeInvalid, Msg: "The quota is negative.", Hint: "Give a number of bytes, or 0 for none."}
		}
		s.mu.Lock()
		s.doc.QuotaBytes = *quota
		doc := s.doc
		s.mu.Unlock()
		if err := a.opts.Journal.PutSession(doc); err != nil {
			return Session{}, err
		}
	}
	s.full.Store(false)
	if m := s.doc.Machine; m != nil {
		h, err := instant.Dial(ctx, m.Connect)
		if err != nil {
			return Session{}, hypervisorError(err)
		}
		defer h.Close()
		if state, err := h.State(ctx, m.UUID); err != nil || state == instant.Paused || state == instant.Failing {
			if err = errors.Join(err, h.Resume(ctx, m.UUID)); err != nil {
				return Session{}, hypervisorError(err)
			}
		}
	}
	s.look(ctx)
	return s.view(), nil
}

// changeable finds a session and takes its lock, which the caller gives up.
func (a *Appliance) changeable(id string) (*session, error) {
	if err := a.sessionOwner(); err != nil {
		return nil, err
	}
	s, err := a.session(id)
	if err != nil {
		return nil, err
	}
	if !s.busy.TryLock() {
		return nil, &Error{Code: CodeBusy, Msg: fmt.Sprintf("Session %s is just being changed.", id), Hint: "Wait for it: sendense-control session show " + id}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.sessions[id] != s {
		s.busy.Unlock()
		return nil, noSession(id)
	}
	return s, nil
}

// startMachine starts a machine on the session's disks. The caller holds s.busy.
func (a *Appliance) startMachine(ctx context.Context, s *session, spec MachineSpec, point Point) error {
	if spec.Name == "" {
		spec.Name = s.doc.Name + "-" + s.doc.ID
	}
	if spec.Network == "" {
		spec.Network = instant.Isolated
	}
	h, err := instant.Dial(ctx, spec.Connect)
	if err != nil {
		return hypervisorError(err)
	}
	defer h.Close()
	if err := a.lendSocket(ctx, h, s.doc.Socket); err != nil {
		return err
	}
	m := &instant.Machine{Name: spec.Name, UUID: uuid.NewString(), Network: spec.Network, Observed: s.doc.Passing}
	if len(point.Config) > 0 {
		var c capture.Config
		if err := decodeConfig(point.Config, &c); err != nil {
			return err
		}
		m.Format, m.Definition = c.Format, c.Definition
	}
	for _, d := range s.doc.Disks {
		m.Disks = append(m.Disks, instant.Disk{Key: d.Key, Socket: s.doc.Socket, Export: diskExport(d.Index)})
	}
	// First the record: whatever happens now, the machine is known.
	s.mu.Lock()
	s.doc.Machine = &SessionMachine{MachineSpec: spec, UUID: m.UUID}
	s.machine = instant.Stopped
	s.mu.Unlock()
	if err := a.opts.Journal.PutSession(s.doc); err != nil {
		return err
	}
	accelerated, notes, err := h.Start(ctx, m)
	if err != nil {
		return hypervisorError(err)
	}
	consoles, err := h.Consoles(ctx, m.UUID)
	if err != nil {
		a.log.Warn("consoles of machine are not known", "session", s.doc.ID, "err", err)
	}
	s.mu.Lock()
	s.machine = instant.Running
	s.doc.Machine.Consoles, s.doc.Machine.Accelerated, s.doc.Notes = consoles, accelerated, notes
	s.mu.Unlock()
	a.beginWatch(s)
	a.log.Info("machine of session started", "session", s.doc.ID, "machine", spec.Name)
	return a.opts.Journal.PutSession(s.doc)
}

func hypervisorError(err error) error {
	switch {
	case errors.Is(err, instant.ErrTaken):
		return &Error{Code: CodeInvalid, Err: err, Msg: sentence(err.Error()), Hint: "Choose another name, with --name."}
	case errors.Is(err, instant.ErrNoNetwork):
		return &Error{Code: CodeNotFound, Err: err, Msg: sentence(err.Error()), Hint: "List the networks with: virsh net-list --all; start one with: virsh net-start NAME"}
	case errors.Is(err, instant.ErrInvalid):
		return &Error{Code: CodeInvalid, Err: err, Msg: sentence(err.Error()), Hint: "Leave --connect out, or give such an address."}
	case errors.Is(err, instant.ErrUnreachable):
		return &Error{Code: CodeUnreachable, Err: err, Msg: sentence(err.Error()), Hint: "Start libvirt, with: systemctl start libvirtd (or virtqemud)"}
	}
	return &Error{Code: CodeInternal, Err: err, Msg: sentence(err.Error()),
		Hint: "See libvirt's log. With --disks-only the disks are served, for a machine of your own making."}
}

// openSocket lets a hypervisor's machines use a socket, as far as it answers.
func (a *Appliance) openSocket(ctx context.Context, socket, uri string) error {
	h, err := instant.Dial(ctx, uri)
	if err != nil {
		a.log.Warn("hypervisor does not answer", "connect", uri, "err", err)
		return nil
	}
	defer h.Close()
	return a.lendSocket(ctx, h, socket)
}

// lendSocket makes a socket belong to the user that machines run as.
func (a *Appliance) lendSocket(ctx context.Context, h *instant.Hypervisor, socket string) error {
	uid, gid, ok := h.Owner(ctx)
	if !ok || uid == os.Getuid() {
		return nil
	}
	if err := os.Chown(socket, uid, gid); err != nil {
		return fmt.Errorf("let machines use the session's socket: %w", err)
	}
	run := filepath.Dir(filepath.Dir(socket))
	st, err := os.Stat(run)
	if err != nil || st.Mode()&0o001 != 0 {
		return err
	}
	// To pass through is not to list, nor to use the other sockets.
	return os.Chmod(run, st.Mode().Perm()|0o001)
}

// look asks how the session's machine is.
func (s *session) look(ctx context.Context) {
	s.mu.Lock()
	m := s.doc.Machine
	s.mu.Unlock()
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	h, err := instant.Dial(ctx, m.Connect)
	if err != nil {
		return // it stays what it was
	}
	defer h.Close()
	if state, err := h.State(ctx, m.UUID); err == nil {
		s.mu.Lock()
		s.machine = state
		s.mu.Unlock()
	}
}

// beginWatch has the session's machine go on whenever it paused because its disks
// were not there for a while. The caller holds s.busy.
func (a *Appliance) beginWatch(s *session) {
	m := s.doc.Machine
	if m == nil || s.unwatch != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.unwatch = cancel
	s.watching.Go(func() { a.watchMachine(ctx, s, *m) })
}

// endWatch waits until nobody looks at the machine any more. The caller holds
// s.busy.
func (s *session) endWatch() {
	if s.unwatch != nil {
		s.unwatch()
		s.watching.Wait()
		s.unwatch = nil
	}
}

func (a *Appliance) watchMachine(ctx context.Context, s *session, m SessionMachine) {
	var h *instant.Hypervisor
	defer func() {
		if h != nil {
			h.Close()
		}
	}()
	wait := lookEvery
	for ctx.Err() == nil {
		state, err := lookAt(ctx, &h, m)
		if err == nil {
			s.mu.Lock()
			s.machine = state
			s.mu.Unlock()
		}
		switch {
		case err != nil:
			wait = min(2*wait, lookAtMost)
		case state == instant.Failing && !s.full.Load():
			if err := h.Resume(ctx, m.UUID); err == nil {
				a.log.Info("machine goes on after an error of its disks", "session", s.doc.ID, "err", s.failed.recent())
			}
			wait = min(2*wait, lookAtMost)
		default:
			wait = lookEvery
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// lookAt asks how a machine is, over a connection that it makes if need be.
func lookAt(ctx context.Context, h **instant.Hypervisor, m SessionMachine) (instant.State, error) {
	if *h == nil {
		fresh, err := instant.Dial(ctx, m.Connect)
		if err != nil {
			return "", err
		}
		*h = fresh
	}
	state, err := (*h).State(ctx, m.UUID)
	if err != nil {
		(*h).Close()
		*h = nil
	}
	return state, err
}
