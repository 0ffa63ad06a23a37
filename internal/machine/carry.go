package machine

import (
	"fmt"
	"slices"
	"strings"
)

// bound are parts that bind a machine to its host, with what is told of them.
var bound = []struct {
	path []string
	what string
}{
	{[]string{"cputune", "vcpupin"}, "Which host processors it is bound to"}, {[]string{"cputune", "emulatorpin"}, "Which host processors QEMU is bound to"},
	{[]string{"cputune", "iothreadpin"}, "Which host processors its I/O is bound to"}, {[]string{"cputune", "cachetune"}, "Its share of the host's caches"},
	{[]string{"cputune", "memorytune"}, "Its share of the host's memory bandwidth"}, {[]string{"cputune", "vcpusched"}, "The scheduler of its processors"},
	{[]string{"numatune"}, "Which host memory it is bound to"}, {[]string{"memoryBacking", "hugepages"}, "That its memory is in huge pages"},
	{[]string{"memoryBacking", "locked"}, "That its memory is locked"}, {[]string{"blkiotune"}, "The weights of its disk I/O"},
	{[]string{"launchSecurity"}, "Its encrypted memory"}, {[]string{"qemu:commandline"}, "What was added to QEMU's command line"},
	{[]string{"qemu:override"}, "What was overridden of QEMU's devices"},
}

// labels leaves out by what it was kept apart from others on its host; libvirt has
// its own ways.
func (c *carrier) labels(d *node) {
	for _, n := range d.children {
		switch {
		case c.host == nil:
		case n.name == "seclabel" && n.attr("type") != "" && n.attr("type") != "dynamic":
			c.note("Its security label for %s is left out; libvirt chooses one.", n.attr("model"))
		case n.name == "resource" && n.child("partition").content() != "/machine" && n.child("partition") != nil:
			c.note("The resource partition that it was in, %s, is left out.", strings.TrimSpace(n.child("partition").content()))
		}
	}
	d.drop("seclabel", "resource")
}

// domain deals with everything but devices.
func (c *carrier) domain(d *node) {
	d.unset("id")
	d.put("name", c.spec.Name)
	d.put("uuid", c.spec.UUID)
	if d.child("genid") != nil {
		d.put("genid", "") // libvirt makes one: guests see that they are a copy
	}
	for _, x := range bound {
		at := d.at(x.path[:len(x.path)-1]...)
		if at != nil && at.drop(x.path[len(x.path)-1]) {
			c.note("%s is left out.", x.what)
		}
	}
	c.labels(d)
	c.metadata(d)
	if v := d.child("vcpu"); v != nil {
		v.unset("cpuset")
	}
	if nvram := d.at("os", "nvram"); nvram != nil {
		nvram.text, nvram.children = "", nil
		nvram.unset("type")
		c.note("The variables of its UEFI firmware are no part of points; it starts with fresh ones.")
	}
	if system := d.at("sysinfo", "system"); system != nil {
		for _, entry := range system.children {
			if entry.attr("name") == "uuid" { // libvirt wants the two to agree
				entry.text = c.spec.UUID
			}
		}
	}
	if c.host == nil {
		for _, name := range []string{"on_poweroff", "on_crash"} {
			d.put(name, "destroy")
		}
		c.variables(d.child("os"))
	}
}

// variables gives the variables of a machine's firmware, if it has any, a file that
// is nobody else's: libvirt would take one that another machine of the name left.
func (c *carrier) variables(os *node) {
	if os.child("nvram") != nil || os.attr("firmware") == "efi" {
		c.vars = "/var/lib/libvirt/qemu/nvram/" + c.spec.UUID + "_VARS.fd"
		os.put("nvram", c.vars)
	}
}

// metadata keeps what operating system it is said to be, where the machine stays.
func (c *carrier) metadata(d *node) {
	m := d.child("metadata")
	if m == nil {
		return
	}
	d.drop("metadata")
	if c.host == nil {
		return
	}
	left := len(m.children)
	m.children = slices.DeleteFunc(m.children, func(n *node) bool { return n.name != "libosinfo:libosinfo" })
	if len(m.children) > 0 {
		d.children = append(d.children, m)
	}
	if len(m.children) < left {
		c.note("What other programs noted in its description is left out.")
	}
}

// dropped are devices that stay behind, with what is told of it.
var dropped = map[string]string{
	"hostdev": "A device of the host", "filesystem": "A folder of the host", "shmem": "Memory shared with the host",
	"smartcard": "A smartcard", "parallel": "A parallel port", "lease": "A lease", "redirdev": "", "redirfilter": "", "crypto": "A crypto device",
	"nvram": "", "pstore": "A store for panics", "emulator": "",
}

