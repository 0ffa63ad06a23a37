// Package fit judges whether a guest runs on the hardware that it is restored to:
// it compares what the guest's disks tell with what the new machine has, and with
// what the old one had. It reads no disk.
package fit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/machine"
)

// Severity says how good or bad a finding is.
type Severity string

// The severities.
const (
	Works Severity = "works"
	Check Severity = "check"         // it depends on what cannot be told from here
	Fails Severity = "will not boot" // unless something is done
)

// Finding is something about a guest on its new hardware.
type Finding struct {
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`           // a sentence
	Hint     string   `json:"hint,omitempty"` // what to do about it
}

// Guest is what is known of a guest.
type Guest struct {
	OS      guestfs.OS
	HasRoot bool
	Drivers guestfs.Drivers
	// Keys are those of its disks, by index.
	Keys map[int]string
	// BIOS says that its first disk has something that a BIOS starts.
	BIOS bool
}

// Judge returns what there is to know, the worst first.
func Judge(g Guest, before *machine.Hardware, now machine.Hardware) []Finding {
	j := &judge{guest: g, before: before, now: now}
	switch {
	case !g.HasRoot:
		j.add(Check, "No operating system was found on the disks that can be read, so nothing is known of its drivers.",
			"See what is on them with: sendense-control ls VM POINT disk-0")
	case g.OS.Family == "linux":
		j.linux()
	case g.OS.Family == "windows":
		j.windows()
	default:
		j.add(Check, "Nothing is known of the drivers of this operating system.", "")
	}
	j.firmware()
	slices.SortStableFunc(j.findings, func(a, b Finding) int { return rank[a.Severity] - rank[b.Severity] })
	return j.findings
}

var rank = map[Severity]int{Fails: 0, Check: 1, Works: 2}

// judge collects findings.
type judge struct {
	guest    Guest
	before   *machine.Hardware
	now      machine.Hardware
	findings []Finding
}

func (j *judge) add(s Severity, text, hint string) {
	j.findings = append(j.findings, Finding{s, text, hint})
}

// root returns what the disk with the operating system is behind, now and before;
// empty if it is not known.
func (j *judge) root() (now, before string) {
	key, ok := j.guest.Keys[j.guest.Drivers.RootDisk]
	if !ok {
		return "", ""
	}
	now = behind(&j.now, key)
	if j.before != nil {
		before = behind(j.before, key)
	}
	return now, before
}

func behind(h *machine.Hardware, key string) string {
	for _, d := range h.Disks {
		if d.Key == key {
			return d.Controller
		}
	}
	return ""
}

// ran says that the guest ran on what the disk with its system is behind.
func (j *judge) ran() bool {
	now, before := j.root()
	return now != "" && now == before && machine.Family(j.before.Machine) == machine.Family(j.now.Machine)
}

// firmware judges what starts the guest.
func (j *judge) firmware() {
	efi := j.guest.Drivers.EFI
	switch {
	case j.now.Kernel != "":
	case j.now.Firmware == machine.BIOS && !j.guest.BIOS:
		hint := ""
		if len(efi.Systems) > 0 || efi.Fallback {
			hint = "It boots with UEFI: give the machine such a firmware, with virsh edit: <os firmware='efi'>"
		}
		j.add(Fails, "The first disk has nothing that the machine's BIOS could start.", hint)
	case j.now.Firmware == machine.BIOS, efi.Fallback:
	case len(efi.Systems) == 0:
		j.add(Check, "No boot loader was found that the machine's UEFI firmware could start.", "It may be on a file system that cannot be read.")
	default:
		j.add(Fails, fmt.Sprintf("What starts it (%s) was recorded in the variables of its firmware, which are no part of points, and the disks have no EFI/BOOT/BOOTX64.EFI, which firmware starts without.",
			strings.Join(efi.Systems, ", ")),
			"Choose the boot loader once in the firmware's menu (Boot Maintenance Manager, Boot From File); then let the guest record it again: grub-install, bootctl install, or bcdboot.")
	}
}
