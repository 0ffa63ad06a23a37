package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/internal/restore"
	"github.com/sendense/sendense/internal/restore/restoretest"
)

// described is a machine with three disks, each behind something else.
const described = `<domain type='kvm'><name>web1</name><uuid>5d9b5c1e-0f3a-4b6e-9d5c-2f1c7e6a9002</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>%s</os><features><acpi/></features><cpu mode='host-passthrough'/><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/nowhere/a'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/nowhere/b'/><target dev='sda' bus='scsi'/></disk>
<disk type='file' device='disk'><source file='/nowhere/c'/><target dev='sdb' bus='sata'/></disk>
<controller type='scsi' model='virtio-scsi'/>
<interface type='user'><mac address='52:54:00:aa:00:01'/><model type='virtio'/></interface>%s</devices></domain>`

func definition(os, devices string) machine.Captured {
	return machine.Captured{Format: machine.LibvirtXML, Definition: fmt.Sprintf(described, os, devices)}
}

// keyed gives the disks of a machine the keys of the description.
func keyed(m *restore.Machine) {
	for i, key := range []string{"vda", "sda", "sdb"}[:len(m.Disks)] {
		m.Disks[i].Key = key
	}
}

// domains lists the machines of a host.
func domains(t *testing.T, h *guest.Host) (list []string) {
	t.Helper()
	conn, err := h.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Disconnect()
	all, _, err := conn.ConnectListAllDomains(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		list = append(list, d.Name)
	}
	slices.Sort(list)
	return list
}

// xmlOf returns the description of a machine as it is defined.
func xmlOf(t *testing.T, h *guest.Host, name string) string {
	t.Helper()
	conn, err := h.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Disconnect()
	d, err := conn.DomainLookupByName(name)
	if err != nil {
		t.Fatal(err)
	}
	x, err := conn.DomainGetXMLDesc(d, libvirt.DomainXMLInactive)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func content(t *testing.T, path, format string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", format, "-O", "raw", path, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var machines atomic.Int64

// into returns a target that makes a machine of a name of its own, with its disks
// in dir.
func into(h *guest.Host, dir string) *restore.Libvirt {
	return &restore.Libvirt{Hypervisor: instant.Definer{URI: h.URI()}, MachineOptions: restore.MachineOptions{
		Name: fmt.Sprintf("restored-%d", machines.Add(1)), Storage: dir, Network: machine.Isolated}}
}

func TestLibvirtKeepsTheContract(t *testing.T) {
	requires.Tool(t, "qemu-img")
	h := guesttest.Host(t)
	for name, c := range map[string]machine.Captured{"described": definition("", ""), "not described": {}} {
		for _, format := range []string{restore.QCOW2, restore.Raw} {
			t.Run(name+", "+format, func(t *testing.T) {
				restoretest.Run(t, func(t *testing.T, _ []int64) restoretest.Subject {
					dir := t.TempDir()
					l := into(h, dir)
					l.Format = format
					return restoretest.Subject{Target: l,
						Prepare: func(m *restore.Machine) {
							if m.Captured = c; c.Format != "" {
								keyed(m)
							}
						},
						Left: func(t *testing.T) []string {
							left := names(t, dir)
							if slices.Contains(domains(t, h), l.Name) {
								left = append(left, "machine "+l.Name)
							}
							return left
						},
						Read: func(t *testing.T, d restore.PlannedDisk) []byte { return content(t, d.To, format) }}
				})
			})
		}
	}
}

// held is what each of the small disks holds.
var held = bytes.Repeat([]byte("held"), 1<<18)

// three returns a machine with three small disks as described.
func three(c machine.Captured) restore.Machine {
	m := restore.Machine{Name: "web1", Captured: c}
	for i := range 3 {
		d := blocktest.NewMemory(int64(len(held)))
		if err := d.WriteAt(context.Background(), held, 0); err != nil {
			panic(err)
		}
		m.Disks = append(m.Disks, restore.Disk{Index: i, Device: d})
	}
	keyed(&m)
	return m
}

func TestMachineIsDefinedAsCaptured(t *testing.T) {
	h := guesttest.Host(t)
	dir := t.TempDir()
	l := into(h, dir)
	l.Network = ""
	r, err := restore.Run(t.Context(), l, three(definition("", "")), restore.Options{})
	if err != nil || r.Machine == nil || r.Machine.State != "shut off" {
		t.Fatalf("got %+v, %v", r, err)
	}
	x := xmlOf(t, h, l.Name)
	for _, want := range []string{r.Machine.UUID, "machine='pc-q35-7.2'", "<target dev='vda' bus='virtio'/>", "<target dev='sda' bus='scsi'/>", "<target dev='sdb' bus='sata'/>",
		"model='virtio-scsi'", "cache='none'", "<source file='" + r.Disks[2].To, "<interface type='user'>", "<model type='virtio'/>"} {
		if !strings.Contains(x, want) {
			t.Errorf("definition: got no %q in\n%s", want, x)
		}
	}
	for _, not := range []string{"5d9b5c1e-0f3a-4b6e-9d5c-2f1c7e6a9002", "52:54:00:aa:00:01", "/nowhere"} {
		if strings.Contains(x, not) {
			t.Errorf("definition: got %q in\n%s", not, x)
		}
	}
	if h.Accel() == guest.TCG && (!strings.Contains(x, "<domain type='qemu'") || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "emulated") })) {
		t.Errorf("without KVM: got notes %q and\n%s", r.Notes, x)
	}
	for _, f := range names(t, dir) {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 || !strings.HasSuffix(f, ".qcow2") {
			t.Errorf("file %s: got %v, %v, want one that only its owner reads", f, st.Mode(), err)
		}
	}
}

