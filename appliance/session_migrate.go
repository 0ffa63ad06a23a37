package appliance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sendense/sendense/internal/instant"
)

// copyEvery is how often a running copy is looked at.
const copyEvery = 200 * time.Millisecond

// MigrateRequest says where the disks of a running session go.
type MigrateRequest struct {
	// To is file:DIR, or pool:NAME of libvirt, or blockdev:PATH with more paths
	// behind commas, one for each disk. Paths are absolute, on the machine's host.
	To     string `json:"to"`
	Format string `json:"format,omitempty"` // of files: qcow2, the default, or raw
	Limit  int64  `json:"limit,omitempty"`  // bytes copied in a second, of each disk; 0: no limit
}

// SessionMigration is a migration that has begun: the record of places that are no
// disks yet.
type SessionMigration struct {
	Paths   map[string]string `json:"paths"`             // by key of the disk
	Devices bool              `json:"devices,omitempty"` // they are block devices, which were there before
	// Switching says that machines may have taken places over already.
	Switching bool `json:"switching,omitempty"`
}

// MigrateResult is what a migration leaves: a machine of libvirt's.
type MigrateResult struct {
	Machine string            `json:"machine"`
	UUID    string            `json:"uuid"`
	Disks   map[string]string `json:"disks"` // paths, by key
	Notes   []string          `json:"notes,omitempty"`
}

// Migrate starts a job that moves the disks of a session to storage while its
// machine runs; then the session ends and the machine stays, as one of libvirt's.
// Should the job fail or be cancelled, the session runs on as it was.
func (a *Appliance) Migrate(ctx context.Context, id string, r MigrateRequest) (Job, error) {
	s, err := a.changeable(id)
	if err != nil {
		return Job{}, err
	}
	job, err := a.startMigrate(ctx, s, r)
	if err != nil {
		s.busy.Unlock()
	}
	return job, err
}

// startMigrate is Migrate with s.busy held, which the job gives up.
func (a *Appliance) startMigrate(ctx context.Context, s *session, r MigrateRequest) (_ Job, err error) {
	if err := s.wantMovable(ctx, r); err != nil {
		return Job{}, err
	}
	to, err := s.plan(ctx, r)
	if err != nil {
		return Job{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, to.release())
		}
	}()
	return a.start("migrate", s.doc.Name, s.doc.Point, func(ctx context.Context, job *running) (result any, err error) {
		defer s.busy.Unlock()
		defer func() { err = errors.Join(err, to.release()) }()
		s.setWork(SessionMoving)
		defer s.setWork("")
		m := &migration{a: a, s: s, job: job, limit: r.Limit, to: to}
		return m.run(ctx)
	})
}

// wantMovable returns an error unless the session has a machine that runs.
func (s *session) wantMovable(ctx context.Context, r MigrateRequest) error {
	if r.Limit < 0 {
		return &Error{Code: CodeInvalid, Msg: "The limit is negative.", Hint: "Give bytes in a second, or 0 for none."}
	}
	if err := errors.Join(s.wantServed(), s.wantSettled()); err != nil {
		return err
	}
	if s.doc.Machine == nil {
		return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("Session %s has no machine.", s.doc.ID),
			Hint: "Start one with: sendense-control session start " + s.doc.ID + "; or keep the session and restore the point."}
	}
	if s.look(ctx); s.view().State != SessionRunning {
		return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("The machine of session %s does not run: it is %s.", s.doc.ID, s.view().State),
			Hint: "Start it with session start, or go on with session resume. One that is shut down: session keep, then restore."}
	}
	return nil
}

// migration is the work of one job.
type migration struct {
	a     *Appliance
	s     *session
	job   *running
	h     *instant.Hypervisor
	limit int64
	to    *places
}

func (m *migration) uuid() string { return m.s.doc.Machine.UUID }

// run does the job with s.busy held.
func (m *migration) run(ctx context.Context) (result any, err error) {
	if m.h, err = instant.Dial(ctx, m.s.doc.Machine.Connect); err != nil {
		return nil, hypervisorError(err)
	}
	defer m.h.Close()
	if err := m.begin(); err != nil {
		return nil, err
	}
	err = m.copyAll(ctx)
	// Beyond this the migration is brought to its end: half of it is nobody's wish.
	done := context.WithoutCancel(ctx)
	if err == nil {
		err = m.switchAll(done)
	}
	if err != nil {
		return nil, m.giveUp(done, err)
	}
	if err := m.h.Keep(done, m.uuid()); err != nil {
		m.s.setUnsettled(notKept(err))
		return nil, remains{&Error{Code: CodeInternal, Err: err, Msg: fmt.Sprintf("Machine %s runs from its new disks, but libvirt does not keep its description: %v.",
			m.s.doc.Machine.Name, err), Hint: "That is tried again and again: sendense-control session show " + m.s.doc.ID}}
	}
	r := MigrateResult{Machine: m.s.doc.Machine.Name, UUID: m.uuid(), Disks: map[string]string{}, Notes: m.to.notes}
	for _, d := range m.s.doc.Disks {
		r.Disks[d.Key] = d.Moved
	}
	if m.to.pool != "" {
		if err := (instant.Definer{URI: m.s.doc.Machine.Connect}).Refresh(done, m.to.pool); err != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("The storage pool does not show its files yet (%v): virsh pool-refresh %s.", err, m.to.pool))
		}
	}
	return r, m.a.end(m.s)
}

