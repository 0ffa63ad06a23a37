package machine_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/machine"
)

func rich(t *testing.T) machine.Spec {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "rich.xml"))
	if err != nil {
		t.Fatal(err)
	}
	return machine.Spec{Captured: machine.Captured{Format: machine.LibvirtXML, Definition: string(b)}, Name: "erp-2", UUID: "11111111-0f3a-4b6e-9d5c-2f1c7e6a9001",
		Disks: []machine.Disk{{Key: "vda", Path: "/images/a.qcow2", Format: "qcow2"}, {Key: "sda", Path: "/images/b & c.qcow2", Format: "qcow2"}}}
}

// host is one that lacks much of what the machine had.
func host() machine.Host {
	return machine.Host{Name: "here", KVM: true, Networks: map[string]bool{"lab": false}, Interfaces: []string{"lo", "br0"},
		Exists: func(string) bool { return false },
		Offer: machine.Offer{Machine: "pc-q35-7.2", UEFI: true, Loaders: []string{"/usr/share/OVMF/OVMF_CODE_4M.fd"}, Buses: []string{"virtio", "scsi", "sata"},
			Screens: []string{"vnc"}, Cards: []string{"vga"}, TPMs: []string{"passthrough"}}}
}

func lasting(t *testing.T, s machine.Spec, h machine.Host) machine.Description {
	t.Helper()
	d, err := machine.Lasting(s, h)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// has checks which of some texts are in another.
func has(t *testing.T, where, text string, want, not []string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s: got no %q in\n%s", where, w, text)
		}
	}
	for _, w := range not {
		if strings.Contains(text, w) {
			t.Errorf("%s: got %q in\n%s", where, w, text)
		}
	}
}

func TestLastingMachineIsFittedToItsHost(t *testing.T) {
	d := lasting(t, rich(t), host())
	has(t, "XML", d.XML, []string{
		"<name>erp-2</name>", "<uuid>11111111-0f3a-4b6e-9d5c-2f1c7e6a9001</uuid>", "<entry name='uuid'>11111111-0f3a-4b6e-9d5c-2f1c7e6a9001</entry>",
		"<genid/>", "ERP of the shop", "redhat.com/rhel/9.2", "machine='pc-q35-7.2'", "<os firmware='efi'>", "<feature enabled='yes' name='secure-boot'/>",
		"<source file='/images/a.qcow2'/>", "file='/images/b &amp; c.qcow2'", "cache='none'", "type='qcow2'", "ERP-SYSTEM", "5000c50015ea71ad",
		"logical_block_size='4096'", "<read_iops_sec>500</read_iops_sec>", "snapshot='no'", "<cpu mode='host-model'>", "cores='2'",
		"<source bridge='br0'/>", "<virtualport type='openvswitch'/>", "<driver queues='2'/>", "<source network='lab'/>", "<on_crash>restart</on_crash>",
		"<graphics type='vnc' autoport='yes' listen='127.0.0.1'/>", "/dev/urandom", "org.qemu.guest_agent.0", "hypervclock",
		"<access mode='shared'/>", "<shares>2048</shares>",
	}, []string{
		"5d9b5c1e", "aaaaaaaa", "nova", "cpuset", "hugepages", "/dev/vg0", "encryption", "rhel.iso", "shareable", "vhost", "clean-traffic", "/production", "vnet3", "52:54:00",
		"portid", "gone", "4555", "erp.log", "erp.agent", "spice", "qxl", "hostdev", "seclabel", "qemu:arg", "/usr/libexec", "tpm", "/dev/hwrng", "edk2", "nvram", " id='7'",
	})
	var said []string
	for _, n := range d.Notes {
		said = append(said, n)
		if !strings.HasSuffix(n, ".") && !strings.HasSuffix(n, "NAME.") {
			t.Errorf("note: got %q, want a sentence", n)
		}
	}
	has(t, "notes", strings.Join(said, "\n"), []string{
		"Which host processors", "huge pages", "security label for selinux", "/production", "virsh autostart erp-2", "What other programs noted", "QEMU's command line", "UEFI firmware", "Skylake-Client", "pc-q35-rhel9.2.0",
		"Disk sda was encrypted", "Drive sdb", "Disk vdb is not in the point", "clean-traffic", "The network lab is not active", "52:54:00:aa:00:03 is left out: it was connected to gone",
		"of type vhostuser", "serial port was of type tcp", "kept in a file", "reached at 0.0.0.0", "TPM is left out", "A device of the host", "graphics card, qxl", "random numbers",
		"Give it a network",
	}, nil)
	if !slices.Equal(d.Idle, []string{"lab"}) {
		t.Errorf("idle networks: got %q, want lab", d.Idle)
	}
	want := machine.Hardware{Machine: "pc-q35-7.2", Firmware: machine.UEFI, SecureBoot: true,
		Disks: []machine.HardwareDisk{{Key: "vda", Controller: machine.VirtioBlk, Unit: "0000:04:00:0"}, {Key: "sda", Controller: machine.VirtioSCSI, Unit: "0:0:0:0"}}}
	if !slices.Equal(d.Hardware.Disks, want.Disks) || d.Hardware.Machine != want.Machine || d.Hardware.Firmware != want.Firmware || !d.Hardware.SecureBoot || len(d.Hardware.Interfaces) != 2 {
		t.Errorf("hardware: got %+v, want %+v and two interfaces", d.Hardware, want)
	}
	if d.Before == nil || d.Before.Machine != "pc-q35-rhel9.2.0" || len(d.Before.Disks) != 3 || d.Before.Interfaces[0].MAC != "52:54:00:aa:00:01" {
		t.Errorf("hardware before: got %+v", d.Before)
	}
}

