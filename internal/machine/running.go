package machine

import (
	"cmp"
	"fmt"
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
	Size   int64 // of what is used of a device that is longer, in bytes; 0: all of it
}

// XML describes the place as libvirt wants the destination of a copy.
func (p Place) XML() string {
	kind, attr := "file", "file"
	if p.Device {
		kind, attr = "block", "dev"
	}
	source := element("source", attr, p.Path)
	if p.Size > 0 {
		slices := element("slices")
		slices.children = []*node{element("slice", "type", "storage", "offset", "0", "size", fmt.Sprint(p.Size))}
		source.children = []*node{slices}
	}
	n := element("disk", "type", kind)
	n.children = []*node{element("driver", "name", "qemu", "type", p.Format), source}
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
// is to stay: what to do at errors, and to use a part of a device only.
func Settled(description string) (string, error) {
	d, err := parseXML(description)
	if err != nil {
		return "", err
	}
	if devices := d.child("devices"); devices != nil {
		for _, n := range devices.children {
			if n.name == "disk" {
				n.child("driver").unset("error_policy", "rerror_policy")
				if source := n.child("source"); source != nil {
					source.drop("slices")
				}
			}
		}
	}
	return d.String(), nil
}
