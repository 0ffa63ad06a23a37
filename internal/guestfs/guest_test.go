package guestfs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestMain(m *testing.M) {
	guestfs.Main()
	fstest.Main(m)
}

// device is an image as a block.Device.
type device struct{ fstest.File }

func (d device) ReadAt(_ context.Context, p []byte, off int64) error { return d.File.ReadAt(p, off) }

func (d device) Locate(_ context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	return append(dst, block.Location{Len: n, Kind: block.InFile, File: d.File.File, Off: off}), nil
}

// disk puts images of file systems into the partitions of a new disk, which has a
// DOS partition table.
func disk(t testing.TB, parts ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	table, at := make([]byte, 512), int64(1<<20)
	table[510], table[511] = 0x55, 0xaa
	var copies [][]string
	for i, p := range parts {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		e := table[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(at/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(st.Size()/512))
		copies = append(copies, []string{"if=" + p, "of=" + path, "bs=1M", fmt.Sprintf("seek=%d", at>>20), "conv=notrunc,sparse", "status=none"})
		at += st.Size()
	}
	if err := errors.Join(os.WriteFile(path, table, 0o600), os.Truncate(path, at+1<<20)); err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		fstest.Run(t, "dd", c...)
	}
	return path
}

func write(t testing.TB, content string, name ...string) {
	t.Helper()
	p := filepath.Join(name...)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

const bootUUID = "0b0075e1-8e0d-4f0e-9a57-3c1f1f1f0001"

// machine makes the disks of a small Linux: /boot and the root on one, /srv on the
// other. fill may put more into the root.
func machine(t testing.TB, fill func(root string)) []string {
	t.Helper()
	boot := fstest.Filled(t, 64<<20, "ext4", func(dir string) { write(t, "kernel", dir, "vmlinuz") }, "mkfs.ext4", "-q", "-U", bootUUID)
	root := fstest.Filled(t, 512<<20, "xfs", func(dir string) {
		write(t, "NAME=Demo\nPRETTY_NAME=\"Demo Linux 7\"\nID=demo\nVERSION_ID=7\n", dir, "usr/lib/os-release")
		write(t, "web1\n", dir, "etc/hostname")
		write(t, "# comment\nLABEL=root / xfs defaults 0 1\nUUID="+bootUUID+" /boot ext4 ro 0 2\n"+
			"LABEL=my\\040data /srv btrfs defaults 0 0\nUUID=dead-beef /missing ext4 defaults 0 0\nproc /proc proc defaults 0 0\n", dir, "etc/fstab")
		for _, d := range []string{"boot", "srv", "missing", "home/alice"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for from, to := range map[string]string{"etc/os-release": "../usr/lib/os-release", "abs": "/etc/hostname", "out": "../../../../etc/hostname",
			"loop": "loop", "toboot": "/boot/vmlinuz"} {
			if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
				t.Fatal(err)
			}
		}
		if fill != nil {
			fill(dir)
		}
	}, "mkfs.xfs", "-q", "-f", "-L", "root")
	srv := fstest.Filled(t, 256<<20, "btrfs", func(dir string) { write(t, "page", dir, "www/index.html") }, "mkfs.btrfs", "-q", "-f", "-L", "my data")
	return []string{disk(t, boot, root), srv}
}

func open(t testing.TB, paths []string) *guestfs.Guest {
	t.Helper()
	var disks []guestfs.Disk
	for i, p := range paths {
		disks = append(disks, guestfs.Disk{Index: i, Device: device{fstest.Open(t, p)}})
	}
	g, err := guestfs.Open(t.Context(), disks, guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

func read(t testing.TB, g *guestfs.Guest, path string) string {
	t.Helper()
	e, err := g.Resolve(t.Context(), path, true)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	f, err := g.OpenFile(e)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	b := make([]byte, f.Size())
	if err := f.ReadAt(t.Context(), b, 0); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return string(b)
}

func TestTreeAsTheGuestSawIt(t *testing.T) {
	g := open(t, machine(t, nil))
	os := g.OS()
	if os.Name != "Demo Linux 7" || os.ID != "demo" || os.Hostname != "web1" || os.Family != "linux" {
		t.Errorf("os: got %+v", os)
	}
	if len(os.Notes) != 1 || !strings.Contains(os.Notes[0], "/missing") {
		t.Errorf("notes: got %q, want one about /missing", os.Notes)
	}
	for path, want := range map[string]string{
		"/etc/hostname": "web1\n", "/boot/vmlinuz": "kernel", "/srv/www/index.html": "page", "/abs": "web1\n", "/out": "web1\n",
		"/toboot": "kernel", "/boot/../srv/www/./index.html": "page", "/../..//etc/hostname": "web1\n",
		"disk-0/p1/vmlinuz": "kernel", "disk-0/p2/etc/hostname": "web1\n", "disk-1/fs/www/index.html": "page", "disk-0/p2/abs": "web1\n",
	} {
		if got := read(t, g, path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]struct {
		is      error
		nearest string
	}{
		"/etc/nothing/here": {fs.ErrNotExist, "/etc"}, "/etc/hostname/x": {guestfs.ErrNotDir, "/etc/hostname"},
		"disk-0/p9": {fs.ErrNotExist, "disk-0"}, "/loop": {nil, "/"},
	} {
		_, err := g.Resolve(t.Context(), path, true)
		var p *guestfs.PathError
		if !errors.As(err, &p) || p.Nearest != want.nearest || want.is != nil && !errors.Is(err, want.is) {
			t.Errorf("%s: got %v (%+v), want %v, nearest %s", path, err, p, want.is, want.nearest)
		}
	}
	volumes, err := g.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, v := range volumes {
		got = append(got, fmt.Sprint(v.Path, " ", v.Type, " ", v.Label, " ", v.Mounted, v.Refusal))
	}
	want := []string{"disk-0/p1 ext4  /boot", "disk-0/p2 xfs root /", "disk-1/fs btrfs my data /srv"}
	if !slices.Equal(got, want) {
		t.Errorf("volumes: got %q, want %q", got, want)
	}
}

func TestWalkAndContent(t *testing.T) {
	want := map[string]string{}
	g := open(t, machine(t, func(root string) {
		fstest.Populate(t, filepath.Join(root, "home"), fstest.Without{Large: 5000})
		err := filepath.WalkDir(filepath.Join(root, "home"), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				b, readErr := os.ReadFile(p)
				want[strings.TrimPrefix(p, root)] = string(b)
				err = readErr
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}))
	root, err := g.Resolve(t.Context(), "/home", false)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = g.Walk(t.Context(), root.Node, guestfs.Match{Type: "f"}, func(e guestfs.Entry) error {
		if e.Err != nil {
			return e.Err
		}
		files++
		f, err := g.OpenFile(e)
		if err != nil {
			return err
		}
		b := make([]byte, f.Size())
		if err := f.ReadAt(t.Context(), b, 0); err != nil {
			return err
		}
		if w, ok := want["/home/"+e.Name]; !ok || w != string(b) {
			t.Errorf("%q: got other content than the kernel showed", e.Name)
		}
		return located(t, f, b)
	})
	if err != nil || files != len(want) {
		t.Errorf("walk: got %d files, %v, want %d", files, err, len(want))
	}
	dir, err := g.Resolve(t.Context(), "/home/large", false)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := g.ReadDir(t.Context(), dir.Node, func(guestfs.Entry) bool { n++; return true }); err != nil || n != 5000-5000/7-1 {
		t.Errorf("entries of the large directory: got %d, %v", n, err)
	}
}

// located compares the content of a file with what lies where it is said to.
func located(t *testing.T, f *guestfs.File, content []byte) error {
	t.Helper()
	locs, err := f.Locate(t.Context(), nil, 0, f.Size())
	if err != nil {
		return err
	}
	for _, l := range locs {
		got := make([]byte, l.Len)
		if l.Kind == block.InFile {
			if _, err := l.File.ReadAt(got, l.Off); err != nil {
				return err
			}
		}
		if l.Kind != block.Opaque && !bytes.Equal(got, content[:l.Len]) {
			t.Error("located content differs")
		}
		content = content[l.Len:]
	}
	return nil
}

func TestDeathOfTheProcessIsReported(t *testing.T) {
	g := open(t, machine(t, nil))
	if err := syscall.Kill(g.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("nobody noticed")
	}
	if _, err := g.Resolve(t.Context(), "/", true); !errors.Is(err, guestfs.ErrDied) {
		t.Errorf("after its death: got %v, want ErrDied", err)
	}
}

func TestWhatIsWrongWithDisksIsListed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 64<<20)); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "sgdisk", "-n1:0:+32M", path)
	fstest.Run(t, "dd", "if="+fstest.Make(t, 32<<20, "mkfs.ext4", "-q"), "of="+path, "bs=1M", "seek=1", "conv=notrunc", "status=none")
	zero := func(off int64) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(make([]byte, 512), off); err != nil {
			t.Fatal(err)
		}
	}
	zero(512)
	g := open(t, []string{path})
	if notes := strings.Join(g.Notes(), " "); !strings.Contains(notes, "disk-0: The partition table is damaged") {
		t.Errorf("notes: got %q", notes)
	}
	if v := only(t, g); v.Path != "disk-0/p1" || v.Type != "ext4" || v.Refusal != "" {
		t.Errorf("volume: got %+v", v)
	}
	zero(64<<20 - 512)
	g = open(t, []string{path})
	if v := only(t, g); v.Path != "disk-0/fs" || v.Type != "gpt" || !strings.Contains(v.Refusal, "neither of the GUID partition tables is sound") {
		t.Errorf("volume of a disk without a sound table: got %+v", v)
	}
}