func TestLastingMachineKeepsWhatItsHostHas(t *testing.T) {
	h := host()
	h.FitsCPU, h.Filters, h.Exists = true, []string{"clean-traffic"}, func(string) bool { return true }
	h.Machine, h.Loaders = "pc-q35-rhel9.2.0", []string{"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd"}
	h.Screens, h.Cards, h.TPMs = nil, nil, nil // not known
	s := rich(t)
	s.KeepAddresses = true
	d := lasting(t, s, h)
	has(t, "XML", d.XML, []string{"Skylake-Client", "clean-traffic", "52:54:00:AA:00:01", "interfaceid", "machine='pc-q35-rhel9.2.0'", "OVMF_CODE.secboot.fd",
		"<nvram template='/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd'/>", "type='spice'", "qxl", "<tpm", "/dev/hwrng"}, []string{"firmware='efi'", "erp_VARS.fd"})
	if len(d.Hardware.Interfaces) != 2 || d.Hardware.Interfaces[0].MAC != "52:54:00:aa:00:01" {
		t.Errorf("interfaces: got %+v, want their addresses kept", d.Hardware.Interfaces)
	}
}

func TestNetworksAreChosen(t *testing.T) {
	s := rich(t)
	for network, want := range map[string]int{"lab": 4, machine.Isolated: 4, "": 2} {
		s.Network = network
		d := lasting(t, s, host())
		if n := strings.Count(d.XML, "<interface"); n != want || network == "lab" && strings.Count(d.XML, "<source network='lab'/>") != want ||
			network == machine.Isolated && strings.Count(d.XML, "<link state='down'/>") != want {
			t.Errorf("network %q: got %d interfaces, want %d", network, n, want)
		}
	}
}

func TestMachineWithoutAcceleration(t *testing.T) {
	h := host()
	h.KVM = false
	d := lasting(t, rich(t), h)
	has(t, "XML", d.XML, []string{"<domain type='qemu'", "<cpu mode='maximum'>", "cores='2'"}, []string{"hyperv", "Skylake", "hypervclock"})
	has(t, "notes", strings.Join(d.Notes, "\n"), []string{"emulated, and slow"}, []string{"Skylake"})
}

func TestBusThatIsNotThere(t *testing.T) {
	h := host()
	h.Buses = []string{"scsi", "sata"}
	d := lasting(t, rich(t), h)
	if got := d.Hardware.Disks[0]; got.Key != "vda" || got.Controller != machine.AHCI || got.Unit != "" {
		t.Errorf("disk: got %+v, want vda on SATA", got)
	}
	has(t, "XML", d.XML, []string{"<target dev='sdc' bus='sata'/>"}, []string{"bus='virtio'"})
}

func TestMachineThatAHostCannotHave(t *testing.T) {
	bare := host()
	bare.UEFI, bare.Loaders = false, nil
	if _, err := machine.Lasting(rich(t), bare); !errors.Is(err, machine.ErrUnfit) || !strings.Contains(err.Error(), "ovmf") {
		t.Errorf("UEFI on a host without: got %v, want ErrUnfit and what to install", err)
	}
	s := rich(t)
	s.Disks = append(s.Disks, machine.Disk{Key: "vdz"})
	if _, err := machine.Lasting(s, host()); !errors.Is(err, machine.ErrUnfit) || !strings.Contains(err.Error(), "vdz") {
		t.Errorf("a disk that is not described: got %v, want ErrUnfit", err)
	}
	for _, definition := range []string{"", "<domain", "<domain/>", "<x/>", "<domain type='xen'><devices/></domain>", "<domain type='kvm'><os/></domain>",
		strings.Repeat("<domain>", 200), "<domain type='kvm'><devices><disk/><interface/><graphics/><tpm/><rng/><serial/></devices></domain><domain/>"} {
		s := machine.Spec{Captured: machine.Captured{Format: machine.LibvirtXML, Definition: definition}}
		if d, err := machine.Lasting(s, host()); err == nil {
			t.Errorf("definition %.40q: got %q, want an error", definition, d.XML)
		}
	}
}

