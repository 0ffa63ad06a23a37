package fit_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/restore/fit"
)

func TestMain(m *testing.M) {
	guestfs.Main()
	fstest.Main(m)
}

// linux is a guest that has what it takes for virtio.
func linux(change func(*fit.Guest)) fit.Guest {
	g := fit.Guest{OS: guestfs.OS{Family: "linux"}, HasRoot: true, Keys: map[int]string{0: "vda", 1: "vdb"}, BIOS: true,
		Drivers: drivers.Guest{RootDisk: 0, Tool: "dracut", Kernels: []drivers.Kernel{{Version: "6.1", Image: "/boot/vmlinuz-6.1", Initramfs: "/boot/initramfs-6.1.img",
			Modules: true, BuiltIn: []string{"sd_mod"}, Early: []string{"virtio_blk", "virtio_pci"}, Late: []string{"virtio_blk", "virtio_pci", "ahci", "virtio_net"}}}}}
	if change != nil {
		change(&g)
	}
	return g
}

// hardware has disks vda, vdb and so on, each behind the controller given.
func hardware(controllers ...string) machine.Hardware {
	h := machine.Hardware{Machine: "pc-q35-7.2", Firmware: machine.BIOS}
	for i, c := range controllers {
		h.Disks = append(h.Disks, machine.HardwareDisk{Key: "vd" + string(rune('a'+i)), Controller: c})
	}
	return h
}

func with(h machine.Hardware, change func(*machine.Hardware)) machine.Hardware {
	h.Disks = slices.Clone(h.Disks)
	change(&h)
	return h
}

// told is what findings say, in one text.
func told(list []fit.Finding) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%s: %s %s\n", f.Severity, f.Text, f.Hint)
	}
	return b.String()
}

