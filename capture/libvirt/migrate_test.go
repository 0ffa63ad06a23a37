package libvirt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/requires"
)

// The machines of this test move between two hosts that share their disks.
func TestMachineThatMigrates(t *testing.T) {
	img, from, to := guesttest.Image(t), guesttest.Host(t), guesttest.Host(t)
	// Libvirt takes half a minute to refuse a migration: the others go on meanwhile.
	for _, c := range []struct {
		name string
		test func(t *testing.T, m *mover)
	}{
		{"a migration during a backup is refused and costs the backup nothing", refusedMigration},
		{"a migration that waits for the backup finds nothing of it left", patientMigration},
		{"a backup whose job is ended for a migration fails and leaves nothing on either host", migrationInstead},
		{"changes are tracked from one host to the other and back", thereAndBack},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &mover{model: newModel(t, from, img, "qcow2"), from: from, to: to, target: capturetest.NewTarget(t)}
			m.start(t)
			m.fill(t)
			m.capture(t, capture.ModeFull)
			c.test(t, m)
		})
	}
	t.Run("a guest is not frozen while it migrates", func(t *testing.T) {
		t.Parallel()
		guestNotFrozen(t, newRig(t, from, img, guest.Disk{Target: "vda", Source: "guest"}, guest.Disk{Target: "vdb", Source: "16M"}), to)
	})
}

// mover is a machine with a place to go and with points.
type mover struct {
	*model
	from, to *guest.Host
	target   *capturetest.Target
	writes   int
}

// fill writes something new to both disks.
func (m *mover) fill(t *testing.T) {
	t.Helper()
	m.writes++
	for key, size := range map[string]int{"vda": 500000, "vdb": 100000} {
		m.writeRunning(t, key, bytes.Repeat([]byte{byte(m.writes)}, size), int64(m.writes)*100000)
	}
}

// follow makes the rig capture the machine on another host.
func (r *rig) follow(t *testing.T, vm *guest.VM, host *guest.Host) {
	t.Helper()
	r.vm, r.host, r.options.URI = vm, host, host.URI()
	var err error
	if r.source, err = libvirt.New(r.options); err != nil {
		t.Fatal(err)
	}
}

// capture makes a point, in the mode wanted of both disks, and compares it with
// what they hold.
func (m *mover) capture(t *testing.T, mode string) {
	t.Helper()
	want := m.now()
	sum, err := capture.Run(t.Context(), m.source, m.target, capture.Options{VM: m.vm.UUID})
	m.check(t, err)
	m.verify(t, sum, mode, want)
}

// now returns a copy of what the disks hold.
func (m *mover) now() map[string][]byte {
	all := map[string][]byte{}
	for key, b := range m.content {
		all[key] = bytes.Clone(b)
	}
	return all
}

// verify expects the newest point to be what a capture said, in the mode and with
// the content wanted, and nothing else of ours to be left on the host.
func (m *mover) verify(t *testing.T, sum capture.Summary, mode string, want map[string][]byte) {
	t.Helper()
	if len(sum.Warnings) > 0 {
		t.Errorf("warnings: got %q, want none", sum.Warnings)
	}
	for _, d := range sum.Disks {
		if d.Mode != mode {
			t.Errorf("mode of %s: got %s because %q, want %s", d.Key, d.Mode, d.Reason, mode)
		}
		if d.Audit != nil && d.Audit.Missed > 0 {
			t.Errorf("changes of %s that the tracker missed: got %d, want none", d.Key, d.Audit.Missed)
		}
	}
	for key, b := range want {
		if !bytes.Equal(m.target.Latest().Disks[key].Content(), b) {
			t.Errorf("content of %s: the point has another", key)
		}
	}
	m.onlyOne(t, sum.Disks[0].Token)
}

// held is a capture that has stopped at its first write.
type held struct {
	letGo func() (capture.Summary, error)
}

// hold begins a capture and returns when it has got to its first write.
func (m *mover) hold(t *testing.T) held {
	t.Helper()
	reached, gate := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(reached) })
	m.target.Fault = func(op string) error {
		if op == "write" {
			first()
			<-gate
		}
		return nil
	}
	var sum capture.Summary
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		sum, err = capture.Run(t.Context(), m.source, m.target, capture.Options{VM: m.vm.UUID})
	}()
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(func() { open(); <-done })
	select {
	case <-reached:
	case <-done:
		t.Fatalf("capture ended before it wrote anything: %v", err)
	}
	return held{func() (capture.Summary, error) {
		open()
		<-done
		m.target.Fault = nil
		return sum, err
	}}
}

