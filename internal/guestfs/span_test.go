package guestfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// spanned makes a btrfs on partitions of disks, so many on each, and has the kernel
// mount it. Partitions have 160 MiB.
func spanned(t *testing.T, disks, parts int, mkfs ...string) (images []string, dir string) {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "mkfs.btrfs", "losetup", "sgdisk")
	const size = 160 << 20
	var loops []string
	for i := range disks {
		path := filepath.Join(t.TempDir(), "disk.img")
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(parts)*size+2<<20)); err != nil {
			t.Fatal(err)
		}
		args := []string{"-Z"}
		for p := range parts {
			args = append(args, fmt.Sprintf("-n%d:%d:+%dM", p+1, 2048+p*size/512, size>>20))
		}
		if i > 0 || parts > 1 { // the first of several disks of one has no table
			fstest.Run(t, "sgdisk", append(args[1:], path)...)
		}
		images = append(images, path)
		for p := range parts {
			off := 1<<20 + p*size
			if i == 0 && parts == 1 {
				off = 0
			}
			loop := strings.TrimSpace(fstest.Run(t, "losetup", "-f", "--show", "-o", fmt.Sprint(off), "--sizelimit", fmt.Sprint(size), path))
			t.Cleanup(func() { fstest.Run(t, "losetup", "-d", loop) })
			loops = append(loops, loop)
		}
	}
	fstest.Run(t, "mkfs.btrfs", append(append([]string{"-q", "-f", "-L", "several"}, mkfs...), loops...)...)
	dir = t.TempDir()
	fstest.Run(t, "mount", "-t", "btrfs", "-o", "device="+strings.Join(loops, ",device="), loops[0], dir)
	fstest.Unmounting(t, dir)
	for _, name := range []string{"@", "@home"} {
		fstest.Run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(dir, name))
	}
	root := filepath.Join(dir, "@")
	write(t, "ID=demo\nPRETTY_NAME=\"Demo Linux 7\"\n", root, "etc/os-release")
	write(t, "LABEL=several / btrfs subvol=@ 0 0\n/dev/vdb1 /home btrfs subvol=@home 0 0\n", root, "etc/fstab")
	if err := os.Mkdir(filepath.Join(root, "home"), 0o755); err != nil {
		t.Fatal(err)
	}
	fstest.Populate(t, filepath.Join(dir, "@home"), fstest.Without{Large: 100})
	write(t, strings.Repeat("0123456789abcdefg", 1<<19), dir, "@home/many stripes")
	fstest.Sync(t, dir)
	return images, dir
}

// sameFiles compares the files below a directory of a guest with those of a mount. It
// returns how many, and how many of them lie on the disks as they are.
func sameFiles(t *testing.T, g *guestfs.Guest, at, dir string) (n, direct int) {
	t.Helper()
	top, err := g.Resolve(t.Context(), at, true)
	if err != nil {
		t.Fatal(err)
	}
	err = g.Walk(t.Context(), top.Node, guestfs.Match{Type: "f"}, func(e guestfs.Entry) error {
		if e.Err != nil {
			return e.Err
		}
		want, err := os.ReadFile(filepath.Join(dir, e.Name))
		if err != nil {
			return err
		}
		f, err := g.OpenFile(e)
		if err != nil {
			return err
		}
		got := make([]byte, f.Size())
		if err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got other content than the kernel showed (%v)", e.Name, err)
		}
		n++
		locs, err := f.Locate(t.Context(), nil, 0, f.Size())
		for _, l := range locs {
			if l.Kind == block.InFile {
				direct++
				break
			}
		}
		return errors.Join(err, located(t, f, want))
	})
	if err != nil {
		t.Error(err)
	}
	return n, direct
}