func TestMachineWithoutADescription(t *testing.T) {
	s := machine.Spec{Name: "web1", UUID: "u", Disks: []machine.Disk{{Key: "b", Path: "/b", Format: "raw"}, {Key: "a", Path: "/a", Format: "raw"}}}
	d := lasting(t, s, host())
	has(t, "XML", d.XML, []string{"<source file='/b'/><target dev='sda' bus='sata'/>", "machine='q35'"}, []string{"interface", "on_poweroff", "firmware"})
	if d.Before != nil || d.Hardware.Disks[1].Key != "a" || d.Hardware.Firmware != machine.BIOS {
		t.Errorf("got %+v", d)
	}
	s.UEFI, s.Network = true, "lab"
	has(t, "XML", lasting(t, s, host()).XML, []string{"firmware='efi'", "<feature enabled='no' name='secure-boot'/>", "<source network='lab'/>"}, nil)
}

func TestTransientMachinePausesAtErrors(t *testing.T) {
	s := rich(t)
	s.Disks = []machine.Disk{{Key: "vda", Socket: "/s", Export: "disk-0"}, {Key: "sda", Socket: "/s", Export: "disk-1"}}
	s.Network = machine.Isolated
	d, err := machine.Transient(s, true)
	if err != nil {
		t.Fatal(err)
	}
	has(t, "XML", d.XML, []string{"error_policy='stop'", "<source protocol='nbd' name='disk-0'>", "<on_poweroff>destroy</on_poweroff>", "<on_crash>destroy</on_crash>",
		"logical_block_size='4096'", "Skylake-Client", "<link state='down'/>"}, []string{"<source network", "<source bridge", "metadata", "iotune", "/usr/libexec", "<mtu", "<coalesce"})
	if d.Targets["vda"] != "vda" || d.Targets["sda"] != "sda" {
		t.Errorf("targets: got %v, want those of the definition", d.Targets)
	}
	s.Captured = machine.Captured{}
	s.Disks[0].Key = "data"
	if d, err = machine.Transient(s, true); err != nil || d.Targets["data"] != "sda" || d.Targets["sda"] != "sdb" {
		t.Errorf("targets of a machine of the usual kind: got %v (%v), want data as sda and sda as sdb", d.Targets, err)
	}
}

func TestASettledMachineIsAsUsual(t *testing.T) {
	place := machine.Place{Path: "/dev/vg/a", Format: "raw", Device: true, Size: 4096}
	running := "<domain><devices>" + strings.Replace(place.XML(), "<driver ", "<driver error_policy='stop' rerror_policy='stop' ", 1) + "</devices></domain>"
	has(t, "running", running, []string{"<source dev='/dev/vg/a'><slices><slice type='storage' offset='0' size='4096'/></slices></source>"}, nil)
	text, err := machine.Settled(running)
	if err != nil {
		t.Fatal(err)
	}
	has(t, "settled", text, []string{"<source dev='/dev/vg/a'/>"}, []string{"slice", "policy"})
}

func FuzzLasting(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("testdata", "rich.xml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Add("<domain type='qemu'><os><type machine='pc'/></os><devices><disk><target/></disk><interface type='bridge'/></devices></domain>")
	f.Fuzz(func(t *testing.T, definition string) {
		c := machine.Captured{Format: machine.LibvirtXML, Definition: definition}
		s := machine.Spec{Captured: c, Name: "n", UUID: "u"}
		for _, kvm := range []bool{true, false} {
			h := host()
			h.KVM = kvm
			d, err := machine.Lasting(s, h)
			if err != nil {
				continue
			}
			// What was made is understood, and its name is the new one.
			again := machine.Spec{Captured: machine.Captured{Format: machine.LibvirtXML, Definition: d.XML}, Name: "m", UUID: "v"}
			if again.Captured.UUID() != "u" {
				t.Errorf("UUID: got %q of %s", again.Captured.UUID(), d.XML)
			}
			if _, err := machine.Lasting(again, h); err != nil {
				t.Errorf("again: %v, of %s", err, d.XML)
			}
		}
	})
}
