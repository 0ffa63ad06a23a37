package restore_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/internal/restore"
	"github.com/sendense/sendense/internal/restore/restoretest"
)

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestFilesKeepTheContract(t *testing.T) {
	requires.Tool(t, "qemu-img")
	for _, format := range []string{restore.QCOW2, restore.Raw} {
		t.Run(format, func(t *testing.T) {
			restoretest.Run(t, func(t *testing.T, _ []int64) restoretest.Subject {
				dir := t.TempDir()
				return restoretest.Subject{
					Target: &restore.Files{Dir: dir, Format: format},
					Left:   func(t *testing.T) []string { return names(t, dir) },
					Read: func(t *testing.T, d restore.PlannedDisk) []byte {
						raw := filepath.Join(t.TempDir(), "raw")
						if out, err := exec.Command("qemu-img", "convert", "-f", format, "-O", "raw", d.To, raw).CombinedOutput(); err != nil {
							t.Fatalf("%v\n%s", err, out)
						}
						b, err := os.ReadFile(raw)
						if err != nil {
							t.Fatal(err)
						}
						return b
					}}
			})
		})
	}
}

// devices makes files that stand for devices, full of something else.
func devices(t *testing.T, sizes []int64) *restore.Devices {
	t.Helper()
	var paths []string
	for i, size := range sizes {
		paths = append(paths, filepath.Join(t.TempDir(), string(rune('a'+i))))
		if err := os.WriteFile(paths[i], bytes.Repeat([]byte{0xee}, int(size)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &restore.Devices{Paths: paths}
}

func TestDevicesKeepTheContract(t *testing.T) {
	restoretest.Run(t, func(t *testing.T, sizes []int64) restoretest.Subject {
		return restoretest.Subject{Target: devices(t, sizes), Read: func(t *testing.T, d restore.PlannedDisk) []byte {
			b, err := os.ReadFile(d.To)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}}
	})
}

func TestDeltaWritesWhatDiffers(t *testing.T) {
	const size = 8 << 20
	d := blocktest.NewMemory(size)
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := d.WriteAt(t.Context(), content, 0); err != nil {
		t.Fatal(err)
	}
	target := devices(t, []int64{size})
	held := bytes.Clone(content)
	held[100], held[5<<20] = 1, 1
	if err := os.WriteFile(target.Paths[0], held, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := restore.Run(t.Context(), target, restore.Machine{Disks: []restore.Disk{{Device: d}}}, restore.Options{Delta: true})
	if err != nil || r.Disks[0].WrittenBytes != 2*64<<10 {
		t.Errorf("written: got %+v, %v, want two clusters", r, err)
	}
	if got, _ := os.ReadFile(target.Paths[0]); !bytes.Equal(got, content) {
		t.Error("the device holds something else")
	}
}

// broken is a disk that cannot be read.
type broken struct{ *blocktest.Memory }

func (broken) ReadAt(context.Context, []byte, int64) error { return os.ErrDeadlineExceeded }

func TestDevicesThatWereWrittenInPartAreTold(t *testing.T) {
	for name, c := range map[string]struct{ written, want int }{"none was written": {0, 0}, "one was": {1, 1}} {
		target, m := devices(t, []int64{1 << 20, 1 << 20}), disks(2)
		for i := range m.Disks {
			d := m.Disks[i].Device.(*blocktest.Memory)
			if err := d.WriteAt(t.Context(), bytes.Repeat([]byte("data"), 256<<10), 0); err != nil {
				t.Fatal(err)
			}
			if i >= c.written {
				m.Disks[i].Device = broken{d}
			}
		}
		_, err := restore.Run(t.Context(), target, m, restore.Options{})
		var partial *restore.PartialError
		if !errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &partial) != (c.want > 0) || c.want > 0 && !slices.Equal(partial.Paths, target.Paths[:c.want]) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestWhatMustNotBeOverwrittenIsRefused(t *testing.T) {
	m := restore.Machine{Name: "web1", Disks: []restore.Disk{{Device: blocktest.NewMemory(1 << 20)}}}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "web1-disk-0.qcow2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]restore.Target{
		"a file that is there":     &restore.Files{Dir: dir},
		"a device that is shorter": devices(t, []int64{1<<20 - 512}),
		"too few devices":          &restore.Devices{},
		"another format":           &restore.Files{Dir: dir, Format: "vmdk"},
		"a loop device in use":     &restore.Devices{Paths: []string{mountedLoop(t)}},
	} {
		if _, err := restore.Run(t.Context(), target, m, restore.Options{}); !errors.Is(err, restore.ErrRefused) {
			t.Errorf("%s: got %v, want ErrRefused", name, err)
		}
	}
}

// mountedLoop returns a loop device that is mounted until the test ends.
func mountedLoop(t *testing.T) string {
	t.Helper()
	requires.Root(t)
	img, dir := filepath.Join(t.TempDir(), "img"), t.TempDir()
	script := `set -e; truncate -s 8M "$1"; mkfs.ext4 -q "$1"; mount -o loop "$1" "$2"; findmnt -no SOURCE "$2"`
	out, err := exec.Command("sh", "-c", script, "sh", img, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	return string(bytes.TrimSpace(out))
}

// endless is a disk that no file system has room for.
type endless struct{ *blocktest.Memory }

func (endless) Size() int64 { return 1 << 60 }

func TestAFileThatCannotBeMadeIsNotLeft(t *testing.T) {
	for _, format := range []string{restore.Raw, restore.QCOW2} {
		dir, m := t.TempDir(), disks(1)
		m.Disks[0].Device = endless{blocktest.NewMemory(512)}
		if _, err := restore.Run(t.Context(), &restore.Files{Dir: dir, Format: format}, m, restore.Options{}); err == nil {
			t.Errorf("%s: got no error", format)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("%s: left %q", format, left)
		}
	}
}