// move migrates the machine to its other host.
func (m *mover) move(t *testing.T, o guest.Migration) {
	t.Helper()
	vm := guesttest.Migrate(t, m.vm, m.to, o)
	m.from, m.to = m.to, m.from
	m.follow(t, vm, m.from)
}

func refusedMigration(t *testing.T, m *mover) {
	m.fill(t)
	want := m.now()
	backup := m.hold(t)
	m.fill(t) // must not show
	if _, err := m.vm.Migrate(t.Context(), m.to, guest.Migration{}); err == nil || !strings.Contains(err.Error(), "cannot acquire state change lock") {
		t.Fatalf("migration during a backup: got %v, want a refusal", err)
	}
	if running, err := m.vm.Running(); err != nil || !running {
		t.Errorf("machine after the refusal: got running %v, %v, want it to run", running, err)
	}
	m.fill(t)
	sum, err := backup.letGo()
	m.check(t, err)
	m.verify(t, sum, capture.ModeTracked, want)
	m.move(t, guest.Migration{})
	m.capture(t, capture.ModeTracked)
}

func patientMigration(t *testing.T, m *mover) {
	m.fill(t)
	want := m.now()
	backup := m.hold(t)
	m.fill(t) // must not show
	moved := make(chan error, 1)
	var vm *guest.VM
	go func() {
		var err error
		vm, err = m.vm.Migrate(t.Context(), m.to, guest.Migration{})
		moved <- err
	}()
	time.Sleep(300 * time.Millisecond) // to let it begin to wait; the outcome is the same if it comes late
	sum, err := backup.letGo()
	m.check(t, err)
	m.check(t, <-moved)
	t.Cleanup(func() { _ = vm.Close(context.Background()) })
	m.follow(t, vm, m.to)
	if len(sum.Warnings) > 0 {
		t.Errorf("warnings: got %q, want none", sum.Warnings)
	}
	if got := m.bitmaps(t); got != sum.Disks[0].Token {
		t.Errorf("bitmaps that went along: got %s, want %s", got, sum.Disks[0].Token)
	}
	for key, b := range want {
		if !bytes.Equal(m.target.Latest().Disks[key].Content(), b) {
			t.Errorf("content of %s: the point has another", key)
		}
	}
	m.capture(t, capture.ModeTracked)
}

func migrationInstead(t *testing.T, m *mover) {
	token := m.target.Latest().Result.Disks[0].Token
	m.fill(t)
	backup := m.hold(t)
	m.fill(t)
	m.abortJob(t)
	m.move(t, guest.Migration{})
	_, err := backup.letGo()
	if !errors.Is(err, capture.ErrVMChanged) || !strings.Contains(err.Error(), "migrated to another host") {
		t.Errorf("backup: got %v, want ErrVMChanged and that the machine migrated", err)
	}
	if len(m.target.Aborts()) != 1 || len(m.target.Points()) != 1 {
		t.Errorf("target: got %d drafts aborted and %d points, want one of each", len(m.target.Aborts()), len(m.target.Points()))
	}
	m.leftovers(t)
	if got := m.bitmaps(t); !strings.Contains(got, token) {
		t.Errorf("bitmaps that went along: got %s, want %s among them", got, token)
	}
	m.fill(t)
	m.capture(t, capture.ModeTracked)
}

func thereAndBack(t *testing.T, m *mover) {
	home, away := *m.rig, m.to
	m.fill(t)
	m.move(t, guest.Migration{KeepSource: true})
	m.fill(t)
	m.capture(t, capture.ModeTracked)

	// The host it came from has it still, as one that is shut off.
	refused := func(why string) {
		t.Helper()
		inst, err := home.source.Begin(t.Context(), home.target, capture.Request{Token: "absent"})
		if err == nil {
			closeInstant(t, inst)
		}
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("capture where the machine is not any more: got %v, want %q in it", err, why)
		}
	}
	refused("it was migrated to another host")
	x, err := m.vm.XML()
	m.check(t, err)
	m.check(t, home.vm.Conn.DomainUndefineFlags(home.vm.Domain, golibvirt.DomainUndefineCheckpointsMetadata))
	m.check(t, home.vm.Redefine(t.Context(), x))
	refused("is in use") // although this host knows nothing of the migration

	m.check(t, m.vm.Destroy(t.Context()))
	inst := home.begin(t, "off", nil)
	m.check(t, inst.Err())
	m.start(t)
	if err := inst.Err(); !errors.Is(err, capture.ErrVMChanged) {
		t.Errorf("error of the instant once the machine runs on the other host: got %v, want ErrVMChanged", err)
	}
	closeInstant(t, inst)

	m.fill(t)
	m.move(t, guest.Migration{KeepSource: true})
	m.fill(t)
	m.capture(t, capture.ModeTracked)
	m.move(t, guest.Migration{}) // to where there is a record of an older checkpoint
	m.fill(t)
	m.capture(t, capture.ModeTracked)
	if m.host != away {
		t.Error("machine ended up on the wrong host")
	}
}

