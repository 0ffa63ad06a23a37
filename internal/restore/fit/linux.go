package fit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/machine"
)

// needs are the drivers of Linux for what a disk is behind: all, and of each any.
var needs = map[string][][]string{
	machine.VirtioBlk:  {{"virtio_blk"}, {"virtio_pci", "virtio_mmio"}},
	machine.VirtioSCSI: {{"virtio_scsi"}, {"virtio_pci", "virtio_mmio"}, {"sd_mod"}},
	machine.AHCI:       {{"ahci"}, {"sd_mod"}},
	machine.PIIX:       {{"ata_piix"}, {"sd_mod"}},
	machine.USB:        {{"usb_storage", "uas"}, {"xhci_pci", "xhci_hcd", "ehci_pci", "ehci_hcd", "uhci_hcd"}, {"sd_mod"}},
	machine.LSI:        {{"sym53c8xx"}, {"sd_mod"}},
	"lsisas1068":       {{"mptsas"}, {"sd_mod"}},
	"lsisas1078":       {{"megaraid_sas"}, {"sd_mod"}},
	"vmpvscsi":         {{"vmw_pvscsi"}, {"sd_mod"}},
	"am53c974":         {{"am53c974"}, {"sd_mod"}},
	"nvme":             {{"nvme"}},
	"xen":              {{"xen_blkfront"}},
	"sd":               {{"sdhci_pci"}, {"mmc_block"}},
}

// cards are the drivers of Linux for network interfaces; of each any.
var cards = map[string][]string{
	"virtio": {"virtio_net"}, "virtio-transitional": {"virtio_net"}, "virtio-non-transitional": {"virtio_net"},
	"e1000": {"e1000"}, "e1000e": {"e1000e"}, "igb": {"igb"}, "rtl8139": {"8139cp", "8139too"}, "vmxnet3": {"vmxnet3"},
	"pcnet": {"pcnet32"}, "ne2k_pci": {"ne2k_pci"},
}

func (j *judge) linux() {
	now, _ := j.root()
	switch {
	case j.now.Kernel != "":
		j.add(Check, fmt.Sprintf("It is started with a kernel of the host, %s, whose drivers are not looked at.", j.now.Kernel), "")
	case now == "":
		j.add(Check, "The disk with its operating system is not one that the machine has.", "Restore all of its disks.")
	case needs[now] == nil:
		j.add(Check, fmt.Sprintf("What drivers its disk needs behind %s is not known.", now), "")
	case len(j.guest.Drivers.Kernels) == 0:
		j.add(j.atMost(Check), "No kernel was found in /boot, so nothing is known of its drivers.",
			"It may be part of a unified kernel image, or on a file system that cannot be read.")
	default:
		for i, k := range j.guest.Drivers.Kernels {
			j.kernel(k, i == 0, now)
		}
	}
	j.dataDisks(now)
	j.names()
	j.interfaces()
}

// atMost is Works where the guest is known to have run.
func (j *judge) atMost(s Severity) Severity {
	if j.ran() {
		return Works
	}
	return s
}

// kernel judges a kernel; the first is the newest, which starts by itself.
func (j *judge) kernel(k drivers.Kernel, first bool, controller string) {
	have := append(append([]string{}, k.BuiltIn...), k.Early...)
	missing := lacking(needs[controller], have)
	name := "Kernel " + k.Version
	switch {
	case len(missing) == 0:
		j.add(Works, fmt.Sprintf("%s has the drivers of its disk (%s: %s) when it starts.", name, controller, list(used(needs[controller], have))), "")
	case j.ran():
		j.add(Works, fmt.Sprintf("%s finds its disk behind what it was behind, %s.", name, controller), "")
	case k.Unread != "":
		j.add(Check, fmt.Sprintf("The initial RAM disk of %s, %s, could not be read: %s.", strings.ToLower(name[:1])+name[1:], k.Initramfs, k.Unread), j.advice(missing))
	case k.Initramfs == "" && !k.Modules && len(k.BuiltIn) == 0:
		j.add(Check, fmt.Sprintf("%s has neither an initial RAM disk nor modules, so nothing is known of its drivers.", name), "")
	default:
		s := Fails
		if !first {
			s = Check // it matters if it is chosen in the boot loader's menu
		}
		text := fmt.Sprintf("%s does not find its disk behind %s: its initial RAM disk lacks %s.", name, controller, list(missing))
		if k.Initramfs == "" {
			text = fmt.Sprintf("%s does not find its disk behind %s: it has no initial RAM disk, and not %s built in.", name, controller, list(missing))
		}
		if absent := lacking(needs[controller], append(have, k.Late...)); k.Modules && len(absent) > 0 {
			j.add(s, text+fmt.Sprintf(" The kernel was made without %s.", list(absent)), "Put the disk behind what it was behind, with virsh edit.")
			return
		}
		j.add(s, text, j.advice(missing))
	}
}

// lacking returns what is missing of needs, by the first name of each.
func lacking(needs [][]string, have []string) (missing []string) {
	for _, any := range needs {
		if !slices.ContainsFunc(any, func(d string) bool { return slices.Contains(have, d) }) {
			missing = append(missing, any[0])
		}
	}
	return missing
}

// used returns what there is of needs.
func used(needs [][]string, have []string) (found []string) {
	for _, any := range needs {
		if i := slices.IndexFunc(any, func(d string) bool { return slices.Contains(have, d) }); i >= 0 {
			found = append(found, any[i])
		}
	}
	return found
}

func list(names []string) string {
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}

// advice says how the guest gets drivers into its initial RAM disks.
func (j *judge) advice(modules []string) string {
	names := strings.Join(modules, " ")
	how := "add " + names + " to its initial RAM disk"
	switch j.guest.Drivers.Tool {
	case "initramfs-tools":
		how = fmt.Sprintf("printf '%%s\\n' %s >>/etc/initramfs-tools/modules; update-initramfs -u -k all", names)
	case "dracut":
		how = fmt.Sprintf("dracut --force --regenerate-all --add-drivers '%s'", names)
	case "mkinitcpio":
		how = fmt.Sprintf("add %s to MODULES in /etc/mkinitcpio.conf; mkinitcpio -P", names)
	}
	return "In the guest, before a backup or from a rescue system: " + how + ". Or put the disk behind what it was behind, with virsh edit."
}

// dataDisks judges disks that are behind something else than the first: the guest
// finds their drivers on its root.
func (j *judge) dataDisks(root string) {
	done := []string{root}
	for _, d := range j.now.Disks {
		if slices.Contains(done, d.Controller) || needs[d.Controller] == nil || j.before != nil && behind(j.before, d.Key) == d.Controller {
			continue
		}
		done = append(done, d.Controller)
		for _, k := range j.guest.Drivers.Kernels {
			if missing := lacking(needs[d.Controller], slices.Concat(k.BuiltIn, k.Early, k.Late)); k.Modules && len(missing) > 0 {
				j.add(Check, fmt.Sprintf("Kernel %s has no %s, so it does not find disk %s behind %s.", k.Version, list(missing), d.Key, d.Controller), "")
			}
		}
	}
}