func TestWhatIsFound(t *testing.T) {
	virtio, sata := hardware(machine.VirtioBlk), hardware(machine.AHCI)
	nic := machine.HardwareNIC{MAC: "52:54:00:aa:00:01", Model: "virtio", Slot: "0000:01:00:0"}
	windows := func(services ...drivers.Service) fit.Guest {
		return fit.Guest{OS: guestfs.OS{Family: "windows"}, HasRoot: true, Keys: map[int]string{0: "vda"}, BIOS: true, Drivers: drivers.Guest{Services: services}}
	}
	for _, c := range []struct {
		name   string
		guest  fit.Guest
		before *machine.Hardware
		now    machine.Hardware
		want   []string // each is in one line; nothing else is told
	}{
		{"the drivers are in the initial RAM disk", linux(nil), nil, virtio, []string{"works: Kernel 6.1 has the drivers of its disk (virtio-blk: virtio_blk and virtio_pci)"}},
		{"nothing has changed", linux(func(g *fit.Guest) { g.Drivers.Kernels[0].Early = nil }), &virtio, virtio, []string{"works: Kernel 6.1 finds its disk behind what it was behind"}},
		{"they are on the root only", linux(nil), &virtio, sata, []string{"will not boot: Kernel 6.1 does not find its disk behind ahci: its initial RAM disk lacks ahci. |--add-drivers 'ahci'"}},
		{"they are nowhere", linux(func(g *fit.Guest) { g.Drivers.Kernels[0].Late = nil }), nil, sata, []string{"will not boot: |made without ahci"}},
		{"they are built in", linux(func(g *fit.Guest) {
			g.Drivers.Kernels[0] = drivers.Kernel{Version: "6.1", Modules: true, BuiltIn: []string{"ahci", "sd_mod"}}
		}), nil, sata, []string{"works: Kernel 6.1"}},
		{"nothing is built in, and there is no initial RAM disk", linux(func(g *fit.Guest) {
			g.Drivers.Kernels[0] = drivers.Kernel{Version: "6.1", Modules: true, Late: []string{"ahci", "sd_mod"}}
		}), nil, sata, []string{"will not boot: |no initial RAM disk, and not ahci and sd_mod built in"}},
		{"the initial RAM disk cannot be read", linux(func(g *fit.Guest) {
			g.Drivers.Kernels[0].Early, g.Drivers.Kernels[0].Unread = nil, "it ends in the middle"
		}), nil, virtio,
			[]string{"check: The initial RAM disk of kernel 6.1, /boot/initramfs-6.1.img, could not be read: it ends in the middle."}},
		{"an older kernel lacks them", linux(func(g *fit.Guest) {
			old := g.Drivers.Kernels[0]
			old.Version, old.Early = "5.1", nil
			g.Drivers.Kernels = append(g.Drivers.Kernels, old)
		}), nil, virtio, []string{"check: Kernel 5.1 does not find", "works: Kernel 6.1"}},
		{"no kernel", linux(func(g *fit.Guest) { g.Drivers.Kernels = nil }), nil, virtio, []string{"check: No kernel was found in /boot"}},
		{"a kernel of the host", linux(nil), nil, with(virtio, func(h *machine.Hardware) { h.Kernel = "/k" }), []string{"check: It is started with a kernel of the host, /k"}},
		{"the root is not restored", linux(nil), nil, with(virtio, func(h *machine.Hardware) { h.Disks[0].Key = "vdb" }), []string{"check: The disk with its operating system is not one"}},
		{"an unknown controller", linux(nil), nil, hardware("toaster"), []string{"check: What drivers its disk needs behind toaster is not known"}},
		{"a data disk without a driver", linux(nil), nil, hardware(machine.VirtioBlk, machine.LSI), []string{"check: Kernel 6.1 has no sym53c8xx, so it does not find disk vdb behind lsilogic", "works: "}},
		{"nothing that a BIOS starts", linux(func(g *fit.Guest) { g.BIOS = false; g.Drivers.EFI.Fallback = true }), nil, virtio,
			[]string{"will not boot: The first disk has nothing that the machine's BIOS could start. |firmware='efi'", "works: "}},
		{"no fallback for UEFI", linux(func(g *fit.Guest) { g.Drivers.EFI.Systems = []string{"debian"} }), nil, with(virtio, func(h *machine.Hardware) { h.Firmware = machine.UEFI }),
			[]string{"will not boot: What starts it (debian) was recorded|grub-install", "works: "}},
		{"a fallback for UEFI", linux(func(g *fit.Guest) { g.Drivers.EFI.Fallback = true }), nil, with(virtio, func(h *machine.Hardware) { h.Firmware = machine.UEFI }), []string{"works: "}},
		{"names that change", linux(func(g *fit.Guest) {
			g.Drivers.Kernels[0].Early = []string{"ahci"}
			g.Drivers.Names = []drivers.Name{{File: "/etc/fstab", Device: "/dev/vda1", For: "/boot"}, {File: "/etc/fstab", Device: "/dev/vda5", For: "swap", Optional: true},
				{File: "/etc/fstab", Device: "/dev/vdb", For: "/srv"}, {File: "/etc/fstab", Device: "/dev/sdz1", For: "/x", Optional: true}}
		}), new(hardware(machine.VirtioBlk, machine.VirtioBlk)), hardware(machine.AHCI, machine.VirtioBlk),
			[]string{"will not boot: /etc/fstab names /dev/vda1, for /boot; it is /dev/sda1 now.", "will not boot: /etc/fstab names /dev/vdb, for /srv; it is /dev/vda now.",
				"check: /etc/fstab names /dev/vda5, for swap; it is /dev/sda5 now.", "check: /etc/fstab names /dev/sdz1, for /x, and no disk has that name now", "works: "}},
		{"names that stay", linux(func(g *fit.Guest) {
			g.Drivers.Names = []drivers.Name{{File: "/etc/fstab", Device: "/dev/vda1", For: "/boot"}}
		}), &virtio, virtio, []string{"works: "}},
		{"addresses that change", linux(func(g *fit.Guest) {
			g.Drivers.Links = []drivers.Link{{File: "/etc/a", MAC: "52:54:00:aa:00:01"}, {File: "/etc/b", MAC: "00:00:00:00:00:09"}, {File: "/etc/c", Name: "enp1s0"}}
		}), new(with(virtio, func(h *machine.Hardware) { h.Interfaces = []machine.HardwareNIC{nic} })),
			with(virtio, func(h *machine.Hardware) {
				h.Interfaces = []machine.HardwareNIC{{Model: "virtio", Slot: nic.Slot}}
			}),
			[]string{"check: /etc/a tells network interfaces by the addresses that they had|--keep-identity", "works: "}},
		{"interfaces that move", linux(func(g *fit.Guest) { g.Drivers.Links = []drivers.Link{{File: "/etc/c", Name: "enp1s0"}} }),
			new(with(virtio, func(h *machine.Hardware) { h.Interfaces = []machine.HardwareNIC{nic} })),
			with(virtio, func(h *machine.Hardware) { h.Interfaces = []machine.HardwareNIC{{MAC: nic.MAC, Model: "e1000e"}} }),
			[]string{"check: Kernel 6.1 has no driver of its network interface (e1000e)", "check: /etc/c names network interfaces by where they stood", "works: "}},
		{"no operating system", fit.Guest{BIOS: true}, nil, virtio, []string{"check: No operating system was found"}},
		{"another operating system", fit.Guest{HasRoot: true, OS: guestfs.OS{Family: "freebsd"}, BIOS: true}, nil, virtio, []string{"check: Nothing is known of the drivers of this"}},
		{"Windows with its driver", windows(drivers.Service{Name: "viostor", File: true}), nil, virtio, []string{"works: Windows has the driver of its disk (virtio-blk: viostor)"}},
		{"Windows whose driver waits", windows(drivers.Service{Name: "viostor", File: true, Start: 3}), nil, virtio, []string{"will not boot: |does not load it at boot (Start is 3)"}},
		{"Windows of which little is known", windows(drivers.Service{Name: "viostor", File: true, Start: -1}), nil, virtio, []string{"check: |whether it is loaded at boot is not known"}},
		{"Windows without its driver", windows(), nil, virtio, []string{"will not boot: |lacks the driver viostor. |attach a second disk"}},
		{"Windows with half a driver", windows(drivers.Service{Name: "viostor"}), nil, virtio, []string{"will not boot: |the program of its driver viostor is missing"}},
		{"Windows where nothing has changed", windows(), &virtio, virtio, []string{"works: Windows finds its disk"}},
		{"Windows on another chipset", windows(drivers.Service{Name: "storahci", File: true}), new(with(sata, func(h *machine.Hardware) { h.Machine = "pc-i440fx-7.2" })), sata,
			[]string{"check: Its chipset is another", "works: "}},
		{"Windows without a network driver", windows(), &virtio, with(virtio, func(h *machine.Hardware) { h.Interfaces = []machine.HardwareNIC{nic} }), []string{"check: |netkvm", "works: "}},
	} {
		got := fit.Judge(c.guest, c.before, c.now)
		ok := len(got) == len(c.want)
		for i, w := range c.want {
			for part := range strings.SplitSeq(w, "|") {
				ok = ok && strings.Contains(told(got[min(i, len(got)):min(i+1, len(got))]), part)
			}
		}
		if !ok {
			t.Errorf("%s: got\n%s\nwant %q", c.name, told(got), c.want)
		}
	}
}

