package libvirt

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// domain is what matters of a machine's description (libvirt's formatdomain).
type domain struct {
	Devices struct {
		Disks    []domainDisk `xml:"disk"`
		Channels []struct {
			Target struct {
				Name  string `xml:"name,attr"`
				State string `xml:"state,attr"`
			} `xml:"target"`
		} `xml:"channel"`
	} `xml:"devices"`
	SecLabels []struct {
		Model string `xml:"model,attr"`
		Label string `xml:"label"`
	} `xml:"seclabel"`
}

type domainDisk struct {
	Type   string `xml:"type,attr"`
	Device string `xml:"device,attr"`
	Driver struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source *struct {
		File     string `xml:"file,attr"`
		Dev      string `xml:"dev,attr"`
		Protocol string `xml:"protocol,attr"`
		Pool     string `xml:"pool,attr"`
		Volume   string `xml:"volume,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	ReadOnly  *struct{} `xml:"readonly"`
	Shareable *struct{} `xml:"shareable"`
	Transient *struct{} `xml:"transient"`
}

func parseDomain(description string) (*domain, error) {
	var d domain
	if err := xml.Unmarshal([]byte(description), &d); err != nil {
		return nil, fmt.Errorf("parse domain XML: %w", err)
	}
	return &d, nil
}

// Key is the disk's key: the target's name.
func (d *domainDisk) Key() string { return d.Target.Dev }

// Format is the name of the image format.
func (d *domainDisk) Format() string {
	if d.Driver.Type == "" {
		return "raw"
	}
	return d.Driver.Type
}

// tracks reports whether the disk can hold a persistent bitmap.
func (d *domainDisk) tracks() bool { return d.Format() == "qcow2" }

// noBitmaps says why a disk that does not track is read in full.
func (d *domainDisk) noBitmaps() string {
	return fmt.Sprintf("%s is a %s disk; only qcow2 files can hold the bitmap that tracks changes", d.Key(), d.Format())
}

// leftOut returns why the disk is no part of a backup, "" if it is.
func (d *domainDisk) leftOut() string {
	switch {
	case d.Device != "" && d.Device != "disk":
		return "it is a " + d.Device
	case d.Source == nil:
		return "it has no source"
	case d.Transient != nil:
		return "it is transient: what is written to it is thrown away when the machine stops"
	case d.Shareable != nil:
		return "it is shared with other machines, and cannot be read at one moment for all of them"
	case d.ReadOnly != nil:
		return "it is read-only"
	case d.Type == "vhostuser" || d.Type == "vhostvdpa" || d.Type == "dir":
		return "QEMU cannot back up disks of type " + d.Type
	}
	return ""
}

// disks returns the disks to capture, and a note for each of the others.
func (d *domain) disks() (in []domainDisk, notes []string) {
	for _, disk := range d.Devices.Disks {
		switch why := disk.leftOut(); {
		case why == "":
			in = append(in, disk)
		case disk.Source != nil: // an empty drive is not worth a word
			notes = append(notes, fmt.Sprintf("Disk %s is left out: %s.", disk.Key(), why))
		}
	}
	return in, notes
}

const agentChannel = "org.qemu.guest_agent.0"

// agent returns why the guest agent cannot be asked, "" if it can.
func (d *domain) agent() string {
	for _, c := range d.Devices.Channels {
		if c.Target.Name != agentChannel {
			continue
		}
		if c.Target.State == "disconnected" {
			return "the guest agent does not run in the guest; install and start qemu-guest-agent there"
		}
		return ""
	}
	return "the machine has no channel for the guest agent (" + agentChannel + ")"
}

// owner returns the user and group that QEMU runs as, if the description of the
// running machine tells.
func (d *domain) owner() (uid, gid int, ok bool) {
	for _, l := range d.SecLabels {
		if l.Model != "dac" {
			continue
		}
		u, g, found := strings.Cut(l.Label, ":")
		uid, err1 := strconv.Atoi(strings.TrimPrefix(u, "+"))
		gid, err2 := strconv.Atoi(strings.TrimPrefix(g, "+"))
		if found && err1 == nil && err2 == nil {
			return uid, gid, true
		}
	}
	return 0, 0, false
}
