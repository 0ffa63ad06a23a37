package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/blockdev"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/requires"
)

// files is a machine of raw files in a folder.
type files struct {
	dir   string
	disks []blockdev.Disk
}

func (m *files) path(key string) string { return filepath.Join(m.dir, key+".raw") }

func (m *files) add(t testing.TB, key string, size int64) {
	t.Helper()
	if err := os.WriteFile(m.path(key), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.resize(t, key, size)
	m.disks = append(m.disks, blockdev.Disk{Path: m.path(key), Key: key})
}

func (m *files) resize(t testing.TB, key string, size int64) {
	t.Helper()
	if err := os.Truncate(m.path(key), size); err != nil {
		t.Fatal(err)
	}
}

func (m *files) remove(_ testing.TB, key string) {
	var left []blockdev.Disk
	for _, d := range m.disks {
		if d.Key != key {
			left = append(left, d)
		}
	}
	m.disks = left
}

func (m *files) content(t testing.TB) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, d := range m.disks {
		b, err := os.ReadFile(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		all[d.Key] = b
	}
	return all
}

func (m *files) write(t testing.TB, key string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(m.path(key), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(p, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// disturb modifies a disk, at a time that no clock is too coarse for.
func (m *files) disturb(t testing.TB) {
	t.Helper()
	m.write(t, m.disks[0].Key, []byte{1}, 0)
	later := time.Unix(2_000_000_000, 0)
	if err := os.Chtimes(m.disks[0].Path, later, later); err != nil {
		t.Fatal(err)
	}
}

func newSource(t testing.TB, o blockdev.Options) *blockdev.Source {
	t.Helper()
	if o.Name == "" {
		o.Name = "files"
	}
	o.MachineID = "0123456789abcdef0123456789abcdef"
	s, err := blockdev.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFilesKeepTheContract(t *testing.T) {
	capturetest.Run(t, func(t *testing.T) capturetest.Machine {
		m := &files{dir: t.TempDir()}
		m.add(t, "root", 8<<20+4608)
		m.add(t, "data", 1<<20)
		return capturetest.Machine{
			Source:  func() capture.Source { return newSource(t, blockdev.Options{Disks: m.disks}) },
			Name:    "files",
			Content: m.content, Write: m.write, Resize: m.resize, Add: m.add, Remove: m.remove, Disturb: m.disturb,
		}
	})
}

func begin(t *testing.T, s *blockdev.Source) (capture.Instant, error) {
	t.Helper()
	vm, err := s.Resolve(context.Background(), "files")
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Begin(context.Background(), vm, capture.Request{Token: "20251001-120000"})
	if err == nil {
		t.Cleanup(func() { _ = in.Close() })
	}
	return in, err
}

func TestTheIdentityDependsOnHostAndNameAlone(t *testing.T) {
	uuid := func(host, name string) string {
		s, err := blockdev.New(blockdev.Options{Name: name, MachineID: host, Disks: []blockdev.Disk{{Path: "/x/" + name}}})
		if err != nil {
			t.Fatal(err)
		}
		vm, err := s.Resolve(context.Background(), name)
		if err != nil {
			t.Fatal(err)
		}
		return vm.UUID
	}
	if got, want := uuid("h1", "db"), "a15df5aa-f5f2-5fa1-8ae5-ee530c3ba582"; got != want {
		t.Errorf("UUID: got %s, want %s for ever", got, want)
	}
	if uuid("h1", "db") == uuid("h2", "db") || uuid("h1", "db") == uuid("h1", "web") {
		t.Error("two machines have one UUID")
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		o    blockdev.Options
		want string
	}{
		{"a machine without a name", blockdev.Options{Disks: []blockdev.Disk{{Path: "/a"}}}, "machine needs a name"},
		{"a machine without disks", blockdev.Options{Name: "x"}, "machine needs at least one disk"},
		{"two disks of one key", blockdev.Options{Name: "x", Disks: []blockdev.Disk{{Path: "/a/d"}, {Path: "/b/d"}}}, "key d is taken"},
		{"a key that is no name", blockdev.Options{Name: "x", Disks: []blockdev.Disk{{Path: "/a", Key: "a/b"}}}, "other characters"},
		{"a format nobody opens", blockdev.Options{Name: "x", Disks: []blockdev.Disk{{Path: "/a", Format: "qcow2"}}}, "format qcow2 cannot be read"},
	} {
		c.o.MachineID = "h"
		if _, err := blockdev.New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestBeginSaysWhatIsWrongWithAPath(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{filepath.Join(dir, "none"), "no such file"},
		{dir, "is a directory, neither a block device nor a file"},
		{"/dev/null", "is a character device"},
		{pipe, "is a pipe"},
	} {
		_, err := begin(t, newSource(t, blockdev.Options{Disks: []blockdev.Disk{{Path: c.path, Key: "d"}}}))
		if !errors.Is(err, capture.ErrUnreachable) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "disk d: ") {
			t.Errorf("%s: got %v, want ErrUnreachable and %q", c.path, err, c.want)
		}
	}
}

func TestAFileThatChangesIsNoInstant(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*testing.T, *files)
		want   string
	}{
		{"modified", func(t *testing.T, m *files) { m.disturb(t) }, "was modified"},
		{"grown", func(t *testing.T, m *files) { m.resize(t, "root", 2<<20) }, "changed its size from 1048576 to 2097152"},
	} {
		m := &files{dir: t.TempDir()}
		m.add(t, "root", 1<<20)
		in, err := begin(t, newSource(t, blockdev.Options{Disks: m.disks}))
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Err(); err != nil {
			t.Errorf("before: got %v", err)
		}
		if c := in.Config(); c.Consistency != "clean" || c.Notes != nil || !strings.Contains(c.Definition, `"key":"root","format":"raw","size":1048576`) {
			t.Errorf("config: got %+v", c)
		}
		c.change(t, m)
		if err := in.Err(); !errors.Is(err, capture.ErrVMChanged) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want ErrVMChanged and %q", c.name, err, c.want)
		}
	}
}

func TestAFileThatIsOpenForWritingIsNoted(t *testing.T) {
	m := &files{dir: t.TempDir()}
	m.add(t, "root", 1<<20)
	f, err := os.OpenFile(m.path("root"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in, err := begin(t, newSource(t, blockdev.Options{Disks: m.disks}))
	if err != nil {
		t.Fatal(err)
	}
	if c := in.Config(); c.Consistency != "crash" || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "is open for writing elsewhere") {
		t.Errorf("config: got %+v", c)
	}
}

func TestFormats(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.qcow2")
	if err := os.WriteFile(path, []byte("QFI\xfb and so on"), 0o600); err != nil {
		t.Fatal(err)
	}
	inside := blocktest.NewMemory(4096)
	closed := false
	open := func(got string) (block.Device, io.Closer, error) {
		if got != path {
			t.Errorf("opener: got %s, want %s", got, path)
		}
		return inside, closer(func() error { closed = true; return nil }), nil
	}
	_, err := begin(t, newSource(t, blockdev.Options{Disks: []blockdev.Disk{{Path: path}}, Open: open}))
	if err == nil || !strings.Contains(err.Error(), "say which format") {
		t.Errorf("not said: got %v, want to be asked", err)
	}
	in, err := begin(t, newSource(t, blockdev.Options{Disks: []blockdev.Disk{{Path: path, Format: "raw"}}, Open: open}))
	if err != nil || in.Disks()[0].Device.Size() != 14 {
		t.Errorf("raw: got %v", err)
	}
	in, err = begin(t, newSource(t, blockdev.Options{Disks: []blockdev.Disk{{Path: path, Format: "qcow2"}}, Open: open}))
	if err != nil || in.Disks()[0].Device != block.Device(inside) {
		t.Fatalf("qcow2: got %v", err)
	}
	if err := in.Close(); err != nil || !closed {
		t.Errorf("close: got %v, closed %v", err, closed)
	}
}

type closer func() error

func (c closer) Close() error { return c() }

func TestHolesOfAFileAreNotRead(t *testing.T) {
	m := &files{dir: t.TempDir()}
	m.add(t, "root", 1<<30)
	m.write(t, "root", bytes.Repeat([]byte{1}, 1<<20), 512<<20)
	target := capturetest.NewTarget(t)
	sum, err := capture.Run(context.Background(), newSource(t, blockdev.Options{Disks: m.disks}), target, capture.Options{VM: "files"})
	if err != nil {
		t.Fatal(err)
	}
	if d := sum.Disks[0]; d.Read > 2<<20 || d.Sent != 1<<20 {
		t.Errorf("read %d and sent %d bytes, want about 1 MiB", d.Read, d.Sent)
	}
}

// loop attaches a file as a loop device.
func loop(t *testing.T, file string) string {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "losetup")
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		requires.Missing(t, "loop devices: "+strings.TrimSpace(string(out)))
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { requires.Run(t, "losetup", "-d", dev) })
	return dev
}

func TestABlockDevice(t *testing.T) {
	dir := t.TempDir()
	m := &files{dir: dir}
	m.add(t, "disk", 64<<20)
	dev := loop(t, m.path("disk"))
	requires.Run(t, "mkfs.ext4", "-q", dev)
	disks := []blockdev.Disk{{Path: dev, Key: "disk"}}
	mnt := filepath.Join(dir, "a mount")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}

	t.Run("that nobody uses is captured and held meanwhile", func(t *testing.T) {
		in, err := begin(t, newSource(t, blockdev.Options{Disks: disks}))
		if err != nil {
			t.Fatal(err)
		}
		if c := in.Config(); c.Consistency != "clean" || c.Notes != nil {
			t.Errorf("config: got %+v", c)
		}
		if err := exec.Command("mount", dev, mnt).Run(); err == nil {
			requires.Run(t, "umount", mnt)
			t.Error("the device could be mounted")
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		target := capturetest.NewTarget(t)
		for range 2 {
			if _, err := capture.Run(context.Background(), newSource(t, blockdev.Options{Disks: disks}), target, capture.Options{VM: "files"}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(target.Latest().Disks["disk"].Content(), m.content(t)["disk"]) {
				t.Error("point differs from the device")
			}
		}
		if n := target.Latest().Disks["disk"].Clusters(); n != 0 {
			t.Errorf("second point: got %d clusters, want none", n)
		}
	})
	t.Run("that is mounted read-write is refused unless that is allowed", func(t *testing.T) {
		requires.Run(t, "mount", dev, mnt)
		defer requires.Run(t, "umount", mnt)
		_, err := begin(t, newSource(t, blockdev.Options{Disks: disks}))
		if !errors.Is(err, capture.ErrUnreachable) || !strings.Contains(err.Error(), "is mounted read-write at "+mnt+"; unmount it") {
			t.Errorf("got %v, want a refusal that names %s", err, mnt)
		}
		in, err := begin(t, newSource(t, blockdev.Options{Disks: disks, AllowMounted: true}))
		if err != nil {
			t.Fatal(err)
		}
		want := "device is mounted read-write at " + mnt + "; the copy is not consistent"
		if c := in.Config(); c.Consistency != "crash" || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], want) {
			t.Errorf("config: got %+v", c)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("that is mounted read-only is captured with a note", func(t *testing.T) {
		requires.Run(t, "mount", "-o", "ro", dev, mnt)
		defer requires.Run(t, "umount", mnt)
		in, err := begin(t, newSource(t, blockdev.Options{Disks: disks}))
		if err != nil {
			t.Fatal(err)
		}
		if c := in.Config(); len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "in use, though not mounted read-write") {
			t.Errorf("config: got %+v", c)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
}
