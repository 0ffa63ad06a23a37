package machine

import (
	"fmt"
	"slices"
	"strings"
)

// adapt replaces what the host does not have by what comes next to it.
func (c *carrier) adapt(d *node) error {
	if t := d.attr("type"); t != "kvm" && t != "qemu" {
		return fmt.Errorf("%w: it is a machine of type %s, and only those of QEMU and KVM can be made", ErrUnfit, t)
	}
	t := d.at("os", "type")
	if was := t.attr("machine"); t != nil && c.host.Machine != "" && c.host.Machine != was {
		t.set("machine", c.host.Machine)
		if Family(was) != was { // else it was an alias
			c.note("Its type of machine, %s, is not known here; it becomes a %s, whose chipset is of another version.", was, c.host.Machine)
		}
	}
	if os := d.child("os"); os != nil {
		if err := c.firmware(os); err != nil {
			return err
		}
		c.kernel(os)
	}
	if cpu := d.child("cpu"); cpu.attr("mode") == "custom" && c.kvm && !c.host.FitsCPU {
		c.note("Its processor, %s with all of its features, cannot be had here; it gets what is nearest to this host's.", strings.TrimSpace(cpu.child("model").content()))
		replaceCPU(d, "host-model")
	}
	c.adaptDevices(d.child("devices"))
	return nil
}

// firmware keeps a UEFI firmware that the host has, and has libvirt choose another
// of the same kind if it does not.
func (c *carrier) firmware(os *node) error {
	loader := os.child("loader")
	path := strings.TrimSpace(loader.content())
	wanted := os.attr("firmware") == "efi" || loader.attr("type") == "pflash"
	if !wanted {
		if path != "" && !c.exists(path) {
			os.drop("loader")
			c.note("Its BIOS was in %s, which this host does not have; it gets the usual one.", path)
		}
		return nil
	}
	if path != "" && slices.Contains(c.host.Loaders, path) {
		os.unset("firmware") // or libvirt would choose
		os.drop("firmware")
		if nvram := os.child("nvram"); nvram != nil && !c.exists(nvram.attr("template")) {
			nvram.unset("template")
		}
		return nil
	}
	if !c.host.UEFI {
		return errNoUEFI
	}
	if path == "" {
		return nil // libvirt chose before, and will
	}
	os.drop("loader", "nvram", "firmware")
	secure := "no"
	if loader.attr("secure") == "yes" {
		secure = "yes"
	}
	chooseFirmware(os, secure)
	c.note("Its UEFI firmware was in %s, which this host does not have; libvirt chooses one of the same kind.", path)
	return nil
}

var errNoUEFI = fmt.Errorf("%w: it boots with a UEFI firmware, and this host has none; install one there, such as Debian's ovmf", ErrUnfit)

// chooseFirmware has libvirt choose a UEFI firmware, with Secure Boot or without.
func chooseFirmware(os *node, secure string) {
	os.set("firmware", "efi")
	features := element("firmware")
	for _, name := range []string{"enrolled-keys", "secure-boot"} {
		features.children = append(features.children, element("feature", "enabled", secure, "name", name))
	}
	os.children = append([]*node{features}, os.children...)
}

// kernel keeps a kernel that the host passes to the machine.
func (c *carrier) kernel(os *node) {
	kernel := strings.TrimSpace(os.child("kernel").content())
	if kernel == "" {
		return
	}
	for _, name := range []string{"kernel", "initrd", "dtb"} {
		if path := strings.TrimSpace(os.child(name).content()); path != "" && !c.exists(path) {
			os.drop("kernel", "initrd", "cmdline", "dtb")
			c.note("It was started with a kernel of its host, and %s is not there; it boots from its disk.", path)
			return
		}
	}
	c.note("It is started with a kernel of the host, %s, which is no part of the point.", kernel)
}

func (c *carrier) exists(path string) bool {
	return path != "" && c.host.Exists != nil && c.host.Exists(path)
}

