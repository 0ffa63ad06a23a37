package libvirt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/requires"
)

// The machines of these tests have no guest: QEMU itself writes to their disks,
// and they start at once.

func TestTrackingIsLostDiskByDiskAndNeverTheBackup(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	r := newRig(t, host, img, guest.Disk{Target: "vda", Source: "16M"}, guest.Disk{Target: "vdb", Source: "16M"})
	r.start(t)
	for n, c := range []struct {
		name   string
		damage func(t *testing.T, token string)
		vda    string // in the reason why vda is not tracked, "" if it is
		vdb    string
	}{
		{"nothing happened", func(*testing.T, string) {}, "", ""},
		{"the machine was stopped and started", func(t *testing.T, _ string) { r.restart(t, func() {}) }, "", ""},
		{"the checkpoint was deleted", func(t *testing.T, token string) { r.deleteCheckpoint(t, token, 0) },
			"missing on the host", "missing on the host"},
		{"libvirt's record of the checkpoint was deleted", func(t *testing.T, token string) {
			r.deleteCheckpoint(t, token, golibvirt.DomainCheckpointDeleteMetadataOnly)
		}, "", ""},
		{"the bitmap of one disk was removed while the machine was off", func(t *testing.T, token string) {
			r.restart(t, func() { requires.Run(t, "qemu-img", "bitmap", "--remove", r.disk("vda"), token) })
		}, "missing or was not closed", ""},
		{"QEMU was killed", func(t *testing.T, _ string) {
			if err := r.vm.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.start(t)
		}, "missing or was not closed", "missing or was not closed"},
		{"the machine was undefined and defined again", func(t *testing.T, _ string) {
			r.restart(t, func() { r.defineAgain(t) })
		}, "", ""},
		{"the machine was defined again, and the bitmap of one disk removed", func(t *testing.T, token string) {
			r.restart(t, func() {
				r.defineAgain(t)
				requires.Run(t, "qemu-img", "bitmap", "--remove", r.disk("vda"), token)
			})
		}, "does not include disk vda", ""},
		{"a disk was replaced by an empty one", func(t *testing.T, _ string) {
			r.restart(t, func() { requires.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", r.disk("vdb"), "16M") })
		}, "", "missing or was not closed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := fmt.Sprintf("case-%d", n)
			inst := r.begin(t, before, nil)
			base := r.read(t, inst, point{})
			finish(t, inst)
			r.write(t, "virtio-disk0", byte(n+1), int64(n)<<20, 100000)
			c.damage(t, "sendense-"+before)
			r.write(t, "virtio-disk1", byte(n+1), int64(n)<<20, 100000)
			inst = r.begin(t, before+"-next", base.since())
			for key, why := range map[string]string{"vda": c.vda, "vdb": c.vdb} {
				d := disksOf(inst)[key]
				if d.Tracked != (why == "") || !strings.Contains(d.Untracked, why) || why == "" && d.Untracked != "" {
					t.Errorf("%s: got tracked %v, untracked %q, want the reason %q", key, d.Tracked, d.Untracked, why)
				}
			}
			p := r.read(t, inst, base)
			r.compare(t, p)
			finish(t, inst)
			r.onlyOne(t, "sendense-"+before+"-next")

			inst = r.begin(t, before+"-last", p.since())
			for key, d := range disksOf(inst) {
				if !d.Tracked {
					t.Errorf("%s one point later: got untracked because %q, want tracked", key, d.Untracked)
				}
			}
			r.compare(t, r.read(t, inst, p))
			finish(t, inst)
		})
	}
}

func (r *rig) start(t testing.TB) {
	t.Helper()
	if err := r.vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// restart pulls the plug politely, calls between, and starts the machine.
func (r *rig) restart(t testing.TB, between func()) {
	t.Helper()
	if err := r.vm.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	between()
	r.start(t)
}

// defineAgain makes libvirt forget all that it knows of the machine.
func (r *rig) defineAgain(t testing.TB) {
	t.Helper()
	x, err := r.vm.XML()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Conn.DomainUndefineFlags(r.vm.Domain, golibvirt.DomainUndefineCheckpointsMetadata); err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Redefine(t.Context(), x); err != nil {
		t.Fatal(err)
	}
}

func TestDisksAreAddedRemovedAndResized(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	r := newRig(t, host, img, guest.Disk{Target: "vda", Source: "16M"}, guest.Disk{Target: "vdb", Source: "16M"})
	r.start(t)
	inst := r.begin(t, "one", nil)
	base := r.read(t, inst, point{})
	finish(t, inst)

	if err := r.vm.Conn.DomainBlockResize(r.vm.Domain, "vda", 24<<20, golibvirt.DomainBlockResizeBytes); err != nil {
		t.Fatal(err)
	}
	r.write(t, "virtio-disk0", 7, 20<<20, 1<<20)
	inst = r.begin(t, "two", base.since())
	if d := disksOf(inst)["vda"]; !d.Tracked || d.Device.Size() != 24<<20 {
		t.Errorf("disk that grew: got tracked %v (%s), size %d", d.Tracked, d.Untracked, d.Device.Size())
	}
	p := r.read(t, inst, base)
	r.compare(t, p)
	finish(t, inst)

	added := guest.Disk{Target: "vdc", Source: "8M"}
	added.Source = r.makeDisk(t, img, added)
	x, err := added.XML()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Conn.DomainAttachDeviceFlags(r.vm.Domain, x, uint32(golibvirt.DomainAffectLive|golibvirt.DomainAffectConfig)); err != nil {
		t.Fatal(err)
	}
	inst = r.begin(t, "three", p.since())
	if d, ok := disksOf(inst)["vdc"]; !ok || d.Tracked || d.Untracked != "" || d.Token != "sendense-three" {
		t.Errorf("disk that was added: got %+v", d)
	}
	if d := disksOf(inst)["vdb"]; !d.Tracked {
		t.Errorf("disk beside the one that was added: got untracked because %q", d.Untracked)
	}
	p = r.read(t, inst, p)
	r.compare(t, p)
	finish(t, inst)

	r.restart(t, func() {
		x, err := guest.Disk{Target: "vdb", Source: r.disk("vdb")}.XML()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.vm.Conn.DomainDetachDeviceFlags(r.vm.Domain, x, uint32(golibvirt.DomainAffectConfig)); err != nil {
			t.Fatal(err)
		}
	})
	inst = r.begin(t, "four", p.since())
	if got := disksOf(inst); len(got) != 2 || !got["vda"].Tracked || !got["vdc"].Tracked {
		t.Errorf("disks after one was removed: got %+v", inst.Disks())
	}
	r.compare(t, r.read(t, inst, p))
	finish(t, inst)
	r.onlyOne(t, "sendense-four")
}

// captureAndWait is a capture that gets killed.
func captureAndWait(uri, scratch, vmUUID string) error {
	s, err := libvirt.New(libvirt.Options{URI: uri, ScratchDir: scratch})
	if err != nil {
		return err
	}
	if _, err := s.Begin(context.Background(), capture.VM{UUID: vmUUID}, capture.Request{Token: "killed"}); err != nil {
		return err
	}
	fmt.Println("begun")
	select {}
}

// kill kills a process with SIGKILL and waits for its end.
func kill(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("process ended by itself before it was killed")
	}
}

// killCapture begins a capture in a process of its own and kills it.
func (r *rig) killCapture(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, r.host.URI(), r.scratch, r.vm.UUID)
	cmd.Env = append(os.Environ(), roleEnv+"="+roleCapture)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	kill(t, cmd)
	if err != nil || line != "begun\n" {
		t.Fatalf("capture said %q, %v", line, err)
	}
}

