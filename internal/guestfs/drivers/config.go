package drivers

import (
	"regexp"
	"strings"
)

var (
	unstable  = regexp.MustCompile(`^/dev/(?:sd|vd|hd|xvd)[a-z]+[0-9]*$|^/dev/nvme[0-9]+n[0-9]+(?:p[0-9]+)?$|^/dev/mmcblk[0-9]+(?:p[0-9]+)?$`)
	parameter = regexp.MustCompile(`(?:^|[\s"'])(root|resume)=(/dev/[a-z0-9]+)`)
	address   = regexp.MustCompile(`(?i)\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b`)
	linkName  = regexp.MustCompile(`\b(?:eth[0-9]+|en[opsxP][0-9a-z]+)\b`)
)

// names looks for names of disks in what mounts them, unlocks them, and is passed
// to the kernel.
func (i *inspector) names() {
	i.table("/etc/fstab", 0, 1, 3)
	i.table("/etc/crypttab", 1, 0, 3)
	files := []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/grub2/grubenv", "/etc/default/grub", "/etc/kernel/cmdline",
		"/boot/extlinux/extlinux.conf", "/boot/extlinux.conf"}
	for _, pattern := range []string{"/boot/loader/entries/*.conf", "/efi/loader/entries/*.conf", "/boot/efi/loader/entries/*.conf"} {
		files = append(files, i.glob(pattern)...)
	}
	for _, file := range files {
		text, err := i.text(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(strings.TrimSpace(line), "#") {
				continue
			}
			for _, m := range parameter.FindAllStringSubmatch(line, 10) {
				i.name(Name{File: file, Device: m[2], For: m[1], Optional: m[1] == "resume"})
			}
		}
	}
}

// table reads an fstab(5) or crypttab(5), whose columns are given.
func (i *inspector) table(file string, device, purpose, options int) {
	text, err := i.text(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		n := Name{File: file, Device: f[device], For: f[purpose]}
		if len(f) > 2 && f[2] == "swap" && file == "/etc/fstab" {
			n.For, n.Optional = "swap", true
		}
		if len(f) > options {
			for o := range strings.SplitSeq(f[options], ",") {
				n.Optional = n.Optional || o == "nofail" || o == "noauto"
			}
		}
		i.name(n)
	}
}

func (i *inspector) name(n Name) {
	if !unstable.MatchString(n.Device) || len(i.g.Names) >= maxFound {
		return
	}
	for _, x := range i.g.Names {
		if x == n {
			return
		}
	}
	i.g.Names = append(i.g.Names, n)
}

// networkFiles are where a configuration may name network interfaces.
var networkFiles = []string{
	"/etc/udev/rules.d/*.rules", "/etc/systemd/network/*.link", "/etc/systemd/network/*.network", "/etc/netplan/*.yaml", "/etc/iftab",
	"/etc/sysconfig/network-scripts/ifcfg-*", "/etc/sysconfig/network/ifcfg-*", "/etc/network/interfaces", "/etc/network/interfaces.d/*",
	"/etc/NetworkManager/system-connections/*",
}

// links looks for names and addresses of network interfaces.
func (i *inspector) links() {
	for _, pattern := range networkFiles {
		for _, file := range i.glob(pattern) {
			text, err := i.text(file)
			if err != nil {
				continue
			}
			for line := range strings.Lines(text) {
				if strings.HasPrefix(strings.TrimSpace(line), "#") {
					continue
				}
				for _, mac := range address.FindAllString(line, 10) {
					i.link(Link{File: file, MAC: strings.ToLower(mac)})
				}
				for _, name := range linkName.FindAllString(line, 10) {
					i.link(Link{File: file, Name: name})
				}
			}
			// The name of the file may be that of the interface.
			if _, name, ok := strings.Cut(file, "/ifcfg-"); ok && linkName.MatchString(name) {
				i.link(Link{File: file, Name: name})
			}
		}
	}
}

func (i *inspector) link(l Link) {
	for _, x := range i.g.Links {
		if x == l {
			return
		}
	}
	if len(i.g.Links) < maxFound {
		i.g.Links = append(i.g.Links, l)
	}
}
