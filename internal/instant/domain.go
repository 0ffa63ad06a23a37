package instant

import (
	"fmt"
	"slices"
	"strings"
)

// Isolated is the network of a machine that has no network interface.
const Isolated = "isolated"

// DefinitionXML is the format of the definitions that are understood: libvirt's
// description of a domain.
const DefinitionXML = "libvirt-xml"

// Disk is a disk of a machine: an NBD export on a unix socket.
type Disk struct {
	Key    string // the target's name in the definition
	Socket string
	Export string // name
}

// Machine says what machine runs from a point.
type Machine struct {
	Name       string
	UUID       string
	Format     string // of Definition; another than DefinitionXML gives a machine of the usual kind
	Definition string // as it was captured
	Disks      []Disk
	Network    string // name of a libvirt network, or Isolated
}

// XML returns the description of the machine for libvirt: the one captured, with
// disks, identity and network replaced and everything left out that belongs to the
// host it ran on. notes are sentences on what could not be carried over.
func (m *Machine) XML() (description string, notes []string, err error) {
	if m.Format != DefinitionXML {
		notes = []string{"The point has no description of the machine: it gets 2 processors, 2 GiB of memory, a BIOS, and its disks on SATA."}
		return m.usual(), notes, nil
	}
	d, err := parseXML(m.Definition)
	if err != nil {
		return "", nil, err
	}
	c := &carrier{machine: m}
	c.domain(d)
	if err := c.devices(d); err != nil {
		return "", nil, err
	}
	return d.String(), c.notes, nil
}

// carrier turns the description of one machine into that of another.
type carrier struct {
	machine *Machine
	notes   []string
}

func (c *carrier) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// domain deals with everything but devices.
func (c *carrier) domain(d *node) {
	d.unset("id")
	d.put("name", c.machine.Name)
	d.put("uuid", c.machine.UUID)
	if d.child("genid") != nil {
		d.put("genid", "") // libvirt makes one: guests see that they are a copy
	}
	for _, x := range []struct{ name, what string }{
		{"cputune", "Which host processors it is bound to"}, {"numatune", "Which host memory it is bound to"},
		{"memoryBacking", "How its memory is backed on the host"}, {"blkiotune", "The weights of its disk I/O"},
		{"launchSecurity", "Its encrypted memory"}, {"qemu:commandline", "What was added to QEMU's command line"},
		{"qemu:override", "What was overridden of QEMU's devices"},
	} {
		if d.drop(x.name) {
			c.note("%s is left out.", x.what)
		}
	}
	d.drop("seclabel", "resource", "metadata")
	if v := d.child("vcpu"); v != nil {
		v.unset("cpuset")
	}
	if nvram := d.at("os", "nvram"); nvram != nil {
		nvram.text, nvram.children = "", nil
		nvram.unset("type")
		c.note("The variables of its UEFI firmware are no part of points; it starts with fresh ones.")
	}
	for _, name := range []string{"on_poweroff", "on_crash"} {
		d.put(name, "destroy")
	}
}

// dropped are devices that stay behind, with what is told of it.
var dropped = map[string]string{
	"hostdev": "A device of the host", "filesystem": "A folder of the host", "shmem": "Memory shared with the host",
	"smartcard": "A smartcard", "parallel": "A parallel port", "lease": "A lease", "redirdev": "", "redirfilter": "", "crypto": "A crypto device",
	"nvram": "", "pstore": "A store for panics",
}

func (c *carrier) devices(d *node) error {
	devices := d.child("devices")
	if devices == nil {
		return fmt.Errorf("description of %s has no devices", c.machine.Name)
	}
	var kept []*node
	used := map[string]bool{}
	for _, n := range devices.children {
		n.drop("alias")
		if what, ok := dropped[n.name]; ok {
			if what != "" {
				c.note("%s is left out.", what)
			}
			continue
		}
		keep := true
		switch n.name {
		case "disk":
			keep = c.disk(n, used)
		case "interface":
			keep = c.nic(n)
		case "serial", "console":
			c.port(n)
		case "channel":
			keep = c.channel(n)
		case "graphics":
			c.graphics(n)
		case "tpm":
			keep = c.tpm(n)
		case "vsock":
			n.drop("cid")
			n.children = append(n.children, element("cid", "auto", "yes"))
		}
		if keep {
			kept = append(kept, n)
		}
	}
	devices.children = kept
	for _, disk := range c.machine.Disks {
		if !used[disk.Key] {
			return fmt.Errorf("description of %s has no disk %s", c.machine.Name, disk.Key)
		}
	}
	if c.machine.Network == Isolated && slices.ContainsFunc(c.notes, func(s string) bool { return strings.HasPrefix(s, "Network interface") }) {
		c.note("Give it a network with --network NAME.")
	}
	return nil
}

// disk puts an NBD export in place of a disk's source.
func (c *carrier) disk(n *node, used map[string]bool) bool {
	key := n.child("target").attr("dev")
	i := slices.IndexFunc(c.machine.Disks, func(d Disk) bool { return d.Key == key })
	if i < 0 {
		if device := n.attr("device"); device == "cdrom" || device == "floppy" {
			if n.drop("source") {
				c.note("Drive %s has no medium.", key)
			}
			n.drop("backingStore", "mirror", "driver")
			n.set("type", "file")
			return true
		}
		c.note("Disk %s is not in the point.", key)
		return false
	}
	used[key] = true
	replaceDisk(n, c.machine.Disks[i])
	return true
}

