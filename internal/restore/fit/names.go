package fit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/machine"
)

// kernelNames returns what Linux calls disks, by their keys: of each kind in the
// order in which the machine has them.
func kernelNames(h *machine.Hardware) map[string]string {
	names, count := map[string]string{}, map[string]int{}
	for _, d := range h.Disks {
		prefix := "sd"
		switch d.Controller {
		case machine.VirtioBlk:
			prefix = "vd"
		case "xen":
			prefix = "xvd"
		case "nvme":
			names[d.Key] = fmt.Sprintf("nvme%dn1", count["nvme"])
			count["nvme"]++
			continue
		}
		names[d.Key] = prefix + letters(count[prefix])
		count[prefix]++
	}
	return names
}

// letters returns a, b, …, z, aa for 0, 1, ….
func letters(i int) string {
	s := ""
	for i++; i > 0; i = (i - 1) / 26 {
		s = string(rune('a'+(i-1)%26)) + s
	}
	return s
}

var device = regexp.MustCompile(`^/dev/((?:sd|vd|hd|xvd)[a-z]+|nvme[0-9]+n[0-9]+|mmcblk[0-9]+)(p?[0-9]*)$`)

// names judges names of disks that are others on the new hardware.
func (j *judge) names() {
	now := kernelNames(&j.now)
	for _, n := range j.guest.Drivers.Names {
		m := device.FindStringSubmatch(n.Device)
		if m == nil {
			continue
		}
		becomes, known := j.becomes(m[1], now)
		if becomes == m[1] {
			continue
		}
		s := Fails
		if n.Optional {
			s = Check
		}
		text := fmt.Sprintf("%s names %s, for %s", n.File, n.Device, n.For)
		if known {
			text += fmt.Sprintf("; it is %s now.", renamed(becomes, m[2]))
		} else {
			text += ", and no disk has that name now."
		}
		j.add(s, text, "Have it name the file system by UUID, which does not change: see blkid.")
	}
}

// becomes returns the new name of a disk that had one.
func (j *judge) becomes(old string, now map[string]string) (name string, known bool) {
	if j.before != nil {
		for key, name := range kernelNames(j.before) {
			if name == old {
				return now[key], now[key] != ""
			}
		}
	}
	// What had the name is not known: that there is something of it has to do.
	for _, name := range now {
		if name == old {
			return old, true
		}
	}
	return "", false
}

// renamed puts the number of a partition behind a name.
func renamed(name, part string) string {
	part = strings.TrimPrefix(part, "p")
	if strings.HasPrefix(name, "nvme") && part != "" {
		part = "p" + part
	}
	return "/dev/" + name + part
}

// interfaces judges the network interfaces.
func (j *judge) interfaces() {
	for _, nic := range j.now.Interfaces {
		for _, k := range j.guest.Drivers.Kernels {
			if any := cards[nic.Model]; any != nil && k.Modules && len(lacking([][]string{any}, slices.Concat(k.BuiltIn, k.Early, k.Late))) > 0 {
				j.add(Check, fmt.Sprintf("Kernel %s has no driver of its network interface (%s).", k.Version, any[0]), "Give it another model with virsh edit.")
			}
		}
	}
	j.addresses()
	j.linkNames()
}

// addresses judges files that name the addresses which the interfaces had.
func (j *judge) addresses() {
	if j.before == nil {
		if files := filesOf(j.guest.Drivers.Links, func(l drivers.Link) bool { return l.MAC != "" }); len(files) > 0 && len(j.now.Interfaces) > 0 {
			j.add(Check, fmt.Sprintf("%s tells network interfaces by their addresses, which are others now.", list(files)), "")
		}
		return
	}
	has := func(h *machine.Hardware, mac string) bool {
		return slices.ContainsFunc(h.Interfaces, func(n machine.HardwareNIC) bool { return n.MAC == mac })
	}
	gone := func(l drivers.Link) bool { return l.MAC != "" && has(j.before, l.MAC) && !has(&j.now, l.MAC) }
	if files := filesOf(j.guest.Drivers.Links, gone); len(files) > 0 {
		j.add(Check, fmt.Sprintf("%s tells network interfaces by the addresses that they had; now they have others, and may stay down or get other names.", list(files)),
			"Keep the addresses with --keep-identity, once the machine that has them is gone; or change the files.")
	}
}

// linkNames judges files that name interfaces by where they stand.
func (j *judge) linkNames() {
	if j.before != nil && sameSlots(j.before.Interfaces, j.now.Interfaces) && machine.Family(j.before.Machine) == machine.Family(j.now.Machine) {
		return
	}
	files := filesOf(j.guest.Drivers.Links, func(l drivers.Link) bool { return strings.HasPrefix(l.Name, "en") })
	if len(files) > 0 && len(j.now.Interfaces) > 0 {
		j.add(Check, fmt.Sprintf("%s names network interfaces by where they stood; they may have other names now.", list(files)), "See what they are called with: ip link")
	}
}

// sameSlots reports whether the interfaces that are there stand where they stood.
func sameSlots(before, now []machine.HardwareNIC) bool {
	for _, n := range now {
		if n.Slot == "" || !slices.ContainsFunc(before, func(b machine.HardwareNIC) bool { return b.Slot == n.Slot && b.Model == n.Model }) {
			return false
		}
	}
	return true
}

// filesOf returns the files of chosen links, each once.
func filesOf(links []drivers.Link, choose func(drivers.Link) bool) (files []string) {
	for _, l := range links {
		if choose(l) && !slices.Contains(files, l.File) {
			files = append(files, l.File)
		}
	}
	return files
}
