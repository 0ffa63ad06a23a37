package guestfs_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// mounting mounts every device of the discs from /dev/vdc on that the kernel finds a
// file system on, and prints what files it has.
const mounting = `
modprobe -a isofs vfat nls_cp437 nls_ascii nls_iso8859-1
mkdir /run/mnt
for dev in /dev/vd[c-z] /dev/vd[c-z][0-9]; do
	[ -b $dev ] || continue
	for type in iso9660 vfat; do
		mount -t $type -o ro $dev /run/mnt 2>/dev/null || continue
		echo "= ${dev#/dev/vd}"
		cd /run/mnt
		find . -type f -print0 | xargs -0 sha256sum
		cd /
		umount /run/mnt
		break
	done
done
`

// hybrids are options of xorriso that make discs which are partitioned disks, too.
var hybrids = map[string]string{
	"a master boot record": "-isohybrid-mbr /usr/lib/ISOLINUX/isohdpfx.bin -c isolinux/boot.cat -b isolinux/isolinux.bin BOOT",
	"a master boot record and a GUID partition table": "-isohybrid-mbr /usr/lib/ISOLINUX/isohdpfx.bin -c isolinux/boot.cat -b isolinux/isolinux.bin BOOT " +
		"-eltorito-alt-boot -e boot/efi.img -no-emul-boot -isohybrid-gpt-basdat",
	"a partition of its own": "-isohybrid-mbr /usr/lib/ISOLINUX/isohdpfx.bin -partition_offset 16 -c isolinux/boot.cat -b isolinux/isolinux.bin BOOT",
	"a partition appended":   "-append_partition 2 0xef EFI -appended_part_as_gpt -partition_offset 16",
	"no partitions":          "-c isolinux/boot.cat -b isolinux/isolinux.bin BOOT",
}

func TestHybridDiscsAsTheKernelSeesThem(t *testing.T) {
	const isolinux = "/usr/lib/ISOLINUX/isolinux.bin"
	if _, err := os.Stat(isolinux); err != nil {
		requires.Missing(t, "isolinux (install it with: make deps)")
	}
	tree := t.TempDir()
	efi := filepath.Join(tree, "boot", "efi.img")
	b, err := os.ReadFile(isolinux)
	if err != nil {
		t.Fatal(err)
	}
	write(t, string(b), tree, "isolinux", "isolinux.bin")
	write(t, "Readme", tree, "A file with a long name")
	write(t, strings.Repeat("data", 1<<20), tree, "data")
	write(t, "", efi)
	if err := os.Truncate(efi, 1440<<10); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "mkfs.vfat", efi)
	write(t, "loader", tree, "loader")
	fstest.Run(t, "mcopy", "-i", efi, filepath.Join(tree, "loader"), "::loader.efi")

	var names, paths []string
	for name, options := range hybrids {
		path := filepath.Join(t.TempDir(), "disc.iso")
		options = strings.NewReplacer("BOOT", "-no-emul-boot -boot-load-size 4 -boot-info-table", "EFI", efi).Replace(options)
		fstest.Run(t, "xorriso", append(append([]string{"-as", "mkisofs", "-quiet", "-R", "-o", path}, strings.Fields(options)...), tree)...)
		names, paths = append(names, name), append(paths, path)
	}
	shown := map[string][]string{} // by device
	device := ""
	for line := range strings.Lines(fstest.InMachine(t, mounting, paths...)) {
		line = strings.TrimSpace(line)
		if d, ok := strings.CutPrefix(line, "= "); ok {
			device = d
			shown[device] = nil
		} else {
			shown[device] = append(shown[device], line)
		}
	}
	for i, path := range paths {
		t.Run(names[i], func(t *testing.T) {
			letter, twin := string(rune('c'+i)), ""
			g := open(t, []string{path})
			volumes, err := g.Volumes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range volumes {
				number := strings.TrimPrefix(strings.TrimPrefix(v.Path, "disk-0/"), "p")
				device := letter + strings.TrimPrefix(number, "fs")
				want, ok := shown[device]
				delete(shown, device)
				if v.Type == "" && !ok {
					continue
				}
				if got := sums(t, g, v.Path); !ok || !slices.Equal(got, sorted(want)) {
					t.Errorf("%s: got %q, want %q", v.Path, got, want)
				}
				// A partition that begins with the disk is the same disc. Only one of
				// them is shown: the disk, if the partition is of type 0.
				for _, other := range []string{letter, letter + "1"} {
					if same, ok := shown[other]; ok && (number == "1" || number == "fs") && slices.Equal(want, sorted(same)) {
						twin = other
					}
				}
			}
			for device := range shown {
				if device == twin {
					continue
				}
				if strings.HasPrefix(device, letter) {
					t.Errorf("only the kernel mounts the disk's part %q", strings.TrimPrefix(device, letter))
				}
			}
		})
	}
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}

// sums prints what sha256sum does of all files below a path.
func sums(t *testing.T, g *guestfs.Guest, path string) []string {
	t.Helper()
	root, err := g.Resolve(t.Context(), path, true)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return nil
	}
	var list []string
	err = g.Walk(t.Context(), root.Node, guestfs.Match{Type: "f"}, func(e guestfs.Entry) error {
		f, err := g.OpenFile(e)
		if err = errors.Join(e.Err, err); err != nil {
			return err
		}
		b := make([]byte, f.Size())
		if err := f.ReadAt(t.Context(), b, 0); err != nil {
			return err
		}
		list = append(list, fmt.Sprintf("%x  ./%s", sha256.Sum256(b), e.Name))
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return sorted(list)
}

// TestADiscThatWasOverwrittenIsNotShown: its descriptors outlive a new partition table,
// and most of what is behind that.
func TestADiscThatWasOverwrittenIsNotShown(t *testing.T) {
	tree := t.TempDir()
	write(t, strings.Repeat("old data", 1<<19), tree, "data")
	disc := filepath.Join(t.TempDir(), "disc.iso")
	fstest.Run(t, "xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", disc, tree)
	part := fstest.Filled(t, 32<<20, "ext4", func(dir string) { write(t, "new", dir, "file") }, "mkfs.ext4", "-q")
	path := disk(t, part)
	fstest.Run(t, "dd", "if="+disc, "of="+path, "bs=512", "count=2047", "skip=1", "seek=1", "conv=notrunc", "status=none")
	g := open(t, []string{path})
	volumes, err := g.Volumes(t.Context())
	if err != nil || len(volumes) != 1 || volumes[0].Path != "disk-0/p1" || volumes[0].Mounted != "/" {
		t.Errorf("volumes: got %+v, %v, want the partition only", volumes, err)
	}
	if got := read(t, g, "/file"); got != "new" {
		t.Errorf("content: got %q, want new", got)
	}
}
