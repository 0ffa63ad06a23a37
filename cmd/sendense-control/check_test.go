package main_test

import (
	"image/png"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/instant"
)

func TestAPointProvesThatItBoots(t *testing.T) {
	g := newGuestSite(t)
	before := g.sums(t)
	screen := g.Path("screen.png")
	r := g.Good(g.Control(g.Via(), "check web1 --connect "+g.host.URI()+" --screen "+screen))
	for _, want := range []string{"boots; up after", "Guest agent", "sendense-guest", "ext4", "Failed units  none"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("check: got %q, want %q in it", r.Stdout, want)
		}
	}
	c := clitest.Decode[appliance.BootCheck](t, g.Control(g.Via(), "check web1 latest --last --json"))
	if !c.Passed || c.Stage != instant.StageAgent || c.RTO <= 0 || c.RTO != c.Agent || c.Running >= c.Agent || c.DisksReady >= c.Running || c.Reason != "" {
		t.Errorf("check: got %+v, want that the agent answered, after the disks were ready and the machine ran", c)
	}
	if !strings.Contains(c.Console, "bash") {
		t.Errorf("console: got %q, want the guest's prompt", c.Console)
	}
	if c.Accelerated != (g.host.Accel() == guest.KVM) {
		t.Errorf("accelerated: got %v, want what the host can", c.Accelerated)
	}
	if i := slices.IndexFunc(c.Guest.FileSystems, func(f instant.GuestFileSystem) bool { return f.Path == "/" }); i < 0 ||
		c.Guest.FileSystems[i].Type != "ext4" || c.Guest.FileSystems[i].ReadOnly || c.Guest.FileSystems[i].Errors != 0 {
		t.Errorf("file systems: got %+v, want / sound", c.Guest.FileSystems)
	}
	if len(c.Volumes) == 0 || c.Volumes[0].Type != "ext4" {
		t.Errorf("volumes: got %+v, want an ext4", c.Volumes)
	}
	wantPicture(t, screen)
	g.wantNoSession(t)
	if after := g.sums(t); after != before {
		t.Errorf("files of the repository: got %s, want them as they were: %s", after, before)
	}
	clitest.Refused(t, g.Control(g.Via(), "check web1 latest~1 --last"), 3, "has not been checked")
}

// sums returns digests of all images in the repository.
func (g *guestSite) sums(t *testing.T) string {
	t.Helper()
	return clitest.Tool(t, "sh", "-c", "sha256sum '"+g.Repo+"'/*/disk-*/*")
}

// wantPicture checks that a file is a picture that shows something.
func wantPicture(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	size, first := m.Bounds(), m.At(0, 0)
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			if m.At(x, y) != first {
				return
			}
		}
	}
	t.Errorf("screen: got %v of one colour, want something on it", size)
}

func TestAPointThatDoesNotBootSaysHowFarItGot(t *testing.T) {
	g := newGuestSite(t)
	img := guesttest.Image(t)
	for _, broken := range []struct {
		name, script string
		stage        instant.Stage
		want         string
	}{
		{"no init", "rm -f /sbin/init", instant.StageKernel, "panicked"},
		{"a login and no agent", `printf '::sysinit:/etc/rc\nttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n' >/etc/inittab`, instant.StageLogin, ""},
	} {
		t.Run(broken.name, func(t *testing.T) {
			disk := g.Path(strings.ReplaceAll(broken.name, " ", "-") + ".qcow2")
			if err := img.CopyDisk(t.Context(), disk, "qcow2"); err != nil {
				t.Fatal(err)
			}
			vm := guesttest.Define(t, g.host, guest.Spec{Name: "broken", Image: img, Cmdline: "panic=1", Disks: []guest.Disk{{Target: "vda", Source: disk}}})
			guesttest.Start(t, vm)
			guesttest.Exec(t, vm, broken.script+"; sync")
			g.backupVM(t, "broken")
			if err := vm.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			screen := g.Path("screen.png")
			r := g.Control(g.Via(), "check broken latest --json --connect "+g.host.URI()+" --screen "+screen)
			code := 5
			if broken.want == "" {
				code = 0
			}
			if r.Code != code || r.Stderr != "" {
				t.Fatalf("check: got %+v, want exit code %d", r, code)
			}
			c := clitest.Decode[appliance.BootCheck](t, clitest.Ran{Stdout: r.Stdout})
			if c.Passed != (code == 0) || c.Stage != broken.stage || !strings.Contains(c.Reason, broken.want) || !c.Screen || (c.RTO > 0) != c.Passed || c.Console == "" {
				t.Errorf("check: got %+v, want %s and %q", c, broken.stage, broken.want)
			}
			if jobs := g.Jobs(g.Via()); jobs[0].Verb != "check" || (jobs[0].State == "failed") != (code == 5) {
				t.Errorf("job: got %+v, want it failed as the check did", jobs[0])
			}
			wantPicture(t, screen)
			if text := g.Control(g.Via(), "check broken --last"); code == 5 && (text.Code != 5 || !strings.Contains(text.Stdout, "DID NOT BOOT") || !strings.Contains(text.Stdout, "The kernel panicked") || !strings.Contains(text.Stdout, "The last of its console")) {
				t.Errorf("check: got %+v, want the end of the console", text)
			}
			g.wantNoSession(t)
			g.Good(g.Control(g.Via(), "delete broken latest"))
		})
	}
}

