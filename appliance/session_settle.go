package appliance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sendense/sendense/internal/instant"
)

// How a migration that failed is settled before its job ends. What cannot be settled
// then is left to the session's watcher.
const (
	settleTries = 3
	settleTime  = 20 * time.Second // in all
)

// errSplit says that a machine ended while it changed disks.
var errSplit = errors.New("its machine ended while its disks changed hands")

// settle brings a session out of a migration over connections of its own: that of
// the migration may be what failed. The caller holds s.busy.
func (a *Appliance) settle(ctx context.Context, s *session) (err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for range settleTries {
		if err = a.settleOnce(ctx, s); err == nil || errors.Is(err, errSplit) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(lookAtMost):
		}
	}
	return err
}

func (a *Appliance) settleOnce(ctx context.Context, s *session) error {
	if s.doc.Migration == nil {
		return nil
	}
	h, err := instant.Dial(ctx, s.doc.Machine.Connect)
	if err != nil {
		return err
	}
	defer h.Close()
	return a.settleMigration(ctx, h, s)
}

// settleMigration brings a session out of a migration that did not end well: disks
// that the machine has taken over stay where they are, other copies are given up
// and removed. The caller holds s.busy.
func (a *Appliance) settleMigration(ctx context.Context, h *instant.Hypervisor, s *session) error {
	x := s.doc.Migration
	if x == nil {
		return nil
	}
	state, err := h.State(ctx, s.doc.Machine.UUID)
	if err != nil {
		return err
	}
	if state == instant.Stopped && x.Switching && !s.moved() {
		return fmt.Errorf("%w: what it wrote last is either in the session or in %s; look at both. To go on from the session: sendense-control session start %s --from-session",
			errSplit, strings.Join(s.doc.Copies(), ", "), s.doc.ID)
	}
	var errs []error
	for _, d := range s.doc.Disks {
		if path, ok := x.Paths[d.Key]; ok && d.Moved == "" {
			if x.Devices {
				path = "" // it stays, whatever is on it
			}
			errs = append(errs, a.settleCopy(ctx, h, s, d, path, state))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return a.recordMigration(s, nil)
}

// settleCopy is settleMigration for one disk. file is what is removed; empty:
// nothing.
func (a *Appliance) settleCopy(ctx context.Context, h *instant.Hypervisor, s *session, d SessionDisk, file string, state instant.State) error {
	if state != instant.Stopped {
		c, err := h.EndCopy(ctx, s.doc.Machine.UUID, d.target())
		if err != nil {
			return fmt.Errorf("give up the copy of disk %s: %w", d.Key, err)
		}
		if c.Source != "" {
			s.setMoved(d.Key, c.Source)
			return nil
		}
	}
	if file != "" {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the copy of disk %s: %w", d.Key, err)
		}
	}
	a.log.Info("copy of a disk given up", "session", s.doc.ID, "disk", d.Key, "path", file)
	return nil
}

// finishMove ends a session whose disks are all elsewhere, once libvirt keeps its
// machine. The caller holds s.busy and has ended the watch, or is it.
func (a *Appliance) finishMove(ctx context.Context, h *instant.Hypervisor, s *session) error {
	err := h.Keep(ctx, s.doc.Machine.UUID)
	if errors.Is(err, instant.ErrGone) {
		return fmt.Errorf("its machine ended before libvirt kept its description; make another of its disks, which are in %s, and then: sendense-control session discard %s",
			strings.Join(s.doc.Copies(), ", "), s.doc.ID)
	}
	if err != nil {
		return notKept(err)
	}
	return a.conclude(s)
}

func notKept(err error) error {
	return fmt.Errorf("its machine runs from its new disks, but libvirt does not keep its description: %w", err)
}

// Copies returns where disks of the session are besides the session, or may be.
func (s *Session) Copies() []string {
	found := map[string]bool{}
	for _, d := range s.Disks {
		if d.Moved != "" {
			found[d.Moved] = true
		}
	}
	if s.Migration != nil {
		for _, path := range s.Migration.Paths {
			found[path] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// giveUpCopies has the session be where its disks are, whatever copies of them are
// elsewhere, and returns those. The caller holds s.busy, and the machine has ended.
func (a *Appliance) giveUpCopies(s *session) ([]string, error) {
	if s.moved() {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("All disks of session %s are in %s.", s.doc.ID, strings.Join(s.doc.Copies(), ", ")),
			Hint: "Make a machine of those; the session ends with: sendense-control session discard " + s.doc.ID}
	}
	copies := s.doc.Copies()
	s.mu.Lock()
	disks := slices.Clone(s.doc.Disks)
	for i := range disks {
		disks[i].Moved = ""
	}
	s.doc.Disks, s.doc.Migration = disks, nil
	doc := s.doc
	s.mu.Unlock()
	if err := a.opts.Journal.PutSession(doc); err != nil {
		return nil, err
	}
	s.setUnsettled(nil)
	a.log.Info("copies of disks given up; they stay", "session", s.doc.ID, "paths", copies)
	return copies, nil
}

// wantSettled returns an error if nobody knows where the session's disks are.
func (s *session) wantSettled() error {
	s.mu.Lock()
	why := s.unsettled
	if why == nil && s.doc.Migration != nil {
		why = errors.New("what a migration has begun is not settled yet")
	}
	s.mu.Unlock()
	if why == nil {
		return nil
	}
	hint := "It is settled once libvirt answers: sendense-control session show " + s.doc.ID
	if errors.Is(why, errSplit) {
		hint = fmt.Sprintf("Copies stay in any case. To throw away what is in the session: sendense-control session discard %s --force", s.doc.ID)
	}
	return &Error{Code: CodeInvalid, Err: why, Msg: fmt.Sprintf("Session %s is broken: %v.", s.doc.ID, why), Hint: hint}
}
