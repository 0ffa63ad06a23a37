package iso9660_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/iso9660"
	"github.com/sendense/sendense/internal/requires"
)

func TestMain(m *testing.M) { fstest.Main(m) }

// inLinux mounts the discs from /dev/vdc on, but for the last, to which it copies
// what it sees there, and beside that the attributes of everything, which a copy does
// not keep, with NULs between them.
const inLinux = `
exec 2>&1
set -e
modprobe isofs
mkdir /run/iso /run/out
mount -t ext4 /dev/vd%[2]s /run/out
for disk in %[1]s; do
	mount -t iso9660 -o ro,utf8 /dev/vd$disk /run/iso
	mkdir /run/out/$disk
	cp -a /run/iso/. /run/out/$disk/
	cd /run/iso
	find . -print0 | xargs -0 /usr/bin/stat --printf '%%n\0%%f %%h %%u %%g %%s %%Y %%Z %%X %%t %%T\0' >/run/out/$disk.attributes
	cd /
	umount /run/iso
done
umount /run/out
`

// source makes a tree of files, some of which Linux would cut the names of.
func source(t *testing.T, w fstest.Without) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fstest.Populate(t, dir, w)
	must(t, os.Rename(filepath.Join(dir, "names", strings.Repeat("x", 255)), filepath.Join(dir, "names", strings.Repeat("x", 253))))
	// The kernel of the machine has 32 bits for a time, and 8 for the minor number of
	// a device where xorriso writes 20.
	for i := 2; i <= 3; i++ {
		must(t, os.Chtimes(filepath.Join(dir, "times", fmt.Sprint("at-", i)), time.Unix(2e9, 0), time.Unix(1.9e9, 0)))
	}
	if !w.Special {
		disk := filepath.Join(dir, "special", "disk")
		must(t, errors.Join(os.Remove(disk), unix.Mknod(disk, unix.S_IFBLK|0o660, int(unix.Mkdev(259, 200)))))
	}
	if !w.Symlinks { // xorriso writes no components of more than 255 bytes
		link := filepath.Join(dir, "links", "symbolic-6")
		must(t, errors.Join(os.Remove(link), os.Symlink(strings.Repeat("x", 250)+"/../"+strings.Repeat("é", 120)+"/./.", link)))
	}
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// written is a disc that a program wrote.
type written struct {
	name    string
	make    []string // program and arguments; IMAGE and TREE stand for paths
	simple  bool     // of the tree without odd names and types
	entries int      // at least
	info    fsys.Info
}

