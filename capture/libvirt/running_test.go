package libvirt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/requires"
)

func TestInstantsOfARunningGuest(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	r := newRig(t, host, img,
		guest.Disk{Target: "vda", Source: "guest"},
		guest.Disk{Target: "vdb", Source: "64M", Format: "raw"},
		guest.Disk{Target: "vdc", Source: "128M"},
		guest.Disk{Target: "vdd", Source: "1M", Format: "raw", Shareable: true},
		guest.Disk{Target: "sda", Source: "1M", Format: "raw", Device: "cdrom", ReadOnly: true},
		guest.Disk{Target: "sdb", Device: "cdrom", Source: "1M", Format: "raw", ReadOnly: true})
	guesttest.Start(t, r.vm)
	guesttest.Exec(t, r.vm, "mkfs.ext4 -q /dev/vdb; mkfs.ext4 -q /dev/vdc; mkdir /mnt/b /mnt/c; mount /dev/vdb /mnt/b; mount /dev/vdc /mnt/c")
	r.createCheckpoint(t, "foreign", "vda")
	ok := true
	step := func(name string, f func(t *testing.T)) {
		if ok = ok && t.Run(name, f); !ok {
			t.Fatal("the steps build on one another")
		}
	}
	step("fulls and incrementals are what an independent reader sees", func(t *testing.T) { pointByPoint(t, r) })
	step("an instant without a commit costs nothing", func(t *testing.T) { withoutCommit(t, r) })
	step("a guest frozen by somebody else stays frozen", func(t *testing.T) { frozenBySomebodyElse(t, r) })
	step("a guest is thawed when its freezer is killed", func(t *testing.T) { killedFreezer(t, r) })
	step("a guard thaws a guest that is frozen for too long", func(t *testing.T) { frozenTooLong(t, r) })
	step("a guest is not frozen without a guard", func(t *testing.T) { withoutGuard(t, r) })
	step("a guest whose agent is gone is captured without freezing", func(t *testing.T) { withoutAgent(t, r) })
}

// churn changes all disks in the guest while the caller goes on.
const churn = "for d in / /mnt/b /mnt/c; do head -c 3000000 /dev/urandom >$d/file%[1]d; rm -f $d/file%[2]d; done; sync"

func pointByPoint(t *testing.T, r *rig) {
	guesttest.Exec(t, r.vm, fmt.Sprintf(churn, 0, 9))
	var last point
	for n := range 3 {
		token := fmt.Sprintf("p%d", n)
		inst := r.begin(t, token, last.since())
		if got := inst.Config().Consistency; got != "application" {
			t.Errorf("consistency: got %s, want application (%v)", got, inst.Config().Notes)
		}
		notes := strings.Join(inst.Config().Notes, " ")
		if !strings.Contains(notes, "vdd is left out: it is shared") || !strings.Contains(notes, "sda is left out: it is a cdrom") {
			t.Errorf("notes: got %q, want vdd and sda in them", notes)
		}
		guesttest.Exec(t, r.vm, fmt.Sprintf(churn, n+1, n)) // must not show
		disks := disksOf(inst)
		if len(disks) != 3 {
			t.Fatalf("disks: got %v, want vda, vdb and vdc", inst.Disks())
		}
		for _, key := range []string{"vda", "vdc"} {
			if d := disks[key]; d.Tracked != (n > 0) || d.Untracked != "" || d.Token != "sendense-"+token {
				t.Errorf("%s at point %d: got tracked %v, untracked %q, token %q", key, n, d.Tracked, d.Untracked, d.Token)
			}
		}
		if d := disks["vdb"]; d.Tracked || !strings.Contains(d.Untracked, "raw") || d.Token != "" {
			t.Errorf("vdb at point %d: got tracked %v, untracked %q, token %q", n, d.Tracked, d.Untracked, d.Token)
		}
		p := r.read(t, inst, last)
		r.compare(t, p)
		finish(t, inst)
		if got, want := r.checkpoints(t), "foreign sendense-"+token; got != want {
			t.Errorf("checkpoints: got %s, want %s", got, want)
		}
		r.leftovers(t)
		last = p
	}
	fsck(t, last.files["vdc"], 0)
	fsck(t, last.files["vda"], 1<<20)
}

// fsck checks the file system at off of a raw disk. The guest froze it, so that
// its journal is empty.
func fsck(t *testing.T, disk string, off int64) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-f", "-n", fmt.Sprintf("%s?offset=%d", disk, off)).CombinedOutput()
	if err != nil || strings.Contains(string(out), "recover") {
		t.Errorf("file system of the point: %v: %s", err, out)
	}
}

func withoutCommit(t *testing.T, r *rig) {
	first := r.begin(t, "base", nil)
	base := r.read(t, first, point{})
	finish(t, first)
	guesttest.Exec(t, r.vm, fmt.Sprintf(churn, 20, 9))
	dropped := r.begin(t, "dropped", base.since())
	if err := dropped.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := r.checkpoints(t), "foreign sendense-base"; got != want {
		t.Errorf("checkpoints after an instant without commit: got %s, want %s", got, want)
	}
	r.leftovers(t)
	guesttest.Exec(t, r.vm, fmt.Sprintf(churn, 21, 20))
	inst := r.begin(t, "kept", base.since())
	if !disksOf(inst)["vda"].Tracked {
		t.Errorf("vda: got untracked because %q, want tracked", disksOf(inst)["vda"].Untracked)
	}
	p := r.read(t, inst, base)
	r.compare(t, p)
	finish(t, inst)
}