func (c *carrier) devices(d *node) error {
	devices := d.child("devices")
	if devices == nil {
		return fmt.Errorf("%w: its description has no devices", ErrUnfit)
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
		if c.device(n, used) {
			kept = append(kept, n)
		}
	}
	devices.children = kept
	for _, disk := range c.spec.Disks {
		if !used[disk.Key] {
			return fmt.Errorf("%w: its description has no disk %s", ErrUnfit, disk.Key)
		}
	}
	if c.spec.Network == "" || c.spec.Network == Isolated {
		if slices.ContainsFunc(c.notes, func(s string) bool { return strings.HasPrefix(s, "Network interface") }) {
			c.note("Give it a network with --network NAME.")
		}
	}
	return nil
}

// device deals with one device, and reports whether it is kept.
func (c *carrier) device(n *node, used map[string]bool) bool {
	switch n.name {
	case "disk":
		return c.drive(n, used)
	case "interface":
		return c.nic(c, n)
	case "serial", "console":
		c.port(n)
	case "channel":
		return c.channel(n)
	case "graphics":
		c.graphics(n)
	case "tpm":
		return c.tpm(n)
	case "memory":
		return c.module(n)
	case "input":
		return c.input(n)
	case "vsock":
		n.drop("cid")
		n.children = append(n.children, element("cid", "auto", "yes"))
	}
	return true
}

// drive puts what stands in place of a disk into it.
func (c *carrier) drive(n *node, used map[string]bool) bool {
	key := n.child("target").attr("dev")
	i := slices.IndexFunc(c.spec.Disks, func(d Disk) bool { return d.Key == key })
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
	c.keys[key] = key
	c.disk(c, n, c.spec.Disks[i])
	return true
}

// ofHost are parts of a disk that say what it is on the host.
var ofHost = []string{"source", "backingStore", "mirror", "auth", "encryption", "readonly", "shareable", "transient", "state", "privateData"}

// nbdDisk keeps where a disk is in the machine, and has it lie behind a socket.
func nbdDisk(_ *carrier, n *node, d Disk) {
	n.attrs = nil
	n.set("type", "network")
	n.set("device", "disk")
	n.drop(append([]string{"driver", "iotune"}, ofHost...)...)
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

// fileDisk keeps what a disk is in the machine, and has it lie in a file.
func (c *carrier) fileDisk(n *node, d Disk) {
	switch {
	case n.attr("device") == "lun":
		c.note("Disk %s was a device of the host that took the guest's own SCSI commands; it is a file, which does not.", d.Key)
	case n.child("encryption") != nil || n.at("source", "encryption") != nil:
		c.note("Disk %s was encrypted on its host; it is written without encryption.", d.Key)
	}
	model, snapshot := n.attr("model"), n.attr("snapshot")
	n.attrs = nil
	n.set("type", "file")
	n.set("device", "disk")
	if model != "" {
		n.set("model", model)
	}
	if snapshot != "" {
		n.set("snapshot", snapshot)
	}
	driver := n.child("driver")
	if driver == nil {
		driver = element("driver")
	}
	driver.unset("copy_on_read", "type", "name")
	driver.set("name", "qemu")
	driver.set("type", d.Format)
	driver.children = nil // caches of a format, and the like
	n.drop(append([]string{"driver"}, ofHost...)...)
	n.children = append([]*node{driver, fileSource(d)}, n.children...)
}

func fileSource(d Disk) *node { return element("source", "file", d.Path) }

// port makes a serial port one that somebody can attach to.
func (c *carrier) port(n *node) {
	if kind := n.attr("type"); kind != "pty" && n.name == "serial" {
		c.note("A serial port was of type %s on its host; it is a pseudo terminal.", kind)
	}
	if n.child("log") != nil && n.name == "serial" && c.host != nil {
		c.note("What a serial port prints was kept in a file of its host, and is not any more.")
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
	if listen := listens(n); listen != "" && !strings.HasPrefix(listen, "127.") && c.host != nil {
		c.note("Its screen (%s) could be reached at %s; it listens on 127.0.0.1, and has no password, which is no part of points.", kind, listen)
	}
	n.attrs = nil
	n.set("type", kind)
	n.set("autoport", "yes")
	n.set("listen", "127.0.0.1")
	n.drop("listen", "gl")
}

// listens returns the address that a screen is reached at; empty if that is the
// host's default.
func listens(n *node) string {
	if a := n.child("listen").attr("address"); a != "" {
		return a
	}
	return n.attr("listen")
}

func (c *carrier) tpm(n *node) bool {
	if n.child("backend").attr("type") != "emulator" {
		c.note("A TPM of the host is left out.")
		return false
	}
	if c.host != nil && !c.host.offers(c.host.TPMs, "emulator") {
		c.note("Its TPM is left out: this host cannot emulate one; install swtpm there.")
		return false
	}
	c.note("What its TPM holds is no part of points; it starts with an empty one.")
	return true
}

// module deals with a memory module: some are files of the host.
func (c *carrier) module(n *node) bool {
	if n.at("source", "path") == nil {
		return true
	}
	c.note("Memory that is a file of the host is left out.")
	return false
}

func (c *carrier) input(n *node) bool {
	if kind := n.attr("type"); kind != "passthrough" && kind != "evdev" {
		return true
	}
	c.note("An input device of the host is left out.")
	return false
}
