package guest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// probeTimeout is how long a kernel may take to boot to its first program under
// KVM: half a second where KVM works.
const probeTimeout = 8 * time.Second

// probeCPU is a model that every host with working KVM can offer. A nested or
// partial KVM fails on some features of the host's own model.
const probeCPU = "qemu64"

// Accel says how guests run on this machine: KVM if a kernel really boots under
// it, TCG otherwise. That /dev/kvm exists proves little. The verdict is kept in
// the folder cache until the machine is booted again.
func Accel(ctx context.Context, cache string, img Image) (string, error) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return TCG, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	unlock, err := lockFolder(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	file := filepath.Join(cache, "accel")
	id := strings.TrimSpace(string(boot))
	if old, err := os.ReadFile(file); err == nil {
		if accel, ok := strings.CutPrefix(string(old), id+" "); ok {
			return accel, nil
		}
	}
	accel := TCG
	if kvmWorks(ctx, img) {
		accel = KVM
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return accel, os.WriteFile(file, []byte(id+" "+accel), 0o644)
}

// kvmWorks boots the guest's kernel under KVM as far as its first program, which
// says so on the console and powers off.
func kvmWorks(ctx context.Context, img Image) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-machine", "q35,accel=kvm", "-cpu", probeCPU, "-m", "256",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", img.Kernel, "-initrd", img.Initrd,
		"-append", "console=ttyS0 quiet sendense.probe")
	out, err := cmd.Output()
	return err == nil && bytes.Contains(out, []byte("sendense probe passed"))
}
