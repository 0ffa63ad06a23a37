package instant

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/internal/machine"
)

// ErrRejected says that libvirt did not make or start a machine.
var ErrRejected = errors.New("libvirt refuses")

// Definer makes machines that stay, in the libvirt at a URI as for [Dial]. It
// connects for each call, since hours may lie between them.
type Definer struct{ URI string }

// with calls fn with a connection.
func (d Definer) with(ctx context.Context, fn func(*Hypervisor) error) error {
	h, err := Dial(ctx, d.URI)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.bound(ctx, func() error { return fn(h) })
}

// Survey tells what the host has, as far as a machine wants to know.
func (d Definer) Survey(ctx context.Context, w machine.Wants) (s machine.Site, err error) {
	err = d.with(ctx, func(h *Hypervisor) error {
		if s.Name, err = h.conn.ConnectGetHostname(); err != nil {
			return err
		}
		if s.Offer, s.KVM, err = h.offer(w); err != nil {
			return err
		}
		s.FitsCPU = w.CPU == "" || s.KVM && h.fits(w, s.Machine)
		if s.Taken, err = h.taken(w); err != nil {
			return err
		}
		if s.Pool, err = h.pool(w.Pool); err != nil {
			return err
		}
		s.UID, s.GID, s.OwnerKnown = h.Owner(ctx)
		return h.links(&s.Host)
	})
	if err != nil {
		return s, err
	}
	devices, err := net.Interfaces()
	for _, d := range devices {
		s.Interfaces = append(s.Interfaces, d.Name)
	}
	s.Exists = func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	return s, err
}

// Pool tells of a storage pool; the zero Pool if there is none of that name.
func (d Definer) Pool(ctx context.Context, name string) (p machine.Pool, err error) {
	err = d.with(ctx, func(h *Hypervisor) error {
		p, err = h.pool(name)
		return err
	})
	return p, err
}

// offer asks what there is for a type of machine, or the next best of its family.
func (h *Hypervisor) offer(w machine.Wants) (o machine.Offer, kvm bool, err error) {
	ask := func(virt, machine string) (string, error) {
		var m libvirt.OptString
		if machine != "" {
			m = libvirt.OptString{machine}
		}
		return h.conn.ConnectGetDomainCapabilities(nil, libvirt.OptString{w.Arch}, m, libvirt.OptString{virt}, 0)
	}
	virt := "kvm"
	if _, err = ask(virt, ""); err != nil {
		virt = "qemu"
		if _, err := ask(virt, ""); err != nil {
			return o, false, unfit(err, "QEMU for %s is not there", w.Arch)
		}
	}
	text, err := ask(virt, w.Machine)
	if family := machine.Family(w.Machine); err != nil && family != "" {
		text, err = ask(virt, family)
	}
	if err != nil {
		return o, false, unfit(err, "its type of machine, %s, is not known here, nor one like it", w.Machine)
	}
	o, err = machine.ParseOffer(text)
	return o, virt == "kvm", err
}

// unfit says what an answer of libvirt means for a machine. Where that did not
// answer, the error stays what it is.
func unfit(err error, format string, args ...any) error {
	var answer libvirt.Error
	if !errors.As(err, &answer) {
		return err
	}
	return fmt.Errorf("%w: %s: %w", machine.ErrUnfit, fmt.Sprintf(format, args...), err)
}

// fits reports whether the host can have a processor.
func (h *Hypervisor) fits(w machine.Wants, machineType string) bool {
	result, err := h.conn.ConnectCompareHypervisorCPU(nil, libvirt.OptString{w.Arch}, libvirt.OptString{machineType}, libvirt.OptString{"kvm"}, w.CPU, 0)
	return err == nil && libvirt.CPUCompareResult(result) >= libvirt.CPUCompareIdentical
}

// taken lists what of a machine others have.
func (h *Hypervisor) taken(w machine.Wants) (t machine.Taken, err error) {
	if _, err = h.conn.DomainLookupByName(w.Name); err == nil {
		t.Name = true
	} else if !isGone(err) {
		return t, err
	}
	if w.UUID == "" {
		return t, nil
	}
	other, err := h.find(w.UUID)
	if err == nil {
		t.UUID = other.Name
	} else if !isGone(err) {
		return t, err
	}
	return t, nil
}

// pool finds a storage pool; the zero Pool if there is none of that name.
func (h *Hypervisor) pool(name string) (machine.Pool, error) {
	if name == "" {
		return machine.Pool{}, nil
	}
	p, err := h.conn.StoragePoolLookupByName(name)
	if absent(err, libvirt.ErrNoStoragePool) {
		return machine.Pool{}, nil
	}
	if err != nil {
		return machine.Pool{}, err
	}
	active, err := h.conn.StoragePoolIsActive(p)
	if err != nil {
		return machine.Pool{}, err
	}
	text, err := h.conn.StoragePoolGetXMLDesc(p, 0)
	if err != nil {
		return machine.Pool{}, err
	}
	var x struct {
		Type string `xml:"type,attr"`
		Path string `xml:"target>path"`
	}
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return machine.Pool{}, fmt.Errorf("parse description of pool %s: %w", name, err)
	}
	return machine.Pool{Name: name, Type: x.Type, Path: x.Path, Active: active == 1}, nil
}

