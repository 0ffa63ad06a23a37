package xfs_test

import (
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/xfs"
)

func TestMain(m *testing.M) { fstest.Main(m) }

func TestAgainstTheKernel(t *testing.T) {
	for name, mkfs := range map[string][]string{
		"default":               {"mkfs.xfs", "-q", "-f"},
		"without bigtime":       {"mkfs.xfs", "-q", "-f", "-m", "bigtime=0"},
		"without reflink":       {"mkfs.xfs", "-q", "-f", "-m", "reflink=0,rmapbt=0,finobt=0"},
		"blocks of 1 KiB":       {"mkfs.xfs", "-q", "-f", "-b", "size=1024"},
		"directories of 16 KiB": {"mkfs.xfs", "-q", "-f", "-n", "size=16384"},
		"inodes of 2 KiB":       {"mkfs.xfs", "-q", "-f", "-i", "size=2048"},
		"many groups":           {"mkfs.xfs", "-q", "-f", "-d", "agcount=16"},
	} {
		t.Run(name, func(t *testing.T) {
			image := fstest.Filled(t, 1200<<20, "xfs", func(dir string) { fstest.Populate(t, dir, fstest.Without{}) }, mkfs...)
			dir, _ := fstest.Mount(t, image, "xfs", "ro,norecovery")
			vol := fstest.Open(t, image)
			f, err := xfs.Open(vol)
			if err != nil {
				t.Fatal(err)
			}
			n := fstest.Compare(t, f, vol, dir, fstest.Ignoring{
				// The kernel shows access lists a second time, as they are stored.
				XattrPrefixes: []string{"trusted.SGI_ACL_"}})
			if n < 2700 {
				t.Errorf("compared %d entries", n)
			}
			if notes := f.Info().Notes; len(notes) > 0 {
				t.Errorf("notes of what was unmounted in order: %q", notes)
			}
		})
	}
}

func TestDamage(t *testing.T) {
	image := fstest.Filled(t, 320<<20, "xfs", func(dir string) { fstest.Populate(t, dir, fstest.Without{Large: 800}) }, "mkfs.xfs", "-q", "-f")
	fstest.Damage(t, fstest.Open(t, image), xfs.Open, 150)
}
