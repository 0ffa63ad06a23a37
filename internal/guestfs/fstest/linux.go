package fstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Linux is a file system without links, attributes and owners that a Linux in a
// machine fills, for this one may not know it.
type Linux struct {
	Type    string // of the file system, and the name of the module
	Options string // of mount(8); default: its own
	Large   int    // entries of the large directory
	Change  string // what bash does in it once it has a tree as of Populate
}

// Shown is a file system as a Linux shows it.
type Shown struct {
	Image  string // path
	Dir    string // a copy of what is there
	Statfs string // size of a block, number of blocks, free ones
}

// FilledByLinux has a Linux fill images, and returns what it then shows of each.
func FilledByLinux(t testing.TB, l Linux, images ...string) []Shown {
	t.Helper()
	tree := Filled(t, 100<<20, "ext4", func(dir string) {
		dir = filepath.Join(dir, "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		Populate(t, dir, Without{Links: true, Symlinks: true, Special: true, Xattrs: true, ACLs: true, Owners: true,
			Sparse: true, OddNames: true, Large: l.Large})
	}, "mkfs.ext4", "-q", "-F")
	shown := Make(t, 300<<20, "mkfs.ext4", "-q", "-F")
	out := InMachine(t, l.script(len(images)), append([]string{tree, shown}, images...)...)
	dir, _ := Mount(t, shown, "ext4", "ro,noload")
	var all []Shown
	for i, statfs := range strings.Split(strings.TrimSpace(out), "\n") {
		all = append(all, Shown{images[i], filepath.Join(dir, fmt.Sprint(i)), statfs})
	}
	return all
}

// script fills n volumes, /dev/vde and on, from a tree on /dev/vdc, and copies what
// they then show to /dev/vdd.
func (l Linux) script(n int) string {
	options := l.Options
	if options == "" {
		options = "defaults"
	}
	var s strings.Builder
	fmt.Fprintf(&s, `
set -e
modprobe %s
mkdir /run/src /run/volume /run/out
mount -t ext4 -o ro /dev/vdc /run/src
mount -t ext4 /dev/vdd /run/out
`, l.Type)
	for i := range n {
		fmt.Fprintf(&s, `
mount -t %[1]s -o %[2]s /dev/vd%[3]c /run/volume
cp -r --preserve=timestamps /run/src/tree/. /run/volume/
cd /run/volume
%[4]s
mkdir deleted && touch deleted/{a..z}" was here for a while"
rm deleted/{c,d,e,x}* && touch deleted/"a name that takes the place of others, and more of it"
cd /
umount /run/volume
mount -t %[1]s -o %[2]s,ro /dev/vd%[3]c /run/volume
mkdir /run/out/%[5]d
cp -a /run/volume/. /run/out/%[5]d/
stat -f -c '%%S %%b %%f' /run/volume
umount /run/volume
`, l.Type, options, 'e'+i, l.Change, i)
	}
	s.WriteString("umount /run/out\n")
	return s.String()
}

// Compare compares what a reader shows of the image with what the Linux showed.
func (s Shown) Compare(t testing.TB, open func(fsys.Volume) (fsys.FileSystem, error)) {
	t.Helper()
	vol := Open(t, s.Image)
	f, err := open(vol)
	if err != nil {
		t.Fatal(err)
	}
	n := Compare(t, f, vol, s.Dir, Ignoring{
		Links: true, DirSizes: true, Allocated: true, Xattrs: true, MadeUp: true, Granularity: time.Nanosecond,
	})
	if n < 500 {
		t.Errorf("compared %d entries, want all", n)
	}
	info := f.Info()
	if got := fmt.Sprint(info.BlockSize, info.Size/info.BlockSize, info.Free/info.BlockSize); got != s.Statfs {
		t.Errorf("size and number of blocks, free ones: got %s, want %s", got, s.Statfs)
	}
	if info.Notes != nil {
		t.Errorf("notes on a volume that was unmounted: got %q, want none", info.Notes)
	}
	want := map[string]string{}
	for line := range strings.Lines(Run(t, "blkid", "-p", "-o", "export", s.Image)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		want[k] = strings.ReplaceAll(v, `\`, "")
	}
	if info.Label != want["LABEL"] || info.UUID != want["UUID"] {
		t.Errorf("label and UUID: got %q, %q, want %q, %q", info.Label, info.UUID, want["LABEL"], want["UUID"])
	}
}
