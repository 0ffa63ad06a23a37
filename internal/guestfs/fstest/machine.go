package fstest

import (
	"context"
	"embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/requires"
)

//go:embed machine
var machine embed.FS

// machineTimeout is how long a script may take in the machine: one without KVM
// boots in some five seconds.
const machineTimeout = 4 * time.Minute

// InMachine runs a bash script in a virtual machine whose kernel knows what this
// one may lack: device mapper, md, dm-crypt, FAT, exFAT, ISO 9660 and UDF. It has
// lvm2, mdadm, cryptsetup and thin-provisioning-tools, and the images as /dev/vdc,
// /dev/vdd and so on, for it to write. InMachine returns what the script printed,
// and fails the test if that failed. The machine is built at the first call.
func InMachine(t testing.TB, script string, images ...string) string {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "mmdebstrap", "mkfs.ext4", "qemu-system-x86_64", "chroot", "gzip")
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := guest.Made(t.Context(), cache, "storage", machine, "machine/build.sh")
	if err != nil {
		t.Fatalf("build machine: %v", err)
	}
	accel, err := guest.Accel(t.Context(), cache, guest.Image{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")})
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	scriptFile, output := filepath.Join(tmp, "script"), filepath.Join(tmp, "output")
	padded := append([]byte(script), make([]byte, 512-len(script)%512)...)
	if err := os.WriteFile(scriptFile, padded, 0o600); err != nil {
		t.Fatal(err)
	}
	// The kernel's check of its timer fails where an emulated one comes too late, on a
	// busy machine.
	args := []string{
		"-machine", "q35,accel=" + accel, "-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"), "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
		"-device", "virtio-serial", "-chardev", "file,id=out,path=" + output, "-device", "virtserialport,chardev=out,name=out",
		"-drive", "if=virtio,format=raw,snapshot=on,file=" + filepath.Join(dir, "root.img"),
		"-drive", "if=virtio,format=raw,read-only=on,file=" + scriptFile,
	}
	for _, image := range images {
		args = append(args, "-drive", "if=virtio,format=raw,discard=unmap,file="+image)
	}
	ctx, cancel := context.WithTimeout(t.Context(), machineTimeout)
	defer cancel()
	console, err := exec.CommandContext(ctx, "qemu-system-x86_64", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("machine: %v\n%s", err, console)
	}
	out, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	text, ok := strings.CutSuffix(string(out), "exit status 0\n")
	if !ok {
		t.Fatalf("script in the machine failed:\n%s\n%s", out, console)
	}
	return text
}
