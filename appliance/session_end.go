package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/repository"
)

func decodeConfig(raw json.RawMessage, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read configuration of point: %w", err)
	}
	return nil
}

// wantStopped returns an error if the session's machine runs, or nobody knows.
func (a *Appliance) wantStopped(ctx context.Context, s *session) error {
	m := s.doc.Machine
	if m == nil {
		return nil
	}
	h, err := instant.Dial(ctx, m.Connect)
	if err != nil {
		return hypervisorError(err)
	}
	defer h.Close()
	state, err := h.State(ctx, m.UUID)
	if err != nil {
		return hypervisorError(err)
	}
	s.saw(state, nil)
	if state == instant.Stopped {
		return nil
	}
	return &Error{Code: CodeBusy, Msg: fmt.Sprintf("The machine %s of session %s is not shut down.", m.Name, s.doc.ID),
		Hint: "Shut it down from inside, or stop it at once with --force, as if its plug were pulled."}
}

// stopMachine ends the session's machine at once.
func (s *session) stopMachine(ctx context.Context) error {
	m := s.doc.Machine
	if m == nil {
		return nil
	}
	h, err := instant.Dial(ctx, m.Connect)
	if err != nil {
		return hypervisorError(err)
	}
	defer h.Close()
	if err := h.Destroy(ctx, m.UUID); err != nil {
		return hypervisorError(err)
	}
	s.saw(instant.Stopped, nil)
	return nil
}

// Discard ends a session and throws away what was written in it. Its machine is
// stopped at once. force does so even if the hypervisor does not answer, and if
// disks are elsewhere, or may be: those stay.
func (a *Appliance) Discard(ctx context.Context, id string, force bool) error {
	s, err := a.changeable(id)
	if err != nil {
		return err
	}
	defer s.busy.Unlock()
	return a.discard(context.WithoutCancel(ctx), s, force)
}

// discard is Discard with s.busy held. Once the record is gone, so is the session:
// a later start clears away what is left.
func (a *Appliance) discard(ctx context.Context, s *session, force bool) error {
	if s.moved() && s.doc.Migration == nil {
		return a.end(s)
	}
	if err := errors.Join(s.wantRead(), s.wantSettled(), s.wantUnmoved()); err != nil && !force {
		return err
	}
	s.endWatch()
	if err := s.stopMachine(ctx); err != nil {
		if !force {
			a.beginWatch(s)
			return err
		}
		a.log.Warn("machine of session was not stopped", "session", s.doc.ID, "err", err)
	}
	return a.end(s)
}

// end ends a session whose disks nobody needs any more. The caller holds s.busy.
func (a *Appliance) end(s *session) error {
	s.endWatch()
	err := a.conclude(s)
	if err != nil {
		a.beginWatch(s)
	}
	return err
}

// conclude is end for who has ended the watch, or is it.
func (a *Appliance) conclude(s *session) error {
	if err := a.opts.Journal.DeleteSession(s.doc.ID); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		a.log.Warn("session did not close", "session", s.doc.ID, "err", err)
	}
	if !s.moved() { // else they go on with the machine
		a.removeVariables(s.doc.Machine)
	}
	a.forget(s)
	a.log.Info("session ended", "session", s.doc.ID, "elsewhere", s.doc.Copies())
	if err := os.RemoveAll(a.sessionDir(s.doc.ID)); err != nil { // the next start does
		a.log.Warn("what is left of a session cannot be removed", "session", s.doc.ID, "err", err)
	}
	return nil
}

// wantRead returns an error if the session's record cannot be read.
func (s *session) wantRead() error {
	if s.doc.VM != "" {
		return nil
	}
	return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("The record of session %s cannot be read: nobody knows whether its machine runs.", s.doc.ID),
		Hint: "Put the record right and start the control plane again; or stop the machine, if there is one, and add --force."}
}

// Keep starts a job that makes what a session wrote a new point of its VM, and
// then ends the session. The machine has to be shut down, or is stopped at once if
// force says so. Should the job fail, the session is what it was.
func (a *Appliance) Keep(ctx context.Context, id string, force bool) (Job, error) {
	s, err := a.changeable(id)
	if err != nil {
		return Job{}, err
	}
	job, err := a.startKeep(ctx, s, force)
	if err != nil {
		s.busy.Unlock()
	}
	return job, err
}

// startKeep is Keep with s.busy held, which the job gives up.
func (a *Appliance) startKeep(ctx context.Context, s *session, force bool) (Job, error) {
	if err := errors.Join(s.wantServed(), s.wantSettled(), s.wantUnmoved()); err != nil {
		return Job{}, err
	}
	if !force {
		if err := a.wantStopped(ctx, s); err != nil {
			return Job{}, err
		}
	}
	return a.start("keep", s.doc.Name, "", func(ctx context.Context, job *running) (any, error) {
		defer s.busy.Unlock()
		s.setWork(SessionKeeping)
		defer s.setWork("")
		point, err := a.keep(ctx, s, job, force)
		if err != nil {
			return nil, userError(err)
		}
		if err := a.conclude(s); err != nil {
			s.setProblem(fmt.Errorf("it was kept as point %s, but could not be ended: %w", point.ID, err))
			a.beginWatch(s)
			job.warn(fmt.Sprintf("session %s could not be ended: %v; discard it", s.doc.ID, err))
		}
		return BackupResult{Point: point}, nil
	})
}

