package guest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
)

func TestGuestBootsRunsCommandsAndShutsDown(t *testing.T) {
	img := guesttest.Image(t)
	host := guesttest.Host(t)
	dir := t.TempDir()
	vda := filepath.Join(dir, "vda.qcow2")
	if err := img.CopyDisk(t.Context(), vda, "qcow2"); err != nil {
		t.Fatal(err)
	}
	vdb := filepath.Join(dir, "vdb.raw")
	if err := os.WriteFile(vdb, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(vdb, 64<<20); err != nil {
		t.Fatal(err)
	}
	vm := guesttest.Define(t, host, guest.Spec{Image: img, Disks: []guest.Disk{
		{Target: "vda", Source: vda},
		{Target: "vdb", Source: vdb, Format: "raw"},
		{Target: "sda", Device: "cdrom", Format: "raw", ReadOnly: true},
	}})
	begin := time.Now()
	guesttest.Start(t, vm)
	t.Logf("booted under %s in %v", host.Accel(), time.Since(begin).Round(time.Millisecond))

	out := guesttest.Exec(t, vm, "mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && echo hello >/mnt/file && sync && cat /mnt/file")
	if out != "hello\n" {
		t.Errorf("output of the script: got %q, want %q", out, "hello\n")
	}
	if _, err := vm.Exec(t.Context(), "echo no >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: no") {
		t.Errorf("script that fails: got %v, want exit status 3: no", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := vm.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	for _, disk := range []string{vda, vdb} {
		if out, err := exec.Command("qemu-img", "info", disk).CombinedOutput(); err != nil {
			t.Errorf("disk after the shutdown: %v: %s", err, out)
		}
	}
}

func TestNothingOutlivesTheHost(t *testing.T) {
	img := guesttest.Image(t)
	host := guesttest.Host(t)
	vm := guesttest.Define(t, host, guest.Spec{Image: img})
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid, err := vm.PID()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process of the machine after the host was closed: got %v, want %v", err, syscall.ESRCH)
	}
	if _, err := os.Stat(host.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder of the host after it was closed: got %v, want %v", err, os.ErrNotExist)
	}
}
