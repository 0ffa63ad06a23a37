package restore_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/internal/restore"
)

// openInQEMU has a program of QEMU open an image for writing until the test ends.
func openInQEMU(t *testing.T, path string, options ...string) {
	t.Helper()
	requires.Tool(t, "qemu-io")
	cmd := exec.Command("qemu-io", append(options, "-f", "raw", path)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if _, err := in.Write([]byte("length\n")); err != nil { // it answers once the image is open
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "MiB") {
		t.Fatalf("qemu-io: got %q, %v", line, err)
	}
}

// loop makes a loop device of 8 MiB with one partition.
func loop(t *testing.T) (disk, partition string) {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "losetup", "addpart", "delpart")
	img := filepath.Join(t.TempDir(), "img")
	script := `set -e; truncate -s 8M "$1"; losetup --find --show "$1"`
	out, err := exec.Command("sh", "-c", script, "sh", img).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disk = string(bytes.TrimSpace(out))
	t.Cleanup(func() {
		exec.Command("delpart", disk, "1").Run()
		exec.Command("losetup", "--detach", disk).Run()
	})
	if out, err := exec.Command("addpart", disk, "1", "2048", "8192").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return disk, nodeOf(t, disk+"p1")
}

// nodeOf makes another node of a device.
func nodeOf(t *testing.T, path string) string {
	t.Helper()
	number, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(path), "dev"))
	if err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node")
	major, minor, _ := strings.Cut(strings.TrimSpace(string(number)), ":")
	if out, err := exec.Command("mknod", node, "b", major, minor).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return node
}

// disks makes a machine with n disks of 1 MiB that hold zeroes.
func disks(n int) restore.Machine {
	m := restore.Machine{Name: "web1"}
	for i := range n {
		m.Disks = append(m.Disks, restore.Disk{Index: i, Device: blocktest.NewMemory(1 << 20)})
	}
	return m
}

func TestWhatSomebodyUsesIsNotOverwritten(t *testing.T) {
	for name, paths := range map[string]func(t *testing.T, free string) []string{
		"an image that QEMU has open": func(t *testing.T, free string) []string {
			used := devices(t, []int64{1 << 20}).Paths[0]
			openInQEMU(t, used)
			return []string{free, used}
		},
		"an image that a loop device shows": func(t *testing.T, free string) []string {
			used, _ := loop(t)
			image, err := os.ReadFile("/sys/block/" + filepath.Base(used) + "/loop/backing_file")
			if err != nil {
				t.Fatal(err)
			}
			return []string{free, strings.TrimSpace(string(image))}
		},
		"a device that QEMU has open": func(t *testing.T, free string) []string {
			used, _ := loop(t)
			openInQEMU(t, used)
			return []string{free, used}
		},
		"a device that QEMU has open, by another name": func(t *testing.T, free string) []string {
			used, _ := loop(t)
			openInQEMU(t, used)
			return []string{free, nodeOf(t, used)}
		},
		"a device of which QEMU has a partition open": func(t *testing.T, free string) []string {
			used, partition := loop(t)
			openInQEMU(t, partition)
			return []string{free, used}
		},
		"a partition of a device that QEMU has open": func(t *testing.T, free string) []string {
			used, partition := loop(t)
			openInQEMU(t, used)
			return []string{free, partition}
		},
		"one image twice":                  func(_ *testing.T, free string) []string { return []string{free, free} },
		"one image twice, by another name": func(t *testing.T, free string) []string { return []string{free, linkTo(t, free)} },
		"a device and its partition": func(t *testing.T, free string) []string {
			disk, partition := loop(t)
			return []string{disk, partition}
		},
		"one device twice": func(t *testing.T, free string) []string {
			disk, _ := loop(t)
			return []string{disk, disk}
		},
	} {
		t.Run(name, func(t *testing.T) {
			free := devices(t, []int64{1 << 20}).Paths[0]
			target := &restore.Devices{Paths: paths(t, free)}
			if _, err := target.Plan(t.Context(), disks(2)); !errors.Is(err, restore.ErrRefused) {
				t.Errorf("plan: got %v, want ErrRefused", err)
			}
			if _, err := restore.Run(t.Context(), target, disks(2), restore.Options{}); !errors.Is(err, restore.ErrRefused) {
				t.Errorf("restore: got %v, want ErrRefused", err)
			}
			if got, err := os.ReadFile(free); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{0xee}, 1<<20)) {
				t.Errorf("the device that was free was written (%v)", err)
			}
		})
	}
}

func linkTo(t *testing.T, path string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestNothingIsWrittenBeforeAllDevicesAreHeld(t *testing.T) {
	target := devices(t, []int64{1 << 20, 1 << 20})
	m := disks(2)
	if _, err := target.Plan(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	openInQEMU(t, target.Paths[1])
	if _, _, err := target.Open(t.Context(), m.Disks[0]); !errors.Is(err, restore.ErrRefused) {
		t.Errorf("the first disk: got %v, want ErrRefused", err)
	}
}

func TestClaimRefusesWhatAMachineUses(t *testing.T) {
	used, _ := loop(t)
	_, release, err := restore.Claim(used, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	openInQEMU(t, used)
	if _, _, err := restore.Claim(used, 1<<20); !errors.Is(err, restore.ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}

func TestImagesThatAreRestoredCannotBeOpenedByQEMU(t *testing.T) {
	requires.Tool(t, "qemu-io")
	target := devices(t, []int64{1 << 20, 1 << 20})
	m := disks(2)
	if _, err := target.Plan(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if _, _, err := target.Open(t.Context(), m.Disks[0]); err != nil {
		t.Fatal(err)
	}
	for _, path := range target.Paths {
		if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "length", path).CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("%s: got %v, %s, want QEMU to fail to get a lock", path, err, out)
		}
	}
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
}
