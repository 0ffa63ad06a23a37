package machine

import "net"

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

// FileDisk describes an image file as libvirt wants the destination of a copy.
func FileDisk(path, format string) string {
	n := element("disk", "type", "file")
	n.children = []*node{element("driver", "name", "qemu", "type", format), element("source", "file", path)}
	return n.String()
}

// DiskState is what a disk of a running machine is on its host.
type DiskState struct {
	File string // path; empty if it is none
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
			return DiskState{n.child("source").attr("file"), n.child("mirror").attr("ready") == "yes"}, true, nil
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
