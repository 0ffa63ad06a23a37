package btrfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/requires"
)

// several makes a file system on n images, has the kernel mount it, and fills it.
func several(t *testing.T, n int, mkfs []string, fill func(dir string)) (images []string, dir string, unmount func()) {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "mkfs.btrfs", "losetup")
	var loops []string
	for range n {
		image, loop := device(t)
		images, loops = append(images, image), append(loops, loop)
	}
	fstest.Run(t, "mkfs.btrfs", append(append([]string{"-q"}, mkfs...), loops...)...)
	dir = t.TempDir()
	fstest.Run(t, "mount", "-t", "btrfs", "-o", "device="+strings.Join(loops, ",device="), loops[0], dir)
	unmount = fstest.Unmounting(t, dir)
	fill(dir)
	fstest.Sync(t, dir)
	return images, dir, unmount
}

// device makes an empty image, and a loop device of it.
func device(t *testing.T) (image, loop string) {
	t.Helper()
	image = filepath.Join(t.TempDir(), "device")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, imageSize)); err != nil {
		t.Fatal(err)
	}
	loop = strings.TrimSpace(fstest.Run(t, "losetup", "-f", "--show", image))
	t.Cleanup(func() { fstest.Run(t, "losetup", "-d", loop) })
	return image, loop
}

func volumes(t *testing.T, images []string) (found []fsys.Volume) {
	for _, image := range images {
		found = append(found, fstest.Open(t, image))
	}
	return found
}

// row is volumes one behind the other.
type row []fsys.Volume

func (r row) Size() (n int64) {
	for _, v := range r {
		n += v.Size()
	}
	return n
}

func (r row) ReadAt(p []byte, off int64) error {
	for _, v := range r {
		if n := min(int64(len(p)), v.Size()-off); off < v.Size() && n > 0 {
			if err := v.ReadAt(p[:n], off); err != nil {
				return err
			}
			p, off = p[n:], off+n
		}
		off -= v.Size()
	}
	return nil
}