// device is an image as a block.Device.
type device struct{ fstest.File }

func (d device) ReadAt(_ context.Context, p []byte, off int64) error { return d.File.ReadAt(p, off) }

// A real Debian: its kernel for clouds has drivers for virtio, and none for AHCI.
func TestDebianFitsWhatItHasDriversFor(t *testing.T) {
	d := fstest.NewDebian(t)
	judge := func(initramfs string, controller string) []fit.Finding {
		t.Helper()
		dir := t.TempDir()
		d.Fill(t, dir, initramfs)
		image := fstest.Make(t, 128<<20, "mkfs.ext4", "-q", "-d", dir)
		g, err := guestfs.Open(t.Context(), []guestfs.Disk{{Device: device{fstest.Open(t, image)}}}, guestfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		facts, err := g.Drivers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return fit.Judge(fit.Guest{OS: g.OS(), HasRoot: g.HasRoot(), Drivers: facts, Keys: map[int]string{0: "vda"}, BIOS: true}, nil, hardware(controller))
	}
	for _, c := range []struct {
		initramfs, controller string
		want                  fit.Severity
		says                  string
	}{
		{d.Most, machine.VirtioBlk, fit.Works, "virtio_blk"}, {d.Most, machine.VirtioSCSI, fit.Works, "virtio_scsi"}, {d.Most, "nvme", fit.Works, "nvme"},
		{d.Most, machine.PIIX, fit.Works, "ata_piix"}, {d.Most, machine.AHCI, fit.Fails, "made without ahci"},
		{d.Few, machine.VirtioBlk, fit.Fails, "update-initramfs"}, {d.Few, "nvme", fit.Works, "nvme"},
	} {
		got := judge(c.initramfs, c.controller)
		if len(got) != 1 || got[0].Severity != c.want || !strings.Contains(told(got), c.says) || !strings.Contains(got[0].Text, d.Version) {
			t.Errorf("%s behind %s: got\n%swant %s, and %q", c.initramfs, c.controller, told(got), c.want, c.says)
		}
	}
}
