package machine

import (
	"slices"
	"strings"
)

// Hardware is what a guest meets: what it needs drivers for, and what it may know
// by name.
type Hardware struct {
	Machine    string `json:"machine"`  // type, as pc-q35-7.2
	Firmware   string `json:"firmware"` // bios or uefi
	SecureBoot bool   `json:"secure_boot"`
	// Kernel is one of the host that is started in place of what is on the disks.
	Kernel     string         `json:"kernel,omitempty"`
	Disks      []HardwareDisk `json:"disks"`
	Interfaces []HardwareNIC  `json:"interfaces"`
}

// HardwareDisk is a disk and what it is behind.
type HardwareDisk struct {
	Key        string `json:"key"`        // of the disk in the point, or the target's name
	Controller string `json:"controller"` // virtio-blk, virtio-scsi, ahci, … as in the constants
	Unit       string `json:"unit"`       // where it stands there, as libvirt has it
}

// HardwareNIC is a network interface.
type HardwareNIC struct {
	MAC   string `json:"mac"` // empty: libvirt chooses
	Model string `json:"model"`
	Slot  string `json:"slot"` // its PCI address; empty if libvirt chooses
}

// Controllers of disks. Models of SCSI that QEMU has under further names are here
// under their own.
const (
	VirtioBlk  = "virtio-blk"
	VirtioSCSI = "virtio-scsi"
	AHCI       = "ahci"
	PIIX       = "piix"
	USB        = "usb"
	LSI        = "lsilogic"
)

// Firmware of a machine.
const (
	BIOS = "bios"
	UEFI = "uefi"
)

// hardware reads what a description gives to the guest. keys are those of the
// disks by the names of their targets; nil: they are these.
func hardware(d *node, keys map[string]string) Hardware {
	h := Hardware{Machine: d.at("os", "type").attr("machine"), Firmware: BIOS, Disks: []HardwareDisk{}, Interfaces: []HardwareNIC{}}
	os := d.child("os")
	if os.attr("firmware") == "efi" || os.child("loader").attr("type") == "pflash" {
		h.Firmware = UEFI
	}
	h.Kernel = strings.TrimSpace(os.child("kernel").content())
	h.SecureBoot = os.child("loader").attr("secure") == "yes"
	if f := os.child("firmware"); f != nil {
		for _, n := range f.children {
			h.SecureBoot = h.SecureBoot || n.attr("name") == "secure-boot" && n.attr("enabled") == "yes"
		}
	}
	devices := d.child("devices")
	if devices == nil {
		return h
	}
	for _, n := range devices.children {
		switch n.name {
		case "disk":
			if device := n.attr("device"); device != "" && device != "disk" && device != "lun" {
				continue
			}
			key := n.child("target").attr("dev")
			if keys != nil {
				key = keys[key]
			}
			h.Disks = append(h.Disks, HardwareDisk{Key: key, Controller: controller(n, devices, Family(h.Machine)), Unit: address(n)})
		case "interface":
			model := n.child("model").attr("type")
			if model == "" {
				model = "rtl8139" // libvirt's own default, on a PC
			}
			h.Interfaces = append(h.Interfaces, HardwareNIC{MAC: strings.ToLower(n.child("mac").attr("address")), Model: model, Slot: address(n)})
		}
	}
	return h
}

// address returns where a device stands.
func address(n *node) string {
	a := n.child("address")
	if a == nil {
		return ""
	}
	var parts []string
	for _, name := range []string{"domain", "controller", "bus", "slot", "function", "target", "unit"} {
		if v := a.attr(name); v != "" {
			parts = append(parts, strings.TrimPrefix(v, "0x"))
		}
	}
	return strings.Join(parts, ":")
}

// controller names what a disk is behind.
func controller(disk, devices *node, family string) string {
	target := disk.child("target")
	switch bus := target.attr("bus"); bus {
	case "virtio":
		return VirtioBlk
	case "sata":
		return AHCI
	case "ide":
		return PIIX
	case "scsi":
		return scsi(disk, devices, family)
	case "":
		return map[string]string{"vd": VirtioBlk, "hd": PIIX, "sd": LSI, "xv": "xen"}[target.attr("dev")[:min(2, len(target.attr("dev")))]]
	default:
		return bus // usb, xen, sd, nvme
	}
}

// scsi names the model of the controller that a disk is behind.
func scsi(disk, devices *node, family string) string {
	index := disk.child("address").attr("controller")
	if index == "" {
		index = "0"
	}
	i := slices.IndexFunc(devices.children, func(n *node) bool {
		at := n.attr("index")
		return n.name == "controller" && n.attr("type") == "scsi" && (at == index || at == "")
	})
	model := ""
	if i >= 0 {
		model = devices.children[i].attr("model")
	}
	switch {
	case strings.HasPrefix(model, "virtio"):
		return VirtioSCSI
	case model != "" && model != "auto":
		return model
	case family == "q35" || family == "pc":
		return LSI // what libvirt takes
	}
	return VirtioSCSI
}
