package ext4_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/ext4"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// format is one of a journal.
type format struct{ name, fsType, mkfs, options string }

// journals are the formats that kernels have written.
var journals = []format{
	{"of ext3", "ext3", "mke2fs -q -F -t ext3 -b 4096", ""},
	{"with data", "ext3", "mke2fs -q -F -t ext3 -b 1024", "data=journal"},
	{"small, which wraps", "ext4", "mke2fs -q -F -t ext4 -b 1024 -J size=1 -O ^metadata_csum,^64bit", ""},
	{"with checksums of transactions", "ext4", "mke2fs -q -F -t ext4 -b 1024 -O ^metadata_csum,^64bit", "journal_checksum"},
	{"with asynchronous commits", "ext4", "mke2fs -q -F -t ext4 -b 4096 -O ^metadata_csum,64bit", "journal_async_commit,data=writeback"},
	{"with checksums of blocks", "ext4", "mke2fs -q -F -t ext4 -b 4096 -O metadata_csum,64bit", ""},
	{"with checksums of blocks and data", "ext4", "mke2fs -q -F -t ext4 -b 2048 -O metadata_csum,^64bit,inline_data", "data=journal"},
	{"with checksums of blocks, small", "ext4", "mke2fs -q -F -t ext4 -b 1024 -J size=1 -O metadata_csum,64bit,orphan_file", ""},
}

func TestTheJournalIsReplayedAsTheKernelDoes(t *testing.T) {
	for _, j := range journals {
		t.Run(j.name, func(t *testing.T) {
			image := fstest.Make(t, 64*mib, strings.Fields(j.mkfs)...)
			dir, unmount := fstest.Mount(t, image, j.fsType, strings.TrimPrefix(j.options+",commit=300", ","))
			h := history{t: t, dir: dir, rng: rand.New(rand.NewPCG(7, 8))}
			for range 3 {
				h.run(150)
				torn := copied(t, image)
				if vol, f := open(t, torn); f != nil {
					sameAsReplayed(t, vol, f, torn, j.fsType)
				}
			}
			unmount()
		})
	}
}

// open opens an image that was not unmounted, and checks that it says so.
func open(t *testing.T, image string) (fsys.Volume, fsys.FileSystem) {
	t.Helper()
	vol := fstest.Open(t, image)
	f, err := ext4.Open(vol)
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	if n := f.Info().Notes; len(n) != 1 || !strings.Contains(n[0], "was replayed in memory") {
		t.Errorf("notes: got %q, want that the journal was replayed", n)
	}
	old, err := ext4.OpenWith(vol, ext4.Options{SkipJournal: true})
	if err == nil {
		if n := old.Info().Notes; len(n) != 1 || !strings.Contains(n[0], "not replayed") {
			t.Errorf("notes: got %q, want that the journal was not replayed", n)
		}
	}
	return vol, f
}

// sameAsReplayed compares a reader with what the kernel makes of a copy.
func sameAsReplayed(t *testing.T, vol fsys.Volume, f fsys.FileSystem, image, fsType string) {
	t.Helper()
	dir, unmount := fstest.Mount(t, copied(t, image), fsType, "noatime") // read-only it would not be replayed
	defer unmount()
	if n := fstest.Compare(t, f, vol, dir, fstest.Ignoring{}); n < 30 {
		t.Errorf("got %d entries, want more", n)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if want := int64(st.Bfree) * st.Bsize; f.Info().Free != want {
		t.Errorf("free: got %d, want %d", f.Info().Free, want)
	}
}

func copied(t *testing.T, image string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy.img")
	fstest.Run(t, "cp", "--sparse=always", image, to)
	return to
}

// history changes a file system at random.
type history struct {
	t     *testing.T
	dir   string
	rng   *rand.Rand
	names []string
	count int
}

func (h *history) must(err error) {
	h.t.Helper()
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOSPC) {
		h.t.Fatal(err)
	}
}

// run takes n steps, the last of which is synced.
func (h *history) run(n int) {
	h.t.Helper()
	for range n {
		h.step()
	}
	h.write(true)
}

func (h *history) step() {
	switch old := h.any(); h.rng.IntN(12) {
	case 0, 1, 2:
		h.write(false)
	case 3:
		h.write(true)
	case 4:
		h.must(os.RemoveAll(old))
	case 5:
		to := h.fresh()
		if err := os.Rename(old, to); err != nil {
			h.names = h.names[:len(h.names)-1]
		}
	case 6:
		if st, err := os.Lstat(old); err == nil && st.Mode().IsRegular() {
			h.must(os.Truncate(old, h.rng.Int64N(200<<10)))
		}
	case 7: // blocks of directories are revoked when it goes
		name := h.fresh()
		h.must(os.Mkdir(name, 0o755))
		for i := range h.rng.IntN(150) {
			h.must(os.WriteFile(filepath.Join(name, fmt.Sprintf("a name of some length to fill blocks %d", i)), nil, 0o600))
		}
	case 8:
		h.must(os.Symlink(strings.Repeat("t", 1+h.rng.IntN(200)), h.fresh()))
	case 9:
		if st, err := os.Lstat(old); err == nil && st.Mode()&fs.ModeSymlink == 0 {
			h.must(unix.Setxattr(old, "user.some", make([]byte, h.rng.IntN(300)), 0))
		}
	case 10:
		h.must(os.Lchown(old, h.rng.IntN(100000), h.rng.IntN(100000)))
	case 11:
		if st, err := os.Lstat(old); err == nil && st.Mode().IsRegular() {
			h.must(os.Link(old, h.fresh()))
		}
	}
}

func (h *history) fresh() string {
	h.count++
	name := filepath.Join(h.dir, fmt.Sprintf("f%d", h.count))
	h.names = append(h.names, name)
	return name
}

func (h *history) any() string {
	if len(h.names) == 0 {
		h.write(false)
	}
	return h.names[h.rng.IntN(len(h.names))]
}

// write writes a file whose blocks begin with the magic number of the journal, so
// that they are escaped where data goes through it.
func (h *history) write(sync bool) {
	f, err := os.Create(h.fresh())
	h.must(err)
	if err != nil {
		return
	}
	for range h.rng.IntN(4) {
		b := make([]byte, 1024+h.rng.IntN(9000))
		for i := range b {
			b[i] = byte(h.rng.Uint32())
		}
		copy(b, "\xc0\x3b\x39\x98")
		_, err := f.WriteAt(b, h.rng.Int64N(20)*4096)
		h.must(err)
	}
	if sync {
		h.must(f.Sync())
	}
	h.must(f.Close())
}