var images = []written{
	{name: "Rock Ridge of xorriso", entries: 750, info: fsys.Info{Label: "A label of more than 16"},
		make: []string{"xorriso", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-V", "A label of more than 16", "-o", "IMAGE", "TREE"}},
	{name: "Rock Ridge of xorriso, with Joliet, hard links and deep directories elsewhere", entries: 750, info: fsys.Info{Label: "Mixed"},
		make: []string{"xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "--hardlinks", "-rr_reloc_dir", "/moved", "-V", "Mixed", "-o", "IMAGE", "TREE"}},
	{name: "Rock Ridge of genisoimage, with deep directories elsewhere", entries: 750, info: fsys.Info{Label: "A LABEL LONGER THAN SIXTEEN"},
		make: []string{"genisoimage", "-quiet", "-R", "-m", "symbolic-[56]", "-V", "A LABEL LONGER THAN SIXTEEN", "-o", "IMAGE", "TREE"}},
	{name: "zisofs", entries: 750,
		make: []string{"xorriso", "-report_about", "FAILURE", "-outdev", "IMAGE", "-volid", "", "-map", "TREE", "/", "-set_filter_r", "--zisofs", "/", "--"}},
	{name: "Joliet", simple: true, entries: 400, info: fsys.Info{Label: "Läbel", FoldsCase: true},
		make: []string{"genisoimage", "-quiet", "-input-charset", "utf-8", "-J", "-joliet-long", "-D", "-m", "emoji*", "-V", "Läbel", "-o", "IMAGE", "TREE"}},
	{name: "Joliet of xorriso", simple: true, entries: 400, info: fsys.Info{FoldsCase: true},
		make: []string{"xorriso", "-as", "mkisofs", "-quiet", "--norock", "-J", "-joliet-long", "-joliet-utf16", "-o", "IMAGE", "TREE"}},
	{name: "plain names", simple: true, entries: 400,
		make: []string{"genisoimage", "-quiet", "-D", "-iso-level", "1", "-o", "IMAGE", "TREE"}},
	{name: "plain names of version 2", simple: true, entries: 400,
		make: []string{"genisoimage", "-quiet", "-input-charset", "iso8859-1", "-iso-level", "4", "-o", "IMAGE", "TREE"}},
	{name: "UDF beside it", simple: true, entries: 400,
		make: []string{"genisoimage", "-quiet", "-input-charset", "iso8859-1", "-R", "-udf", "-o", "IMAGE", "TREE"}},
}

func TestAgainstTheKernel(t *testing.T) {
	odd := source(t, fstest.Without{Xattrs: true, ACLs: true, Sparse: true, Large: 700})
	simple := source(t, fstest.Without{Links: true, Symlinks: true, Special: true, Xattrs: true, ACLs: true, Owners: true, OddNames: true, Sparse: true, Large: 300})
	var paths []string
	var disks []byte
	for i, im := range images {
		path, tree := filepath.Join(t.TempDir(), "disc.iso"), odd
		if im.simple {
			tree = simple
		}
		args := make([]string, len(im.make))
		for i, a := range im.make {
			args[i] = strings.NewReplacer("IMAGE", path, "TREE", tree).Replace(a)
		}
		fstest.Run(t, args[0], args[1:]...)
		paths, disks = append(paths, path), append(disks, byte('c'+i), ' ')
	}
	shown := fstest.Make(t, 2<<30, "mkfs.ext4", "-q", "-F")
	script := fmt.Sprintf(inLinux, disks, string(rune('c'+len(images))))
	fstest.InMachine(t, script, append(paths, shown)...)
	dir, _ := fstest.Mount(t, shown, "ext4", "ro,noload")
	for i, im := range images {
		t.Run(im.name, func(t *testing.T) {
			vol := fstest.Open(t, paths[i])
			f, err := iso9660.Open(vol)
			must(t, err)
			disk := string(rune('c' + i))
			n := fstest.Compare(t, f, vol, filepath.Join(dir, disk), fstest.Ignoring{
				Links: true, DirSizes: true, Allocated: true, Xattrs: true, MadeUp: true, Granularity: time.Nanosecond,
			})
			if n < im.entries {
				t.Errorf("compared %d entries, want %d", n, im.entries)
			}
			compareAttributes(t, f, attributes(t, filepath.Join(dir, disk+".attributes")))
			identify(t, paths[i], f.Info(), im.info)
			if im.name == "zisofs" {
				dir := fstest.Lookup(t, f, "sizes")
				id, err := f.Lookup(dir, "text")
				must(t, err)
				if a, err := f.Stat(id); err != nil || len(a.Flags) != 1 || a.Allocated >= a.Size/10 {
					t.Errorf("a file that is compressed: got %+v, %v", a, err)
				}
			}
		})
	}
}

// attributes reads what the machine noted: by path.
func attributes(t *testing.T, name string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	list := map[string]string{}
	for fields := strings.Split(string(b), "\x00"); len(fields) > 1; fields = fields[2:] {
		list[fields[0]] = fields[1]
	}
	return list
}

// compareAttributes compares those that a copy does not keep.
func compareAttributes(t *testing.T, f fsys.FileSystem, want map[string]string) {
	t.Helper()
	wrong := 0
	var walk func(path string, id fsys.ID)
	walk = func(path string, id fsys.ID) {
		a, err := f.Stat(id)
		if err != nil {
			t.Errorf("stat %s: %v", path, err)
			return
		}
		if got := attributesOf(a, want[path]); got != want[path] && wrong < 20 {
			wrong++
			t.Errorf("%s: got mode, links, owner, group, size, times, device %q, want %q", path, got, want[path])
		}
		delete(want, path)
		if !a.Mode.IsDir() {
			return
		}
		err = f.ReadDir(id, func(e fsys.Entry) bool {
			walk(path+"/"+e.Name, e.ID)
			return true
		})
		if err != nil {
			t.Errorf("read %s: %v", path, err)
		}
	}
	walk(".", f.Root())
	if len(want) > 0 {
		t.Errorf("paths that only the kernel shows: %d", len(want))
	}
}

// attributesOf prints attributes as stat does. Of times, the kernel makes up what is
// not recorded.
func attributesOf(a fsys.Attr, want string) string {
	mode := uint32(a.Mode.Perm())
	for m, bits := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if a.Mode&m != 0 {
			mode |= bits
		}
	}
	mode |= map[fs.FileMode]uint32{0: 0o100000, fs.ModeDir: 0o40000, fs.ModeSymlink: 0o120000, fs.ModeNamedPipe: 0o10000, fs.ModeSocket: 0o140000,
		fs.ModeDevice: 0o60000, fs.ModeDevice | fs.ModeCharDevice: 0o20000}[a.Mode.Type()]
	changed, accessed := a.Changed, a.Accessed
	if changed.IsZero() {
		changed = a.Created
	}
	if changed.IsZero() {
		changed = a.Modified
	}
	if accessed.IsZero() {
		accessed = a.Modified
	}
	return fmt.Sprintf("%x %d %d %d %d %d %d %d %x %x", mode, a.Links, a.UID, a.GID, a.Size, a.Modified.Unix(), changed.Unix(), accessed.Unix(), a.Major, a.Minor)
}

// identify compares what the file system says of itself with what blkid prints and
// the descriptor says.
func identify(t *testing.T, image string, got, want fsys.Info) {
	t.Helper()
	blkid := map[string]string{}
	for line := range strings.Lines(fstest.Run(t, "blkid", "-p", "-o", "udev", image)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		blkid[strings.TrimPrefix(k, "ID_FS_")] = strings.ReplaceAll(v, `\x20`, " ")
	}
	if udf := blkid["TYPE"] == "udf"; udf != (got.Notes != nil) {
		t.Errorf("notes: got %q, UDF: %v", got.Notes, udf)
	} else if !udf && (got.Label != blkid["LABEL_ENC"] || got.UUID != blkid["UUID"]) {
		t.Errorf("label and UUID: got %q, %q, want %q, %q", got.Label, got.UUID, blkid["LABEL_ENC"], blkid["UUID"])
	}
	if want.Label != "" && got.Label != want.Label || got.FoldsCase != want.FoldsCase || got.Free != 0 {
		t.Errorf("info: got %+v, want %+v", got, want)
	}
	if size, _ := strconv.ParseInt(blkid["SIZE"], 10, 64); size != 0 && got.Size != size {
		t.Errorf("size: got %d, want %d", got.Size, size)
	}
}

// TestWhatLinuxCuts has xorriso as its witness, which writes what Linux does not show:
// names of more than 253 bytes, times behind 2038, minor numbers of more than 8 bits.
func TestWhatLinuxCuts(t *testing.T) {
	tree, path := t.TempDir(), filepath.Join(t.TempDir(), "disc.iso")
	long := strings.Repeat("x", 255)
	must(t, os.WriteFile(filepath.Join(tree, long), nil, 0o644))
	late := time.Date(2105, 6, 7, 8, 9, 10, 0, time.UTC)
	must(t, os.Chtimes(filepath.Join(tree, long), late, late))
	requires.Root(t)
	must(t, unix.Mknod(filepath.Join(tree, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	fstest.Run(t, "xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", path, tree)
	if out := fstest.Run(t, "xorriso", "-indev", path, "-lsl", "/"); !strings.Contains(out, long) || !strings.Contains(out, "259,70000") {
		t.Fatalf("xorriso: got %q", out)
	}
	f := open(t, fstest.Open(t, path))
	a, err := f.Stat(fstest.Lookup(t, f, long))
	if err != nil || !a.Modified.Equal(late) {
		t.Errorf("modification: got %v, %v, want %v", a.Modified, err, late)
	}
	if a, err := f.Stat(fstest.Lookup(t, f, "disk")); err != nil || a.Major != 259 || a.Minor != 70000 {
		t.Errorf("device: got %d, %d, %v, want 259, 70000", a.Major, a.Minor, err)
	}
}

func TestUDFAloneIsRefusedByName(t *testing.T) {
	path := fstest.Make(t, 10<<20, "mkudffs")
	if _, err := iso9660.Open(fstest.Open(t, path)); !errors.Is(err, fsys.ErrUnsupported) || !strings.Contains(err.Error(), "UDF") {
		t.Errorf("open a volume of UDF: got %v, want ErrUnsupported", err)
	}
}
