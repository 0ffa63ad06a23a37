package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
)

// Options configure a [Source].
type Options struct {
	// URI says where libvirt listens, default "qemu:///system". Others are
	// qemu+unix:///system?socket=PATH and the path of a socket.
	URI string
	// ScratchDir is where QEMU keeps the old content of what the guest overwrites
	// while an instant is open, and its sockets; default /var/tmp. It needs room
	// for what the guest overwrites meanwhile, at most the size of its disks.
	// QEMU's user must be able to enter it.
	ScratchDir string
	// ScratchReserve is the room in ScratchDir, in bytes, at which a backup is
	// given up, default 1 GiB. Without room for what it overwrites a guest gets
	// write errors from QEMU.
	ScratchReserve int64
	// Guard is the argv of a program that calls RunGuard; it thaws the guest
	// should this process die while the guest is frozen. Default none: then no
	// guest is frozen, and instants of running machines are crash-consistent.
	Guard []string
	// FreezeTimeout is how long the guest agent may take to freeze its file
	// systems, default 10 s, rounded to seconds.
	FreezeTimeout time.Duration
	// OpenImage opens a disk file of a machine that does not run, to be read. The
	// format is one of libvirt's names: "qcow2", "raw". Default none: then only
	// running machines can be captured.
	OpenImage func(path, format string) (block.Device, io.Closer, error)
	// Conns is how many NBD connections to read each disk with, default 4.
	Conns int
	// Log gets what an operator would want to know, default: discard.
	Log *slog.Logger
}

// Source captures the machines of one libvirtd.
type Source struct {
	o      Options
	socket string
}

var _ capture.Source = (*Source)(nil)

// New returns a source. It does not connect yet; an error is one of the options.
func New(o Options) (*Source, error) {
	socket, err := socketOf(o.URI)
	if err != nil {
		return nil, err
	}
	if o.ScratchDir == "" {
		o.ScratchDir = "/var/tmp"
	}
	if o.ScratchReserve <= 0 {
		o.ScratchReserve = 1 << 30
	}
	if o.FreezeTimeout <= 0 {
		o.FreezeTimeout = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{o: o, socket: socket}, nil
}

// Resolve finds a machine by name or UUID.
func (s *Source) Resolve(ctx context.Context, nameOrUUID string) (capture.VM, error) {
	c, err := dial(ctx, s.socket)
	if err != nil {
		return capture.VM{}, err
	}
	defer c.hangUp()
	defer c.bound(ctx)()
	dom, err := c.DomainLookupByName(nameOrUUID)
	if id, perr := uuid.Parse(nameOrUUID); perr == nil && hasCode(err, libvirt.ErrNoDomain) {
		dom, err = c.DomainLookupByUUID(libvirt.UUID(id))
	}
	if err != nil {
		return capture.VM{}, explain(ctx, "look up "+nameOrUUID, err)
	}
	return capture.VM{UUID: uuid.UUID(dom.UUID).String(), Name: dom.Name}, nil
}

// Begin takes an instant of a machine, running or not.
func (s *Source) Begin(ctx context.Context, vm capture.VM, r capture.Request) (capture.Instant, error) {
	id, err := uuid.Parse(vm.UUID)
	if err != nil {
		return nil, fmt.Errorf("machine %q: %w: %w", vm.UUID, capture.ErrNoVM, err)
	}
	c, err := dial(ctx, s.socket)
	if err != nil {
		return nil, err
	}
	m := &machine{handle: handle{conn: c}, socket: s.socket, release: c.bound(ctx)}
	inst, err := s.begin(ctx, m, libvirt.UUID(id), r)
	if !m.release() && err == nil {
		err = errors.Join(ctx.Err(), inst.Close())
	}
	if err != nil {
		c.hangUp()
		return nil, err
	}
	return inst, nil
}

// begin takes the instant; the instant hangs up when it is closed.
func (s *Source) begin(ctx context.Context, m *machine, id libvirt.UUID, r capture.Request) (capture.Instant, error) {
	dom, err := m.conn.DomainLookupByUUID(id)
	if err != nil {
		return nil, explain(ctx, "look up "+uuid.UUID(id).String(), err)
	}
	m.dom, m.log = dom, s.o.Log.With("vm", dom.Name)
	if m.host, err = m.conn.ConnectGetHostname(); err != nil {
		return nil, explain(ctx, "ask for the host's name", err)
	}
	// Events first, the state second: what changes in between is seen twice rather
	// than not at all.
	if err := m.watch(); err != nil {
		return nil, explain(ctx, "watch "+dom.Name, err)
	}
	active, err := m.conn.DomainIsActive(dom)
	if err != nil {
		m.unwatch()
		return nil, explain(ctx, "ask for the state of "+dom.Name, err)
	}
	m.running = active == 1
	var inst capture.Instant
	if m.running {
		inst, err = s.beginRunning(ctx, m, r)
	} else {
		inst, err = s.beginStopped(ctx, m, r)
	}
	if err != nil {
		m.unwatch()
		return nil, fmt.Errorf("capture %s: %w", dom.Name, err)
	}
	return inst, nil
}
