package xfs_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/xfs"
)

// Ways to shut a file system down (xfs_fs.h, XFS_FSOP_GOING_FLAGS_…).
const (
	shutFrozen = 0 // everything is written first, but for the log's end
	shutLogged = 1 // the log is written, and nothing else
	shutCut    = 2 // nothing is written any more
)

// shut ends all writing to a mounted file system at once, as a crash does.
func shut(t testing.TB, dir string, how uint32) {
	t.Helper()
	const goingDown = 0x8004587d // XFS_IOC_GOINGDOWN
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goingDown, int(how)); err != nil {
		t.Fatalf("shut the file system down: %v", err)
	}
}

// logs are the ways in which file systems with logs are made.
var logs = []struct {
	name   string
	mkfs   string
	rounds int // of many, those whose log goes around its end are compared, and few others
}{
	{"default", "mkfs.xfs -q -f", 3},
	{"reverse mappings, many extents", "mkfs.xfs -q -f -m rmapbt=1 -i nrext64=1", 3},
	{"without reflink and bigtime", "mkfs.xfs -q -f -m reflink=0,rmapbt=0,finobt=0,bigtime=0", 3},
	{"blocks of 1 KiB, directories of 8 KiB", "mkfs.xfs -q -f -b size=1024 -n size=8192", 3},
	{"inodes of 2 KiB, many groups", "mkfs.xfs -q -f -i size=2048 --unsupported -d agcount=20 -l size=2000b", 3},
	{"a log in units of 256 KiB", "mkfs.xfs -q -f -l su=256k", 2},
	{"a log in units of 4 KiB", "mkfs.xfs -q -f -l su=4k -s size=4096", 2},
	{"a small log that goes around", "mkfs.xfs -q -f --unsupported -l size=1400b", 40},
	{"a small log that goes around, in units", "mkfs.xfs -q -f --unsupported -l size=6m,su=64k -b size=1024", 40},
}

func TestReplaysTheLogAsTheKernelDoes(t *testing.T) {
	for i, l := range logs {
		t.Run(l.name, func(t *testing.T) {
			crashes(t, fstest.Make(t, 400<<20, strings.Fields(l.mkfs)...), uint64(i), 600, l.rounds)
		})
	}
}

// crashes makes a history on a file system that is shut down now and then, and
// compares what the disk then shows with what the kernel shows of a copy.
func crashes(t *testing.T, image string, seed uint64, steps, rounds int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	replayed, wraps := 0, 0
	for round := range rounds {
		how := []uint32{shutLogged, shutCut, shutFrozen, shutCut}[round%4]
		dir, unmount := fstest.Mount(t, image, "xfs", "noatime")
		h := &history{t: t, dir: dir, rng: rand.New(rand.NewPCG(seed, uint64(round)))}
		if round == 3 {
			together(t, h, dir, how)
		} else {
			h.run(steps/4 + rng.IntN(steps))
			shut(t, dir, how)
		}
		h.close()
		unmount()
		wrapped := around(t, image)
		if wrapped {
			wraps++
		}
		if wrapped || round < 4 || round%10 == 0 {
			replayed += same(t, image)
		}
		if t.Failed() {
			keep(t, image)
			return
		}
		if wraps == 2 {
			break
		}
		// The next round begins with what the kernel made of it.
		_, unmount = fstest.Mount(t, image, "xfs", "")
		unmount()
	}
	t.Logf("%d logs were replayed, %d of which went around the end", replayed, wraps)
	if replayed < 2 || rounds > 5 && wraps < 2 {
		t.Error("want more")
	}
}

// keep leaves a copy of an image on which a test failed where $XFS_KEEP says.
func keep(t *testing.T, image string) {
	if dir := os.Getenv("XFS_KEEP"); dir != "" {
		to := filepath.Join(dir, strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
		fstest.Run(t, "cp", "--sparse=always", image, to)
		t.Logf("the image is %s", to)
	}
}

// together makes several histories at a time, in which the file system is shut down.
func together(t *testing.T, first *history, dir string, how uint32) {
	t.Helper()
	var wg sync.WaitGroup
	list := []*history{first}
	for i := range uint64(3) {
		sub := filepath.Join(dir, fmt.Sprint("beside-", i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		list = append(list, &history{t: t, dir: sub, rng: rand.New(rand.NewPCG(99, i))})
	}
	begun := make(chan struct{}, 1)
	for _, h := range list {
		wg.Go(func() {
			h.run(200)
			select {
			case begun <- struct{}{}:
			default:
			}
			h.run(100_000)
		})
	}
	<-begun
	shut(t, dir, how)
	wg.Wait()
	for _, h := range list[1:] {
		h.close()
	}
}

// around reports whether what is to be replayed goes around the end of the log.
func around(t *testing.T, image string) bool {
	t.Helper()
	f, err := xfs.OpenWith(fstest.Open(t, image), xfs.Options{IgnoreLog: true})
	if err != nil {
		return false // the log may have made it sound
	}
	return f.LogWraps()
}

// same compares a reader of an image with what the kernel makes of a copy. It returns
// how many logs were replayed.
func same(t *testing.T, image string) (replayed int) {
	t.Helper()
	vol := fstest.Open(t, image)
	f, err := xfs.Open(vol)
	if err != nil {
		t.Error(err)
		return 0
	}
	mounted := filepath.Join(t.TempDir(), "copy.img")
	fstest.Run(t, "cp", "--sparse=always", image, mounted)
	now := time.Now()
	_, unmount := fstest.Mount(t, mounted, "xfs", "") // read-only it would not be replayed
	unmount()
	// There are kernels that give back what is reserved for a file when that is read.
	dir, unmount := fstest.Mount(t, mounted, "xfs", "ro,norecovery")
	defer unmount()
	if n := fstest.Compare(t, f, vol, dir, fstest.Ignoring{Since: now, XattrPrefixes: []string{"trusted.SGI_ACL_"}}); n < 40 {
		t.Errorf("compared %d entries", n)
	}
	for _, n := range f.Info().Notes {
		switch {
		case strings.Contains(n, "its journal was replayed in memory"):
			replayed++
		default:
			t.Errorf("note: %s", n)
		}
	}
	return replayed
}