// begin makes the files and records them: whoever comes after a crash knows whose
// they are.
func (m *migration) begin() error {
	if err := m.to.make(); err != nil {
		return err
	}
	err := m.record(&SessionMigration{Paths: m.to.paths(), Devices: m.to.devices()})
	if err != nil {
		m.s.setMigration(nil)
		return errors.Join(err, m.to.remove())
	}
	return nil
}

// giveUp settles what a migration that failed has begun, and returns what to tell.
func (m *migration) giveUp(ctx context.Context, why error) error {
	err := m.a.settle(ctx, m.s)
	m.s.setUnsettled(err)
	if err == nil {
		return migrateError(why)
	}
	return remains{&Error{Code: CodeInternal, Err: errors.Join(why, err), Msg: sentence(why.Error()) + " What it has begun could not be settled: " + sentence(err.Error()),
		Hint: "Until that is settled the session can neither be kept nor started: sendense-control session show " + m.s.doc.ID}}
}

func migrateError(err error) error {
	var e *Error
	if errors.As(err, &e) || errors.Is(err, context.Canceled) {
		return err
	}
	return &Error{Code: CodeInternal, Err: err, Msg: sentence(err.Error()), Hint: "The session runs on as it was. Put right what it tells, and migrate again."}
}

// record records how the migration stands; nil: there is none.
func (m *migration) record(x *SessionMigration) error { return m.a.recordMigration(m.s, x) }

func (a *Appliance) recordMigration(s *session, x *SessionMigration) error {
	return a.opts.Journal.PutSession(s.setMigration(x))
}

// setMigration says how the migration stands, and returns what to record.
func (s *session) setMigration(x *SessionMigration) Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc.Migration = x
	return s.doc
}

// copyAll copies all disks and returns when every copy can take over.
func (m *migration) copyAll(ctx context.Context) error {
	for _, d := range m.s.doc.Disks {
		if to, ok := m.to.at[d.Key]; ok {
			if err := m.h.BeginCopy(ctx, m.uuid(), d.target(), to, m.limit); err != nil {
				return fmt.Errorf("copy disk %s to %s: %w", d.Key, to.Path, err)
			}
		}
	}
	for {
		ready, err := m.progress(ctx)
		if ready || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(copyEvery):
		}
	}
}

// progress looks at all copies once.
func (m *migration) progress(ctx context.Context) (ready bool, err error) {
	ready = true
	var done, total int64
	for _, d := range m.s.doc.Disks {
		to, ok := m.to.at[d.Key]
		if !ok {
			continue
		}
		c, err := m.h.Copying(ctx, m.uuid(), d.target())
		if err == nil && !c.Active {
			err = errors.New("it ended by itself; the hypervisor's log tells why")
		}
		if err != nil {
			return false, fmt.Errorf("copy disk %s to %s: %w", d.Key, to.Path, err)
		}
		ready = ready && c.Ready
		done, total = done+c.Done, total+c.Total
	}
	m.job.progress("copy", "", done, total)
	return ready, nil
}

// switchAll has the machine go on with the copies, one after another.
func (m *migration) switchAll(ctx context.Context) error {
	if err := m.record(&SessionMigration{Paths: m.to.paths(), Devices: m.to.devices(), Switching: true}); err != nil {
		return err
	}
	for _, d := range m.s.doc.Disks {
		to, ok := m.to.at[d.Key]
		if !ok {
			continue
		}
		if err := m.h.SwitchToCopy(ctx, m.uuid(), d.target()); err != nil {
			return fmt.Errorf("go on with disk %s in %s: %w", d.Key, to.Path, err)
		}
		m.s.setMoved(d.Key, to.Path)
		if err := m.record(m.s.doc.Migration); err != nil {
			return err
		}
	}
	return m.record(nil)
}

func (s *session) setMoved(key, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	disks := append([]SessionDisk(nil), s.doc.Disks...)
	for i := range disks {
		if disks[i].Key == key {
			disks[i].Moved = path
		}
	}
	s.doc.Disks = disks
}
