package guestfs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
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

// diff compares two images and returns what differs, in order, and how much was
// read for it.
func diff(t *testing.T, a, b string, dirty guestfs.Dirty) (list []string, read int64) {
	t.Helper()
	x, y := &counting{device: device{fstest.Open(t, a)}}, &counting{device: device{fstest.Open(t, b)}}
	older, newer, err := guestfs.OpenTwo(t.Context(), []guestfs.Disk{{Index: 0, Device: x}}, []guestfs.Disk{{Index: 0, Device: y}}, guestfs.Options{})
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
	return list, x.bytes.Load() + y.bytes.Load()
}