func (c *carrier) adaptDevices(devices *node) {
	spice := c.host.offers(c.host.Screens, "spice")
	var kept []*node
	for _, n := range devices.children {
		switch n.name {
		case "disk":
			c.bus(n, devices)
		case "graphics":
			if kind := n.attr("type"); !c.host.offers(c.host.Screens, kind) {
				c.note("Its screen was of type %s, which this host does not have; it is one of VNC.", kind)
				n.attrs, n.children = nil, nil
				for _, a := range [][2]string{{"type", "vnc"}, {"autoport", "yes"}, {"listen", "127.0.0.1"}} {
					n.set(a[0], a[1])
				}
			}
		case "channel", "audio":
			if !spice && (n.attr("type") == "spicevmc" || n.attr("type") == "spice") {
				continue
			}
			if n.name == "audio" && n.attr("type") != "spice" && n.attr("type") != "none" {
				c.note("What it plays went to the host's %s, and goes nowhere.", n.attr("type"))
				continue
			}
		case "video":
			if m := n.child("model"); m != nil && !c.host.offers(c.host.Cards, m.attr("type")) {
				c.note("Its graphics card, %s, cannot be had here; it is a VGA.", m.attr("type"))
				n.drop("model")
				n.children = append(n.children, element("model", "type", "vga"))
			}
		case "rng":
			c.random(n)
		}
		if rom := n.child("rom"); rom.attr("file") != "" && !c.exists(rom.attr("file")) {
			c.note("The boot code of a device was in %s, which this host does not have; the device has its usual one.", rom.attr("file"))
			rom.unset("file")
		}
		kept = append(kept, n)
	}
	devices.children = kept
}

// bus moves a disk to SATA if the host does not have its bus.
func (c *carrier) bus(n, devices *node) {
	target := n.child("target")
	bus, old := target.attr("bus"), target.attr("dev")
	if bus == "" || c.host.offers(c.host.Buses, bus) {
		return
	}
	target.attrs = nil
	name := freeName(devices)
	target.set("dev", name)
	target.set("bus", "sata")
	n.unset("model")
	n.drop("address")
	n.child("driver").unset("iothread", "queues", "iommu", "ats", "event_idx", "ioeventfd", "packed", "queue_size")
	if key, ok := c.keys[old]; ok {
		delete(c.keys, old)
		c.keys[name] = key
	}
	c.note("Disk %s was on a bus, %s, that this host does not have; it is on SATA, as %s.", old, bus, name)
}

// freeName returns the first of sda, sdb, … that no disk has.
func freeName(devices *node) string {
	for i := 0; ; i++ {
		name := driveName(i)
		if !slices.ContainsFunc(devices.children, func(n *node) bool { return n.name == "disk" && n.child("target").attr("dev") == name }) {
			return name
		}
	}
}

// random has a source of randomness be one that every host has.
func (c *carrier) random(n *node) {
	b := n.child("backend")
	if b.attr("model") == "builtin" || b.attr("model") == "random" && c.exists(strings.TrimSpace(b.content())) {
		return
	}
	n.drop("backend")
	b = element("backend", "model", "random")
	b.text = "/dev/urandom"
	n.children = append(n.children, b)
	c.note("Its random numbers came from a device of the host that is not here; they come from /dev/urandom.")
}

// emulate has a machine run without the host's processor.
func (c *carrier) emulate(d *node) {
	d.set("type", "qemu")
	replaceCPU(d, "maximum")
	if f := d.child("features"); f != nil {
		f.drop("hyperv", "kvm")
		if f.child("ioapic").attr("driver") == "kvm" {
			f.drop("ioapic")
		}
	}
	if clock := d.child("clock"); clock != nil {
		clock.children = slices.DeleteFunc(clock.children, func(n *node) bool {
			name := n.attr("name")
			return n.name == "timer" && (name == "kvmclock" || name == "hypervclock" || name == "tsc")
		})
	}
	c.note("This host cannot accelerate machines (no KVM): it is emulated, and slow.")
}

// replaceCPU gives a machine a processor of another kind, with as many cores.
func replaceCPU(d *node, mode string) {
	old := d.child("cpu")
	d.drop("cpu")
	cpu := element("cpu", "mode", mode)
	if old != nil {
		for _, n := range old.children {
			if n.name == "topology" || n.name == "numa" {
				cpu.children = append(cpu.children, n)
			}
		}
	}
	d.children = append(d.children, cpu)
}
