package libvirt

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
)

// callTimeout limits calls that have no context of their own.
const callTimeout = 30 * time.Second

// handle is a domain over a connection: what can be asked of libvirt.
type handle struct {
	conn *conn
	dom  libvirt.Domain
	log  *slog.Logger
}

// machine is a domain that is watched for as long as an instant of it is open.
type machine struct {
	handle
	socket  string
	host    string
	running bool        // when the instant was taken
	release func() bool // makes the connection independent of Begin's context

	cancel context.CancelFunc // ends the watch
	done   chan struct{}      // closed when the watch has ended

	mu      sync.Mutex // guards the field below
	changed error      // the first reason why the instant is none any more
}

// watch begins to listen to the machine's lifecycle. It is ended by unwatch.
func (m *machine) watch() error {
	ctx, cancel := context.WithCancel(context.Background())
	events, err := m.conn.LifecycleEvents(ctx)
	if err != nil {
		cancel()
		return err
	}
	m.cancel, m.done = cancel, make(chan struct{})
	go func() {
		defer close(m.done)
		for e := range events {
			if e.Dom.UUID == m.dom.UUID {
				m.event(libvirt.DomainEventType(e.Event), e.Detail)
			}
		}
	}()
	return nil
}

// uncut calls fn with a connection that the end of ctx does not close. Something
// half begun would be hard to undo.
func (m *machine) uncut(ctx context.Context, fn func(context.Context) error) error {
	if !m.release() {
		return ctx.Err()
	}
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*callTimeout)
	defer cancel()
	m.release = m.conn.bound(patient)
	err := fn(patient)
	if !m.release() && err == nil {
		err = patient.Err()
	}
	m.release = m.conn.bound(ctx)
	return err
}

func (m *machine) unwatch() {
	m.cancel()
	<-m.done
}

func (m *machine) event(e libvirt.DomainEventType, detail int32) {
	switch e {
	case libvirt.DomainEventStarted:
		m.fail("it was started")
	case libvirt.DomainEventShutdown:
		m.fail("it stopped")
	case libvirt.DomainEventStopped:
		if libvirt.DomainEventStoppedDetailType(detail) == libvirt.DomainEventStoppedMigrated {
			m.fail(migrated)
		}
		m.fail("it stopped")
	case libvirt.DomainEventCrashed:
		m.fail("it crashed")
	}
}

// fail records what became of the machine.
func (m *machine) fail(why string) {
	m.failWith(fmt.Errorf("%s: %w: %s", m.dom.Name, capture.ErrVMChanged, why))
}

// failWith records why the instant is none any more. The first reason stays.
func (m *machine) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed == nil {
		m.changed = err
	}
}

func (m *machine) reason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// check asks libvirt whether the machine is what it was when the instant was
// taken: running under the same ID, or not running.
func (m *machine) check() error {
	if err := m.reason(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	defer m.conn.bound(ctx)()
	now, err := m.conn.DomainLookupByUUID(m.dom.UUID)
	switch {
	case hasCode(err, libvirt.ErrNoDomain):
		m.fail("it is gone from the host")
	case err != nil:
		return explain(ctx, "ask for the state of "+m.dom.Name, err)
	case now.ID != m.dom.ID && m.running && now.ID < 0:
		m.fail(m.howStopped())
	case now.ID != m.dom.ID:
		m.fail("it was started")
	case m.running && m.ending():
		m.fail(m.howStopped())
	}
	return m.reason()
}

// ending reports whether the machine's QEMU has stopped for good or is about to.
// With a backup job libvirt can take half a minute to notice that its QEMU has
// ended after a shutdown, and answers other questions only then.
func (h handle) ending() bool {
	state, _, err := h.conn.DomainGetState(h.dom, 0)
	if err != nil {
		return hasCode(err, libvirt.ErrNoDomain)
	}
	switch libvirt.DomainState(state) {
	case libvirt.DomainShutdown, libvirt.DomainShutoff, libvirt.DomainCrashed:
		return true
	}
	return false
}
