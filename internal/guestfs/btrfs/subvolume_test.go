package btrfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/requires"
)

// withSubvolumes makes subvolumes in each other, and snapshots of them.
func withSubvolumes(t *testing.T, dir string) {
	t.Helper()
	requires.Tool(t, "btrfs")
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o750), os.WriteFile(at(name), []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	subvolume := func(args ...string) {
		t.Helper()
		for i, a := range args {
			if i > 0 && !strings.HasPrefix(a, "-") {
				args[i] = at(a)
			}
		}
		fstest.Run(t, "btrfs", append([]string{"-q", "subvolume"}, args...)...)
	}
	write("topmost", "above all")
	subvolume("create", "@")
	subvolume("create", "@home")
	write("@/etc/fstab", "/ btrfs subvol=@")
	write("@home/user/file", strings.Repeat("mine ", 5000))
	if err := os.MkdirAll(at("@/var/lib"), 0o711); err != nil {
		t.Fatal(err)
	}
	subvolume("create", "@/var/lib/machines")
	write("@/var/lib/machines/inside", "nested")
	subvolume("create", "@/var/lib/machines/deeper")
	write("@/var/lib/machines/deeper/file", "nested twice")
	subvolume("create", "@snapshots")
	subvolume("snapshot", "-r", "@", "@snapshots/1")
	write("@/etc/fstab", "changed")
	write("@/etc/new", "new")
	subvolume("snapshot", "@", "@snapshots/2")
	write("@snapshots/2/etc/fstab", "changed in the snapshot")
	subvolume("snapshot", "@snapshots/2", "@snapshots/3")
	subvolume("create", "gone")
	subvolume("delete", "gone")
	if err := os.Rename(at("@snapshots/3"), at("@home/moved snapshot")); err != nil {
		t.Fatal(err)
	}
}

func TestShowsSubvolumesAsTheKernelDoes(t *testing.T) {
	image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
	dir, unmount := fstest.Mount(t, image, "btrfs", "")
	withSubvolumes(t, dir)
	unmount()
	dir, unmount = fstest.Mount(t, image, "btrfs", "ro")
	vol := fstest.Open(t, image)
	f, err := btrfs.OpenDevices([]fsys.Volume{vol})
	if err != nil {
		t.Fatal(err)
	}
	madeUp := fstest.Ignoring{MadeUp: true}
	if n := fstest.Compare(t, f, vol, dir, madeUp); n < 30 {
		t.Errorf("compared %d entries", n)
	}
	unmount()
	for _, path := range []string{"@", "/@home", "@/var/lib/machines", "@snapshots/1/", "@snapshots/2", "@home/moved snapshot", "/"} {
		sub, err := f.OpenSubvolume(path)
		if err != nil {
			t.Fatal(err)
		}
		dir, unmount := fstest.Mount(t, image, "btrfs", "ro,subvol="+path)
		fstest.Compare(t, sub, vol, dir, madeUp)
		unmount()
	}
	for path, want := range map[string]error{
		"@/etc": fs.ErrInvalid, "@nothing": fs.ErrNotExist, "topmost": fs.ErrInvalid, "@snapshots/1/var/lib/machines": fs.ErrInvalid,
		"@/../@home": fs.ErrNotExist,
	} {
		if _, err := f.OpenSubvolume(path); !errors.Is(err, want) {
			t.Errorf("open subvolume %q: got %v, want %v", path, err, want)
		}
	}
}

func TestShowsTheDefaultSubvolume(t *testing.T) {
	image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
	dir, unmount := fstest.Mount(t, image, "btrfs", "")
	withSubvolumes(t, dir)
	fstest.Run(t, "btrfs", "subvolume", "set-default", filepath.Join(dir, "@snapshots/2"))
	var id uint64
	if _, err := fmt.Sscanf(fstest.Run(t, "btrfs", "inspect-internal", "rootid", filepath.Join(dir, "@home")), "%d", &id); err != nil {
		t.Fatal(err)
	}
	unmount()
	vol := fstest.Open(t, image)
	open, err := btrfs.Open(vol)
	if err != nil {
		t.Fatal(err)
	}
	dir, unmount = fstest.Mount(t, image, "btrfs", "ro")
	fstest.Compare(t, open, vol, dir, fstest.Ignoring{MadeUp: true})
	unmount()
	f := open.(*btrfs.FS)
	home, err := f.OpenSubvolumeID(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := home.Lookup(home.Root(), "user"); err != nil {
		t.Error(err)
	}
	top, err := f.OpenSubvolumeID(5)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := top.Lookup(top.Root(), "@home"); err != nil || got != home.Root() {
		t.Errorf("look up @home: got %d, %v, want %d", got, err, home.Root())
	}
	for _, id := range []uint64{1, 2, 100, 99999, 1 << 60} {
		if _, err := f.OpenSubvolumeID(id); !errors.Is(err, fs.ErrNotExist) && id < 1<<60 || err == nil {
			t.Errorf("open subvolume %d: got %v, want fs.ErrNotExist", id, err)
		}
	}
}
