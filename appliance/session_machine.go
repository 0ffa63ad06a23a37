package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/instant"
)

// SessionStart says how the machine of a session starts again.
type SessionStart struct {
	MachineSpec
	// FromSession starts it although disks of the session are elsewhere, or may be,
	// where a migration stopped half-way: it goes on from what the session has, and
	// the copies stay where they are.
	FromSession bool `json:"from_session,omitempty"`
}

// StartSession starts the machine of a session again, or another in its place,
// once it has ended.
func (a *Appliance) StartSession(ctx context.Context, id string, r SessionStart) (Session, error) {
	s, err := a.changeable(id)
	if err != nil {
		return Session{}, err
	}
	defer s.busy.Unlock()
	if err := s.wantServed(); err != nil {
		return Session{}, err
	}
	if !r.FromSession {
		if err := errors.Join(s.wantSettled(), s.wantUnmoved()); err != nil {
			return Session{}, err
		}
	}
	if err := a.wantStopped(ctx, s); err != nil {
		return Session{}, err
	}
	_, point, err := a.Point(ctx, s.doc.VM, s.doc.Point)
	if err != nil {
		return Session{}, err
	}
	var copies []string
	if r.FromSession {
		if copies, err = a.giveUpCopies(s); err != nil {
			return Session{}, err
		}
	}
	spec := r.MachineSpec
	if m := s.doc.Machine; m != nil && spec == (MachineSpec{}) {
		spec = m.MachineSpec
	} else if m != nil && spec.Connect == "" {
		spec.Connect = m.Connect
	}
	s.endWatch()
	defer a.beginWatch(s)
	before := s.doc.Machine
	if err := a.startMachine(ctx, s, spec, point); err != nil {
		return Session{}, err
	}
	a.removeVariables(before)
	x := s.view()
	for _, path := range copies {
		x.Notes = append(x.Notes, fmt.Sprintf("%s is needed no more by the session, and is still there.", path))
	}
	return x, nil
}

// wantServed returns an error if the session's disks are not served.
func (s *session) wantServed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.problem != nil:
		return &Error{Code: CodeInvalid, Err: s.problem, Msg: fmt.Sprintf("Session %s is broken: %v.", s.doc.ID, s.problem),
			Hint: "Put right what it tells, and start the control plane again; or discard the session."}
	case s.ending:
		return &Error{Code: CodeBusy, Msg: fmt.Sprintf("Session %s ends as soon as its machine can be stopped.", s.doc.ID), Hint: "Boot the point again."}
	}
	return nil
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
	described, err := m.Describe(false)
	if err != nil {
		return hypervisorError(err)
	}
	disks := slices.Clone(s.doc.Disks)
	for i := range disks {
		disks[i].Target = described.Targets[disks[i].Key]
	}
	// First the record: whatever happens now, the machine is known.
	s.mu.Lock()
	before, machine := s.doc, s.machine
	s.doc.Machine, s.doc.Disks, s.doc.Notes = &SessionMachine{MachineSpec: spec, UUID: m.UUID, Variables: described.Variables}, disks, nil
	s.machine = instant.Stopped
	doc := s.doc
	s.mu.Unlock()
	if err := a.opts.Journal.PutSession(doc); err != nil {
		s.restore(before, machine)
		return err
	}
	a.beginWatch(s)
	if err := a.launch(ctx, h, s, m); err != nil {
		if !errors.Is(err, instant.ErrUnreachable) { // else it may run all the same
			s.endWatch()
			s.restore(before, machine)
			if err := a.opts.Journal.PutSession(before); err != nil {
				a.log.Warn("machine that did not start stays recorded", "session", s.doc.ID, "err", err)
			}
		}
		return hypervisorError(err)
	}
	a.log.Info("machine of session started", "session", s.doc.ID, "machine", spec.Name)
	return nil
}

// removeVariables removes what a machine that has ended kept its firmware's variables
// in. They are fresh with each start.
func (a *Appliance) removeVariables(m *SessionMachine) {
	if m == nil || m.Variables == "" {
		return
	}
	if err := os.Remove(m.Variables); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("variables of a machine that has ended were not removed", "path", m.Variables, "err", err)
	}
}

// restore takes back what was changed of the session's machine.
func (s *session) restore(before Session, machine instant.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc, s.machine = before, machine
}

// launch starts a machine that is recorded, and records what is known of it then.
func (a *Appliance) launch(ctx context.Context, h *instant.Hypervisor, s *session, m *instant.Machine) error {
	accelerated, notes, err := h.Start(ctx, m)
	if err != nil {
		return err
	}
	consoles, err := h.Consoles(ctx, m.UUID)
	if err != nil {
		a.log.Warn("consoles of machine are not known", "session", s.doc.ID, "err", err)
	}
	s.mu.Lock()
	s.machine = instant.Running
	running := *s.doc.Machine // which others may be looking at
	running.Consoles, running.Accelerated = consoles, accelerated
	s.doc.Machine, s.doc.Notes = &running, notes
	doc := s.doc
	s.mu.Unlock()
	if err := a.opts.Journal.PutSession(doc); err != nil {
		a.log.Warn("consoles of machine are not recorded", "session", s.doc.ID, "err", err)
	}
	return nil
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
		Hint: "See libvirt's log. For a machine of your own making, the disks are served by: sendense-control boot --disks-only"}
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
		s.saw("", err)
		return
	}
	defer h.Close()
	s.saw(h.State(ctx, m.UUID))
}