// oneDisk is an instant that shows one of its disks only.
type oneDisk struct {
	capture.Instant
	key string
}

func (o oneDisk) Disks() []capture.Disk {
	return slices.DeleteFunc(slices.Clone(o.Instant.Disks()), func(d capture.Disk) bool { return d.Key != o.key })
}

func guestNotFrozen(t *testing.T, r *rig, to *guest.Host) {
	guesttest.Start(t, r.vm)
	const write = "head -c 1000000 /dev/urandom >/dev/vdb; sync"
	guesttest.Exec(t, r.vm, write)
	inst := r.begin(t, "before", nil)
	base := r.read(t, oneDisk{inst, "vdb"}, point{})
	finish(t, inst)
	guesttest.Exec(t, r.vm, write)

	// The guard is the last to start before the guest is frozen. This one waits for
	// the migration to begin.
	waiting, goOn := filepath.Join(r.dir, "waiting"), filepath.Join(r.dir, "go-on")
	o := r.options
	o.Guard = append([]string{"sh", "-c", fmt.Sprintf(`touch %s; while [ ! -e %s ]; do sleep 0.05; done; exec "$@"`, waiting, goOn), "guard"}, o.Guard...)
	source, err := libvirt.New(o)
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan error, 1)
	go func() {
		inst, err := source.Begin(t.Context(), r.target, capture.Request{Token: "during", Since: base.since()})
		if err == nil {
			err = errors.Join(errors.New("it succeeded"), inst.Close())
		}
		begun <- err
	}()
	requires.Until(t, "guard starts", func() bool { _, err := os.Stat(waiting); return err == nil })
	moved := make(chan error, 1)
	var vm *guest.VM
	go func() {
		var err error
		vm, err = r.vm.Migrate(t.Context(), to, guest.Migration{Bandwidth: 1})
		moved <- err
	}()
	requires.Until(t, "memory migrates", func() bool { // from then on the speed can be changed
		_, stats, err := r.vm.Conn.DomainGetJobStats(r.vm.Domain, 0)
		return err == nil && slices.ContainsFunc(stats, func(p golibvirt.TypedParam) bool {
			return p.Field == golibvirt.DomainJobMemoryProcessed && p.Value.I != uint64(0)
		})
	})
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	isRefused := func(where string, err error) {
		t.Helper()
		if !errors.Is(err, capture.ErrVMChanged) || !strings.Contains(err.Error(), "is being migrated") {
			t.Errorf("capture %s: got %v, want ErrVMChanged and that the machine is being migrated", where, err)
		}
	}
	isRefused("that was about to freeze the guest", <-begun)
	if got := r.frozen(t); got != "thawed" {
		t.Errorf("state of the guest: got %s, want thawed", got)
	}
	_, err = r.source.Begin(t.Context(), r.target, capture.Request{Token: "source", Since: base.since()})
	isRefused("where it comes from", err)
	o.URI = to.URI()
	if source, err = libvirt.New(o); err != nil {
		t.Fatal(err)
	}
	_, err = source.Begin(t.Context(), r.target, capture.Request{Token: "destination", Since: base.since()})
	isRefused("where it goes", err)
	r.leftovers(t)
	if err := r.vm.Conn.DomainMigrateSetMaxSpeed(r.vm.Domain, 1<<10, 0); err != nil {
		t.Error(err)
	}
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close(context.Background()) })
	r.follow(t, vm, to)

	guesttest.Exec(t, r.vm, "head -c 1000000 /dev/urandom | dd of=/dev/vdb bs=1M seek=4; sync")
	inst = r.begin(t, "after", base.since())
	if c := inst.Config(); c.Consistency != "application" {
		t.Errorf("consistency on the new host: got %s (%v), want application", c.Consistency, c.Notes)
	}
	if d := disksOf(inst)["vdb"]; !d.Tracked {
		t.Errorf("vdb on the new host: got untracked because %q, want tracked", d.Untracked)
	}
	guesttest.Exec(t, r.vm, write) // must not show
	r.compare(t, r.read(t, oneDisk{inst, "vdb"}, base))
	finish(t, inst)
	r.leftovers(t)
	if got, want := r.bitmaps(t), "sendense-after"; got != want {
		t.Errorf("bitmaps: got %s, want %s", got, want)
	}
}
