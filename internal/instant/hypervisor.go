package instant

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/internal/machine"
)

// ErrUnreachable says that the hypervisor does not answer.
var ErrUnreachable = errors.New("hypervisor does not answer")

// ErrInvalid says that a hypervisor's address is none.
var ErrInvalid = errors.New("no address of a hypervisor")

// ErrTaken says that there is a machine of the name already.
var ErrTaken = errors.New("a machine of that name exists")

// ErrNoNetwork says that the hypervisor has no such network, or that it is not
// active.
var ErrNoNetwork = errors.New("the network cannot be used")

// ErrGone says that there is no such machine any more.
var ErrGone = errors.New("the machine has ended")

// callTimeout bounds what is asked of libvirt: starting a machine may take long on
// a busy host.
const callTimeout = 2 * time.Minute

// defaultSockets are where the daemons of a system listen.
var defaultSockets = []string{"/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"}

// Hypervisor is a connection to libvirt. Its methods may be called concurrently.
type Hypervisor struct {
	conn *libvirt.Libvirt
	net  net.Conn
}

type fixed struct{ net.Conn }

// Dial implements socket.Dialer.
func (f fixed) Dial() (net.Conn, error) { return f.Conn, nil }

// Dial connects to the libvirt of this machine at a URI: qemu:///system, which is
// the default, or qemu+unix:///system?socket=PATH. The caller closes it.
func Dial(ctx context.Context, uri string) (*Hypervisor, error) {
	socket, err := socketOf(uri)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, socket, err)
	}
	h := &Hypervisor{conn: libvirt.NewWithDialer(fixed{nc}), net: nc}
	err = h.bound(ctx, func() error { return h.conn.ConnectToURI(libvirt.QEMUSystem) })
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, socket, err)
	}
	return h, nil
}

func socketOf(uri string) (string, error) {
	if uri == "" {
		uri = "qemu:///system"
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if u.Scheme != "qemu" && u.Scheme != "qemu+unix" || u.Host != "" || u.Path != "/system" {
		return "", fmt.Errorf("%w: %q; machines start on this host only, at qemu:///system or qemu+unix:///system?socket=PATH", ErrInvalid, uri)
	}
	if s := u.Query().Get("socket"); s != "" {
		return s, nil
	}
	for _, s := range defaultSockets {
		if _, err := os.Stat(s); err == nil {
			return s, nil
		}
	}
	return defaultSockets[0], nil
}

// bound calls fn, whose calls take no context, and cuts the connection when ctx
// ends or it takes too long: the calls then return.
func (h *Hypervisor) bound(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { h.net.Close() })
	err := fn()
	if !stop() && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, ctx.Err())
	}
	var answer libvirt.Error
	if err != nil && !errors.As(err, &answer) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

// goodbye is how long a hypervisor is given to be told that a connection ends, which
// it would log as an error otherwise.
const goodbye = time.Second

// Close hangs up. Machines run on.
func (h *Hypervisor) Close() error {
	stop := time.AfterFunc(goodbye, func() { h.net.Close() })
	defer stop.Stop()
	_ = h.conn.Disconnect() // the error of a connection that is gone tells nothing
	h.net.Close()
	return nil
}

// Owner returns the user and group that QEMU runs as; false if libvirt does not
// tell.
func (h *Hypervisor) Owner(ctx context.Context) (uid, gid int, ok bool) {
	var caps []byte
	err := h.bound(ctx, func() (err error) {
		s, err := h.conn.ConnectGetCapabilities()
		caps = []byte(s)
		return err
	})
	if err != nil {
		return 0, 0, false
	}
	return owner(string(caps))
}

// owner finds the base label of the DAC model in libvirt's capabilities.
func owner(caps string) (uid, gid int, ok bool) {
	_, model, found := strings.Cut(caps, "<model>dac</model>")
	if !found {
		return 0, 0, false
	}
	model, _, _ = strings.Cut(model, "</secmodel>")
	_, label, found := strings.Cut(model, "<baselabel")
	_, label, found2 := strings.Cut(label, ">")
	label, _, found3 := strings.Cut(label, "</baselabel>")
	u, g, found4 := strings.Cut(strings.ReplaceAll(label, "+", ""), ":")
	uid, err1 := strconv.Atoi(u)
	gid, err2 := strconv.Atoi(g)
	return uid, gid, found && found2 && found3 && found4 && err1 == nil && err2 == nil
}

// Start starts a machine that is gone from libvirt once it ends, accelerated by KVM
// where that is there. notes are sentences on what could not be carried over.
func (h *Hypervisor) Start(ctx context.Context, m *Machine) (kvm bool, notes []string, err error) {
	if m.Network != Isolated {
		if err := h.wantNetwork(ctx, m.Network); err != nil {
			return false, nil, fmt.Errorf("start machine %s: %w", m.Name, err)
		}
	}
	kvm = h.accelerates(ctx)
	d, err := m.Describe(kvm)
	if err != nil {
		return kvm, nil, err
	}
	flags := libvirt.DomainNone
	if m.Observed {
		flags = libvirt.DomainStartPaused
	}
	err = h.bound(ctx, func() error {
		_, err := h.conn.DomainCreateXML(d.XML, flags)
		return err
	})
	if err != nil {
		return kvm, nil, fmt.Errorf("start machine %s: %w", m.Name, refusal(err))
	}
	return kvm, d.Notes, nil
}