// replaceDisk keeps where a disk is in the machine, and replaces what it is on the
// host.
func replaceDisk(n *node, d Disk) {
	n.attrs = nil
	n.set("type", "network")
	n.set("device", "disk")
	n.drop("driver", "source", "backingStore", "mirror", "auth", "encryption", "iotune", "readonly", "shareable", "transient", "blockio", "state", "privateData")
	n.children = append([]*node{diskDriver(), nbdSource(d)}, n.children...)
}

// diskDriver has the machine pause at errors: the requests are made again when it
// goes on, so that the guest sees none of the control plane's absences.
func diskDriver() *node {
	return element("driver", "name", "qemu", "type", "raw", "error_policy", "stop", "rerror_policy", "stop", "discard", "unmap")
}

func nbdSource(d Disk) *node {
	s := element("source", "protocol", "nbd", "name", d.Export)
	s.children = []*node{element("host", "transport", "unix", "socket", d.Socket)}
	return s
}

func (c *carrier) nic(n *node) bool {
	mac := n.child("mac").attr("address")
	if c.machine.Network == Isolated {
		c.note("Network interface %s is left out.", mac)
		return false
	}
	n.attrs = nil
	n.set("type", "network")
	n.drop("mac", "source", "target", "virtualport", "vlan", "filterref", "bandwidth", "port", "backend", "driver", "ip", "route", "script")
	n.children = append([]*node{element("source", "network", c.machine.Network)}, n.children...)
	return true
}

// port makes a serial port one that somebody can attach to.
func (c *carrier) port(n *node) {
	if kind := n.attr("type"); kind != "pty" && n.name == "serial" {
		c.note("A serial port was of type %s on its host; it is a pseudo terminal.", kind)
	}
	n.attrs = nil
	n.set("type", "pty")
	n.drop("source", "log", "protocol")
}

func (c *carrier) channel(n *node) bool {
	switch n.attr("type") {
	case "unix":
		n.drop("source", "log")
		if t := n.child("target"); t != nil {
			t.unset("state")
		}
		return true
	case "spicevmc":
		return true
	}
	c.note("Channel %s is left out.", n.child("target").attr("name"))
	return false
}

// graphics listens on loopback only, where a port is free.
func (c *carrier) graphics(n *node) {
	kind := n.attr("type")
	if kind != "vnc" && kind != "spice" {
		return
	}
	n.attrs = nil
	n.set("type", kind)
	n.set("autoport", "yes")
	n.set("listen", "127.0.0.1")
	n.drop("listen", "gl")
}

func (c *carrier) tpm(n *node) bool {
	if n.child("backend").attr("type") != "emulator" {
		c.note("A TPM of the host is left out.")
		return false
	}
	c.note("What its TPM holds is no part of points; it starts with an empty one.")
	return true
}

// usual describes a machine that most guests start on: without drivers of their
// own.
func (m *Machine) usual() string {
	d := element("domain", "type", "kvm")
	d.put("name", m.Name)
	d.put("uuid", m.UUID)
	d.put("memory", "2").set("unit", "GiB")
	d.put("vcpu", "2")
	os := element("os")
	os.put("type", "hvm").set("machine", "q35")
	os.child("type").set("arch", "x86_64")
	os.children = append(os.children, element("boot", "dev", "hd"))
	features := element("features")
	features.children = []*node{element("acpi"), element("apic")}
	d.children = append(d.children, os, features, element("cpu", "mode", "host-model"))
	for _, name := range []string{"on_poweroff", "on_crash"} {
		d.put(name, "destroy")
	}
	devices := element("devices")
	for i, disk := range m.Disks {
		n := element("disk", "type", "network", "device", "disk")
		n.children = []*node{diskDriver(), nbdSource(disk), element("target", "dev", driveName(i), "bus", "sata")}
		devices.children = append(devices.children, n)
	}
	if m.Network != Isolated {
		n := element("interface", "type", "network")
		n.children = []*node{element("source", "network", m.Network), element("model", "type", "e1000e")}
		devices.children = append(devices.children, n)
	}
	video := element("video")
	video.children = []*node{element("model", "type", "vga")}
	devices.children = append(devices.children, element("serial", "type", "pty"),
		element("graphics", "type", "vnc", "autoport", "yes", "listen", "127.0.0.1"), video)
	d.children = append(d.children, devices)
	return d.String()
}

// driveName returns sda, sdb, …, sdaa for 0, 1, …, 26.
func driveName(i int) string {
	name := ""
	for i++; i > 0; i = (i - 1) / 26 {
		name = string(rune('a'+(i-1)%26)) + name
	}
	return "sd" + name
}

// emulate has a machine run without the host's processor.
func emulate(d *node) {
	d.set("type", "qemu")
	if cpu := d.child("cpu"); cpu != nil && cpu.attr("mode") != "custom" {
		d.drop("cpu")
		d.children = append(d.children, element("cpu", "mode", "maximum"))
	}
}
