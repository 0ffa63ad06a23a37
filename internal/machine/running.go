package machine

import (
	"cmp"
	"net"
)

// Consoles tells where the screens and serial ports of a running machine are: URIs
// of VNC and SPICE, and paths of terminals.
func Consoles(description string) (found []string, err error) {
	d, err := parseXML(description)
	if err != nil {
		return nil, err
	}
	devices := d.child("devices")
	if devices == nil {
		return nil, nil
	}
	for _, n := range devices.children {
		switch {
		case n.name == "graphics" && n.attr("port") != "" && n.attr("port") != "-1":
			found = append(found, n.attr("type")+"://"+net.JoinHostPort(n.attr("listen"), n.attr("port")))
		case n.name == "serial" && n.child("source").attr("path") != "":
			found = append(found, n.child("source").attr("path"))
		}
	}
	return found, nil
}

// Place is where the content of a disk goes: an image file, or a block device.
type Place struct {
	Path   string
	Format string // as QEMU calls it
	Device bool
}

// XML describes the place as libvirt wants the destination of a copy.
func (p Place) XML() string {
	kind, attr := "file", "file"
	if p.Device {
		kind, attr = "block", "dev"
	}
	n := element("disk", "type", kind)
	n.children = []*node{element("driver", "name", "qemu", "type", p.Format), element("source", attr, p.Path)}
	return n.String()
}

// DiskState is what a disk of a running machine is on its host.
type DiskState struct {
	Path   string // of the file or device; empty if it is neither
	Mirror bool   // it is being copied, or a copy is being ended or taken over
	// MirrorReady says that a copy holds what the disk does, and is kept so.
	MirrorReady bool
}

// DiskOf tells how a disk of a running machine stands; false if it has none of that
// name.
func DiskOf(description, key string) (DiskState, bool, error) {
	d, err := parseXML(description)
	if err != nil {
		return DiskState{}, false, err
	}
	devices := d.child("devices")
	if devices == nil {
		return DiskState{}, false, nil
	}
	for _, n := range devices.children {
		if n.name == "disk" && n.child("target").attr("dev") == key {
			source, mirror := n.child("source"), n.child("mirror")
			return DiskState{Path: cmp.Or(source.attr("file"), source.attr("dev")), Mirror: mirror != nil, MirrorReady: mirror.attr("ready") == "yes"}, true, nil
		}
	}
	return DiskState{}, false, nil
}

// Settled takes back what the disks of a transient machine were told, for one that
// is to stay.
func Settled(description string) (string, error) {
	d, err := parseXML(description)
	if err != nil {
		return "", err
	}
	if devices := d.child("devices"); devices != nil {
		for _, n := range devices.children {
			if n.name == "disk" {
				n.child("driver").unset("error_policy", "rerror_policy")
			}
		}
	}
	return d.String(), nil
}
