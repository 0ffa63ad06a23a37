package btrfs_test

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

const imageSize = 512 << 20

func TestReadsWhatTheKernelShows(t *testing.T) {
	for _, c := range []struct {
		name, mount string
		mkfs        []string
		large       int
	}{
		{"by default", "", nil, 3000},
		{"zlib, xxhash64", "compress-force=zlib", []string{"--csum", "xxhash"}, 100},
		{"lzo, sha256, small tree blocks, hole items", "compress-force=lzo", []string{"--csum", "sha256", "-n", "4096", "-O", "^no-holes"}, 1000},
		{"zstd, blake2b, large tree blocks", "compress-force=zstd", []string{"--csum", "blake2", "-n", "65536"}, 100},
		{"mixed, one copy, no checksums of data", "nodatasum", []string{"--mixed", "-m", "single", "-d", "single", "-L", "a label"}, 100},
		{"two copies, nothing inline", "max_inline=0,nodatacow", []string{"-m", "dup", "-d", "dup"}, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			image := fstest.Make(t, imageSize, append([]string{"mkfs.btrfs", "-q"}, c.mkfs...)...)
			dir, _ := fstest.Mount(t, image, "btrfs", c.mount)
			fstest.Populate(t, dir, fstest.Without{Large: c.large})
			fstest.Sync(t, dir)
			compare(t, image, dir, btrfs.Options{}, fstest.Ignoring{})
			compare(t, image, dir, btrfs.Options{VerifyData: true}, fstest.Ignoring{})
		})
	}
}

// compare compares an image with what is mounted of it.
func compare(t *testing.T, image, dir string, o btrfs.Options, ignore fstest.Ignoring) *btrfs.FS {
	t.Helper()
	vol := fstest.Open(t, image)
	f, err := btrfs.OpenWith([]fsys.Volume{vol}, o)
	if err != nil {
		t.Fatal(err)
	}
	n := fstest.Compare(t, f, vol, dir, ignore)
	t.Logf("%d entries, %+v", n, f.Info())
	return f
}

// colliding returns two names of which CRC-32C gives the same.
func colliding() (a, b string) {
	table := crc32.MakeTable(crc32.Castagnoli)
	seen := map[uint32]string{}
	for i := 0; ; i++ {
		name := fmt.Sprint("user.", i*7919)
		sum := crc32.Checksum([]byte(name), table)
		if other, ok := seen[sum]; ok && len(other) == len(name) {
			return other, name
		}
		seen[sum] = name
	}
}

func TestTellsNamesWithTheSameHashApart(t *testing.T) {
	image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
	dir, _ := fstest.Mount(t, image, "btrfs", "")
	a, b := colliding()
	for _, name := range []string{a, b} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(name), 0o600), unix.Setxattr(dir, name, []byte("value of "+name), 0)); err != nil {
			t.Fatal(err)
		}
	}
	fstest.Sync(t, dir)
	compare(t, image, dir, btrfs.Options{}, fstest.Ignoring{})
}

func TestManyMayReadAtOnce(t *testing.T) {
	image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q", "-n", "4096")
	dir, _ := fstest.Mount(t, image, "btrfs", "compress=zstd")
	fstest.Populate(t, dir, fstest.Without{Large: 500})
	fstest.Sync(t, dir)
	vol := fstest.Open(t, image)
	f, err := btrfs.OpenWith([]fsys.Volume{vol}, btrfs.Options{VerifyData: true, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var walks sync.WaitGroup
	for range 4 {
		walks.Go(func() { fstest.Compare(t, f, vol, dir, fstest.Ignoring{}) })
	}
	walks.Wait()
}