func TestACheckThatIsCancelledOrLosesItsApplianceLeavesNothing(t *testing.T) {
	g := newGuestSite(t)
	begin := func() *clitest.Process {
		p := clitest.Start(t, program, append([]string{"check", "web1", "--connect", g.host.URI()}, g.Via()...)...)
		clitest.Until(t, "its machine runs", func() bool {
			all := g.sessions(t)
			return len(all) == 1 && all[0].Machine != nil && all[0].State == appliance.SessionRunning
		})
		return p
	}
	p := begin()
	g.Good(g.Control(g.Via(), "cancel "+g.Jobs(g.Via())[0].ID))
	clitest.Refused(t, p.Wait(), 130, "cancelled")
	g.wantNoSession(t)
	g.wantNoMachine(t)

	p = begin()
	g.daemon.Kill()
	p.Wait()
	g.daemon = g.Daemon()
	clitest.Until(t, "the session has ended", func() bool { return len(g.sessions(t)) == 0 })
	g.wantNoSession(t)
	g.wantNoMachine(t)
	clitest.Refused(t, g.Control(g.Via(), "check web1 --last"), 3, "has not been checked")
}

// That a hypervisor does not answer says nothing of a point.
func TestACheckThatLosesItsHypervisorIsNone(t *testing.T) {
	g := newGuestSite(t)
	p := clitest.Start(t, program, append([]string{"check", "web1", "--connect", g.host.URI()}, g.Via()...)...)
	clitest.Until(t, "its machine runs", func() bool {
		all := g.sessions(t)
		return len(all) == 1 && all[0].Machine != nil && all[0].State == appliance.SessionRunning
	})
	vm, err := g.host.Find(g.sessions(t)[0].Machine.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Conn.Disconnect() }) // once the hypervisor answers again
	clitest.Until(t, "it is watched", func() bool {
		paused, err := vm.Paused()
		return err == nil && !paused
	})
	goOn := g.stall(t)
	clitest.Refused(t, p.Wait(), 6, "does not answer")
	clitest.Refused(t, g.Control(g.Via(), "check web1 --last"), 3, "has not been checked")
	all := g.sessions(t)
	if len(all) != 1 || all[0].State != appliance.SessionUnknown || !strings.Contains(all[0].Problem, "ends as soon as") {
		t.Errorf("sessions: got %+v, want one that ends once it can", all)
	}
	g.daemon.Kill()
	g.daemon = g.Daemon()
	goOn()
	clitest.Until(t, "the session has ended", func() bool { return len(g.sessions(t)) == 0 })
	g.wantNoSession(t)
	g.wantNoMachine(t)
}

// wantNoMachine checks that no machine runs on the host.
func (g *guestSite) wantNoMachine(t *testing.T) {
	t.Helper()
	conn, err := g.host.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Disconnect() }()
	domains, _, err := conn.ConnectListAllDomains(1, 0)
	if err != nil || len(domains) > 0 {
		t.Errorf("machines: got %v (%v), want none", domains, err)
	}
}