func TestJobsThatGetInTheWay(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	r := newRig(t, host, img, guest.Disk{Target: "vda", Source: "16M"})
	r.start(t)
	inst := r.begin(t, "base", nil)
	base := r.read(t, inst, point{})
	finish(t, inst)
	r.write(t, "virtio-disk0", 9, 1<<20, 1<<20)

	t.Run("a capture that died is cleaned up", func(t *testing.T) {
		r.killCapture(t)
		inst := r.begin(t, "next", base.since())
		if d := disksOf(inst)["vda"]; !d.Tracked {
			t.Errorf("vda: got untracked because %q, want tracked", d.Untracked)
		}
		p := r.read(t, inst, base)
		r.compare(t, p)
		finish(t, inst)
		if got, want := r.checkpoints(t), "sendense-next"; got != want {
			t.Errorf("checkpoints: got %s, want %s", got, want)
		}
		r.leftovers(t)
		base = p
	})
	t.Run("a second capture is refused", func(t *testing.T) {
		inst := r.begin(t, "first", base.since())
		_, err := r.source.Begin(t.Context(), r.target, capture.Request{Token: "second", Since: base.since()})
		if err == nil || !strings.Contains(err.Error(), "another capture of the machine is running") {
			t.Errorf("second capture: got %v, want a refusal", err)
		}
		base = r.read(t, inst, base)
		r.compare(t, base)
		finish(t, inst)
	})
	t.Run("the job of another program is left alone", func(t *testing.T) {
		job := fmt.Sprintf("<domainbackup mode='pull'><server transport='unix' socket='%s'/><disks><disk name='vda' backup='yes' type='file'><scratch file='%s'/></disk></disks></domainbackup>",
			filepath.Join(r.scratch, "sock"), filepath.Join(r.scratch, "scratch"))
		if err := r.vm.Conn.DomainBackupBegin(r.vm.Domain, job, nil, 0); err != nil {
			t.Fatal(err)
		}
		_, err := r.source.Begin(t.Context(), r.target, capture.Request{Token: "third", Since: base.since()})
		if err == nil || !strings.Contains(err.Error(), "virsh domjobabort "+r.vm.Name) {
			t.Errorf("capture: got %v, want a refusal that says how to end the job", err)
		}
		if _, err := r.vm.Conn.DomainBackupGetXMLDesc(r.vm.Domain, 0); err != nil {
			t.Errorf("the other program's job: got %v, want it to run", err)
		}
		r.abortJob(t)
	})
	t.Run("a job that somebody ends fails the instant", func(t *testing.T) {
		inst := r.begin(t, "ended", base.since())
		if err := r.vm.Conn.DomainAbortJob(r.vm.Domain); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for inst.Err() == nil && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond) // libvirt ends it when it gets round to it
		}
		if err := inst.Err(); !errors.Is(err, capture.ErrVMChanged) || !strings.Contains(err.Error(), "ended by somebody else") {
			t.Errorf("error of the instant: got %v, want ErrVMChanged", err)
		}
		if err := inst.Close(); err != nil {
			t.Error(err)
		}
		if got := r.checkpoints(t); strings.Contains(got, "ended") {
			t.Errorf("checkpoints: got %s, want none of the instant", got)
		}
		r.leftovers(t)
	})
	t.Run("a capture whose context ends leaves nothing behind", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		inst, err := r.source.Begin(ctx, r.target, capture.Request{Token: "cancelled", Since: base.since()})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := inst.Commit(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("commit: got %v, want %v", err, context.Canceled)
		}
		if err := inst.Close(); err != nil {
			t.Error(err)
		}
		r.leftovers(t)
		if _, err := r.source.Begin(ctx, r.target, capture.Request{Token: "never"}); !errors.Is(err, context.Canceled) {
			t.Errorf("begin: got %v, want %v", err, context.Canceled)
		}
	})
	t.Run("a QEMU that is killed fails the instant", func(t *testing.T) {
		inst := r.begin(t, "killed", base.since())
		if err := r.vm.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		readFails(t, inst)
		if err := inst.Err(); !errors.Is(err, capture.ErrVMChanged) {
			t.Errorf("error of the instant: got %v, want ErrVMChanged", err)
		}
		if err := inst.Close(); err != nil {
			t.Error(err)
		}
		r.leftovers(t)
	})
}

