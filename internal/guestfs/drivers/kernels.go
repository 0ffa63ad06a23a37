package drivers

import (
	"encoding/binary"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// known are the drivers that matter: of what disks and network interfaces of
// virtual machines are behind.
var known = []string{
	"virtio_blk", "virtio_scsi", "virtio_pci", "virtio_net", "virtio_mmio", "ahci", "ata_piix", "sd_mod", "nvme", "usb_storage", "uas",
	"xhci_pci", "xhci_hcd", "ehci_pci", "ehci_hcd", "uhci_hcd", "sym53c8xx", "mptspi", "mptsas", "mpt3sas", "megaraid_sas", "vmw_pvscsi",
	"am53c974", "xen_blkfront", "xen_netfront", "hv_storvsc", "hv_netvsc", "sdhci_pci", "mmc_block",
	"e1000", "e1000e", "igb", "8139cp", "8139too", "vmxnet3", "pcnet32", "ne2k_pci",
}

// module returns the driver whose module has the file name; empty if it is none.
func module(file string) string {
	name, _, isModule := strings.Cut(path.Base(file), ".ko")
	if !isModule {
		return ""
	}
	name = strings.ReplaceAll(name, "-", "_")
	if !slices.Contains(known, name) {
		return ""
	}
	return name
}

// add puts a driver into a list, once.
func add(list []string, name string) []string {
	if name == "" || slices.Contains(list, name) {
		return list
	}
	return append(list, name)
}

// images are the names of kernels; the version follows.
var images = regexp.MustCompile(`^(?:vmlinuz|vmlinux|bzImage|Image|kernel|linux)(?:-(.+))?$`)

// kernels looks for kernels, newest first.
func (i *inspector) kernels() {
	for _, dir := range i.kernelFolders() {
		for _, e := range i.list(dir) {
			m := images.FindStringSubmatch(e.Name)
			if m == nil || !e.Type.IsRegular() && e.Type != fs.ModeIrregular || strings.HasPrefix(m[1], "0-rescue") {
				continue
			}
			i.g.Kernels = append(i.g.Kernels, Kernel{Image: dir + "/" + e.Name, Version: m[1], Initramfs: i.initramfsOf(dir, m[1])})
		}
	}
	for k := range i.g.Kernels {
		if x := &i.g.Kernels[k]; x.Version == "" || !i.there("/lib/modules/"+x.Version) {
			if v := i.versionIn(x.Image); v != "" {
				x.Version = v
			}
		}
	}
	slices.SortStableFunc(i.g.Kernels, func(a, b Kernel) int { return compareVersions(b.Version, a.Version) })
	i.g.Kernels = i.g.Kernels[:min(len(i.g.Kernels), maxKernels)]
	for k := range i.g.Kernels {
		x := &i.g.Kernels[k]
		i.early(x)
		i.late(x)
	}
}

// kernelFolders returns the folders in which kernels may lie: /boot, and those of
// single kernels, {token}/{version}, of systemd-boot.
func (i *inspector) kernelFolders() []string {
	dirs := []string{"/boot"}
	for _, base := range []string{"/boot", "/efi", "/boot/efi"} {
		for _, token := range i.list(base) {
			if token.Type&fs.ModeDir == 0 || token.Name == "grub" || token.Name == "EFI" || len(dirs) > maxKernels {
				continue
			}
			for _, version := range i.list(base + "/" + token.Name) {
				dir := base + "/" + token.Name + "/" + version.Name
				if version.Type&fs.ModeDir != 0 && len(dirs) <= maxKernels && i.there(dir+"/linux") {
					dirs = append(dirs, dir)
				}
			}
		}
	}
	return dirs
}

// initramfsOf finds the initial RAM disk of a kernel, as distributions name it.
func (i *inspector) initramfsOf(dir, version string) string {
	names := []string{"initrd.img", "initramfs.img", "initrd", "initramfs"}
	if version != "" {
		names = []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version, "initrd-" + version + ".img", "initramfs-" + version}
	}
	for _, name := range names {
		if _, _, err := i.file(dir + "/" + name); err == nil {
			return dir + "/" + name
		}
	}
	return ""
}

// versionIn reads the version from a kernel, by the boot protocol of x86; empty if
// it has none.
func (i *inspector) versionIn(p string) string {
	n, _, err := i.file(p)
	if err != nil {
		return ""
	}
	b := make([]byte, 64<<10)
	m, err := io.ReadFull(&reader{s: i.s, node: n}, b)
	if m < 0x210 || string(b[0x202:0x206]) != "HdrS" {
		_ = err // a short file is no kernel
		return ""
	}
	at := int(binary.LittleEndian.Uint16(b[0x20e:])) + 0x200
	if at >= m {
		return ""
	}
	version, _, _ := strings.Cut(string(b[at:min(m, at+200)]), " ")
	version, _, _ = strings.Cut(version, "\x00")
	return version
}

// early looks into the initial RAM disk of a kernel.
func (i *inspector) early(k *Kernel) {
	if k.Initramfs == "" {
		return
	}
	n, _, err := i.file(k.Initramfs)
	if err != nil {
		k.Unread = err.Error()
		return
	}
	err = readInitramfs(&reader{s: i.s, node: n}, func(name string) { k.Early = add(k.Early, module(name)) })
	if err != nil {
		k.Unread = err.Error()
	}
}

// late looks at the lists of the drivers that a kernel has built in and as modules.
func (i *inspector) late(k *Kernel) {
	for _, dir := range []string{"/lib/modules/", "/usr/lib/modules/"} {
		dir += k.Version
		if k.Version == "" || strings.Contains(k.Version, "/") || !i.there(dir) {
			continue
		}
		if text, err := i.text(dir + "/modules.builtin"); err == nil {
			for line := range strings.Lines(text) {
				k.BuiltIn = add(k.BuiltIn, module(strings.TrimSpace(line)))
			}
		}
		text, err := i.text(dir + "/modules.dep")
		k.Modules = err == nil
		for line := range strings.Lines(text) {
			name, _, _ := strings.Cut(line, ":")
			k.Late = add(k.Late, module(name))
		}
		return
	}
}

var digits = regexp.MustCompile(`[0-9]+|[^0-9]+`)

// compareVersions orders versions as people do: 6.10 is newer than 6.9.
func compareVersions(a, b string) int {
	x, y := digits.FindAllString(a, 50), digits.FindAllString(b, 50)
	for i := range min(len(x), len(y)) {
		n, err1 := strconv.Atoi(x[i])
		m, err2 := strconv.Atoi(y[i])
		switch {
		case err1 == nil && err2 == nil && n != m:
			return n - m
		case x[i] != y[i] && (err1 != nil || err2 != nil):
			return strings.Compare(x[i], y[i])
		}
	}
	return len(x) - len(y)
}

// tool finds out what makes initial RAM disks.
func (i *inspector) tool() {
	for _, x := range []struct{ path, tool string }{
		{"/usr/sbin/mkinitramfs", "initramfs-tools"}, {"/etc/initramfs-tools", "initramfs-tools"}, {"/usr/bin/dracut", "dracut"},
		{"/usr/bin/mkinitcpio", "mkinitcpio"}, {"/etc/mkinitcpio.conf", "mkinitcpio"}, {"/sbin/mkinitfs", "mkinitfs"},
	} {
		if i.there(x.path) {
			i.g.Tool = x.tool
			return
		}
	}
}