func TestReadsSeveralDevices(t *testing.T) {
	for _, c := range []struct {
		n              int
		metadata, data string
	}{
		{2, "raid1", "raid1"}, {3, "raid1", "raid0"}, {4, "raid10", "raid10"}, {3, "raid1c3", "single"},
		{4, "raid1c4", "raid5"}, {4, "raid0", "raid6"}, {2, "dup", "dup"},
	} {
		t.Run(fmt.Sprintf("%d, %s and %s", c.n, c.metadata, c.data), func(t *testing.T) {
			images, dir, _ := several(t, c.n, []string{"-m", c.metadata, "-d", c.data}, func(dir string) {
				fstest.Populate(t, dir, fstest.Without{Large: 50})
				if err := os.WriteFile(filepath.Join(dir, "many stripes"), bytes.Repeat([]byte("0123456789abcdefg"), 1<<19), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			for range c.n {
				images = append(images[1:], images[0])
				vols := volumes(t, images)
				f, err := btrfs.OpenDevices(vols)
				if err != nil {
					t.Fatal(err)
				}
				fstest.Compare(t, f, row(vols), dir, fstest.Ignoring{})
			}
			aDeviceIsMissing(t, images)
		})
	}
}

// aDeviceIsMissing opens all devices but one.
func aDeviceIsMissing(t *testing.T, images []string) {
	vols := volumes(t, images)
	gone, err := btrfs.Probe(vols[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = btrfs.OpenDevices(vols[1:])
	var missing *btrfs.MissingError
	if !errors.As(err, &missing) || !errors.Is(err, fsys.ErrUnsupported) {
		t.Fatalf("open without one of the devices: got %v, want a MissingError", err)
	}
	if len(missing.Devices) != 1 || missing.Devices[0] != gone {
		t.Errorf("missing devices: got %+v, want %+v", missing.Devices, gone)
	}
	if gone.Devices != len(images) || !strings.Contains(err.Error(), gone.UUID) {
		t.Errorf("got %q of %+v", err, gone)
	}
}

func TestReadsWithoutAMirror(t *testing.T) {
	images, dir, _ := several(t, 2, []string{"-m", "raid1", "-d", "raid1"}, func(dir string) {
		fstest.Populate(t, dir, fstest.Without{Large: 50})
	})
	for i := range images {
		vol := fstest.Open(t, images[i])
		f, err := btrfs.OpenWith([]fsys.Volume{vol}, btrfs.Options{Degraded: true})
		if err != nil {
			t.Fatal(err)
		}
		fstest.Compare(t, f, vol, dir, fstest.Ignoring{})
		if notes := f.Info().Notes; len(notes) != 1 || !strings.Contains(notes[0], "without all of its devices") {
			t.Errorf("notes: got %q", notes)
		}
	}
}

func TestPrefersTheDeviceThatWasWrittenLast(t *testing.T) {
	var name string
	rewrite := func(dir, text string) {
		name = filepath.Join(dir, "in place")
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte(text), 1e5), 0)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	images, dir, unmount := several(t, 2, []string{"-m", "raid1", "-d", "raid1"}, func(dir string) {
		fstest.Run(t, "chattr", "+C", dir)
		rewrite(dir, "old")
	})
	loop, _, _ := strings.Cut(fstest.Run(t, "findmnt", "-no", "SOURCE", dir), "\n")
	unmount()
	forget(t)
	fstest.Run(t, "mount", "-o", "degraded", loop, dir)
	unmount = fstest.Unmounting(t, dir)
	rewrite(dir, "new")
	unmount()
	forget(t)
	fstest.Run(t, "mount", "-o", "degraded,ro", loop, dir)
	fstest.Unmounting(t, dir)
	for range images {
		images = append(images[1:], images[0])
		vols := volumes(t, images)
		f, err := btrfs.OpenDevices(vols)
		if err != nil {
			t.Fatal(err)
		}
		fstest.Compare(t, f, row(vols), dir, fstest.Ignoring{})
		if notes := f.Info().Notes; len(notes) != 1 || !strings.Contains(notes[0], "was absent") {
			t.Errorf("notes: got %q", notes)
		}
	}
}

// torn is a Volume of which ranges read as something else.
type torn struct {
	fsys.Volume
	from, to int64
}

func (v torn) ReadAt(p []byte, off int64) error {
	err := v.Volume.ReadAt(p, off)
	for i := range p {
		if at := off + int64(i); at >= v.from && at < v.to {
			p[i] ^= 0x55
		}
	}
	return err
}

func TestReadsTheOtherCopyOfWhatIsDamaged(t *testing.T) {
	images, dir, _ := several(t, 2, []string{"-m", "raid1", "-d", "raid1"}, func(dir string) {
		fstest.Populate(t, dir, fstest.Without{Large: 50})
	})
	vols := volumes(t, images)
	for i := range vols {
		damaged := slices.Clone(vols)
		damaged[i] = torn{vols[i], 1 << 20, imageSize}
		f, err := btrfs.OpenWith(damaged, btrfs.Options{VerifyData: true})
		if err != nil {
			t.Fatal(err)
		}
		fstest.Compare(t, f, row(vols), dir, fstest.Ignoring{})
	}
	both := []fsys.Volume{torn{vols[0], 1 << 20, imageSize}, torn{vols[1], 1 << 20, imageSize}}
	if _, err := btrfs.OpenDevices(both); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("open with both copies damaged: got %v, want ErrCorrupt", err)
	}
}

func TestAVolumeOfAnotherFileSystemIsRefused(t *testing.T) {
	a, b := fstest.Make(t, imageSize, "mkfs.btrfs", "-q"), fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
	if _, err := btrfs.OpenDevices(volumes(t, []string{a, b})); !errors.Is(err, fsys.ErrUnsupported) {
		t.Errorf("two file systems: got %v, want ErrUnsupported", err)
	}
	if _, err := btrfs.OpenDevices(volumes(t, []string{a, a})); !errors.Is(err, fsys.ErrUnsupported) {
		t.Errorf("the same device twice: got %v, want ErrUnsupported", err)
	}
}

func TestReadsWhatGrewFromASeed(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "btrfs", "btrfstune")
	seed, first := device(t)
	image, second := device(t)
	fstest.Run(t, "mkfs.btrfs", "-q", "--csum", "xxhash", first)
	dir := t.TempDir()
	fstest.Run(t, "mount", first, dir)
	unmount := fstest.Unmounting(t, dir)
	fstest.Populate(t, dir, fstest.Without{Large: 50})
	unmount()
	fstest.Run(t, "btrfstune", "-S", "1", first)
	fstest.Run(t, "mount", "-o", "ro", first, dir)
	fstest.Unmounting(t, dir)
	compare(t, seed, dir, btrfs.Options{}, fstest.Ignoring{})
	fstest.Run(t, "btrfs", "-q", "device", "add", "-f", second, dir)
	fstest.Run(t, "mount", "-o", "remount,rw", dir)
	if err := os.WriteFile(filepath.Join(dir, "grown"), bytes.Repeat([]byte("more"), 1e5), 0o600); err != nil {
		t.Fatal(err)
	}
	fstest.Sync(t, dir)
	for _, images := range [][]string{{seed, image}, {image, seed}} {
		vols := volumes(t, images)
		f, err := btrfs.OpenDevices(vols)
		if err != nil {
			t.Fatal(err)
		}
		fstest.Compare(t, f, row(vols), dir, fstest.Ignoring{})
	}
	if _, err := btrfs.Open(fstest.Open(t, image)); !errors.As(err, new(*btrfs.MissingError)) {
		t.Errorf("open without the seed: got %v, want a MissingError", err)
	}
}
