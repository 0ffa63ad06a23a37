package ext4_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/ext4"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

func TestMain(m *testing.M) { fstest.Main(m) }

const mib = 1 << 20

// layouts are the ways in which volumes are laid out that readers see in the wild.
var layouts = []struct {
	name, fsType string
	size         int64
	mkfs         string
	without      fstest.Without
}{
	{"ext2 of revision 0", "ext2", 96 * mib, "mke2fs -q -F -t ext2 -r 0 -b 1024 -I 128", fstest.Without{Xattrs: true}},
	{"ext2 with blocks of 1 KiB", "ext2", 96 * mib, "mke2fs -q -F -t ext2 -b 1024 -I 128", fstest.Without{LargeXattrs: true}},
	{"ext2 with blocks of 4 KiB, without an index", "ext2", 96 * mib, "mke2fs -q -F -t ext2 -b 4096 -O ^dir_index,^filetype", fstest.Without{}},
	{"ext3", "ext3", 128 * mib, "mke2fs -q -F -t ext3 -b 2048", fstest.Without{LargeXattrs: true}},
	{"ext4 as Debian makes it", "ext4", 256 * mib, "mke2fs -q -F -t ext4", fstest.Without{LargeXattrs: true}},
	{"ext4 with all that fits in inodes", "ext4", 128 * mib,
		"mke2fs -q -F -t ext4 -b 1024 -I 512 -O 64bit,inline_data,ea_inode,large_dir,metadata_csum,metadata_csum_seed,orphan_file", fstest.Without{Large: 8000, LargeXattrs: true}},
	{"ext4 with inline data", "ext4", 128 * mib, "mke2fs -q -F -t ext4 -b 4096 -I 256 -O inline_data,^metadata_csum,sparse_super2,^resize_inode", fstest.Without{}},
	{"ext4 with clusters", "ext4", 256 * mib, "mke2fs -q -F -t ext4 -b 4096 -C 65536 -O bigalloc", fstest.Without{}},
	{"ext4 with clusters and blocks of 1 KiB", "ext4", 128 * mib, "mke2fs -q -F -t ext4 -b 1024 -C 16384 -O bigalloc,meta_bg,^resize_inode", fstest.Without{LargeXattrs: true}},
	{"ext4 with meta_bg", "ext4", 128 * mib, "mke2fs -q -F -t ext4 -b 1024 -g 1024 -O meta_bg,^resize_inode,^flex_bg,64bit", fstest.Without{LargeXattrs: true}},
	{"ext4 with uninit_bg", "ext4", 128 * mib, "mke2fs -q -F -t ext4 -b 2048 -I 128 -O uninit_bg,^metadata_csum,^64bit,^huge_file", fstest.Without{LargeXattrs: true}},
	{"ext4 without a journal, with descriptors of 64 bytes", "ext4", 96 * mib, "mke2fs -q -F -t ext4 -O ^has_journal,uninit_bg,^metadata_csum,64bit", fstest.Without{LargeXattrs: true}},
}

// populated fills a mounted file system with all that fstest knows, and with what
// readers of ext4 in particular tend to get wrong.
func populated(t *testing.T, fsType string, w fstest.Without) func(dir string) {
	return func(dir string) {
		fstest.Populate(t, dir, w)
		if fsType == "ext4" {
			if err := unix.Setxattr(filepath.Join(dir, "attributes", "5"), "user.of many blocks", []byte(strings.Repeat("value ", 500)), 0); err != nil {
				t.Log(err)
			}
		}
		small := filepath.Join(dir, "small")
		if err := os.Mkdir(small, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "bc", "def"} { // a directory that fits in its inode
			if err := os.WriteFile(filepath.Join(small, name), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAgreesWithTheKernel(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			image := fstest.Filled(t, l.size, l.fsType, populated(t, l.fsType, l.without), strings.Fields(l.mkfs)...)
			dir, _ := fstest.Mount(t, image, l.fsType, "ro")
			vol := fstest.Open(t, image)
			f, err := ext4.Open(vol)
			if err != nil {
				t.Fatal(err)
			}
			n := fstest.Compare(t, f, vol, dir, fstest.Ignoring{})
			t.Logf("%d entries", n)
			checkInfo(t, f, image, dir)
		})
	}
}

// checkInfo compares what a file system says of itself with what blkid and the
// kernel say.
func checkInfo(t *testing.T, f fsys.FileSystem, image, dir string) {
	t.Helper()
	info := f.Info()
	blkid := func(tag string) string {
		return strings.TrimSpace(fstest.Run(t, "blkid", "-p", "-s", tag, "-o", "value", image))
	}
	if got, want := [2]string{info.Type, info.UUID}, [2]string{blkid("TYPE"), blkid("UUID")}; got != want {
		t.Errorf("type and UUID: got %q, want %q", got, want)
	}
	if info.Notes != nil {
		t.Errorf("notes: got %q, want none", info.Notes)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if want := int64(st.Bfree) * st.Bsize; info.Free != want {
		t.Errorf("free: got %d, want %d", info.Free, want)
	}
}
