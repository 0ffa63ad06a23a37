package exfat_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/exfat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// inLinux fills the volumes /dev/vdc and /dev/vdd from a tree on /dev/vde, and copies
// what it then shows there to /dev/vdf.
const inLinux = `
set -e
modprobe exfat
mkdir /run/src /run/exfat /run/out
mount -t ext4 -o ro /dev/vde /run/src
mount -t ext4 /dev/vdf /run/out
for disk in c d; do
	mount -t exfat /dev/vd$disk /run/exfat
	cp -r --preserve=timestamps /run/src/tree/. /run/exfat/
	cd /run/exfat
	for i in {1..40}; do
		for f in one two; do printf %09000d $i >>"fragments of $f"; done
	done
	mkdir deleted && touch deleted/{a..z}" was here for a while"
	rm deleted/{c,d,e,x}* && touch deleted/"a name that takes the place of others, and more of it"
	mkdir fragmented other
	for i in {1..80}; do : >"fragmented/a file with a longer name $i"; printf %02000d 0 >other/$i; done
	touch readonly && chmod a-w readonly
	TZ=UTC touch -d '2024-02-29 12:34:56.78' hundredths
	cd /
	umount /run/exfat
	mount -t exfat -o ro /dev/vd$disk /run/exfat
	mkdir /run/out/$disk
	cp -a /run/exfat/. /run/out/$disk/
	stat -f -c '%S %b %f' /run/exfat
	umount /run/exfat
done
umount /run/out
`

func TestReadsWhatLinuxWrote(t *testing.T) {
	images := []string{
		fstest.Make(t, 60<<20, "mkfs.exfat", "-c", "512", "-L", "smallest"),
		fstest.Make(t, 200<<20, "mkfs.exfat", "-c", "32K"),
	}
	tree := fstest.Filled(t, 100<<20, "ext4", func(dir string) {
		dir = filepath.Join(dir, "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fstest.Populate(t, dir, fstest.Without{Links: true, Symlinks: true, Special: true, Xattrs: true, ACLs: true, Owners: true,
			Sparse: true, OddNames: true, Large: 300})
	}, "mkfs.ext4", "-q", "-F")
	shown := fstest.Make(t, 300<<20, "mkfs.ext4", "-q", "-F")
	out := fstest.InMachine(t, inLinux, append(images, tree, shown)...)
	dir, _ := fstest.Mount(t, shown, "ext4", "ro,noload")
	statfs := strings.Split(strings.TrimSpace(out), "\n")
	for i, image := range images {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			vol := fstest.Open(t, image)
			f, err := exfat.Open(vol)
			if err != nil {
				t.Fatal(err)
			}
			n := fstest.Compare(t, f, vol, filepath.Join(dir, "cd"[i:i+1]), fstest.Ignoring{
				Links: true, DirSizes: true, Allocated: true, Xattrs: true, MadeUp: true, Granularity: time.Nanosecond,
			})
			if n < 500 {
				t.Errorf("compared %d entries, want all", n)
			}
			info := f.Info()
			if got := fmt.Sprint(info.BlockSize, info.Size/info.BlockSize, info.Free/info.BlockSize); got != statfs[i] {
				t.Errorf("size and number of blocks, free ones: got %s, want %s", got, statfs[i])
			}
			if info.Notes != nil {
				t.Errorf("notes on a volume that was unmounted: got %q, want none", info.Notes)
			}
			identify(t, image, info.Label, info.UUID)
		})
	}
}

// identify compares what blkid prints.
func identify(t *testing.T, image, label, uuid string) {
	t.Helper()
	want := map[string]string{}
	for line := range strings.Lines(fstest.Run(t, "blkid", "-p", "-o", "export", image)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		want[k] = strings.ReplaceAll(v, `\`, "")
	}
	if label != want["LABEL"] || uuid != want["UUID"] {
		t.Errorf("label and UUID: got %q, %q, want %q, %q", label, uuid, want["LABEL"], want["UUID"])
	}
}
