package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest/guesttest"
)

// record changes the record of a session while its control plane is away.
func (g *guestSite) record(t *testing.T, id string, change func(*appliance.Session)) {
	t.Helper()
	path := filepath.Join(g.Repo, ".sendense", "sessions", id+".json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var x appliance.Session
	if err := json.Unmarshal(b, &x); err != nil {
		t.Fatal(err)
	}
	change(&x)
	if b, err = json.Marshal(x); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// is waits until a session is in a state.
func (g *guestSite) is(t *testing.T, id string, state appliance.SessionState) (x appliance.Session) {
	t.Helper()
	clitest.Until(t, fmt.Sprintf("session %s is %s", id, state), func() bool {
		x = g.session(t, id)
		return x.State == state
	})
	return x
}

// store makes the folder that migrations go to.
func (g *guestSite) store(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(g.Path("store"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// A machine that died while its disks changed hands may have written to either
// place: nothing is done before somebody has decided.
func TestAMachineThatDiedOverAMigrationIsLeftToSomebodyToDecide(t *testing.T) {
	g := newGuestSite(t)
	g.store(t)
	x, vm := g.boot(t)
	guesttest.Exec(t, vm, "echo 'from the session' >/srv/mark && sync")
	g.migrating(t, x, vm, 20)
	g.daemon.Kill()
	g.record(t, x.ID, func(x *appliance.Session) { x.Migration.Switching = true })
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.daemon = g.Daemon()
	x = g.is(t, x.ID, appliance.SessionBroken)
	copied := filepath.Join(g.Path("store"), x.Machine.Name+"-vda.qcow2")
	if !strings.Contains(x.Problem, copied) || !strings.Contains(x.Problem, "in the session") || !strings.Contains(x.Problem, "--from-session") {
		t.Errorf("problem: got %q, want both places and what to do", x.Problem)
	}
	for _, line := range []string{"keep " + x.ID, "keep --force " + x.ID, "start " + x.ID, "migrate " + x.ID + " --to file:" + g.Path("store"), "discard " + x.ID} {
		clitest.Refused(t, g.Control(g.Via(), "session "+line), 2, copied)
	}
	clitest.Refused(t, g.Control(g.Via(), "delete web1 latest"), 4, x.ID)
	r := g.Good(g.Control(g.Via(), "session start "+x.ID+" --from-session"))
	if !strings.Contains(r.Stdout, copied) {
		t.Errorf("session start: got %q, want what it left", r.Stdout)
	}
	vm = g.up(t, g.is(t, x.ID, appliance.SessionRunning))
	if got := guesttest.Exec(t, vm, "cat /srv/mark"); got != "from the session\n" {
		t.Errorf("file in the guest: got %q, want what the session had", got)
	}
	if _, err := os.Stat(copied); err != nil {
		t.Errorf("copy: got %v, want it still there", err)
	}
	if x = g.session(t, x.ID); x.Migration != nil {
		t.Errorf("migration: got %+v, want none", x.Migration)
	}
	g.daemon.Kill()
	g.record(t, x.ID, func(x *appliance.Session) {
		x.Migration = &appliance.SessionMigration{Paths: map[string]string{"vda": copied}, Switching: true}
	})
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.daemon = g.Daemon()
	g.is(t, x.ID, appliance.SessionBroken)
	if r := g.Good(g.Control(g.Via(), "session discard --force "+x.ID)); !strings.Contains(r.Stdout, copied) {
		t.Errorf("session discard: got %q, want what it left", r.Stdout)
	}
	if _, err := os.Stat(copied); err != nil {
		t.Errorf("copy: got %v, want it still there", err)
	}
	g.wantNoSession(t)
}

// A machine that runs from its new disks stays, whenever the control plane died over
// that.
func TestAMachineThatHasMovedStaysWhenItsApplianceIsKilled(t *testing.T) {
	g := newGuestSite(t)
	g.store(t)
	x, vm := g.boot(t)
	copied := filepath.Join(g.Path("store"), x.Machine.Name+"-vda.qcow2")
	place := "<disk type='file'><driver name='qemu' type='qcow2'/><source file='" + copied + "'/></disk>"
	if err := vm.Conn.DomainBlockCopy(vm.Domain, "vda", place, nil, libvirt.DomainBlockCopySynchronousWrites); err != nil {
		t.Fatal(err)
	}
	clitest.Until(t, "the copy can take over", func() bool {
		description, err := vm.XML()
		return err == nil && strings.Contains(description, "ready='yes'")
	})
	if err := vm.Conn.DomainBlockJobAbort(vm.Domain, "vda", libvirt.DomainBlockJobAbortPivot); err != nil {
		t.Fatal(err)
	}
	g.daemon.Kill()
	g.record(t, x.ID, func(x *appliance.Session) {
		x.Migration = &appliance.SessionMigration{Paths: map[string]string{"vda": copied}, Switching: true}
	})
	g.daemon = g.Daemon()
	clitest.Until(t, "the session has ended", func() bool { return len(g.sessions(t)) == 0 })
	g.wantNoSession(t)
	guesttest.Exec(t, vm, "cat /srv/mark")
	if persistent, err := vm.Conn.DomainIsPersistent(vm.Domain); err != nil || persistent != 1 {
		t.Errorf("machine: got %d (%v), want it kept", persistent, err)
	}
	if _, err := os.Stat(copied); err != nil {
		t.Error(err)
	}
	if err := vm.Destroy(context.Background()); err != nil {
		t.Error(err)
	}
	if err := vm.Conn.DomainUndefine(vm.Domain); err != nil {
		t.Error(err)
	}
}

// stall has libvirtd take connections and answer nothing, until goOn is called.
func (g *guestSite) stall(t *testing.T) (goOn func()) {
	t.Helper()
	out := clitest.Tool(t, "pgrep", "-P", strconv.Itoa(g.host.PID()), "libvirtd")
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn = func() { _ = syscall.Kill(pid, syscall.SIGCONT) } // it may have ended with the test
	t.Cleanup(goOn)
	return goOn
}

func TestAMigrationIsSettledOnceItsHypervisorAnswers(t *testing.T) {
	g := newGuestSite(t)
	g.store(t)
	x, vm := g.boot(t)
	p, job := g.migrating(t, x, vm, 20)
	goOn := g.stall(t)
	g.Good(g.Control(g.Via(), "cancel "+job))
	clitest.Refused(t, p.Wait(), 130, "cancelled", "could not be settled")
	if x = g.session(t, x.ID); x.State != appliance.SessionBroken {
		t.Errorf("session: got %s, want it broken", x.State)
	}
	for _, line := range []string{"keep --force " + x.ID, "start " + x.ID, "discard " + x.ID} {
		clitest.Refused(t, g.Control(g.Via(), "session "+line), 2, "broken")
	}
	goOn()
	g.is(t, x.ID, appliance.SessionRunning)
	g.wantAsItWas(t, x, vm)

	// Nor does a control plane wait for it that starts.
	g.migrating(t, x, vm, 20)
	goOn = g.stall(t)
	g.daemon.Kill()
	g.daemon = g.Daemon()
	if x = g.session(t, x.ID); x.State != appliance.SessionUnknown || !strings.Contains(x.Problem, "answer") {
		t.Errorf("session: got %s, %q, want that it is not known", x.State, x.Problem)
	}
	clitest.Refused(t, g.Control(g.Via(), "session keep --force "+x.ID), 2, "not settled")
	goOn()
	g.is(t, x.ID, appliance.SessionRunning)
	g.wantAsItWas(t, x, vm)
	steady(t, vm, "cat /srv/mark")
	wantUntroubled(t, vm)
}

func TestASessionThatCannotBeKeptRunsOn(t *testing.T) {
	g := newGuestSite(t)
	x, vm := g.boot(t)
	locks, err := filepath.Glob(filepath.Join(g.Repo, ".locks", "*"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("locks: got %q (%v), want one of the VM", locks, err)
	}
	f, err := os.OpenFile(locks[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { // as a backup does
		t.Fatal(err)
	}
	r := g.Control(g.Via(), "session keep --force "+x.ID)
	clitest.Refused(t, r, 4)
	guesttest.Exec(t, vm, "cat /srv/mark")
	g.is(t, x.ID, appliance.SessionRunning)
	clitest.Refused(t, g.Control(g.Via(), "session start "+x.ID), 4, "not shut down")
	if err := vm.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	clitest.Refused(t, g.Control(g.Via(), "session start "+x.ID+" --network nowhere"), 3, "network")
	if again := g.session(t, x.ID); again.Machine == nil || again.Machine.UUID != x.Machine.UUID || again.Machine.Network != x.Machine.Network {
		t.Errorf("machine after another could not start: got %+v, want %+v", again.Machine, x.Machine)
	}
	g.up(t, clitest.Decode[appliance.Session](t, g.Control(g.Via(), "session start --json "+x.ID)))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	g.Good(g.Control(g.Via(), "session keep --force "+x.ID))
	g.wantNoSession(t)
}
