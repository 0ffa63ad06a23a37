package btrfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// compressible returns n bytes of which some repeat what was before, near and far.
func compressible(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+5000)
	for len(b) < n {
		switch kind := rng.IntN(4); {
		case kind == 0 && len(b) > 0:
			from := max(0, len(b)-1-rng.IntN(70000))
			b = append(b, b[from:min(len(b), from+1+rng.IntN(3000))]...)
		case kind == 1:
			b = append(b, bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(5000))...)
		default:
			for range 1 + rng.IntN(400) {
				b = append(b, byte(rng.Uint32()&uint32(1<<(1+rng.IntN(8))-1)))
			}
		}
	}
	return b[:n]
}

// rewritten makes files whose extents are overwritten, cut, and shared in parts.
func rewritten(t *testing.T, dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(9, 10))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 120 {
		n := []int{1, 30, 500, 2000, 2048, 4000, 4096, 5000, 40000, 131072, 131073, 400000}[i%12]
		must(os.WriteFile(filepath.Join(dir, fmt.Sprint("file-", i)), compressible(rng, n), 0o600))
	}
	fstest.Sync(t, dir)
	for i := range 120 {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("file-", i)), os.O_RDWR, 0)
		must(err)
		st, err := f.Stat()
		must(err)
		for range rng.IntN(5) {
			_, err := f.WriteAt(compressible(rng, 1+rng.IntN(20000)), rng.Int64N(st.Size()+10000))
			must(err)
			if rng.IntN(3) == 0 {
				must(f.Sync())
			}
		}
		from, err := os.Open(filepath.Join(dir, fmt.Sprint("file-", (i+1+rng.IntN(119))%120)))
		must(err)
		if i%4 == 0 {
			whole, err := os.Create(filepath.Join(dir, fmt.Sprint("clone-", i)))
			must(err)
			must(unix.IoctlFileClone(int(whole.Fd()), int(from.Fd())))
			must(whole.Close())
		}
		source, err := from.Stat()
		must(err)
		if blocks := source.Size() / 4096; blocks > 0 {
			at := rng.Int64N(blocks)
			must(unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{
				Src_fd: int64(from.Fd()), Src_offset: uint64(at * 4096), Src_length: uint64(4096 * (1 + rng.Int64N(blocks-at))),
				Dest_offset: uint64(rng.Int64N(100) * 4096),
			}))
		}
		if i%5 == 0 {
			must(f.Truncate(rng.Int64N(st.Size() + 1)))
		}
		must(errors.Join(f.Close(), from.Close()))
	}
}

func TestReadsWhatWasCompressedSharedAndCut(t *testing.T) {
	for _, options := range []string{"compress-force=zlib:9", "compress-force=lzo", "compress-force=zstd:15", "compress=no", "max_inline=4095,compress=lzo",
		"max_inline=4095,compress=zlib", "max_inline=4095,compress=zstd"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
			dir, _ := fstest.Mount(t, image, "btrfs", options)
			rewritten(t, dir)
			fstest.Sync(t, dir)
			compare(t, image, dir, btrfs.Options{}, fstest.Ignoring{})
			f := compare(t, image, dir, btrfs.Options{VerifyData: true}, fstest.Ignoring{})
			if options != "compress=no" {
				someAreOpaque(t, f)
			}
		})
	}
}

// someAreOpaque sees that there is something that is not stored as it is.
func someAreOpaque(t *testing.T, f *btrfs.FS) {
	t.Helper()
	found := 0
	err := f.ReadDir(f.Root(), func(e fsys.Entry) bool {
		list, err := f.Extents(e.ID, 0, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			if x.Kind == fsys.Opaque && x.Len > 4096 {
				found++
			}
		}
		return true
	})
	if err != nil || found < 20 {
		t.Errorf("got %d files that are compressed, %v", found, err)
	}
}

// TestReadsLZOOfManyLengths meets lengths that would cross a sector, too.
func TestReadsLZOOfManyLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	want := make([]byte, 24<<20)
	for at := 0; at < len(want); at += 4096 {
		for i := range rng.IntN(400) {
			want[at+i] = byte(rng.Uint32())
		}
	}
	image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
	dir, _ := fstest.Mount(t, image, "btrfs", "compress-force=lzo")
	if err := os.WriteFile(filepath.Join(dir, "file"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	fstest.Sync(t, dir)
	f, err := btrfs.Open(fstest.Open(t, image))
	if err != nil {
		t.Fatal(err)
	}
	id, err := f.Lookup(f.Root(), "file")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(id, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got other bytes, %v", err)
	}
}

func TestReadsWhatOtherToolsMake(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(image string)
	}{
		{"converted from ext4", func(image string) {
			fstest.Run(t, "mkfs.ext4", "-q", "-F", image)
			dir, unmount := fstest.Mount(t, image, "ext4", "")
			if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("of ext4"), 1e6), 0o600); err != nil {
				t.Fatal(err)
			}
			unmount()
			fstest.Run(t, "btrfs-convert", image)
		}},
		{"with another UUID than its tree blocks", func(image string) {
			fstest.Run(t, "mkfs.btrfs", "-q", image)
			fstest.Run(t, "btrfstune", "-m", image)
		}},
		{"with lists of free space", func(image string) { fstest.Run(t, "mkfs.btrfs", "-q", "-R", "^free-space-tree", image) }},
		{"without newer features", func(image string) {
			fstest.Run(t, "mkfs.btrfs", "-q", "-O", "^extref,^skinny-metadata,^no-holes", "-R", "^free-space-tree", image)
		}},
		{"with quotas", func(image string) { fstest.Run(t, "mkfs.btrfs", "-q", "-R", "quota", image) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "image")
			if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, imageSize)); err != nil {
				t.Fatal(err)
			}
			c.make(image)
			dir, _ := fstest.Mount(t, image, "btrfs", "")
			if err := os.Mkdir(filepath.Join(dir, "more"), 0o755); err != nil {
				t.Fatal(err)
			}
			fstest.Populate(t, filepath.Join(dir, "more"), fstest.Without{Large: 100})
			fstest.Sync(t, dir)
			f := compare(t, image, dir, btrfs.Options{VerifyData: true}, fstest.Ignoring{})
			if want := fstest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", image); f.Info().UUID+"\n" != want {
				t.Errorf("UUID: got %s, want %s", f.Info().UUID, want)
			}
		})
	}
}

func TestReadsWithSimpleQuotas(t *testing.T) {
	image := fstest.Make(t, imageSize, "mkfs.btrfs", "-q")
	dir, _ := fstest.Mount(t, image, "btrfs", "")
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	args := [2]uint64{4} // struct btrfs_ioctl_quota_ctl_args: enable simple quotas
	if err := ioctl(f, 0xc0109428, &args); err != nil {
		t.Skipf("the kernel knows no simple quotas: %v", err)
	}
	fstest.Populate(t, dir, fstest.Without{Large: 100})
	fstest.Sync(t, dir)
	compare(t, image, dir, btrfs.Options{VerifyData: true}, fstest.Ignoring{})
}
