package ntfs_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// everything fills a volume with all that is read.
func everything(t testing.TB, dir string) {
	t.Helper()
	w := without
	w.Large = 300
	fstest.Populate(t, dir, w)
	must(t, os.WriteFile(filepath.Join(compressing(t, dir), "file"), text(1, 300000), 0o644))
	for name, point := range map[string][]byte{
		"drive": point(symlink, link(`\??\C:\deep\level-0`, 0)), "cloud": point(0x9000601a, []byte("data")), "linux": point(0xa000001d, []byte("\x02\x00\x00\x00x")),
	} {
		at := filepath.Join(dir, "links", name)
		must(t, os.WriteFile(at, []byte(name), 0o644))
		must(t, unix.Lsetxattr(at, "system.ntfs_reparse_data", point, 0))
	}
	content := text(2, 100000)
	for algorithm, m := range [][2]string{{"xpress", "4K"}, {"lzx", "32K"}} {
		at := filepath.Join(dir, "wof-"+m[0])
		must(t, os.WriteFile(at, nil, 0o644))
		must(t, unix.Setxattr(at, "user.WofCompressedData", packed(t, content, m[0], m[1]), 0))
		must(t, os.Truncate(at, int64(len(content))))
		must(t, unix.Setxattr(at, "system.ntfs_reparse_data", wofPoint(2, byte(algorithm)), 0))
	}
	must(t, unix.Setxattr(filepath.Join(dir, "wof-lzx"), "system.ntfs_ea", []byte("\x10\x00\x00\x00\x00\x02\x03\x00ab\x00xyz\x00\x00"), 0))
}

func TestDamageIsSurvived(t *testing.T) {
	image := made(t, 64<<20, "-c 1024", "compression", func(dir string) { everything(t, dir) })
	fstest.Damage(t, fstest.Open(t, image), opener, 300)
}

func TestReadersDoNotDisturbEachOther(t *testing.T) {
	image := made(t, 64<<20, "", "compression", func(dir string) { everything(t, dir) })
	f, _ := opened(t, image)
	var want []string
	var wg sync.WaitGroup
	all := make([][]string, 4)
	for i := range all {
		wg.Go(func() { all[i] = listed(t, f) })
	}
	wg.Wait()
	for i, got := range all {
		if i == 0 {
			want = got
		}
		if len(got) < 300 || len(got) != len(want) {
			t.Fatalf("reader %d: got %d files, want %d", i, len(got), len(want))
		}
		for j := range got {
			if got[j] != want[j] {
				t.Fatalf("reader %d: got %q, want %q", i, got[j], want[j])
			}
		}
	}
}

// listed returns all files with what they hold.
func listed(t *testing.T, f fsys.FileSystem) []string {
	var list []string
	var visit func(id fsys.ID, path string)
	visit = func(id fsys.ID, path string) {
		err := f.ReadDir(id, func(e fsys.Entry) bool {
			at := path + "/" + e.Name
			a, err := f.Stat(e.ID)
			if err != nil {
				t.Errorf("stat %s: %v", at, err)
				return true
			}
			if a.Mode.IsDir() {
				visit(e.ID, at)
				return true
			}
			if a.Mode.IsRegular() {
				b := make([]byte, a.Size)
				if _, err := f.ReadAt(e.ID, b, 0); err != nil && a.Size > 0 {
					t.Errorf("read %s: %v", at, err)
				}
				at += string(b)
			}
			list = append(list, at)
			return true
		})
		if err != nil {
			t.Errorf("read %s: %v", path, err)
		}
	}
	visit(f.Root(), "")
	return list
}
