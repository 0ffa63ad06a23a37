package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
)

// migrating begins a slow migration of a session to the folder for that and waits
// until it has copied so many per cent.
func (g *guestSite) migrating(t *testing.T, x appliance.Session, vm *guest.VM, percent int64) (p *clitest.Process, job string) {
	t.Helper()
	return g.migratingTo(t, "file:"+g.Path("store"), x, vm, percent)
}

func (g *guestSite) migratingTo(t *testing.T, place string, x appliance.Session, vm *guest.VM, percent int64) (p *clitest.Process, job string) {
	t.Helper()
	p = clitest.Start(t, program, append([]string{"session", "migrate", x.ID, "--to", place, "--limit", "8"}, g.Via()...)...)
	clitest.Until(t, "the migration is a job", func() bool {
		if p.Ended() {
			t.Fatalf("migration ended: %+v", p.Wait())
		}
		j := clitest.Decode[[]appliance.Job](t, g.Control(g.Via(), "jobs --json"))[0]
		job = j.ID
		return j.Verb == "migrate" && j.State == appliance.JobRunning
	})
	slow := false
	clitest.Until(t, fmt.Sprintf("%d %% are copied", percent), func() bool {
		if p.Ended() {
			t.Fatalf("migration ended: %+v", p.Wait())
		}
		_, _, _, done, total, err := vm.Conn.DomainGetBlockJobInfo(vm.Domain, "vda", 0)
		if err != nil {
			t.Fatal(err)
		}
		if total > 0 && !slow && 100*done/total >= 85 { // by inches towards the end, so that it is not missed
			slow = true
			if err := vm.Conn.DomainBlockJobSetSpeed(vm.Domain, "vda", 512<<10, libvirt.DomainBlockJobSpeedBandwidthBytes); err != nil {
				t.Fatal(err)
			}
		}
		return total > 0 && 100*done/total >= uint64(percent)
	})
	return p, job
}

// wantAsItWas checks that a session goes on as if nobody had tried to move it.
func (g *guestSite) wantAsItWas(t *testing.T, x appliance.Session, vm *guest.VM) {
	t.Helper()
	if x = g.session(t, x.ID); x.State != appliance.SessionRunning || x.Migration != nil || x.Disks[0].Moved != "" {
		t.Errorf("session: got %+v, want it running as it was", x)
	}
	if left, err := os.ReadDir(g.Path("store")); err != nil || len(left) > 0 {
		t.Errorf("files of the migration: got %v (%v), want none", left, err)
	}
	if found, _, _, _, _, err := vm.Conn.DomainGetBlockJobInfo(vm.Domain, "vda", 0); err != nil || found != 0 {
		t.Errorf("block job: got %d (%v), want none", found, err)
	}
	if description, err := vm.XML(); err != nil || !strings.Contains(description, x.Socket) || strings.Contains(description, "<mirror") {
		t.Errorf("machine: got %s (%v), want it on the session's disk", description, err)
	}
}

func TestASessionMovesToFilesWhileItsMachineRuns(t *testing.T) {
	g := newGuestSite(t)
	if err := os.Mkdir(g.Path("store"), 0o755); err != nil {
		t.Fatal(err)
	}
	x, vm := g.boot(t)
	boot := guesttest.Exec(t, vm, "cat /proc/sys/kernel/random/boot_id")
	d := g.startDatabase(t, x, vm, 1)
	for _, percent := range []int64{10, 50, 99} {
		p, job := g.migrating(t, x, vm, percent)
		if percent < 99 {
			d.more(t, 1)
			clitest.Refused(t, g.Control(g.Via(), "session discard "+x.ID), 4, "being changed")
		}
		g.Good(g.Control(g.Via(), "cancel "+job))
		clitest.Refused(t, p.Wait(), 130, "cancelled")
		g.wantAsItWas(t, x, vm)
		d.more(t, 5)
	}

	g.migrating(t, x, vm, 50)
	g.daemon.Kill()
	g.daemon = g.Daemon()
	d.more(t, 5)
	clitest.Until(t, "the session runs again", func() bool { return g.session(t, x.ID).State == appliance.SessionRunning })
	g.wantAsItWas(t, x, vm)

	result := clitest.Decode[appliance.MigrateResult](t, g.Control(g.Via(), "session migrate --json "+x.ID+" --to file:"+g.Path("store")))
	file := filepath.Join(g.Path("store"), x.Machine.Name+"-vda.qcow2")
	if result.Machine != x.Machine.Name || len(result.Disks) != 1 || result.Disks["vda"] != file {
		t.Errorf("migration: got %+v, want vda in %s", result, file)
	}
	g.wantNoSession(t)
	g.daemon.Signal(15) // the machine needs it no more
	d.more(t, 20)
	wantUntroubled(t, vm)
	if now := steady(t, vm, "cat /proc/sys/kernel/random/boot_id"); now != boot {
		t.Errorf("boot of the guest: got %q, want %q, the one from before", now, boot)
	}
	d.wantRows(t, vm)

	// It is a machine of libvirt's now, which starts from the file.
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.read.Wait()
	guesttest.Start(t, vm)
	d.wantRows(t, vm)
	if description, err := vm.XML(); err != nil || strings.Contains(description, "error_policy") || !strings.Contains(description, file) {
		t.Errorf("machine: got %s (%v), want it on %s and as usual", description, err, file)
	}
	if persistent, err := vm.Conn.DomainIsPersistent(vm.Domain); err != nil || persistent != 1 {
		t.Errorf("machine: got %d (%v), want it kept", persistent, err)
	}
	if err := vm.Destroy(context.Background()); err != nil {
		t.Error(err)
	}
	clitest.Tool(t, "qemu-img", "check", "-q", file)
	if err := vm.Conn.DomainUndefineFlags(vm.Domain, libvirt.DomainUndefineNvram); err != nil {
		t.Error(err)
	}
}

func TestAMigrationThatFailsLeavesTheSessionAsItWas(t *testing.T) {
	g := newGuestSite(t, func(g *guestSite) { g.small(t, g.Path("store"), 20) })
	store := g.Path("store")
	x, vm := g.boot(t)
	migrate := func(place string) clitest.Ran { return g.Control(g.Via(), "session migrate "+x.ID+" --to "+place) }
	r := migrate("file:" + store)
	if r.Code == 0 || !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("migration to where there is no room: got %+v, want it to fail with a hint", r)
	}
	g.wantAsItWas(t, x, vm)

	if err := os.WriteFile(filepath.Join(store, x.Machine.Name+"-vda.qcow2"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	clitest.Refused(t, migrate("file:"+store), 2, "is there already")
	if b, err := os.ReadFile(filepath.Join(store, x.Machine.Name+"-vda.qcow2")); err != nil || string(b) != "mine" {
		t.Errorf("file that was there: got %q (%v), want it untouched", b, err)
	}
	clitest.Refused(t, migrate("file:"+g.Path("nowhere")), 3, "nowhere")
	clitest.Refused(t, migrate("blockdev:/dev/null"), 2, "no block device")
	clitest.Refused(t, migrate("file:"+store+" --format vmdk"), 2, "vmdk")
	guesttest.Exec(t, vm, "cat /srv/mark")
	wantUntroubled(t, vm)
}
