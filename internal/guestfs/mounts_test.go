package guestfs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// filled makes an ext4 with files, by path; the path of a directory ends in a slash.
func filled(t testing.TB, files map[string]string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if !strings.HasSuffix(name, "/") {
			write(t, content, dir, name)
		} else if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return fstest.Make(t, 16<<20, append([]string{"mkfs.ext4", "-q", "-d", dir}, options...)...)
}

// rooted is filled with what makes it the root of a guest that has an fstab.
func rooted(t testing.TB, fstab string, files map[string]string, options ...string) string {
	t.Helper()
	all := map[string]string{"etc/os-release": "ID=demo\nPRETTY_NAME=\"Demo Linux 7\"\n", "etc/fstab": fstab}
	for name, content := range files {
		all[name] = content
	}
	return filled(t, all, options...)
}

// overwrite puts bytes into an image.
func overwrite(t testing.TB, image string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); errors.Join(err, f.Close()) != nil {
		t.Fatal(err)
	}
}

func uuidOf(t testing.TB, image string) string {
	t.Helper()
	return strings.TrimSpace(fstest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", image))
}

// entries returns what a walk of the guest's tree finds, with its errors.
func entries(t testing.TB, g *guestfs.Guest, at string) map[string]error {
	t.Helper()
	root, err := g.Resolve(t.Context(), at, true)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]error{}
	err = g.Walk(t.Context(), root.Node, guestfs.Match{}, func(e guestfs.Entry) error {
		found[e.Name] = errors.Join(found[e.Name], e.Err)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestMountsThatFailAreNotShownAsWhatIsBeneath(t *testing.T) {
	damaged := filled(t, map[string]string{"file": "x"}, "-L", "damaged")
	overwrite(t, damaged, 1024+0x20, 0, 0, 0, 0) // blocks in a group
	locked := container(t, "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
	root := rooted(t, "LABEL=damaged /damaged ext4 defaults 0 0\n/dev/mapper/inside /locked ext4 defaults 0 0\n"+
		"UUID=dead-beef /gone ext4 defaults 0 0\nUUID=dead-beef /optional ext4 nofail 0 0\n/dev/sr0 /cdrom udf,iso9660 noauto 0 0\n"+
		"/home /bound none bind 0 0\nLABEL=same /number btrfs subvolid=xyz 0 0\nserver:/x /net fuse.x defaults 0 0\n", map[string]string{
		"etc/crypttab": "inside UUID=" + uuidOf(t, locked) + " none luks\n", "damaged/beneath": "", "locked/beneath": "", "gone/beneath": "",
		"optional/beneath": "", "cdrom/": "", "bound/": "", "number/beneath": "", "home/": "", "net/": ""})
	same := fstest.Make(t, 128<<20, "mkfs.btrfs", "-q", "-f", "-L", "same")
	g := open(t, []string{root, damaged, locked, same})
	found := entries(t, g, "/")
	for dir, is := range map[string]error{"damaged": guestfs.ErrCorrupt, "locked": guestfs.ErrLocked, "gone": guestfs.ErrUnsupported, "number": guestfs.ErrUnsupported} {
		if _, ok := found[dir+"/beneath"]; ok || !errors.Is(found[dir], is) || !guestfs.OwnFault(found[dir]) {
			t.Errorf("%s in a walk: got %v, and what is beneath: %v; want %v", dir, found[dir], ok, is)
		}
		if _, err := g.Resolve(t.Context(), "/"+dir+"/beneath", true); !errors.Is(err, is) {
			t.Errorf("a path in %s: got %v, want %v", dir, err, is)
		}
	}
	for _, name := range []string{"optional/beneath", "cdrom", "bound", "net"} {
		if err, ok := found[name]; !ok || err != nil {
			t.Errorf("%s: got %v, %v", name, ok, err)
		}
	}
	notes := strings.Join(g.OS().Notes, "\n")
	for _, dir := range []string{"damaged", "locked", "gone", "optional", "cdrom", "bound", "number", "net"} {
		if strings.Count(notes, "/"+dir) != 1 {
			t.Errorf("notes: got %q, want one of /%s", notes, dir)
		}
	}
}

func TestAMountOfAGroupThatLacksADiskIsNotShownAsWhatIsBeneath(t *testing.T) {
	var parts []string
	for range 2 {
		parts = append(parts, fstest.Make(t, 24<<20, "true"))
	}
	fstest.InMachine(t, "vgcreate -qq -s 1M vg0 /dev/vdc /dev/vdd && lvcreate -qq -l 10 -n here vg0 /dev/vdc && lvcreate -qq -l 10 -n gone vg0 /dev/vdd && "+
		"mkfs.ext4 -q /dev/vg0/here && mkfs.ext4 -q /dev/vg0/gone && vgchange -qq -an vg0", parts...)
	root := rooted(t, "/dev/mapper/vg0-gone /gone ext4 defaults 0 0\n/dev/vg0/here /here ext4 defaults 0 0\n",
		map[string]string{"gone/beneath": "", "here/beneath": ""})
	found := entries(t, open(t, []string{root, parts[0]}), "/")
	if err := found["gone"]; has(found, "gone/beneath") || !errors.Is(err, guestfs.ErrUnsupported) || !strings.Contains(err.Error(), "vg0/gone") {
		t.Errorf("what lay on a disk that is not there: got %v in %v", err, found)
	}
	if !has(found, "here/lost+found") {
		t.Errorf("what lay on the other: got %v", found)
	}
}

// partly fails in the middle, where no format has what it is told by.
type partly struct{ failing }

func (p partly) ReadAt(ctx context.Context, b []byte, off int64) error {
	if off < 4<<20 || off+int64(len(b)) > p.Size()-1<<20 {
		return p.device.ReadAt(ctx, b, off)
	}
	return p.failing.ReadAt(ctx, b, off)
}

func TestADiskThatFailsUnderAMountIsTriedAgain(t *testing.T) {
	root := rooted(t, "LABEL=data /data btrfs defaults 0 0\n", map[string]string{"data/beneath": ""})
	image := fstest.Filled(t, 128<<20, "btrfs", func(dir string) { write(t, "x", dir, "file") }, "mkfs.btrfs", "-q", "-f", "-L", "data")
	data := partly{failing{device{fstest.Open(t, image)}, new(atomic.Bool)}}
	data.broken.Store(true)
	g, err := guestfs.Open(t.Context(), []guestfs.Disk{{Index: 0, Device: device{fstest.Open(t, root)}}, {Index: 1, Device: data}}, guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := entries(t, g, "/")["data"]; !errors.Is(err, guestfs.ErrVolume) || guestfs.OwnFault(err) {
		t.Errorf("a mount whose disk fails: got %v, want ErrVolume", err)
	}
	if err := entries(t, g, "disk-1")["."]; !errors.Is(err, guestfs.ErrVolume) {
		t.Errorf("a disk that fails: got %v, want ErrVolume", err)
	}
	data.broken.Store(false)
	if found := entries(t, g, "/"); found["data"] != nil || !has(found, "data/file") {
		t.Errorf("once it can be read again: got %v", found)
	}
}

// hole is a disk of which a part cannot be read once it is known where that lies.
type hole struct {
	device
	at atomic.Int64
}

func (h *hole) ReadAt(ctx context.Context, b []byte, off int64) error {
	if at := h.at.Load(); at > 0 && off < at+4096 && off+int64(len(b)) > at {
		return errors.New("broken")
	}
	return h.device.ReadAt(ctx, b, off)
}

func TestATreeWhoseFstabTheDiskLostIsNotShown(t *testing.T) {
	fstab := strings.Repeat("# what nobody needs to know of this machine and its disks\n", 4000) + "LABEL=data /data ext4 defaults 0 0\n"
	root := &hole{device: device{fstest.Open(t, rooted(t, fstab, map[string]string{"data/beneath": ""}))}}
	disks := []guestfs.Disk{{Index: 0, Device: root}, {Index: 1, Device: device{fstest.Open(t, filled(t, nil, "-L", "data"))}}}
	open := func() *guestfs.Guest {
		g, err := guestfs.Open(t.Context(), disks, guestfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Close)
		return g
	}
	g := open()
	e, err := g.Resolve(t.Context(), "/etc/fstab", true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := g.OpenFile(e)
	if err != nil {
		t.Fatal(err)
	}
	locs, err := f.Locate(t.Context(), nil, f.Size()/2, 1)
	if err != nil || len(locs) != 1 || !has(entries(t, g, "/"), "data/lost+found") {
		t.Fatalf("the middle of the fstab: got %v, %v", locs, err)
	}
	root.at.Store(locs[0].Off)
	g = open()
	if _, err := g.Resolve(t.Context(), "/data", true); !errors.Is(err, guestfs.ErrVolume) || g.HasRoot() {
		t.Errorf("a path in the machine's own tree: got %v, want ErrVolume", err)
	}
	if found := entries(t, g, "disk-0/fs"); !has(found, "data/beneath") {
		t.Errorf("the file system by position: got %v", found)
	}
}

func has(m map[string]error, name string) bool { _, ok := m[name]; return ok }

func TestAnUnreadableDiskIsNotTakenForAnUnknownFormat(t *testing.T) {
	disk := failing{device{fstest.Open(t, filled(t, nil))}, new(atomic.Bool)}
	disk.broken.Store(true)
	g, err := guestfs.Open(t.Context(), []guestfs.Disk{{Device: disk}}, guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, path := range []string{"disk-0/fs", "/etc"} {
		if _, err := g.Resolve(t.Context(), path, true); !errors.Is(err, guestfs.ErrVolume) || guestfs.OwnFault(err) {
			t.Errorf("%s: got %v, want ErrVolume", path, err)
		}
	}
}

func TestTheFstabSaysWhatTheRootIs(t *testing.T) {
	const id = "0b0075e1-8e0d-4f0e-9a57-3c1f1f1f0002"
	// The old root looks as much like one, and comes first.
	old := rooted(t, "UUID="+id+" / ext4 defaults 0 0\nLABEL=srv /srv ext4 defaults 0 0\n", map[string]string{"etc/hostname": "old\n", "srv/beneath": ""})
	now := rooted(t, "UUID="+id+" / ext4 defaults 0 0\nLABEL=srv /data ext4 defaults 0 0\n",
		map[string]string{"etc/hostname": "now\n", "srv/own": "x", "data/": ""}, "-U", id)
	srv := filled(t, map[string]string{"page": "x"}, "-L", "srv")
	g := open(t, []string{old, now, srv})
	if g.OS().Hostname != "now" || len(g.OS().Notes) > 0 {
		t.Errorf("os: got %+v", g.OS())
	}
	found := entries(t, g, "/")
	if !has(found, "data/page") || !has(found, "srv/own") || has(found, "srv/page") {
		t.Errorf("tree: got %v", found)
	}
	volumes, err := g.Volumes(t.Context())
	if err != nil || len(volumes) != 3 || volumes[0].Mounted != "" || volumes[1].Mounted != "/" || volumes[2].Mounted != "/data" {
		t.Errorf("volumes: got %+v, %v", volumes, err)
	}
}

func TestSubvolumesByNumber(t *testing.T) {
	var id string
	image := fstest.Filled(t, 128<<20, "btrfs", func(dir string) {
		for _, name := range []string{"@", "@home"} {
			fstest.Run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(dir, name))
		}
		id = strings.TrimSpace(fstest.Run(t, "btrfs", "inspect-internal", "rootid", filepath.Join(dir, "@home")))
		write(t, "x", dir, "@home/alice")
		write(t, "ID=demo\n", dir, "@/etc/os-release")
		write(t, "LABEL=b / btrfs subvol=@ 0 0\nLABEL=b /home btrfs subvolid="+id+" 0 0\nLABEL=b /all btrfs subvolid=5 0 0\n", dir, "@/etc/fstab")
		for _, d := range []string{"home", "all"} {
			if err := os.Mkdir(filepath.Join(dir, "@", d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}, "mkfs.btrfs", "-q", "-f", "-L", "b")
	if found := entries(t, open(t, []string{image}), "/"); !has(found, "home/alice") || !has(found, "all/@home/alice") {
		t.Errorf("tree: got %v", found)
	}
}

func TestDisksHaveTheNamesThatTheGuestHadForThem(t *testing.T) {
	root := rooted(t, "/dev/sda1 /a ext4 defaults 0 0\n/dev/vdb1 /b ext4 nofail 0 0\n", map[string]string{"a/": "", "b/": ""})
	first, second := disk(t, filled(t, map[string]string{"first": ""})), disk(t, filled(t, map[string]string{"second": ""}))
	for _, x := range []struct {
		name  string
		keys  []string
		a, b  string // what is found there
		notes int
	}{
		{"as the keys say", []string{"vda", "vdb", "sda"}, "second", "first", 0},
		{"no guess where there are two buses", []string{"vda", "vdc", "sda"}, "second", "", 1},
		{"a guess where all are on one", []string{"hdb", "hda", "hdc"}, "", "first", 3},
		{"a guess where nothing is known", []string{"", "", ""}, "", "first", 3},
	} {
		t.Run(x.name, func(t *testing.T) {
			var disks []guestfs.Disk
			for i, image := range []string{root, first, second} {
				disks = append(disks, guestfs.Disk{Index: i, Key: x.keys[i], Device: device{fstest.Open(t, image)}})
			}
			g, err := guestfs.Open(t.Context(), disks, guestfs.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			found := entries(t, g, "/")
			for at, want := range map[string]string{"a": x.a, "b": x.b} {
				for _, name := range []string{"first", "second"} {
					if has(found, at+"/"+name) != (name == want) {
						t.Errorf("/%s: got %v, want %q in it", at, found, want)
					}
				}
			}
			if notes := g.OS().Notes; len(notes) != x.notes {
				t.Errorf("notes: got %q, want %d", notes, x.notes)
			}
		})
	}
}

func TestTreesByPositionAreSeparate(t *testing.T) {
	boot := filled(t, map[string]string{"vmlinuz": "x"}, "-L", "boot")
	root := rooted(t, "LABEL=boot /boot ext4 defaults 0 0\n", map[string]string{"boot/beneath": "", "a/b/file": "x"})
	dir := t.TempDir()
	for name, to := range map[string]string{"up": "../p2/etc/fstab", "down": "/boot/vmlinuz"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	links := fstest.Make(t, 16<<20, "mkfs.ext4", "-q", "-d", dir)
	g := open(t, []string{disk(t, boot, root, links)})
	if found := entries(t, g, "disk-0/p2"); !has(found, "boot/beneath") || has(found, "boot/vmlinuz") {
		t.Errorf("a file system by position: got %v", found)
	}
	if found := entries(t, g, "/boot"); !has(found, "vmlinuz") {
		t.Errorf("the machine's own tree: got %v", found)
	}
	for path, want := range map[string]bool{"disk-0/p3/up": false, "disk-0/p3/down": false, "disk-0/p3/../p1/vmlinuz": true, "disk-0/p2/a/../../p1/vmlinuz": true} {
		if _, err := g.Resolve(t.Context(), path, true); (err == nil) != want {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestNodesMeanTheSameToTheNextProcess(t *testing.T) {
	disks := machine(t, nil)
	a, b := open(t, disks), open(t, disks)
	// Which file systems are asked for first makes no difference.
	for _, path := range []string{"disk-1/fs", "/boot", "disk-0/p1", "/srv"} {
		if _, err := a.Resolve(t.Context(), path, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/srv/www/index.html", "/boot/vmlinuz", "/etc/hostname", "disk-0/p1/vmlinuz"} {
		x, err := a.Resolve(t.Context(), path, true)
		y, err2 := b.Resolve(t.Context(), path, true)
		if err != nil || err2 != nil || x.Node != y.Node {
			t.Errorf("%s: got %v (%v) and %v (%v)", path, x.Node, err, y.Node, err2)
		}
		other := open(t, []string{disks[1], disks[0]})
		if attr, err := other.Stat(t.Context(), x.Node); err == nil {
			t.Errorf("%s on other disks: got %+v", path, attr)
		}
	}
}

func TestGroupsMayBeCalledAsPartitionsAre(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "sgdisk", "-n1:0:+24M", "-n2:0:+24M", image)
	fstest.Run(t, "dd", "if="+filled(t, map[string]string{"partition": ""}), "of="+image, "bs=1M", "seek=1", "conv=notrunc", "status=none")
	part := filepath.Join(t.TempDir(), "pv.img")
	if err := errors.Join(os.WriteFile(part, nil, 0o600), os.Truncate(part, 24<<20)); err != nil {
		t.Fatal(err)
	}
	fstest.InMachine(t, "vgcreate -s 1M p1 /dev/vdc && lvcreate -qq -l 18 -n root p1 && mkfs.ext4 -q /dev/p1/root && mkdir /m && mount /dev/p1/root /m && touch /m/logical && umount /m && vgchange -an p1", part)
	fstest.Run(t, "dd", "if="+part, "of="+image, "bs=1M", "seek=25", "conv=notrunc", "status=none")
	g := open(t, []string{image})
	volumes, err := g.Volumes(t.Context())
	if err != nil || len(volumes) != 2 {
		t.Fatalf("volumes: got %+v, %v", volumes, err)
	}
	for _, v := range volumes {
		name := map[bool]string{true: "partition", false: "logical"}[v.Path == "disk-0/p1"]
		if found := entries(t, g, v.Path); !has(found, name) {
			t.Errorf("%s: got %v, want %s", v.Path, found, name)
		}
	}
	found := entries(t, g, "disk-0")
	if names := []string{volumes[0].Path, volumes[1].Path}; len(slices.Compact(names)) != 2 || !has(found, "p1/partition") {
		t.Errorf("paths: got %q and %v", names, found)
	}
}

func TestOfTwoVolumesThatAreCalledTheSameBothAreTold(t *testing.T) {
	a, b := filled(t, nil, "-L", "twice"), filled(t, nil, "-L", "twice")
	g := open(t, []string{rooted(t, "LABEL=twice /srv ext4 defaults 0 0\n", map[string]string{"srv/": ""}), a, b})
	notes := g.OS().Notes
	if len(notes) != 1 || !strings.Contains(notes[0], "disk-1/fs") || !strings.Contains(notes[0], "disk-2/fs") {
		t.Errorf("notes: got %q, want one that names both", fmt.Sprint(notes))
	}
}