// abortJob ends the machine's job and waits until libvirt has.
func (r *rig) abortJob(t *testing.T) {
	t.Helper()
	if err := r.vm.Conn.DomainAbortJob(r.vm.Domain); err != nil {
		t.Fatal(err)
	}
	requires.Until(t, "the job has ended", func() bool {
		_, err := r.vm.Conn.DomainBackupGetXMLDesc(r.vm.Domain, 0)
		return err != nil
	})
}

// readFails expects every read of the instant to fail soon and to say why.
func readFails(t *testing.T, inst capture.Instant) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, d := range inst.Disks() {
		err := d.Device.ReadAt(ctx, make([]byte, 65536), 8<<20)
		if !errors.Is(err, capture.ErrVMChanged) {
			t.Errorf("read of %s: got %v, want ErrVMChanged", d.Key, err)
		}
	}
}

func TestFullScratchFolderEndsTheBackupAndNotTheGuest(t *testing.T) {
	requires.Root(t)
	small := t.TempDir()
	requires.Run(t, "mount", "-t", "tmpfs", "-o", "size=16M", "scratch", small) // before the host has mounts of its own
	t.Cleanup(func() { requires.Run(t, "umount", small) })
	img, host := guesttest.Image(t), guesttest.Host(t)
	r := newRig(t, host, img, guest.Disk{Target: "vda", Source: "32M"})
	r.start(t)
	r.write(t, "virtio-disk0", 1, 0, 32<<20)
	r.options.ScratchDir = small
	var err error
	if r.source, err = libvirt.New(r.options); err != nil {
		t.Fatal(err)
	}
	if _, err := r.source.Begin(t.Context(), r.target, capture.Request{Token: "none"}); err == nil || !strings.Contains(err.Error(), "scratch folder") {
		t.Errorf("begin with less room than the reserve: got %v, want a refusal", err)
	}
	r.options.ScratchReserve = 8 << 20
	if r.source, err = libvirt.New(r.options); err != nil {
		t.Fatal(err)
	}
	inst := r.begin(t, "full", nil)
	for mib := range int64(10) {
		r.write(t, "virtio-disk0", 2, mib<<20, 1<<20)
	}
	deadline := time.Now().Add(20 * time.Second)
	for inst.Err() == nil && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if err := inst.Err(); err == nil || !strings.Contains(err.Error(), "larger scratch folder") {
		t.Errorf("error of the instant: got %v, want one that says what to do", err)
	}
	for mib := int64(10); mib < 32; mib++ {
		r.write(t, "virtio-disk0", 2, mib<<20, 1<<20)
	}
	if err := inst.Close(); err != nil {
		t.Error(err)
	}
	r.leftovers(t)
	if err := r.vm.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := requires.Run(t, "qemu-io", "-r", "-c", "read -P 2 0 32M", r.disk("vda")); strings.Contains(out, "failed") {
		t.Errorf("what the guest wrote: got %s", out)
	}
}