func frozenBySomebodyElse(t *testing.T, r *rig) {
	guesttest.Exec(t, r.vm, "sync")
	if _, err := r.vm.Conn.DomainFsfreeze(r.vm.Domain, nil, 0); err != nil {
		t.Fatal(err)
	}
	inst := r.begin(t, "frozen", nil)
	defer closeInstant(t, inst)
	if c := inst.Config(); c.Consistency != "application" || !strings.Contains(strings.Join(c.Notes, " "), "already frozen") {
		t.Errorf("config: got consistency %s and notes %q", c.Consistency, c.Notes)
	}
	if got := r.frozen(t); got != "frozen" {
		t.Errorf("state of the guest: got %s, want frozen", got)
	}
	p := r.read(t, inst, point{})
	for key, format := range map[string]string{"vda": "qcow2", "vdb": "raw", "vdc": "qcow2"} {
		other := filepath.Join(r.dir, "convert-"+key)
		requires.Run(t, "qemu-img", "convert", "-U", "-f", format, "-O", "raw", r.disk(key), other)
		same(t, key, p.files[key], other)
	}
	if _, err := r.vm.Conn.DomainFsthaw(r.vm.Domain, nil, 0); err != nil {
		t.Error(err)
	}
}

// frozen asks the guest agent for the state of the file systems.
func (r *rig) frozen(t *testing.T) string {
	t.Helper()
	out, err := r.vm.Conn.QEMUDomainAgentCommand(r.vm.Domain, `{"execute":"guest-fsfreeze-status"}`, 5, 0)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(out, ""), `"frozen"`) {
		return "frozen"
	}
	return "thawed"
}

// freezeAndWait is the process that is killed.
func freezeAndWait(uri, vmUUID string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s, err := libvirt.New(libvirt.Options{URI: uri, Guard: []string{"env", roleEnv + "=" + roleGuard, self}})
	if err != nil {
		return err
	}
	_, _, err = s.HoldFrozen(context.Background(), vmUUID, func() error {
		fmt.Println("frozen")
		select {}
	})
	return err
}

func killedFreezer(t *testing.T, r *rig) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, r.host.URI(), r.vm.UUID)
	cmd.Env = append(os.Environ(), roleEnv+"="+roleFreeze)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "frozen\n" {
		t.Fatalf("freezer said %q, %v", line, err)
	}
	if got := r.frozen(t); got != "frozen" {
		t.Fatalf("state of the guest before the kill: got %s, want frozen", got)
	}
	kill(t, cmd)
	deadline := time.Now().Add(20 * time.Second)
	for r.frozen(t) == "frozen" {
		if time.Now().After(deadline) {
			t.Error("state of the guest: got frozen for 20 s after its freezer was killed, want thawed")
			if _, err := r.vm.Conn.DomainFsthaw(r.vm.Domain, nil, 0); err != nil {
				t.Error(err)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	guesttest.Exec(t, r.vm, "echo alive >/alive; sync")
}

func frozenTooLong(t *testing.T, r *rig) {
	if _, err := r.vm.Conn.DomainFsfreeze(r.vm.Domain, nil, 0); err != nil {
		t.Fatal(err)
	}
	order := fmt.Sprintf(`{"Socket":%q,"UUID":%q,"AtMost":%d}`, r.host.Socket(), r.vm.UUID, 100*time.Millisecond)
	stdin, freezer := io.Pipe() // a freezer that hangs: it neither thaws nor dies
	wrote := make(chan error, 1)
	go func() {
		_, err := io.WriteString(freezer, order+"\n")
		wrote <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var stdout strings.Builder
	if err := libvirt.RunGuard(ctx, stdin, &stdout); err != nil || stdout.String() != "ready\n" {
		t.Errorf("guard: got %v, %q", err, stdout.String())
	}
	if err := errors.Join(<-wrote, freezer.Close()); err != nil {
		t.Error(err)
	}
	if got := r.frozen(t); got != "thawed" {
		t.Errorf("state of the guest: got %s, want thawed", got)
	}
}

func withoutGuard(t *testing.T, r *rig) {
	for _, c := range []struct {
		guard []string
		why   string
	}{
		{nil, "no guard process is configured"},
		{[]string{"false"}, "guard is not ready"},
		{[]string{"/no/such/program"}, "start guard"},
	} {
		o := r.options
		o.Guard = c.guard
		s, err := libvirt.New(o)
		if err != nil {
			t.Fatal(err)
		}
		called := false
		consistency, note, err := s.HoldFrozen(t.Context(), r.vm.UUID, func() error {
			called = true
			if got := r.frozen(t); got != "thawed" {
				t.Errorf("guard %v: state of the guest: got %s, want thawed", c.guard, got)
			}
			return nil
		})
		if err != nil || !called || consistency != "crash" || !strings.Contains(note, c.why) {
			t.Errorf("guard %v: got %s, %q, %v", c.guard, consistency, note, err)
		}
	}
}

func withoutAgent(t *testing.T, r *rig) {
	guesttest.Exec(t, r.vm, "(sleep 0.2; kill -STOP $(pidof qemu-ga); sleep 8; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 &")
	time.Sleep(500 * time.Millisecond)
	inst := r.begin(t, "noagent", nil)
	defer closeInstant(t, inst)
	if c := inst.Config(); c.Consistency != "crash" || !strings.Contains(strings.Join(c.Notes, " "), "does not answer") {
		t.Errorf("config: got consistency %s and notes %q, want crash", c.Consistency, c.Notes)
	}
	p := r.read(t, inst, point{})
	r.compare(t, p)
}
