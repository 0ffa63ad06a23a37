package machine

import (
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Host is what a hypervisor offers, as far as a description depends on it. Lists
// that are nil are not known, and nothing is held against them.
type Host struct {
	Name       string
	KVM        bool            // it accelerates machines of the architecture
	Networks   map[string]bool // of libvirt: whether they are active
	Interfaces []string        // network devices, bridges included
	Filters    []string        // of libvirt, for traffic
	// FitsCPU says that it can have the processor that was captured.
	FitsCPU bool
	// Exists reports whether it has a file; nil: it has none.
	Exists func(path string) bool

	Offer
}

// Offer is what a hypervisor has for one type of machine.
type Offer struct {
	Machine string   // type, by its full name
	UEFI    bool     // libvirt can choose a firmware
	Loaders []string // paths of UEFI firmware
	// Buses of disks, types of screens and cards, and backends of TPMs, as libvirt
	// calls them.
	Buses, Screens, Cards, TPMs []string
}

// offers reports whether one of a list can be had.
func (h *Host) offers(list []string, what string) bool {
	return list == nil || slices.Contains(list, what)
}

// ParseOffer reads libvirt's description of what a hypervisor has for a type of
// machine (its formatdomaincaps).
func ParseOffer(capabilities string) (Offer, error) {
	type enum struct {
		Name   string   `xml:"name,attr"`
		Values []string `xml:"value"`
	}
	var c struct {
		Machine string `xml:"machine"`
		OS      struct {
			Enums  []enum `xml:"enum"`
			Loader struct {
				Values []string `xml:"value"`
			} `xml:"loader"`
		} `xml:"os"`
		Devices struct {
			Disk     []enum `xml:"disk>enum"`
			Graphics []enum `xml:"graphics>enum"`
			Video    []enum `xml:"video>enum"`
			TPM      []enum `xml:"tpm>enum"`
		} `xml:"devices"`
	}
	if err := xml.Unmarshal([]byte(capabilities), &c); err != nil {
		return Offer{}, fmt.Errorf("parse domain capabilities: %w", err)
	}
	values := func(list []enum, name string) []string {
		for _, e := range list {
			if e.Name == name {
				return append([]string{}, e.Values...)
			}
		}
		return nil
	}
	return Offer{Machine: c.Machine, Loaders: c.OS.Loader.Values, UEFI: slices.Contains(values(c.OS.Enums, "firmware"), "efi"),
		Buses: values(c.Devices.Disk, "bus"), Screens: values(c.Devices.Graphics, "type"),
		Cards: values(c.Devices.Video, "modelType"), TPMs: values(c.Devices.TPM, "backendModel")}, nil
}

// Wants is what has to be known of a host for a machine.
type Wants struct {
	Arch    string
	Machine string // type
	CPU     string // element of a custom one, for libvirt to compare; empty: none
	// Name and UUID are what it is to have; an empty UUID is nobody's.
	Name, UUID string
	Pool       string // storage pool to find; empty: none
}

// Site is a host, with what is to be known of it for one machine.
type Site struct {
	Host
	Taken Taken
	Pool  Pool // the zero Pool if it has none of the name
	// UID and GID are those of the user that QEMU runs as.
	UID, GID   int
	OwnerKnown bool
}

// Taken says what of a machine others have.
type Taken struct {
	Name bool
	UUID string // name of the machine that has it; empty: none
}

// Pool is a storage pool.
type Pool struct {
	Name, Type, Path string
	Active           bool
}

// Definition is a machine to be defined.
type Definition struct {
	Name, UUID, XML string
	Start           bool
}

// ErrRemains says that a machine could not be removed, or that nobody knows
// whether it was.
var ErrRemains = errors.New("the machine may be defined")

// Variables returns the file in which a machine's firmware keeps its variables;
// empty if it has none.
func Variables(description string) string {
	d, err := parseXML(description)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(d.at("os", "nvram").content())
}

// WithoutInterfaces leaves the network interfaces out of a description.
func WithoutInterfaces(description string) (string, error) {
	d, err := parseXML(description)
	if err != nil {
		return "", err
	}
	if devices := d.child("devices"); devices != nil {
		devices.drop("interface")
	}
	return d.String(), nil
}

// Wants says what has to be known of a host for it.
func (c Captured) Wants() (Wants, error) {
	w := Wants{Arch: "x86_64", Machine: "q35"}
	if c.Format != LibvirtXML {
		return w, nil
	}
	d, err := parseXML(c.Definition)
	if err != nil {
		return w, err
	}
	t := d.at("os", "type")
	if a := t.attr("arch"); a != "" {
		w.Arch = a
	}
	w.Machine = t.attr("machine")
	if cpu := d.child("cpu"); cpu.attr("mode") == "custom" && cpu.child("model") != nil {
		w.CPU = cpu.String()
	}
	return w, nil
}

// Family returns the type of machine that stands for all versions of one:
// pc-q35-7.2 is a q35. It is empty if that is not known.
func Family(machine string) string {
	for _, f := range []struct{ prefix, name string }{
		{"pc-q35", "q35"}, {"q35", "q35"}, {"pc-i440fx", "pc"}, {"pc-", "pc"}, {"pc", "pc"}, {"virt", "virt"}, {"pseries", "pseries"},
		{"s390-ccw-virtio", "s390-ccw-virtio"}, {"microvm", "microvm"},
	} {
		if strings.HasPrefix(machine, f.prefix) {
			return f.name
		}
	}
	return ""
}

// UUID returns that of the captured machine; empty if it has none.
func (c Captured) UUID() string {
	if c.Format != LibvirtXML {
		return ""
	}
	d, err := parseXML(c.Definition)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(d.child("uuid").content())
}