// absent reports whether libvirt says that there is no such thing, or that it has
// no such things at all.
func absent(err error, code libvirt.ErrorNumber) bool {
	return answered(err, code, libvirt.ErrNoSupport, libvirt.ErrNoConnect)
}

// links lists what network interfaces can be connected to.
func (h *Hypervisor) links(host *machine.Host) error {
	host.Networks = map[string]bool{}
	for _, active := range []bool{false, true} {
		flags := libvirt.ConnectListNetworksInactive
		if active {
			flags = libvirt.ConnectListNetworksActive
		}
		list, _, err := h.conn.ConnectListAllNetworks(1, flags)
		if err != nil && !absent(err, libvirt.ErrNoNetwork) {
			return err
		}
		for _, n := range list {
			host.Networks[n.Name] = active
		}
	}
	filters, _, err := h.conn.ConnectListAllNwfilters(1, 0)
	if err != nil && !absent(err, libvirt.ErrNoNwfilter) {
		return err
	}
	for _, f := range filters {
		host.Filters = append(host.Filters, f.Name)
	}
	return nil
}

// Try has libvirt work out how it would run a machine, which changes nothing. It
// returns machine.ErrUnfit if it would not.
func (d Definer) Try(ctx context.Context, description string) error {
	// Those with network interfaces would be made.
	description, err := machine.WithoutInterfaces(description)
	if err != nil {
		return err
	}
	return d.with(ctx, func(h *Hypervisor) error {
		if _, err := h.conn.ConnectDomainXMLToNative("qemu-argv", description, 0); err != nil {
			return unfit(err, "libvirt says")
		}
		return nil
	})
}

// Define makes a machine, and starts it if so wanted. With an error there is none,
// unless that is machine.ErrRemains. It does not end with ctx: something half done
// would be hard to undo.
func (d Definer) Define(ctx context.Context, m machine.Definition) (consoles []string, err error) {
	ctx = context.WithoutCancel(ctx)
	x := defining{Definition: m, theirs: true}
	if err = d.with(ctx, x.define); err == nil && x.refused != nil {
		return nil, x.refused
	}
	if err != nil {
		if !errors.Is(err, ErrUnreachable) {
			err = fmt.Errorf("%w: %w", ErrRejected, err)
		}
		return nil, errors.Join(err, d.undo(ctx, &x))
	}
	if m.Start {
		_ = d.with(ctx, func(h *Hypervisor) error { // it runs, and may have ended by now
			consoles, err = h.Consoles(ctx, m.UUID)
			return err
		})
	}
	return consoles, nil
}

// defining is a definition in the making.
type defining struct {
	machine.Definition
	refused error // why it was not begun
	begun   bool  // there may be a machine
	theirs  bool  // the file of its firmware's variables was there before, or may have been
}

func (x *defining) define(h *Hypervisor) error {
	// libvirt takes what has the name and the UUID of a machine for its new
	// definition.
	taken, err := h.taken(machine.Wants{Name: x.Name, UUID: x.UUID})
	if err != nil {
		return err
	}
	if taken.Name || taken.UUID != "" {
		x.refused = fmt.Errorf("%w: a machine of the name %s or the UUID %s was made meanwhile", machine.ErrUnfit, x.Name, x.UUID)
		return nil
	}
	x.begun = true
	dom, err := h.conn.DomainDefineXML(x.XML)
	if err != nil {
		var answer libvirt.Error
		x.begun = !errors.As(err, &answer)
		return err
	}
	text, err := h.conn.DomainGetXMLDesc(dom, libvirt.DomainXMLInactive)
	if err != nil {
		return err
	}
	if path := machine.Variables(text); path != "" {
		_, err := os.Lstat(path)
		x.theirs = !errors.Is(err, os.ErrNotExist)
	}
	if !x.Start {
		return nil
	}
	return h.conn.DomainCreate(dom)
}

// undo removes what was made.
func (d Definer) undo(ctx context.Context, x *defining) error {
	if !x.begun {
		return nil
	}
	err := d.with(ctx, func(h *Hypervisor) error {
		dom, err := h.find(x.UUID)
		if err != nil {
			return err
		}
		if err := h.conn.DomainDestroy(dom); err != nil && !isOver(err) {
			return err
		}
		flags := libvirt.DomainUndefineNvram
		if x.theirs {
			flags = libvirt.DomainUndefineKeepNvram
		}
		return h.conn.DomainUndefineFlags(dom, flags)
	})
	if err == nil || isGone(err) {
		return nil
	}
	return fmt.Errorf("%w: remove machine %s: %w", machine.ErrRemains, x.Name, err)
}

// Refresh has a storage pool take notice of new files.
func (d Definer) Refresh(ctx context.Context, pool string) error {
	return d.with(ctx, func(h *Hypervisor) error {
		p, err := h.conn.StoragePoolLookupByName(pool)
		if err != nil {
			return err
		}
		return h.conn.StoragePoolRefresh(p, 0)
	})
}