func TestOneFileSystemOnSeveralVolumes(t *testing.T) {
	for _, x := range []struct {
		disks, parts   int
		metadata, data string
	}{{2, 1, "raid1", "raid1"}, {1, 2, "raid1", "raid1"}, {2, 1, "raid1", "raid0"}, {2, 2, "raid10", "raid10"}, {3, 1, "raid1", "single"}} {
		t.Run(fmt.Sprintf("%d disks of %d, %s", x.disks, x.parts, x.data), func(t *testing.T) {
			images, dir := spanned(t, x.disks, x.parts, "-m", x.metadata, "-d", x.data)
			g := open(t, images)
			v := only(t, g)
			if want := int64(x.disks*x.parts) * 160 << 20; v.Type != "btrfs" || v.Label != "several" || v.Size < want || v.Refusal != "" || len(v.Notes) > 0 || v.Mounted != "/" {
				t.Errorf("volume: got %+v", v)
			}
			notes := strings.Join(g.Notes(), "\n")
			if got, want := strings.Count(notes, "of the btrfs at "+v.Path+", which has "), x.disks*x.parts-1; got != want {
				t.Errorf("notes: got %q, want %d of further devices", notes, want)
			}
			if x.disks > 1 { // the fstab names /home by a further device
				if n, direct := sameFiles(t, g, "/home", filepath.Join(dir, "@home")); n < 100 || direct < 20 {
					t.Errorf("compared %d files, of which %d lie on the disks as they are", n, direct)
				}
			}
			if n, _ := sameFiles(t, g, v.Path, dir); n < 100 {
				t.Errorf("compared %d files", n)
			}
			if g.OS().Name != "Demo Linux 7" {
				t.Errorf("os: got %+v", g.OS())
			}
			if x.disks > 1 {
				lacking(t, images, dir, x.data)
			}
		})
	}
}

// lacking opens all disks but the last.
func lacking(t *testing.T, images []string, dir, profile string) {
	t.Helper()
	g := open(t, images[:len(images)-1])
	v := only(t, g)
	if profile == "raid10" { // a disk may hold both copies of some of it
		if text := v.Refusal + strings.Join(v.Notes, " "); !strings.Contains(text, "device 3 (UUID ") || !strings.Contains(text, "device 4 (UUID ") || !strings.Contains(text, "is missing") {
			t.Errorf("volume without half of its devices: got %+v", v)
		}
		return
	}
	if text := strings.Join(v.Notes, " "); !strings.Contains(text, "It was opened without all of its devices: device ") || !strings.Contains(text, "is missing") {
		t.Errorf("volume without all devices: got notes %q, refusal %q", text, v.Refusal)
	}
	if profile == "raid1" {
		if n, _ := sameFiles(t, g, v.Path, dir); n < 100 {
			t.Errorf("without a mirror: compared %d files", n)
		}
		return
	}
	// What was spread over all says which of them is missing.
	e, err := g.Resolve(t.Context(), v.Path+"/@home/many stripes", true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := g.OpenFile(e)
	if err != nil {
		t.Fatal(err)
	}
	err = f.ReadAt(t.Context(), make([]byte, f.Size()), 0)
	if profile == "single" && err == nil {
		return // it lies on another
	}
	if !errors.Is(err, guestfs.ErrUnsupported) || !strings.Contains(err.Error(), "it lies on device ") || !strings.Contains(err.Error(), "which is missing") {
		t.Errorf("file on a device that is missing: got %v", err)
	}
}

func TestCopiesOfAFileSystemOnSeveralVolumes(t *testing.T) {
	images, dir := spanned(t, 2, 1, "-m", "raid1", "-d", "raid0")
	g := open(t, []string{images[0], images[0], images[1], images[1]})
	list, err := g.Volumes(t.Context())
	if err != nil || len(list) != 2 || list[0].Path != "disk-0/fs" || list[1].Path != "disk-1/fs" {
		t.Fatalf("volumes: got %+v, %v, want two file systems", list, err)
	}
	for _, v := range list {
		if n, _ := sameFiles(t, g, v.Path, dir); n < 100 {
			t.Errorf("%s: compared %d files", v.Path, n)
		}
	}
	// Without its first device there is nothing that could be told of its tree.
	g = open(t, images[1:])
	if v := only(t, g); v.Path != "disk-0/p1" || len(v.Notes) == 0 && !strings.Contains(v.Refusal, "missing") {
		t.Errorf("the second device alone: got %+v", v)
	}
	if _, err := g.Resolve(t.Context(), "disk-0/p1", true); err != nil && errors.Is(err, fs.ErrNotExist) {
		t.Errorf("path in it: got %v", err)
	}
}
