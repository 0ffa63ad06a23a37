package libvirt

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// Values of capture.Config.Consistency.
const (
	application = "application"
	crash       = "crash"
	clean       = "clean"
)

// frozenly calls fn with the guest's file systems frozen, if that can be had, and
// says what consistency that makes and why it is no better. The error is fn's:
// that a guest cannot be frozen is none. When it returns, the guest is thawed or
// a guard process is at it.
func (s *Source) frozenly(ctx context.Context, m *machine, d *domain, fn func() error) (consistency, note string, err error) {
	agent := guestAgent{conn: m.conn.Libvirt, dom: m.dom}
	why, already := s.canFreeze(agent, d)
	if already {
		return application, "The guest's file systems were already frozen by somebody else, and were left so.", fn()
	}
	if why != "" {
		return crash, notFrozen(why), fn()
	}
	g, err := startGuard(ctx, s.o.Guard, order{Socket: m.socket, UUID: uuid.UUID(m.dom.UUID).String(), AtMost: s.o.FreezeTimeout + frozenAtMost})
	if err != nil {
		return crash, notFrozen(err.Error()), fn()
	}
	if n, ferr := agent.freeze(s.o.FreezeTimeout); ferr != nil || n == 0 {
		if ferr == nil {
			ferr = errors.New("the guest has no file system that can be frozen")
		}
		terr := s.thaw(m, agent, g, nil)
		return crash, notFrozen(errors.Join(ferr, terr).Error()), fn()
	}
	err = fn()
	thawedCount := 0
	if terr := s.thaw(m, agent, g, &thawedCount); terr != nil {
		m.log.Error("guest is frozen; a guard process goes on trying to thaw it", "err", terr)
		if err != nil { // the note would be lost with the instant
			err = fmt.Errorf("%w; the guest did not answer when it was to be thawed (%w): thaw it, on the host where it runs, with virsh domfsthaw %s", err, terr, m.dom.Name)
		}
		return application, fmt.Sprintf("The guest did not answer when it was to be thawed (%v).", terr), err
	}
	if thawedCount == 0 {
		return crash, notFrozen("the guest thawed by itself before the instant was taken"), err
	}
	return application, "", err
}

// canFreeze returns why the guest cannot be frozen, or that it already is.
func (s *Source) canFreeze(agent guestAgent, d *domain) (why string, already bool) {
	if why := d.agent(); why != "" {
		return why, false
	}
	state, err := agent.status()
	switch {
	case err != nil:
		return "the guest agent does not answer: " + err.Error(), false
	case state == frozen:
		return "", true
	case len(s.o.Guard) == 0:
		return "no guard process is configured that would thaw the guest if this one died", false
	}
	return "", false
}

func notFrozen(why string) string {
	return "The guest's file systems were not frozen: " + why + "."
}

// thaw thaws the guest and dismisses the guard, or leaves the guest to the guard.
func (s *Source) thaw(m *machine, agent guestAgent, g *guard, count *int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*thawTimeout)
	defer cancel()
	n, err := agent.thawUntil(ctx)
	if count != nil {
		*count = n
	}
	if err == nil {
		return g.dismiss(true)
	}
	go func() { // ends with the guard, which limits itself
		m.log.Info("guard process ended", "err", g.dismiss(false))
	}()
	return err
}
