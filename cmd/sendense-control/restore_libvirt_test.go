package main_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/restore"
	"github.com/sendense/sendense/internal/restore/fit"
)

// A guest with a disk on each of three buses is backed up twice while it runs, is
// gone, and comes back.
func TestGuestThatIsGoneComesBackInLibvirt(t *testing.T) {
	s, host, img := clitest.NewSite(t, filepath.Dir(program)), guesttest.Host(t), guesttest.Image(t)
	system, data, plain := s.Path("guest.qcow2"), s.Path("data.qcow2"), s.Path("plain.raw")
	if err := img.CopyDisk(t.Context(), system, "qcow2"); err != nil {
		t.Fatal(err)
	}
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", data, "128M")
	if err := os.WriteFile(plain, []byte(strings.Repeat("plain\n", 1<<18)), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := guesttest.Define(t, host, guest.Spec{Name: "web1", Image: img, Disks: []guest.Disk{
		{Target: "vda", Source: system}, {Target: "sda", Source: data}, {Target: "sdb", Bus: "sata", Source: plain, Format: "raw"}}})
	guesttest.Start(t, vm)
	backup := func() {
		s.Good(clitest.Run(t, filepath.Join(s.Bin, "sendense-capture"), append(s.Alone(), "backup", "--source", "libvirt", "--vm", "web1", "--connect", host.URI())...))
	}
	guesttest.Exec(t, vm, "mkfs.ext4 -q -L data /dev/sda && mkdir /srv/data && mount LABEL=data /srv/data && echo one >/srv/mark && echo one >/srv/data/mark && sync")
	backup()
	guesttest.Exec(t, vm, "echo two >/srv/mark && dd if=/dev/urandom of=/srv/data/file bs=64k count=100 2>/dev/null && sync")
	sum := guesttest.Exec(t, vm, "cat /srv/mark /srv/data/mark; sha256sum </srv/data/file")
	backup()
	if err := vm.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(system), os.Remove(data), os.Rename(plain, s.Path("plain.kept"))); err != nil {
		t.Fatal(err)
	}

	storage := s.Path("images")
	if err := os.Mkdir(storage, 0o755); err != nil {
		t.Fatal(err)
	}
	place := " --to libvirt:" + host.URI() + " --storage " + storage
	plan := clitest.Decode[restore.Plan](t, s.Control(s.Alone(), "restore web1 latest --dry-run --json --keep-identity"+place))
	if m := plan.Machine; m == nil || m.Name != "web1" || m.UUID != vm.UUID || len(m.Hardware.Disks) != 3 || len(plan.Disks) != 3 || m.Before == nil {
		t.Errorf("plan: got %+v, want machine web1 with three disks", plan)
	}
	if left, err := os.ReadDir(storage); err != nil || len(left) > 0 {
		t.Errorf("after a plan: got %v, %v", left, err)
	}

	r := clitest.Decode[restore.Result](t, s.Control(s.Alone(), "restore web1 latest --start --keep-identity --json"+place))
	if m := r.Machine; m == nil || m.State != "running" || m.UUID != vm.UUID || len(m.Consoles) == 0 {
		t.Errorf("restored: got %+v, want web1 running under its UUID", r.Machine)
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "kernel of the host") || !strings.Contains(notes, "serial port prints") {
		t.Errorf("notes: got\n%s", notes)
	}
	if len(r.Findings) == 0 || r.Findings[0].Severity != fit.Check || !strings.Contains(r.Findings[0].Text, "kernel of the host") {
		t.Errorf("findings: got %+v, want that its kernel is the host's", r.Findings)
	}
	again := answers(t, host, "web1")
	got := guesttest.Exec(t, again, "mount LABEL=data /srv/data && cat /srv/mark /srv/data/mark; sha256sum </srv/data/file; umount /srv/data")
	if got != sum {
		t.Errorf("in the guest: got %q, want %q", got, sum)
	}
	clitest.Tool(t, "qemu-img", "compare", "-q", "-U", "-f", "raw", "-F", "qcow2", s.Path("plain.kept"), r.Disks[2].To)

	// Beside it, as it was before.
	text := s.Good(s.Control(s.Alone(), "restore web1 latest~1 --start --name web2"+place)).Stdout
	if !strings.Contains(text, "machine web2, ") || !strings.Contains(text, "is running") || !strings.Contains(text, "check ") {
		t.Errorf("restore: got\n%s", text)
	}
	older := answers(t, host, "web2")
	if got := guesttest.Exec(t, older, "cat /srv/mark"); got != "one\n" || older.UUID == vm.UUID {
		t.Errorf("the older point: got %q and UUID %s", got, older.UUID)
	}
	if got := guesttest.Exec(t, again, "cat /srv/mark"); got != "two\n" {
		t.Errorf("the first machine: got %q, want that it was left alone", got)
	}
	for _, c := range []struct{ line, says string }{
		{"restore web1 latest" + place, "There is a machine web1 on"},
		{"restore web1 latest --name web3 --keep-identity" + place, "is still on"},
		{"restore web1 latest --name web3 --network other" + place, "There is no network other"},
		{"restore web1 latest --name web3 --to libvirt:" + host.URI() + " --storage pool:other", "There is no storage pool other"},
		{"restore web1 latest --name web3 --format vmdk" + place, "vmdk"},
	} {
		clitest.Refused(t, s.Control(s.Alone(), c.line), 2, c.says)
	}
	clitest.Refused(t, s.Control(s.Alone(), "restore web1 latest --name web3 --to libvirt:"+host.URI()+" --storage "+s.Path("none")), 3, "none")
}

// answers waits until the guest of a machine does.
func answers(t *testing.T, host *guest.Host, name string) *guest.VM {
	t.Helper()
	vm, err := host.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Conn.Disconnect() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*clitest.Patience)
	defer cancel()
	if err := vm.WaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestRestoresToLibvirtThatMakeNoSense(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, _ := site(t, daemon)
		for _, c := range []struct {
			line string
			code int
			says string
		}{
			{"--to libvirt --delta", 2, "no older state"},
			{"--to file:/tmp --start", 2, "gets disks, and no machine"},
			{"--to blockdev:/dev/x --name other", 2, "gets disks, and no machine"},
			{"--to libvirt --name a/b", 2, "no name of a machine"},
			{"--to libvirt:qemu+ssh://host/system", 2, "address of a hypervisor"},
			{"--to libvirt:qemu:///session", 2, "address of a hypervisor"},
			{"--to libvirt:%", 2, "address of a hypervisor"},
			{"--to libvirt:qemu+unix:///system?socket=/none/at/all", 6, "/none/at/all"},
			{"--to libvirt --disk 7", 3, "no disk 7"},
		} {
			line := "restore web1 latest " + c.line
			clitest.Refused(t, s.Control(flags, line), c.code, c.says)
			clitest.Refused(t, s.Control(flags, line+" --dry-run"), c.code, c.says)
		}
	})
}
