package guestfs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// counting is a disk that counts what is read from it.
type counting struct {
	device
	bytes atomic.Int64
}

func (c *counting) ReadAt(ctx context.Context, p []byte, off int64) error {
	c.bytes.Add(int64(len(p)))
	return c.device.ReadAt(ctx, p, off)
}

// differing returns the clusters in which two images differ.
func differing(t *testing.T, a, b string) []block.Range {
	t.Helper()
	const cluster = 64 << 10
	x, y := fstest.Open(t, a), fstest.Open(t, b)
	var list []block.Range
	p, q := make([]byte, cluster), make([]byte, cluster)
	for off := int64(0); off < x.Size(); off += cluster {
		if x.ReadAt(p, off) != nil || y.ReadAt(q, off) != nil {
			t.Fatal("read")
		}
		if bytes.Equal(p, q) {
			continue
		}
		if n := len(list); n > 0 && list[n-1].End() == off {
			list[n-1].Len += cluster
		} else {
			list = append(list, block.Range{Off: off, Len: cluster})
		}
	}
	return list
}

func TestDiffOfTwoStates(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			mkfs := map[string][]string{"ext4": {"mkfs.ext4", "-q", "-b", "4096"}, "xfs": {"mkfs.xfs", "-q", "-f"}, "btrfs": {"mkfs.btrfs", "-q", "-f"}}[fsType]
			older := fstest.Filled(t, 400<<20, fsType, func(dir string) {
				fstest.Populate(t, dir, fstest.Without{Large: 6000})
				write(t, "before", dir, "etc/changed")
				write(t, "same", dir, "etc/touched")
				write(t, "gone", dir, "etc/old/removed")
				write(t, "a", dir, "etc/becomes-dir")
				write(t, "12345", dir, "etc/same-size")
			}, mkfs...)
			newer := filepath.Join(t.TempDir(), "newer.img")
			fstest.Run(t, "cp", "--sparse=always", older, newer)
			dir, unmount := fstest.Mount(t, newer, fsType, "")
			write(t, "after the change", dir, "etc/changed")
			write(t, "54321", dir, "etc/same-size")
			write(t, "new", dir, "etc/new/added")
			for _, err := range []error{os.Chmod(filepath.Join(dir, "etc/touched"), 0o600), os.RemoveAll(filepath.Join(dir, "etc/old")),
				os.Remove(filepath.Join(dir, "etc/becomes-dir")), os.Mkdir(filepath.Join(dir, "etc/becomes-dir"), 0o755),
				os.Rename(filepath.Join(dir, "sizes/4096"), filepath.Join(dir, "sizes/renamed"))} {
				if err != nil {
					t.Fatal(err)
				}
			}
			unmount()
			want := []string{"added etc/new", "added etc/new/added", "added sizes/renamed", "attributes etc/touched", "changed etc/becomes-dir",
				"changed etc/changed", "changed etc/same-size", "removed etc/old", "removed etc/old/removed", "removed sizes/4096"}
			whole, all := diff(t, older, newer, nil)
			if !slices.Equal(whole, want) {
				t.Errorf("comparing everything: got %q, want %q", whole, want)
			}
			fast, some := diff(t, older, newer, guestfs.Dirty{0: differing(t, older, newer)})
			if !slices.Equal(fast, want) {
				t.Errorf("comparing what changed: got %q, want %q", fast, want)
			}
			t.Logf("read %d KiB without knowing what changed, %d KiB with it", all>>10, some>>10)
			if fsType != "btrfs" && some > all {
				t.Errorf("knowing what changed took more reads: %d KiB, not %d", some>>10, all>>10)
			}
		})
	}
}

