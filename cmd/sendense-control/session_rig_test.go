package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
)

// guestSite is a site whose VM is a real guest with two points, the second of which
// is incremental and has the file /srv/mark. The guest that was backed up is gone.
type guestSite struct {
	*clitest.Site
	host   *guest.Host
	daemon *clitest.Process
}

// Before anything runs there, prepare is called.
func newGuestSite(t *testing.T, prepare ...func(*guestSite)) *guestSite {
	t.Helper()
	g := &guestSite{Site: clitest.NewSite(t, filepath.Dir(program))}
	for _, fn := range prepare {
		fn(g)
	}
	g.host = guesttest.Host(t) // which sees what is mounted now
	img := guesttest.Image(t)
	disk := g.Path("guest.qcow2")
	if err := img.CopyDisk(t.Context(), disk, "qcow2"); err != nil {
		t.Fatal(err)
	}
	vm := guesttest.Define(t, g.host, guest.Spec{Name: "web1", Image: img, Disks: []guest.Disk{{Target: "vda", Source: disk}}})
	guesttest.Start(t, vm)
	g.daemon = g.Daemon()
	g.backup(t)
	guesttest.Exec(t, vm, "echo 'from the point' >/srv/mark && sync")
	g.backup(t)
	if err := vm.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *guestSite) backup(t *testing.T) {
	t.Helper()
	g.backupVM(t, "web1")
}

func (g *guestSite) backupVM(t *testing.T, name string) {
	t.Helper()
	args := append([]string{"backup", "--source", "libvirt", "--vm", name, "--connect", g.host.URI()}, g.Via()...)
	g.Good(clitest.Run(t, filepath.Join(g.Bin, "sendense-capture"), args...))
}

// boot begins a session with a machine and waits until its guest is up.
func (g *guestSite) boot(t *testing.T, more ...string) (appliance.Session, *guest.VM) {
	t.Helper()
	args := append([]string{"boot", "web1", "latest", "--json", "--connect", g.host.URI()}, g.Via()...)
	x := clitest.Decode[appliance.Session](t, clitest.Run(t, program, append(args, more...)...))
	return x, g.up(t, x)
}

// up waits until the guest of a session answers.
func (g *guestSite) up(t *testing.T, x appliance.Session) *guest.VM {
	t.Helper()
	vm, err := g.host.Find(x.Machine.Name)
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

// session returns a session as it is now.
func (g *guestSite) session(t *testing.T, id string) appliance.Session {
	t.Helper()
	return clitest.Decode[appliance.Session](t, g.Control(g.Via(), "session show --json "+id))
}

// sessions returns all sessions as they are now.
func (g *guestSite) sessions(t *testing.T) []appliance.Session {
	t.Helper()
	return clitest.Decode[[]appliance.Session](t, g.Control(g.Via(), "session list --json"))
}

// small makes a folder with room for so many MiB.
func (g *guestSite) small(t *testing.T, path string, mib int) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	clitest.Tool(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "sendense-test", path)
	t.Cleanup(func() { clitest.Tool(t, "umount", "-l", path) })
}
