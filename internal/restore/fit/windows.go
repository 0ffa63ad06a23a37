package fit

import (
	"fmt"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/machine"
)

// services are the drivers of Windows for what a disk is behind; of each any.
var services = map[string][]string{
	machine.VirtioBlk: {"viostor"}, machine.VirtioSCSI: {"vioscsi"}, machine.AHCI: {"storahci"}, machine.PIIX: {"intelide", "atapi"},
	"nvme": {"stornvme"}, "vmpvscsi": {"pvscsi"}, "lsisas1068": {"lsi_sas"}, "lsisas1078": {"megasas"},
}

// startsAtBoot is how the registry says that a driver is loaded before there are
// disks.
const startsAtBoot = 0

func (j *judge) windows() {
	now, _ := j.root()
	names := services[now]
	switch i := slices.IndexFunc(j.guest.Drivers.Services, func(s drivers.Service) bool { return slices.Contains(names, s.Name) }); {
	case now == "":
		j.add(Check, "The disk with Windows is not one that the machine has.", "Restore all of its disks.")
	case j.ran():
		j.add(Works, fmt.Sprintf("Windows finds its disk behind what it was behind, %s.", now), "")
	case names == nil:
		j.add(Check, fmt.Sprintf("What driver Windows needs for a disk behind %s is not known.", now), "")
	case i < 0:
		j.add(Fails, fmt.Sprintf("Windows does not find its disk behind %s: it lacks the driver %s.", now, names[0]), windowsAdvice(now))
	default:
		j.service(j.guest.Drivers.Services[i], now)
	}
	if j.before != nil && machine.Family(j.before.Machine) != machine.Family(j.now.Machine) {
		j.add(Check, "Its chipset is another: Windows installs drivers when it starts, and may have to be activated again.", "")
	}
	for _, nic := range j.now.Interfaces {
		if nic.Model == "virtio" && !slices.ContainsFunc(j.guest.Drivers.Services, func(s drivers.Service) bool { return s.Name == "netkvm" }) {
			j.add(Check, "Windows lacks the driver of its network interface, netkvm.", "Install virtio-win in it, or give it an e1000e with virsh edit.")
			break
		}
	}
}

// service judges the driver of the disk.
func (j *judge) service(s drivers.Service, controller string) {
	switch {
	case s.Start == startsAtBoot && s.File:
		j.add(Works, fmt.Sprintf("Windows has the driver of its disk (%s: %s) when it starts.", controller, s.Name), "")
	case !s.File:
		j.add(Fails, fmt.Sprintf("Windows does not find its disk behind %s: the program of its driver %s is missing.", controller, s.Name), windowsAdvice(controller))
	case s.Start < 0:
		j.add(Check, fmt.Sprintf("Windows has the program of the driver %s, for a disk behind %s; whether it is loaded at boot is not known.", s.Name, controller), windowsAdvice(controller))
	default:
		j.add(Fails, fmt.Sprintf("Windows does not find its disk behind %s: it has the driver %s, and does not load it at boot (Start is %d).", controller, s.Name, s.Start), windowsAdvice(controller))
	}
}

func windowsAdvice(controller string) string {
	how := "Put the disk behind what it was behind, with virsh edit, and attach a second disk"
	if controller == machine.AHCI {
		return "Start it once in safe mode, in which Windows loads the driver; or put the disk behind what it was behind, with virsh edit."
	}
	return how + " behind " + controller + ": once Windows has installed the driver for that one, it boots from there, too."
}
