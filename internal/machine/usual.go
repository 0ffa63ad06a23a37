package machine

// describeUsual describes a machine that most guests start on: without drivers of
// their own.
func (c *carrier) describeUsual() (Description, error) {
	if c.spec.UEFI && c.host != nil && !c.host.UEFI {
		return Description{}, errNoUEFI
	}
	firmware := "a BIOS"
	if c.spec.UEFI {
		firmware = "a UEFI firmware"
	}
	c.note("The point has no description of the machine: it gets 2 processors, 2 GiB of memory, %s, and its disks on SATA.", firmware)
	d := c.usual()
	if c.spec.Observed {
		c.observe(d)
	}
	if !c.kvm {
		c.emulate(d)
	}
	return Description{XML: d.String(), Notes: c.notes, Targets: c.targets(), Hardware: hardware(d, c.keys)}, nil
}

func (c *carrier) usual() *node {
	d := element("domain", "type", "kvm")
	d.put("name", c.spec.Name)
	d.put("uuid", c.spec.UUID)
	d.put("memory", "2").set("unit", "GiB")
	d.put("vcpu", "2")
	os := element("os")
	os.put("type", "hvm").set("machine", "q35")
	os.child("type").set("arch", "x86_64")
	if c.spec.UEFI {
		chooseFirmware(os, "no")
	}
	os.children = append(os.children, element("boot", "dev", "hd"))
	features := element("features")
	features.children = []*node{element("acpi"), element("apic")}
	d.children = append(d.children, os, features, element("cpu", "mode", "host-model"))
	if c.host == nil {
		for _, name := range []string{"on_poweroff", "on_crash"} {
			d.put(name, "destroy")
		}
	}
	d.children = append(d.children, c.usualDevices())
	return d
}

func (c *carrier) usualDevices() *node {
	devices := element("devices")
	for i, disk := range c.spec.Disks {
		n := element("disk")
		n.children = []*node{element("target", "dev", driveName(i), "bus", "sata")}
		c.keys[driveName(i)] = disk.Key
		c.disk(c, n, disk)
		devices.children = append(devices.children, n)
	}
	if network := c.spec.Network; network != "" && network != Isolated {
		n := element("interface", "type", "network")
		n.children = []*node{element("source", "network", network), element("model", "type", "e1000e")}
		devices.children = append(devices.children, n)
	}
	video := element("video")
	video.children = []*node{element("model", "type", "vga")}
	devices.children = append(devices.children, element("serial", "type", "pty"),
		element("graphics", "type", "vnc", "autoport", "yes", "listen", "127.0.0.1"), video)
	return devices
}

// driveName returns sda, sdb, …, sdaa for 0, 1, …, 26.
func driveName(i int) string {
	name := ""
	for i++; i > 0; i = (i - 1) / 26 {
		name = string(rune('a'+(i-1)%26)) + name
	}
	return "sd" + name
}
