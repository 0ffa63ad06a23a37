package drivers_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/hive/hivetest"
)

func TestMain(m *testing.M) {
	guestfs.Main()
	fstest.Main(m)
}

// device is an image as a block.Device.
type device struct{ fstest.File }

func (d device) ReadAt(_ context.Context, p []byte, off int64) error { return d.File.ReadAt(p, off) }

// root makes an ext4 file system of a folder.
func root(t *testing.T, fill func(dir string)) string {
	t.Helper()
	dir := t.TempDir()
	fill(dir)
	return fstest.Make(t, 128<<20, "mkfs.ext4", "-q", "-d", dir)
}

// esp makes a FAT file system with files.
func esp(t *testing.T, files ...string) string {
	t.Helper()
	image, dir := fstest.Make(t, 40<<20, "mkfs.vfat", "-F", "32"), t.TempDir()
	for _, f := range files {
		fstest.Write(t, dir, f, "loader")
	}
	fstest.Run(t, "mcopy", "-s", "-i", image, filepath.Join(dir, "EFI"), "::/")
	return image
}

// look tells what the disks of a machine say.
func look(t *testing.T, images ...string) drivers.Guest {
	t.Helper()
	var disks []guestfs.Disk
	for i, p := range images {
		disks = append(disks, guestfs.Disk{Index: i, Device: device{fstest.Open(t, p)}})
	}
	g, err := guestfs.Open(t.Context(), disks, guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	d, err := g.Drivers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestKernelOfDebian(t *testing.T) {
	d := fstest.NewDebian(t)
	for name, initramfs := range map[string]string{"most": d.Most, "few": d.Few} {
		g := look(t, root(t, func(dir string) { d.Fill(t, dir, initramfs) }))
		if g.RootDisk != 0 || len(g.Kernels) != 1 || g.Tool != "initramfs-tools" {
			t.Fatalf("%s: got %+v, want one kernel on disk 0", name, g)
		}
		k := g.Kernels[0]
		if k.Version != d.Version || k.Initramfs != "/boot/initrd.img-"+d.Version || k.Unread != "" || !k.Modules {
			t.Errorf("%s: got %+v, want kernel %s with an initial RAM disk that can be read", name, k, d.Version)
		}
		// The kernel for clouds has NVMe built in, and no AHCI at all.
		for _, x := range []struct {
			list string
			have []string
			want map[string]bool
		}{
			{"built in", k.BuiltIn, map[string]bool{"nvme": true, "virtio_blk": false, "ahci": false}},
			{"early", k.Early, map[string]bool{"virtio_blk": name == "most", "virtio_scsi": name == "most", "virtio_pci": name == "most", "sd_mod": name == "most", "ahci": false}},
			{"late", k.Late, map[string]bool{"virtio_blk": true, "virtio_net": true, "ata_piix": true, "ahci": false, "sym53c8xx": false}},
		} {
			for driver, want := range x.want {
				if got := slices.Contains(x.have, driver); got != want {
					t.Errorf("%s, %s %s: got %v, want %v", name, driver, x.list, got, want)
				}
			}
		}
	}
}

func TestKernelsAsOthersPlaceThem(t *testing.T) {
	archive := string(cpio(t, "lib/modules/9.1/virtio_blk.ko.zst"))
	image := make([]byte, 0x300)
	copy(image[0x202:], "HdrS")
	image[0x20e] = 0x60 // from 0x200 on
	copy(image[0x260:], "9.1-arch1 (builder@arch) #1\x00")
	fill := func(files map[string]string) func(string) {
		return func(dir string) {
			for name, content := range files {
				fstest.Write(t, dir, name, content)
			}
			fstest.Write(t, dir, "etc/os-release", "ID=demo\nNAME=Demo\n")
			fstest.Write(t, dir, "etc/fstab", "")
		}
	}
	for name, c := range map[string]struct {
		files    map[string]string
		versions []string
		early    bool
	}{
		"Fedora": {map[string]string{"boot/vmlinuz-9.1": "k", "boot/initramfs-9.1.img": archive, "boot/vmlinuz-0-rescue-abc": "k", "boot/initramfs-0-rescue-abc.img": archive,
			"boot/vmlinuz-8.20": "k", "boot/vmlinuz-8.3": "k"}, []string{"9.1", "8.20", "8.3"}, true},
		"Arch":         {map[string]string{"boot/vmlinuz-linux": string(image), "boot/initramfs-linux.img": archive}, []string{"9.1-arch1"}, true},
		"SUSE":         {map[string]string{"boot/vmlinuz-9.1-default": "k", "boot/initrd-9.1-default": archive}, []string{"9.1-default"}, true},
		"systemd-boot": {map[string]string{"boot/0123abcd/9.1/linux": string(image), "boot/0123abcd/9.1/initrd": archive}, []string{"9.1-arch1"}, true},
		"Gentoo":       {map[string]string{"boot/kernel-9.1": "k"}, []string{"9.1"}, false},
		"no kernel":    {map[string]string{"boot/grub/grub.cfg": ""}, nil, false},
		"damaged":      {map[string]string{"boot/vmlinuz-9.1": "k", "boot/initrd.img-9.1": archive[:60]}, []string{"9.1"}, false},
	} {
		g := look(t, root(t, fill(c.files)))
		var versions []string
		for _, k := range g.Kernels {
			versions = append(versions, k.Version)
		}
		if !slices.Equal(versions, c.versions) {
			t.Errorf("%s: got kernels %q, want %q", name, versions, c.versions)
			continue
		}
		if len(versions) > 0 && slices.Contains(g.Kernels[0].Early, "virtio_blk") != c.early {
			t.Errorf("%s: got %+v, want virtio_blk: %v", name, g.Kernels[0], c.early)
		}
		if name == "damaged" && !strings.Contains(g.Kernels[0].Unread, "ends in the middle") {
			t.Errorf("damaged: got %q", g.Kernels[0].Unread)
		}
	}
}

func TestNamesAndAddressesOfHardware(t *testing.T) {
	g := look(t, root(t, func(dir string) {
		fstest.Write(t, dir, "etc/os-release", "ID=demo\nNAME=Demo\n")
		fstest.Write(t, dir, "etc/fstab", "# /dev/sdz1 /old ext4\nUUID=1 / ext4 rw 0 1\n/dev/vdb1 /srv ext4 nofail,ro 0 2\n/dev/sda1\t/data ext4 defaults\n"+
			"/dev/nvme0n1p3 /opt xfs defaults\n/dev/mapper/vg-x /x ext4 rw\n/dev/vda5 none swap sw\n/dev/vdc\n")
		fstest.Write(t, dir, "etc/crypttab", "secret /dev/xvda3 none luks\n")
		fstest.Write(t, dir, "boot/grub/grub.cfg", "\tlinux /vmlinuz root=/dev/vda1 ro quiet resume=/dev/vda5\n\tlinux /other root=UUID=1\n\tlinux /vmlinuz root=/dev/vda1 ro\n")
		fstest.Write(t, dir, "boot/loader/entries/a.conf", "options root=/dev/sda2\n")
		fstest.Write(t, dir, "etc/udev/rules.d/70-persistent-net.rules", "# ATTR{address}==\"52:54:00:00:00:99\"\nSUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:AA:00:01\", NAME=\"eth0\"\n")
		fstest.Write(t, dir, "etc/netplan/50.yaml", "ethernets:\n  enp1s0:\n    match: {macaddress: '52:54:00:aa:00:02'}\n")
		fstest.Write(t, dir, "etc/sysconfig/network-scripts/ifcfg-ens3", "BOOTPROTO=dhcp\n")
	}))
	for _, want := range []drivers.Name{
		{File: "/etc/fstab", Device: "/dev/vdb1", For: "/srv", Optional: true}, {File: "/etc/fstab", Device: "/dev/sda1", For: "/data"},
		{File: "/etc/fstab", Device: "/dev/nvme0n1p3", For: "/opt"}, {File: "/etc/fstab", Device: "/dev/vda5", For: "swap", Optional: true},
		{File: "/etc/crypttab", Device: "/dev/xvda3", For: "secret"}, {File: "/boot/grub/grub.cfg", Device: "/dev/vda1", For: "root"},
		{File: "/boot/grub/grub.cfg", Device: "/dev/vda5", For: "resume", Optional: true}, {File: "/boot/loader/entries/a.conf", Device: "/dev/sda2", For: "root"},
	} {
		if !slices.Contains(g.Names, want) {
			t.Errorf("names: got no %+v in %+v", want, g.Names)
		}
	}
	if len(g.Names) != 8 {
		t.Errorf("names: got %d, want 8: %+v", len(g.Names), g.Names)
	}
	for _, want := range []drivers.Link{
		{File: "/etc/udev/rules.d/70-persistent-net.rules", MAC: "52:54:00:aa:00:01"}, {File: "/etc/udev/rules.d/70-persistent-net.rules", Name: "eth0"},
		{File: "/etc/netplan/50.yaml", MAC: "52:54:00:aa:00:02"}, {File: "/etc/netplan/50.yaml", Name: "enp1s0"},
		{File: "/etc/sysconfig/network-scripts/ifcfg-ens3", Name: "ens3"},
	} {
		if !slices.Contains(g.Links, want) {
			t.Errorf("links: got no %+v in %+v", want, g.Links)
		}
	}
	if len(g.Links) != 5 {
		t.Errorf("links: got %d, want 5: %+v", len(g.Links), g.Links)
	}
}

func TestBootLoadersOfUEFI(t *testing.T) {
	linux := root(t, func(dir string) {
		fstest.Write(t, dir, "etc/os-release", "ID=demo\n")
		fstest.Write(t, dir, "etc/fstab", "")
	})
	for fallback, image := range map[bool]string{true: esp(t, "EFI/demo/grubx64.efi", "EFI/BOOT/BOOTX64.EFI"), false: esp(t, "EFI/demo/grubx64.efi")} {
		g := look(t, linux, image)
		if g.EFI.Fallback != fallback || !slices.Equal(g.EFI.Systems, []string{"demo"}) {
			t.Errorf("got %+v, want demo and a fallback: %v", g.EFI, fallback)
		}
	}
	if g := look(t, linux); g.EFI.Fallback || len(g.EFI.Systems) > 0 {
		t.Errorf("without: got %+v", g.EFI)
	}
}

func TestDriversOfWindows(t *testing.T) {
	number := hivetest.Number
	g := look(t, root(t, func(dir string) {
		config := filepath.Join(dir, "Windows/System32/config")
		for _, f := range []string{"ntoskrnl.exe", "drivers/viostor.sys", "drivers/storahci.sys", "drivers/stornvme.sys", "drivers/netkvm.sys"} {
			fstest.Write(t, dir, "Windows/System32/"+f, "")
		}
		if err := os.MkdirAll(config, 0o755); err != nil {
			t.Fatal(err)
		}
		hivetest.Write(t, filepath.Join(config, "SOFTWARE"), map[string]map[string]hivetest.Value{"Microsoft": {}})
		hivetest.Write(t, filepath.Join(config, "SYSTEM"), map[string]map[string]hivetest.Value{
			"Select":                                        {"Current": number(2)},
			`ControlSet001\Services\viostor`:                {"Start": number(4)},
			`ControlSet002\Services\viostor`:                {"Start": number(0)},
			`ControlSet002\Services\storahci`:               {"Start": number(0)},
			`ControlSet002\Services\storahci\StartOverride`: {"0": number(3)},
			`ControlSet002\Services\vioscsi`:                {"Start": number(0)},
			`ControlSet002\Services\stornvme`:               {"Start": hivetest.String("now")},
		})
	}))
	want := []drivers.Service{{Name: "viostor", File: true}, {Name: "vioscsi"}, {Name: "netkvm", File: true, Start: -1},
		{Name: "storahci", File: true, Start: 3}, {Name: "stornvme", File: true, Start: -1}}
	if !slices.Equal(g.Services, want) {
		t.Errorf("got %+v, want %+v", g.Services, want)
	}
}

func TestWhatAGuestWroteIsCleaned(t *testing.T) {
	g := look(t, root(t, func(dir string) {
		fstest.Write(t, dir, "etc/os-release", "ID=demo\n")
		fstest.Write(t, dir, "etc/fstab", "/dev/vda1 /\x1b[2Jx\xff ext4\n")
		if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		fstest.Write(t, dir, "boot/vmlinuz-\x1b]0;"+strings.Repeat("y", 200), "k")
	}))
	if len(g.Names) != 1 || g.Names[0].For != "/[2Jx?" {
		t.Errorf("name: got %+v", g.Names)
	}
	if len(g.Kernels) != 1 || strings.ContainsRune(g.Kernels[0].Version, 0x1b) {
		t.Errorf("kernel: got %+v", g.Kernels)
	}
}

func TestWhatAGuestWroteDoesNothingToATerminal(t *testing.T) {
	for name, want := range map[string]string{
		"plain é":                           "plain é",
		"\x1b[2Jcleared":                    "[2Jcleared",
		"c1 \u009b2J":                       "c1 2J",
		"turned \u202egnp.exe":              "turned gnp.exe",
		"nothing \u200bwide\ufeff\u2028":    "nothing wide",
		"no UTF-8 \xff":                     "no UTF-8 ?",
		strings.Repeat("é", 200) + "\u00e9": strings.Repeat("é", 150),
		"x" + strings.Repeat("é", 200):      "x" + strings.Repeat("é", 149),
	} {
		g := drivers.Guest{Tool: name}
		if g.Clean(); g.Tool != want {
			t.Errorf("%q: got %q, want %q", name, g.Tool, want)
		}
	}
}