// Windows tells times of a file when the last program lets go of it: what a database
// wrote is there long before.
func TestDiffOfFilesThatAreHeldOpen(t *testing.T) {
	requires.Tool(t, "mkntfs", "mkfs.vfat", "mcopy")
	for fsType, fill := range map[string]func(t *testing.T, files string) (image string){
		"ntfs": func(t *testing.T, files string) string {
			return ntfs(t, 16<<20, func(dir string) { fstest.Run(t, "cp", "-r", files+"/.", dir) })
		},
		"vfat": func(t *testing.T, files string) string {
			image := fstest.Make(t, 16<<20, "mkfs.vfat")
			fstest.Run(t, "mcopy", "-s", "-i", image, files+"/database", files+"/small-1", files+"/small-2", "::/")
			return image
		},
	} {
		t.Run(fsType, func(t *testing.T) {
			files := t.TempDir()
			write(t, strings.Repeat("a page of the database  ", 1<<18/24), files, "database")
			write(t, strings.Repeat("1", 5000), files, "small-1")
			write(t, strings.Repeat("2", 5000), files, "small-2")
			older := fill(t, files)
			newer := filepath.Join(t.TempDir(), "newer.img")
			fstest.Run(t, "cp", "--sparse=always", older, newer)
			b, err := os.ReadFile(newer)
			if err != nil {
				t.Fatal(err)
			}
			for what, by := range map[string]string{"a page of the database": "A PAGE OF THE DATABASE", "22222222222222222222": "33333333333333333333"} {
				i := bytes.LastIndex(b, []byte(what))
				if i < 0 {
					t.Fatalf("%q is nowhere in the image", what)
				}
				copy(b[i:], by)
			}
			if err := os.WriteFile(newer, b, 0o600); err != nil {
				t.Fatal(err)
			}
			got, _ := diff(t, older, newer, guestfs.Dirty{0: differing(t, older, newer)})
			if want := []string{"changed database", "changed small-2"}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// copied returns a copy of an image in which files were changed while it was mounted.
func copied(t *testing.T, image, fsType, options string, change func(dir string)) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "newer.img")
	fstest.Run(t, "cp", "--sparse=always", image, to)
	dir, unmount := fstest.Mount(t, to, fsType, options)
	change(dir)
	unmount()
	return to
}

func TestDiffOfTreesThatAreMountedOtherwise(t *testing.T) {
	const root = "UUID=" + bootUUID + " / ext4 defaults 0 0\n"
	older := rooted(t, root, map[string]string{"srv/beneath": "x", "home/alice": "y"}, "-U", bootUUID)
	newer := copied(t, older, "ext4", "", func(dir string) { write(t, root+"LABEL=srv /srv ext4 defaults 0 0\n", dir, "etc/fstab") })
	srv := filled(t, map[string]string{"page": "z"}, "-L", "srv")
	want := []string{"added srv/lost+found", "added srv/page", "attributes srv", "changed etc/fstab", "removed srv/beneath"}
	for what, dirty := range map[string]guestfs.Dirty{"everything": nil, "what changed": {0: differing(t, older, newer)}} {
		got, _ := diffOf(t, []string{older}, []string{newer, srv}, dirty)
		got = slices.DeleteFunc(got, func(s string) bool { return s == "attributes srv" })
		if want := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s == "attributes srv" }); !slices.Equal(got, want) {
			t.Errorf("a disk was added, comparing %s: got %q, want %q", what, got, want)
		}
	}
}

func TestDiffOfSubvolumesInAnotherOrder(t *testing.T) {
	const root, x, y = "LABEL=b / btrfs subvol=@ 0 0\n", "LABEL=b /x btrfs subvol=@x 0 0\n", "LABEL=b /y btrfs subvol=@y 0 0\n"
	older := fstest.Filled(t, 128<<20, "btrfs", func(dir string) {
		for _, name := range []string{"@", "@x", "@y"} {
			fstest.Run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(dir, name))
		}
		write(t, "ID=demo\n", dir, "@/etc/os-release")
		write(t, root+x+y, dir, "@/etc/fstab")
		write(t, "of x", dir, "@x/file")
		write(t, "of y, which is longer", dir, "@y/file")
		for _, d := range []string{"x", "y"} {
			if err := os.Mkdir(filepath.Join(dir, "@", d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}, "mkfs.btrfs", "-q", "-f", "-L", "b")
	newer := copied(t, older, "btrfs", "subvol=@", func(dir string) { write(t, root+y+x, dir, "etc/fstab") })
	got, _ := diff(t, older, newer, guestfs.Dirty{0: differing(t, older, newer)})
	if want := []string{"changed etc/fstab"}; !slices.Equal(got, want) {
		t.Errorf("the same subvolumes in another order: got %q, want %q", got, want)
	}
}

// diff compares two images and returns what differs, in order, and how much was
// read for it.
func diff(t *testing.T, a, b string, dirty guestfs.Dirty) (list []string, read int64) {
	t.Helper()
	return diffOf(t, []string{a}, []string{b}, dirty)
}

// diffOf is diff for machines with several disks.
func diffOf(t *testing.T, a, b []string, dirty guestfs.Dirty) (list []string, read int64) {
	t.Helper()
	var counts []*counting
	disks := func(images []string) (list []guestfs.Disk) {
		for i, image := range images {
			c := &counting{device: device{fstest.Open(t, image)}}
			counts = append(counts, c)
			list = append(list, guestfs.Disk{Index: i, Device: c})
		}
		return list
	}
	older, newer, err := guestfs.OpenTwo(t.Context(), disks(a), disks(b), guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer older.Close()
	from, err := older.Resolve(t.Context(), "/", true)
	if err != nil {
		t.Fatal(err)
	}
	to, err := newer.Resolve(t.Context(), "/", true)
	if err != nil {
		t.Fatal(err)
	}
	err = guestfs.Diff(t.Context(), older, from.Node, newer, to.Node, dirty, func(c guestfs.Change) error {
		list = append(list, fmt.Sprint(c.What, " ", c.Path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	for _, c := range counts {
		read += c.bytes.Load()
	}
	return list, read
}
