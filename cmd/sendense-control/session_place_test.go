package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/requires"
)

// pool makes a storage pool of a folder, and starts it if so wanted.
func (g *guestSite) pool(t *testing.T, name, dir string, start bool) {
	t.Helper()
	conn, err := g.host.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Disconnect() })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := conn.StoragePoolDefineXML(fmt.Sprintf("<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>", name, dir), 0)
	if err != nil {
		t.Fatal(err)
	}
	if start {
		if err := conn.StoragePoolCreate(p, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// The point has no description of its machine, so that its disk has another name
// there than in the point.
func TestASessionMovesToAStoragePool(t *testing.T) {
	requires.Tool(t, "qemu-img")
	g := &guestSite{Site: clitest.NewSite(t, filepath.Dir(program)), host: guesttest.Host(t, "storage")}
	if err := os.WriteFile(g.Path("disk.raw"), bytes.Repeat([]byte("sendense"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g.daemon = g.Daemon()
	args := append([]string{"backup", "--source", "blockdev", "--vm", "plain", "--disk", g.Path("disk.raw") + "=data"}, g.Via()...)
	g.Good(clitest.Run(t, filepath.Join(g.Bin, "sendense-capture"), args...))
	g.pool(t, "images", g.Path("images"), true)
	g.pool(t, "idle", g.Path("idle"), false)
	x := clitest.Decode[appliance.Session](t, g.Control(g.Via(), "boot plain latest --json --connect "+g.host.URI()))
	for place, want := range map[string]string{"pool:none": "none", "pool:idle": "active", "pool:": "pool"} {
		r := g.Control(g.Via(), "session migrate "+x.ID+" --to "+place)
		if r.Code == 0 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, "hint: ") {
			t.Errorf("migration to %s: got %+v, want it refused for %q", place, r, want)
		}
	}
	result := clitest.Decode[appliance.MigrateResult](t, g.Control(g.Via(), "session migrate --json "+x.ID+" --to pool:images"))
	file := filepath.Join(g.Path("images"), x.Machine.Name+"-data.qcow2")
	if result.Disks["data"] != file || len(result.Notes) > 0 {
		t.Errorf("migration: got %+v, want the disk in %s and nothing to note", result, file)
	}
	g.wantNoSession(t)
	vm, err := g.host.Find(x.Machine.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Conn.Disconnect() }()
	if _, err := vm.Conn.StorageVolLookupByPath(file); err != nil {
		t.Errorf("volume of the pool: %v", err)
	}
	if err := vm.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", file, g.Path("disk.raw"))
	if err := vm.Conn.DomainUndefineFlags(vm.Domain, libvirt.DomainUndefineNvram); err != nil {
		t.Error(err)
	}
}

// loop makes a block device of so many bytes, with a node where the host of a test
// sees it too.
func (g *guestSite) loop(t *testing.T, name string, size int64) (path string) {
	t.Helper()
	requires.Tool(t, "losetup")
	file := g.Path(name + ".img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(clitest.Tool(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() { clitest.Tool(t, "losetup", "-d", device) })
	st, err := os.Stat(device)
	if err != nil {
		t.Fatal(err)
	}
	path = g.Path(name)
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(st.Sys().(*syscall.Stat_t).Rdev)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestASessionMovesToABlockDevice(t *testing.T) {
	requires.Tool(t, "mkfs.ext4")
	g := newGuestSite(t)
	g.store(t)
	x, vm := g.boot(t)
	size := x.Disks[0].Size
	device, short, mounted := g.loop(t, "device", size+1<<20), g.loop(t, "short", size-1<<20), g.loop(t, "mounted", size)
	clitest.Tool(t, "mkfs.ext4", "-q", mounted)
	if err := os.Mkdir(g.Path("mnt"), 0o700); err != nil {
		t.Fatal(err)
	}
	clitest.Tool(t, "mount", mounted, g.Path("mnt"))
	t.Cleanup(func() { clitest.Tool(t, "umount", g.Path("mnt")) })
	for place, want := range map[string]string{mounted: "in use", short: "has " + fmt.Sprint(size-1<<20), device + "," + short: "2 are given", g.Path("device.img"): "no block device"} {
		clitest.Refused(t, g.Control(g.Via(), "session migrate "+x.ID+" --to blockdev:"+place), 2, want)
	}
	clitest.Refused(t, g.Control(g.Via(), "session migrate "+x.ID+" --format qcow2 --to blockdev:"+device), 2, "as it is")

	guesttest.Exec(t, vm, "echo 'from the session' >/srv/mark && sync")
	p, job := g.migratingTo(t, "blockdev:"+device, x, vm, 30)
	if f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0); !errors.Is(err, unix.EBUSY) {
		f.Close()
		t.Errorf("claim of the device meanwhile: got %v, want EBUSY", err)
	}
	g.Good(g.Control(g.Via(), "cancel "+job))
	clitest.Refused(t, p.Wait(), 130, "cancelled")
	g.wantAsItWas(t, x, vm)

	result := clitest.Decode[appliance.MigrateResult](t, g.Control(g.Via(), "session migrate --json "+x.ID+" --to blockdev:"+device))
	if result.Disks["vda"] != device || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "1048576 bytes longer") {
		t.Errorf("migration: got %+v, want vda on %s, and that this is longer", result, device)
	}
	g.wantNoSession(t)
	g.daemon.Signal(15) // the machine needs it no more
	guesttest.Exec(t, vm, "echo 'from the device' >>/srv/mark && sync")
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	guesttest.Start(t, vm)
	if got := guesttest.Exec(t, vm, "cat /srv/mark"); got != "from the session\nfrom the device\n" {
		t.Errorf("file in the guest after its machine started again: got %q", got)
	}
	if description, err := vm.XML(); err != nil || !strings.Contains(description, "<source dev='"+device+"'") {
		t.Errorf("machine: got %s (%v), want it on %s", description, err, device)
	}
	wantUntroubled(t, vm)
	if err := vm.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if err := vm.Conn.DomainUndefineFlags(vm.Domain, libvirt.DomainUndefineNvram); err != nil {
		t.Error(err)
	}
}