func TestMachineThatIsThereIsNotTouched(t *testing.T) {
	h := guesttest.Host(t)
	dir := t.TempDir()
	m := three(definition("", ""))
	first := into(h, dir)
	first.Name, first.KeepIdentity, first.Network = "web1", true, ""
	r, err := restore.Run(t.Context(), first, m, restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := xmlOf(t, h, "web1")
	if r.Machine.UUID != "5d9b5c1e-0f3a-4b6e-9d5c-2f1c7e6a9002" || !strings.Contains(before, "52:54:00:aa:00:01") {
		t.Errorf("identity: got %+v and\n%s, want that of the captured machine", r.Machine, before)
	}
	m.Name = "other" // so that it is not the files that are in the way
	for name, change := range map[string]func(*restore.Libvirt){
		"the same name": func(l *restore.Libvirt) { l.Name = "web1" },
		"the same UUID": func(l *restore.Libvirt) { l.KeepIdentity = true },
	} {
		l := into(h, dir)
		change(l)
		_, err := restore.Run(t.Context(), l, m, restore.Options{})
		var refusal *restore.Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Msg, "web1") || refusal.Hint == "" {
			t.Errorf("%s: got %v, want a refusal that names the machine", name, err)
		}
	}
	if after := xmlOf(t, h, "web1"); after != before {
		t.Errorf("the machine that was there: got\n%s\nwant\n%s", after, before)
	}
	if got := names(t, dir); len(got) != 3 || slices.ContainsFunc(got, func(n string) bool { return !strings.HasPrefix(n, "web1") }) {
		t.Errorf("files: got %q, want those of one machine", got)
	}
}

func TestMachineThatIsMadeMeanwhileIsNotTouched(t *testing.T) {
	h := guesttest.Host(t)
	for _, same := range []bool{false, true} { // also in its UUID: libvirt would take it for a new definition
		dir := t.TempDir()
		l, other := into(h, dir), into(h, dir)
		l.Name, l.KeepIdentity, other.KeepIdentity = other.Name, same, same
		before := ""
		l.Hypervisor = meanwhile{l.Hypervisor, func() {
			m := three(definition("", ""))
			m.Name = "other"
			if _, err := restore.Run(t.Context(), other, m, restore.Options{}); err != nil {
				t.Error(err)
			}
			before = xmlOf(t, h, other.Name)
		}}
		if _, err := restore.Run(t.Context(), l, three(definition("", "")), restore.Options{}); err == nil {
			t.Error("a name that was taken meanwhile: got no error")
		}
		if after := xmlOf(t, h, other.Name); after != before {
			t.Errorf("the machine that was made: got\n%s\nwant\n%s", after, before)
		}
		if got := names(t, dir); len(got) != 3 || slices.ContainsFunc(got, func(n string) bool { return !strings.HasPrefix(n, "other") }) {
			t.Errorf("files: got %q, want those of the machine that was made", got)
		}
		undefine(t, h, other.Name)
	}
}

