package fat_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// inLinux fills each of the volumes /dev/vdc to /dev/vde from a tree on /dev/vdf,
// and copies what it then shows there to /dev/vdg.
const inLinux = `
set -e
modprobe vfat
mkdir /run/src /run/fat /run/out
mount -t ext4 -o ro /dev/vdf /run/src
mount -t ext4 /dev/vdg /run/out
for disk in c d e; do
	mount -t vfat -o utf8,tz=UTC,shortname=winnt /dev/vd$disk /run/fat
	cp -r --preserve=timestamps /run/src/tree/. /run/fat/
	cd /run/fat
	for i in {1..100}; do
		for f in one two; do printf %09000d $i >>"fragments of $f"; done
	done
	mkdir deleted && touch deleted/{a..z}" was here for a while"
	rm deleted/{c,d,e,x}* && touch deleted/"a name that takes the place of others, and more of it"
	touch lower.txt UPPER.TXT lower.EXT MIXED.ext Camel.Txt "ümläut" "ÜMLÄUT.TXT" åäö.é "with space" "a+b=c;[d],e" KANJI日本.txt x.y.z .dot
	chmod a-w UPPER.TXT
	cd /
	umount /run/fat
	mount -t vfat -o utf8,tz=UTC,ro /dev/vd$disk /run/fat
	mkdir /run/out/$disk
	cp -a /run/fat/. /run/out/$disk/
	stat -f -c '%S %b %f' /run/fat
	umount /run/fat
done
umount /run/out
`

func TestReadsWhatLinuxWrote(t *testing.T) {
	var images []string
	for _, mkfs := range [][]string{
		{"mkfs.vfat", "-F", "12", "-s", "16", "-n", "TWELVE"}, {"mkfs.vfat", "-F", "16", "-n", "label 16"},
		{"mkfs.vfat", "-F", "32", "-s", "1", "-i", "a1b2c3d4"},
	} {
		size := int64(30 << 20)
		if mkfs[2] != "12" {
			size = 120 << 20
		}
		images = append(images, fstest.Make(t, size, mkfs...))
	}
	tree := fstest.Filled(t, 100<<20, "ext4", func(dir string) {
		dir = filepath.Join(dir, "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fstest.Populate(t, dir, fstest.Without{Links: true, Symlinks: true, Special: true, Xattrs: true, ACLs: true, Owners: true,
			Sparse: true, OddNames: true, Large: 500})
	}, "mkfs.ext4", "-q", "-F")
	shown := fstest.Make(t, 300<<20, "mkfs.ext4", "-q", "-F")
	out := fstest.InMachine(t, inLinux, append(images, tree, shown)...)
	dir, _ := fstest.Mount(t, shown, "ext4", "ro,noload")
	statfs := strings.Split(strings.TrimSpace(out), "\n")
	for i, image := range images {
		t.Run(fmt.Sprintf("fat%d", []int{12, 16, 32}[i]), func(t *testing.T) {
			vol := fstest.Open(t, image)
			f, err := fat.Open(vol)
			if err != nil {
				t.Fatal(err)
			}
			n := fstest.Compare(t, f, vol, filepath.Join(dir, "cde"[i:i+1]), fstest.Ignoring{
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
