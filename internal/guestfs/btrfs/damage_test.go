package btrfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// filled makes an image with little in it of everything, and a log.
func filled(t *testing.T) fsys.Volume {
	t.Helper()
	image := fstest.Make(t, 128<<20, "mkfs.btrfs", "-q", "-m", "single", "-n", "4096")
	dir, unmount := fstest.Mount(t, image, "btrfs", "commit=300,compress=lzo")
	fstest.Populate(t, dir, fstest.Without{Large: 100})
	fstest.Sync(t, dir)
	name := filepath.Join(dir, "large", "synced")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(strings.Repeat("in the log ", 3000))
	if err := errors.Join(err, f.Sync(), f.Close(), os.Rename(name, name+" and renamed")); err != nil {
		t.Fatal(err)
	}
	copied := image + ".copy"
	fstest.Run(t, "cp", "--sparse=always", image, copied)
	unmount()
	return fstest.Open(t, copied)
}

func TestSurvivesDamage(t *testing.T) {
	vol := filled(t)
	f, err := Open(vol)
	if err != nil {
		t.Fatal(err)
	}
	if notes := f.Info().Notes; len(notes) != 1 || !strings.Contains(notes[0], "replayed") {
		t.Errorf("notes: got %q", notes)
	}
	rounds := 300
	if os.Getenv("BTRFS_DAMAGE") != "" {
		rounds = 20000
	}
	fstest.Damage(t, vol, Open, rounds/3)
	// Most damage is found by checksums: without them there is more to survive.
	fstest.Damage(t, vol, func(v fsys.Volume) (fsys.FileSystem, error) {
		return OpenWith([]fsys.Volume{v}, Options{trusting: true, VerifyData: true})
	}, rounds)
}

// withLog is a file system whose log adds a file, a name and an extent, and
// deletes two names.
func withLog() tiny {
	image := newTiny()
	items := append(tinyFileSystem(), named(256, 262, 6, 1, "deleted")...)
	image.put(tinyFiles, 7, append(items, item{key{262, inodeItem, 0}, tinyInode(0o100644, 0)})...)
	items = append(named(256, 261, 9, 1, "new"), named(256, 258, 10, 1, "second name")...)
	items = append(items, item{key{256, dirLogIndex, 4}, []byte{8, 0, 0, 0, 0, 0, 0, 0}}, item{key{256, inodeItem, 0}, tinyInode(0o40700, 0)},
		item{key{258, inodeItem, 0}, tinyInode(0o100600, 9000)}, item{key{258, extentData, 4096}, tinyExtent(1, 0, 4096, tinyData+8192, 4096, 0, 4096)},
		item{key{261, inodeItem, 0}, tinyInode(0o100600, 3)}, item{key{261, extentData, 0}, tinyInline(0, 3, []byte("new"))})
	image.put(tinyLog, 8, items...)
	image.log()
	return image
}

// names returns what is in the topmost directory.
func names(t *testing.T, f *FS) string {
	t.Helper()
	var found []string
	if err := f.ReadDir(f.Root(), func(e fsys.Entry) bool { found = append(found, e.Name); return true }); err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, ", ")
}

func TestALogIsReplayedAsAWholeOrNotAtAll(t *testing.T) {
	image := withLog()
	f, err := image.open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, f), "file, new, second name"; got != want || !strings.Contains(f.Info().Notes[0], "was replayed") {
		t.Errorf("got %q, %q, want %q", got, f.Info().Notes, want)
	}
	if _, err := f.Lookup(f.Root(), "deleted"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("look up what was deleted: got %v, want fs.ErrNotExist", err)
	}
	image.b[tinyLog+4000]++
	f, err = image.open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, f), "file, extents, link, dir, deleted"; got != want || !strings.Contains(f.Info().Notes[0], "cannot be replayed") {
		t.Errorf("with a damaged log: got %q, %q, want %q", got, f.Info().Notes, want)
	}
}