// meanwhile is a hypervisor on which something happens before a definition.
type meanwhile struct {
	restore.Hypervisor
	happens func()
}

func (m meanwhile) Define(ctx context.Context, d machine.Definition) ([]string, error) {
	m.happens()
	return m.Hypervisor.Define(ctx, d)
}

func TestWhatAHostCannotRunIsRefusedFirst(t *testing.T) {
	h := guesttest.Host(t)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		captured machine.Captured
		says     string
	}{
		"another architecture":      {machine.Captured{Format: machine.LibvirtXML, Definition: strings.Replace(fmt.Sprintf(described, "", ""), "x86_64", "s390x", 1)}, "s390x"},
		"an unknown kind":           {machine.Captured{Format: machine.LibvirtXML, Definition: strings.Replace(fmt.Sprintf(described, "", ""), "pc-q35-7.2", "toaster-1", 1)}, "toaster-1"},
		"two devices in one place":  {definition("", strings.Repeat("<rng model='virtio'><backend model='random'>/dev/urandom</backend><address type='pci' domain='0' bus='0' slot='5' function='0'/></rng>", 2)), "libvirt says"},
		"a hypervisor of another":   {machine.Captured{Format: machine.LibvirtXML, Definition: strings.Replace(fmt.Sprintf(described, "", ""), "'kvm'", "'xen'", 1)}, "xen"},
		"a description without end": {machine.Captured{Format: machine.LibvirtXML, Definition: "<domain>"}, "domain"},
	} {
		_, err := restore.Run(t.Context(), into(h, dir), three(c.captured), restore.Options{})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.says)
		}
	}
	// A version of its kind that is not known becomes one that is.
	old := machine.Captured{Format: machine.LibvirtXML, Definition: strings.Replace(fmt.Sprintf(described, "", ""), "pc-q35-7.2", "pc-q35-rhel9.2.0", 1)}
	l := into(h, dir)
	p, err := l.Plan(t.Context(), three(old))
	if err != nil || !strings.HasPrefix(p.Machine.Hardware.Machine, "pc-q35-") || strings.Contains(p.Machine.Hardware.Machine, "rhel") {
		t.Errorf("another version: got %+v, %v", p.Machine, err)
	}
	for _, bad := range []string{"", "a/b", "a\nb", "..", strings.Repeat("x", 300)} {
		l := into(h, dir)
		l.Name = bad
		if _, err := l.Plan(t.Context(), three(definition("", ""))); !errors.Is(err, restore.ErrRefused) {
			t.Errorf("name %q: got %v, want ErrRefused", bad, err)
		}
	}
	if left := append(names(t, dir), domains(t, h)...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestMachineThatDoesNotStartIsRemoved(t *testing.T) {
	h := guesttest.Host(t)
	dir := t.TempDir()
	c := machine.Captured{Format: machine.LibvirtXML, Definition: strings.Replace(fmt.Sprintf(described, "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram/>", ""),
		"'MiB'>64<", "'TiB'>900<", 1)}
	requires.File(t, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	l := into(h, dir)
	l.Start = true
	nvram := filepath.Join(h.Dir(), "lib", "qemu", "nvram")
	_, err := restore.Run(t.Context(), l, three(c), restore.Options{})
	if !errors.Is(err, instant.ErrRejected) {
		t.Errorf("got %v, want what libvirt says", err)
	}
	if left := append(append(names(t, dir), domains(t, h)...), names(t, nvram)...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// What somebody else keeps under its name stays. Only a process among whose
	// files libvirt's are sees it.
	theirs := filepath.Join(nvram, "killed_VARS.fd")
	if err := os.WriteFile(theirs, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	requires.Tool(t, "nsenter")
	cmd := helper("", h, dir, "nsenter", "--mount", "--target", fmt.Sprint(h.PID()), "--", os.Args[0])
	cmd.Env = append(cmd.Env, helperDefinition+"="+c.Definition)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "memory") {
		t.Errorf("got %v, %s, want what libvirt says", err, out)
	}
	if b, err := os.ReadFile(theirs); err != nil || string(b) != "theirs" {
		t.Errorf("the variables of somebody else: got %q, %v", b, err)
	}
}

func TestMachineWithUEFIStarts(t *testing.T) {
	requires.File(t, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	h := guesttest.Host(t)
	for name, os := range map[string]string{
		"its firmware is here":    "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>",
		"its firmware is another": "<loader readonly='yes' type='pflash'>/usr/share/edk2/ovmf/OVMF_CODE.fd</loader><nvram template='/usr/share/edk2/ovmf/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>",
	} {
		l := into(h, t.TempDir())
		l.Start = true
		r, err := restore.Run(t.Context(), l, three(definition(os, "")), restore.Options{})
		if err != nil || r.Machine.State != "running" {
			t.Fatalf("%s: got %+v, %v", name, r.Machine, err)
		}
		x := xmlOf(t, h, l.Name)
		if strings.Contains(x, "secure='yes'") || strings.Contains(x, "<feature enabled='yes'") || strings.Contains(x, "web1_VARS") || strings.Contains(x, "edk2/") {
			t.Errorf("%s: got\n%s", name, x)
		}
		if vars := filepath.Join(h.Dir(), "lib", "qemu", "nvram", l.Name+"_VARS.fd"); exec.Command("test", "-s", vars).Run() != nil {
			t.Errorf("%s: it has no variables of its own at %s", name, vars)
		}
		stop(t, h, l.Name)
	}
}

// stop ends a machine.
func stop(t *testing.T, h *guest.Host, name string) {
	t.Helper()
	conn, err := h.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Disconnect()
	d, err := conn.DomainLookupByName(name)
	if err == nil {
		err = conn.DomainDestroy(d)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestStorageAndNetworksOfTheHost(t *testing.T) {
	h := guesttest.Host(t, "storage", "network", "nwfilter")
	conn, err := h.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Disconnect()
	folder := t.TempDir()
	pool := func(name, folder string, start bool) {
		t.Helper()
		p, err := conn.StoragePoolDefineXML(fmt.Sprintf("<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>", name, folder), 0)
		if err == nil && start {
			err = conn.StoragePoolCreate(p, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pool("default", folder, true)
	pool("idle", t.TempDir(), false)
	if _, err := conn.StoragePoolDefineXML("<pool type='logical'><name>vg0</name><source><name>vg0</name></source><target><path>/dev/vg0</path></target></pool>", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.NetworkDefineXML("<network><name>lab</name><bridge name='sdlab0'/></network>"); err != nil {
		t.Fatal(err)
	}
	c := definition("", "<interface type='network'><mac address='52:54:00:aa:00:02'/><source network='lab'/></interface>"+
		"<interface type='network'><mac address='52:54:00:aa:00:03'/><source network='nope'/></interface>")
	l := into(h, "")
	l.Network = ""
	r, err := restore.Run(t.Context(), l, three(c), restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(r.Disks[0].To) != folder {
		t.Errorf("disk: got %s, want it in the pool's folder %s", r.Disks[0].To, folder)
	}
	if p, err := conn.StoragePoolLookupByName("default"); err != nil {
		t.Error(err)
	} else if n, err := conn.StoragePoolNumOfVolumes(p); err != nil || n != 3 {
		t.Errorf("volumes of the pool: got %d, %v, want 3", n, err)
	}
	notes := strings.Join(r.Notes, "\n")
	if !strings.Contains(notes, "virsh net-start lab") || !strings.Contains(notes, "52:54:00:aa:00:03 is left out") || strings.Contains(notes, "00:02 is left out") {
		t.Errorf("notes: got\n%s", notes)
	}
	if x := xmlOf(t, h, l.Name); !strings.Contains(x, "network='lab'") || strings.Contains(x, "nope") {
		t.Errorf("definition: got\n%s", x)
	}
	for says, change := range map[string]func(*restore.Libvirt){
		"no storage pool x":   func(l *restore.Libvirt) { l.Storage = "pool:x" },
		"is not active":       func(l *restore.Libvirt) { l.Storage = "pool:idle" },
		"of type logical":     func(l *restore.Libvirt) { l.Storage = "pool:vg0" },
		"has no name":         func(l *restore.Libvirt) { l.Storage = "pool:" },
		"no network other on": func(l *restore.Libvirt) { l.Network = "other" },
		"network lab is not ": func(l *restore.Libvirt) { l.Start = true },
	} {
		l := into(h, "")
		l.Network = ""
		change(l)
		m := three(c)
		m.Name = l.Name
		_, err := l.Plan(t.Context(), m)
		var refusal *restore.Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Msg, says) || refusal.Hint == "" {
			t.Errorf("%s: got %v, want a refusal", says, err)
		}
	}
}