// setWork says what job is at the session; "": none.
func (s *session) setWork(state SessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.work = state
}

// wantUnmoved returns an error if disks of the session are elsewhere already, where
// a migration stopped half-way.
func (s *session) wantUnmoved() error {
	for _, d := range s.doc.Disks {
		if d.Moved != "" {
			hint := fmt.Sprintf("Bring the migration to its end, with: sendense-control session migrate %s --to PLACE", s.doc.ID)
			if s.view().State == SessionStopped {
				hint = fmt.Sprintf("Its machine has ended. To go on from what the session had of that disk: sendense-control session start %s --from-session", s.doc.ID)
			}
			return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("Disk %s of session %s is in %s already.", d.Key, s.doc.ID, d.Moved), Hint: hint}
		}
	}
	return nil
}

// moved reports whether all disks of the session are elsewhere: its machine needs it
// no more.
func (s *session) moved() bool {
	for _, d := range s.doc.Disks {
		if d.Moved == "" {
			return false
		}
	}
	return len(s.doc.Disks) > 0
}

// keep makes the point, and leaves the session without a watch if it did. Clients
// lose the disks: nothing is to change meanwhile. Before that, and before a machine
// is stopped for it, all is tried that may be refused.
func (a *Appliance) keep(ctx context.Context, s *session, job *running, force bool) (_ Point, err error) {
	_, from, err := a.Point(ctx, s.doc.VM, s.doc.Point)
	if err != nil {
		return Point{}, err
	}
	draft, err := a.repo.Begin(ctx, repository.BeginOptions{VM: from.VM, Name: s.doc.Name, Holder: job.job.ID})
	if err != nil {
		return Point{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Abort(context.WithoutCancel(ctx)))
		}
	}()
	if err := job.setPoint(string(draft.Point())); err != nil {
		return Point{}, err
	}
	if force {
		if err := s.stopMachine(ctx); err != nil {
			return Point{}, err
		}
	}
	s.endWatch()
	defer func() {
		if err != nil {
			s.setProblem(a.reopen(context.WithoutCancel(ctx), s))
			a.beginWatch(s)
		}
	}()
	if err := s.close(); err != nil {
		return Point{}, err
	}
	info := repository.PointInfo{Job: job.job.ID, Source: "session", Config: from.Config}
	for _, d := range s.doc.Disks {
		reason := fmt.Sprintf("written in session %s from point %s", s.doc.ID, s.doc.Point)
		info.Disks = append(info.Disks, repository.DiskInfo{Key: d.Key, Mode: "session", Reason: reason})
		if err := a.keepDisk(ctx, s, d, draft, job); err != nil {
			return Point{}, fmt.Errorf("keep disk %s: %w", d.Key, err)
		}
	}
	return draft.Commit(context.WithoutCancel(ctx), info)
}

// keepDisk writes a disk to a draft: what the session wrote, if the draft builds on
// the session's point, or else all of it, of which the draft drops what is equal.
func (a *Appliance) keepDisk(ctx context.Context, s *session, d SessionDisk, draft repository.Draft, job *running) (err error) {
	backing, err := a.repo.OpenDisk(ctx, repository.VMID(s.doc.VM), repository.PointID(s.doc.Point), d.Index, repository.OpenOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backing.Close()) }()
	o, err := instant.OpenOverlay(ctx, d.File, backing, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	to, err := draft.AddDisk(ctx, d.Key, d.Size)
	if err != nil {
		return err
	}
	c := copier{from: o, to: to.Device(), progress: func(done int64) { job.progress("copy", d.Key, done, d.Size) }, buf: make([]byte, 4<<20)}
	if p := draft.Parent(); p == nil || string(p.ID) != s.doc.Point {
		return block.MapAll(ctx, o, 0, d.Size, func(e block.Extent) error {
			return c.copy(ctx, e.Off, e.Len, e.Kind == block.Data)
		})
	}
	file, err := image.OpenFile(d.File)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return file.Runs(ctx, 0, d.Size, func(r image.Run) error {
		if r.Content == image.Absent {
			return ctx.Err()
		}
		return c.copy(ctx, r.Off, r.Len, true)
	})
}

// copier writes ranges of one disk to another.
type copier struct {
	from     block.Device
	to       block.Device
	progress func(done int64)
	buf      []byte
}

// copy copies a range, which is zeroes unless it is data.
func (c *copier) copy(ctx context.Context, off, n int64, data bool) error {
	for n > 0 {
		k := min(n, int64(len(c.buf)))
		var err error
		if data {
			if err = c.from.ReadAt(ctx, c.buf[:k], off); err == nil {
				err = block.Write(ctx, c.to, c.buf[:k], off)
			}
		} else {
			k = n
			err = block.WriteZeroes(ctx, c.to, off, k, block.MayTrim)
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
		c.progress(off)
	}
	return nil
}
