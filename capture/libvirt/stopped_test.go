package libvirt_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/requires"
)

func TestMachineThatStopsAndStarts(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	r := newRig(t, host, img,
		guest.Disk{Target: "vda", Source: "guest"},
		guest.Disk{Target: "vdb", Source: "16M", Format: "raw"},
		guest.Disk{Target: "vdc", Source: "16M"})
	guesttest.Start(t, r.vm)
	inst := r.begin(t, "running", nil)
	base := r.read(t, inst, point{})
	finish(t, inst)

	guesttest.Exec(t, r.vm, "head -c 1000000 /dev/urandom >/dev/vdb; head -c 2000000 /dev/urandom >/dev/vdc; head -c 2000000 /dev/urandom >/late; sync")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.vm.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	// Capture the stopped machine.
	inst = r.begin(t, "stopped", base.since())
	if c := inst.Config(); c.Running || c.Consistency != "clean" || c.Definition == "" {
		t.Errorf("config of the stopped machine: got running %v, consistency %s", c.Running, c.Consistency)
	}
	for key, d := range disksOf(inst) {
		want := base.tokens[key]
		if d.Tracked || !strings.Contains(d.Untracked, "does not run") || d.Token != want {
			t.Errorf("%s: got tracked %v, untracked %q, token %q, want token %q", key, d.Tracked, d.Untracked, d.Token, want)
		}
	}
	p := r.read(t, inst, base)
	for key, format := range map[string]string{"vda": "qcow2", "vdb": "raw", "vdc": "qcow2"} {
		other := filepath.Join(r.dir, "stopped-"+key)
		requires.Run(t, "qemu-img", "convert", "-f", format, "-O", "raw", r.disk(key), other)
		same(t, key, p.files[key], other)
	}
	finish(t, inst)

	// Start it in the middle of another capture.
	inst = r.begin(t, "started", base.since())
	if err := inst.Err(); err != nil {
		t.Errorf("error of the instant: got %v, want nil", err)
	}
	guesttest.Start(t, r.vm)
	if err := inst.Err(); !errors.Is(err, capture.ErrVMChanged) {
		t.Errorf("error of the instant once the machine runs: got %v, want ErrVMChanged", err)
	}
	closeInstant(t, inst)

	// The token of the last running point still tells what changed.
	guesttest.Exec(t, r.vm, "head -c 1000000 /dev/urandom >/again; sync")
	inst = r.begin(t, "again", p.since())
	for _, key := range []string{"vda", "vdc"} {
		if d := disksOf(inst)[key]; !d.Tracked {
			t.Errorf("%s: got untracked because %q, want tracked", key, d.Untracked)
		}
	}
	again := r.read(t, inst, p)
	r.compare(t, again)
	finish(t, inst)
	if got, want := r.checkpoints(t), "sendense-again"; got != want {
		t.Errorf("checkpoints: got %s, want %s", got, want)
	}

	// Shut down in the middle of a capture.
	inst = r.begin(t, "interrupted", again.since())
	if err := r.vm.Conn.DomainShutdown(r.vm.Domain); err != nil {
		t.Fatal(err)
	}
	for inst.Err() == nil && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	readFails(t, inst)
	if err := inst.Err(); !errors.Is(err, capture.ErrVMChanged) {
		t.Errorf("error of the interrupted instant: got %v, want ErrVMChanged", err)
	}
	if err := inst.Close(); err != nil {
		t.Errorf("close of the interrupted instant: %v", err)
	}

	// Pull the plug: its disks are not clean.
	if err := r.vm.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.leftovers(t)
	inst = r.begin(t, "unplugged", again.since())
	if c := inst.Config(); c.Consistency != "crash" || len(c.Notes) == 0 {
		t.Errorf("config after the plug was pulled: got consistency %s, notes %q", c.Consistency, c.Notes)
	}
	closeInstant(t, inst)
	plain, err := libvirt.New(libvirt.Options{URI: host.URI()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Begin(t.Context(), r.target, capture.Request{Token: "x"}); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("stopped machine without OpenImage: got %v, want a refusal", err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	host := guesttest.Host(t)
	for _, c := range []struct{ name, uri, want string }{
		{"a session's machines", "qemu:///session", "use qemu:///system"},
		{"another hypervisor", "xen:///system", "use qemu:///system"},
		{"ssh", "qemu+ssh://root@kvm1/system", "run the capture agent on that host"},
		{"tls", "qemu://kvm1/system", "run the capture agent on that host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := libvirt.New(libvirt.Options{URI: c.uri}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: got %v, want %q in it", err, c.want)
			}
		})
	}
	s, err := libvirt.New(libvirt.Options{URI: filepath.Join(t.TempDir(), "nobody")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), "vm"); !errors.Is(err, capture.ErrUnreachable) || !strings.Contains(err.Error(), "systemctl start libvirtd") {
		t.Errorf("libvirt that does not run: got %v, want ErrUnreachable and what to do", err)
	}
	if s, err = libvirt.New(libvirt.Options{URI: host.URI()}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nobody", "0e3c5a3e-2f0b-4d8e-9b6e-1f5f6a1c2d3e"} {
		if _, err := s.Resolve(t.Context(), name); !errors.Is(err, capture.ErrNoVM) {
			t.Errorf("resolve %s: got %v, want ErrNoVM", name, err)
		}
	}
	vm := guesttest.Define(t, host, guest.Spec{Name: "named"})
	for _, name := range []string{"named", vm.UUID, strings.ToUpper(vm.UUID)} {
		got, err := s.Resolve(t.Context(), name)
		if want := (capture.VM{UUID: vm.UUID, Name: "named"}); err != nil || got != want {
			t.Errorf("resolve %s: got %v, %v, want %v", name, got, err, want)
		}
	}
}
