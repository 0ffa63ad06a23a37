// Package machine turns the description of a machine as it was captured into that
// of one that is to run on a hypervisor at hand, in libvirt's words (its
// formatdomain). What cannot be carried over is told, and so is the hardware that
// the guest meets.
//
// It talks to no hypervisor and opens no disk.
package machine

import (
	"errors"
	"fmt"
)

// Isolated is the network of a machine whose interfaces are connected to nothing.
const Isolated = "isolated"

// LibvirtXML is the format of the descriptions that are understood.
const LibvirtXML = "libvirt-xml"

// ErrUnfit says that a hypervisor cannot have the machine.
var ErrUnfit = errors.New("this host cannot have the machine")

// Captured is a machine as it was captured.
type Captured struct {
	Format     string // of Definition; another than LibvirtXML: there is none
	Definition string
}

// Disk is what stands in place of a captured disk: an NBD export on a unix socket,
// or an image file.
type Disk struct {
	Key            string // the target's name in the definition
	Socket, Export string
	Path, Format   string // of a file; Format as QEMU calls it
}

// Spec says what machine is to be made of a captured one.
type Spec struct {
	Captured
	Name  string
	UUID  string
	Disks []Disk // all that it gets
	// Network is one of libvirt for all its interfaces, or Isolated. Empty, for a
	// machine that is to stay: what each had, as far as the host has it.
	Network string
	// KeepAddresses leaves it its hardware addresses.
	KeepAddresses bool
	// Observed has the machine have a screen, a serial port and an agent's channel.
	Observed bool
	// UEFI is the firmware of a machine without a definition; default BIOS.
	UEFI bool
}

// Description is what libvirt is given.
type Description struct {
	XML string
	// Notes say what could not be carried over, each in a sentence.
	Notes []string
	// Targets are the names that the disks have in the machine, by their keys.
	Targets map[string]string
	// Variables is the file of the firmware's variables of a machine that runs for a
	// while: it stays when that ends. Empty: there is none.
	Variables string
	// Idle are networks that the machine needs and that are not active.
	Idle []string
	// Hardware is what the guest meets, Before what it met when it was captured; nil
	// if that is not known.
	Hardware Hardware
	Before   *Hardware
}

// Transient describes a machine that runs for a while, on a host that can
// accelerate it or not: the captured one, with disks, identity and network
// replaced and everything left out that belongs to the host it ran on. When its
// disks fail it pauses, and when it powers off it is gone.
func Transient(s Spec, kvm bool) (Description, error) {
	c := &carrier{spec: &s, kvm: kvm, disk: nbdDisk, nic: replaceNIC}
	return c.describe()
}

// Lasting describes a machine that takes the captured one's place on a host, or
// stands beside it.
func Lasting(s Spec, h Host) (Description, error) {
	c := &carrier{spec: &s, kvm: h.KVM, host: &h, disk: (*carrier).fileDisk, nic: (*carrier).keepNIC}
	return c.describe()
}

// carrier turns the description of one machine into that of another.
type carrier struct {
	spec *Spec
	kvm  bool
	host *Host // where it stays; nil if it does not
	// disk replaces what a disk is on the host, nic what a network interface is
	// connected to; it is left out if that returns false.
	disk func(*carrier, *node, Disk)
	nic  func(*carrier, *node) bool

	notes []string
	idle  []string
	vars  string
	keys  map[string]string // of disks, by the name of their target
}

func (c *carrier) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

func (c *carrier) describe() (Description, error) {
	c.keys = map[string]string{}
	if c.spec.Format != LibvirtXML {
		return c.describeUsual()
	}
	d, err := parseXML(c.spec.Definition)
	if err != nil {
		return Description{}, err
	}
	before := hardware(d, nil)
	c.domain(d)
	if c.host != nil {
		c.note("Whether it starts with its host is not known: virsh autostart %s.", c.spec.Name)
	}
	if err := c.devices(d); err != nil {
		return Description{}, err
	}
	if c.host != nil {
		if err := c.adapt(d); err != nil {
			return Description{}, err
		}
	}
	if c.spec.Observed {
		c.observe(d)
	}
	if d.attr("type") == "kvm" && !c.kvm {
		c.emulate(d)
	}
	return Description{XML: d.String(), Notes: c.notes, Targets: c.targets(), Variables: c.vars, Idle: c.idle, Hardware: hardware(d, c.keys), Before: &before}, nil
}

// targets returns the names of disks by their keys.
func (c *carrier) targets() map[string]string {
	out := map[string]string{}
	for target, key := range c.keys {
		out[key] = target
	}
	return out
}