// wantNetwork returns an error unless there is a network of a name, and it is
// active.
func (h *Hypervisor) wantNetwork(ctx context.Context, name string) error {
	var active int32
	err := h.bound(ctx, func() error {
		n, err := h.conn.NetworkLookupByName(name)
		if err == nil {
			active, err = h.conn.NetworkIsActive(n)
		}
		return err
	})
	switch {
	case errors.Is(err, ErrUnreachable):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNoNetwork, err)
	case active == 0:
		return fmt.Errorf("%w: %s is not active", ErrNoNetwork, name)
	}
	return nil
}

// refusal tells apart why libvirt did not start a machine, as far as a user can act
// on it.
func refusal(err error) error {
	var e libvirt.Error
	switch {
	case !errors.As(err, &e):
	case e.Code == uint32(libvirt.ErrOperationFailed) && strings.Contains(e.Message, "already exists"),
		e.Code == uint32(libvirt.ErrOperationInvalid) && strings.Contains(e.Message, "already active"):
		return fmt.Errorf("%w: %w", ErrTaken, err)
	}
	return err
}

// accelerates reports whether machines of type kvm can run.
func (h *Hypervisor) accelerates(ctx context.Context) bool {
	return h.bound(ctx, func() error {
		_, err := h.conn.ConnectGetDomainCapabilities(nil, nil, nil, libvirt.OptString{"kvm"}, 0)
		return err
	}) == nil
}

// State says how a machine is.
type State string

// The states.
const (
	Running State = "running"
	Paused  State = "paused"   // by somebody
	Failing State = "io error" // paused since a request to a disk failed
	Stopped State = "stopped"  // it is gone
)

// domain calls fn with the machine that has a UUID.
func (h *Hypervisor) domain(ctx context.Context, uuid string, fn func(libvirt.Domain) error) error {
	return h.bound(ctx, func() error {
		d, err := h.find(uuid)
		if err != nil {
			return err
		}
		return fn(d)
	})
}

func (h *Hypervisor) find(uuid string) (libvirt.Domain, error) {
	var u libvirt.UUID
	b, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(b) != len(u) {
		return libvirt.Domain{}, fmt.Errorf("%q is no UUID", uuid)
	}
	copy(u[:], b)
	return h.conn.DomainLookupByUUID(u)
}

// State tells how the machine with a UUID is.
func (h *Hypervisor) State(ctx context.Context, uuid string) (s State, err error) {
	err = h.domain(ctx, uuid, func(d libvirt.Domain) error {
		state, reason, err := h.conn.DomainGetState(d, 0)
		switch libvirt.DomainState(state) {
		case libvirt.DomainShutoff, libvirt.DomainCrashed:
			s = Stopped
		case libvirt.DomainPaused:
			s = Paused
			if libvirt.DomainPausedReason(reason) == libvirt.DomainPausedIoerror {
				s = Failing
			}
		default:
			s = Running
		}
		return err
	})
	if isGone(err) {
		return Stopped, nil
	}
	return s, err
}

// isGone reports whether libvirt says that there is no such machine.
func isGone(err error) bool { return answered(err, libvirt.ErrNoDomain) }

// isOver reports whether libvirt says that a machine does not run, of which it is
// known that this is all that can be wrong.
func isOver(err error) bool { return isGone(err) || answered(err, libvirt.ErrOperationInvalid) }

// answered reports whether err is one of these answers of libvirt.
func answered(err error, codes ...libvirt.ErrorNumber) bool {
	var e libvirt.Error
	return errors.As(err, &e) && slices.Contains(codes, libvirt.ErrorNumber(e.Code))
}

// Resume has a paused machine go on; requests that failed are made again.
func (h *Hypervisor) Resume(ctx context.Context, uuid string) error {
	return h.domain(ctx, uuid, func(d libvirt.Domain) error { return h.conn.DomainResume(d) })
}

// Destroy stops a machine at once; one that is gone is no error.
func (h *Hypervisor) Destroy(ctx context.Context, uuid string) error {
	err := h.domain(ctx, uuid, func(d libvirt.Domain) error { return h.conn.DomainDestroy(d) })
	if isOver(err) {
		return nil
	}
	return err
}

// Consoles tells where the screens and serial ports of a running machine are: URIs
// of VNC and SPICE, and paths of terminals.
func (h *Hypervisor) Consoles(ctx context.Context, uuid string) (found []string, err error) {
	var description string
	err = h.domain(ctx, uuid, func(d libvirt.Domain) (err error) {
		description, err = h.conn.DomainGetXMLDesc(d, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return machine.Consoles(description)
}
