package ext4_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/ext4"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// shut ends all writing to a mounted file system at once, as a crash does; logged
// says that the running transaction is committed before.
func shut(t *testing.T, dir string, logged bool) {
	t.Helper()
	const goingDown = 0x8004587d // EXT4_IOC_SHUTDOWN
	how := 2
	if logged {
		how = 1
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goingDown, how); err != nil {
		t.Fatalf("shut the file system down: %v", err)
	}
}

// journalOf returns the blocks of an image's journal, by their place on the volume,
// and how long each is.
func journalOf(t *testing.T, image string) (blocks []uint64, size int64) {
	t.Helper()
	f, err := ext4.OpenWith(fstest.Open(t, image), ext4.Options{SkipJournal: true})
	if err != nil {
		t.Fatal(err)
	}
	if blocks, err = ext4.Journal(f); err != nil {
		t.Fatal(err)
	}
	return blocks, f.Info().BlockSize
}

// TestJournalsThatWereNotWrittenToTheirEnd has blocks of the newest transactions as
// they were the last time around.
func TestJournalsThatWereNotWrittenToTheirEnd(t *testing.T) {
	for i, j := range journals {
		if !strings.Contains(j.name, "checksums of blocks") || strings.Contains(j.name, "small") {
			continue // nothing tells what was not written, or it is written back before the log ends
		}
		t.Run(j.name, func(t *testing.T) {
			image := fstest.Make(t, 64*mib, strings.Fields(j.mkfs)...)
			rng := rand.New(rand.NewPCG(41, uint64(i)))
			blocks, size := journalOf(t, image)
			tried, left := 0, 0
			for round := range uint64(4) {
				before := contents(t, image, blocks, size)
				dir, unmount := fstest.Mount(t, image, j.fsType, strings.TrimPrefix(j.options+",commit=300", ","))
				h := history{t: t, dir: filepath.Join(dir, fmt.Sprint("round-", round)), rng: rand.New(rand.NewPCG(uint64(i), round))}
				h.must(os.Mkdir(h.dir, 0o755))
				h.run(200)
				shut(t, dir, round%2 == 0)
				unmount()
				after := contents(t, image, blocks, size)
				var written []int
				for k := range after {
					if k > 0 && !slices.Equal(before[k], after[k]) {
						written = append(written, k)
					}
				}
				for range 4 {
					tried++
					left += unfinished(t, image, blocks, size, before, written, rng, j)
				}
				_, unmount = fstest.Mount(t, image, j.fsType, "")
				unmount()
			}
			t.Logf("%d of %d lost a transaction", left, tried)
			if left == 0 {
				t.Error("want some that lost a transaction")
			}
		})
	}
}

func contents(t *testing.T, image string, blocks []uint64, size int64) [][]byte {
	t.Helper()
	f := fstest.Open(t, image)
	var list [][]byte
	for _, b := range blocks {
		p := make([]byte, size)
		if err := f.ReadAt(p, int64(b)*size); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

// unfinished puts older content into some of the last blocks that were written to a
// journal, and compares what is read with what the kernel makes of it. It returns 1
// if less was replayed than there was.
func unfinished(t *testing.T, image string, blocks []uint64, size int64, before [][]byte, written []int, rng *rand.Rand, j format) int {
	t.Helper()
	whole, err := ext4.Open(fstest.Open(t, image))
	if err != nil {
		t.Fatal(err)
	}
	torn := copied(t, image)
	f, err := os.OpenFile(torn, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := min(1+rng.IntN(60), len(written))
	for i, k := range written[len(written)-n:] {
		if i == 0 || rng.IntN(2) == 0 {
			if _, err := f.WriteAt(before[k], int64(blocks[k])*size); err != nil {
				t.Fatal(err)
			}
		}
	}
	vol := fstest.Open(t, torn)
	got, err := ext4.Open(vol)
	mounted := copied(t, torn)
	requires.Root(t)
	dir := t.TempDir()
	mountErr := unix.Mount(loop(t, mounted), dir, j.fsType, unix.MS_NOATIME, "")
	switch {
	case mountErr != nil && err == nil:
		t.Errorf("the kernel does not mount it (%v), and it was read: %q", mountErr, got.Info().Notes)
	case mountErr == nil && err != nil:
		t.Errorf("the kernel mounts it: got %v", err)
	}
	if mountErr != nil {
		return 0
	}
	defer fstest.Unmounting(t, dir)()
	if err != nil {
		return 0
	}
	if n := fstest.Compare(t, got, vol, dir, fstest.Ignoring{}); n < 5 {
		t.Errorf("compared %d entries", n)
	}
	if t.Failed() {
		keep(t, torn)
		t.FailNow()
	}
	if slices.Equal(got.Info().Notes, whole.Info().Notes) {
		return 0
	}
	return 1
}

// keep leaves a copy of an image on which a test failed where $EXT4_KEEP says.
func keep(t *testing.T, image string) {
	if dir := os.Getenv("EXT4_KEEP"); dir != "" {
		fstest.Run(t, "cp", "--sparse=always", image, filepath.Join(dir, strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())))
	}
}

// loop attaches an image to a device that goes with its last use.
func loop(t *testing.T, image string) string {
	t.Helper()
	device := strings.TrimSpace(fstest.Run(t, "losetup", "-f", "--show", image))
	t.Cleanup(func() { fstest.Run(t, "losetup", "-d", device) })
	return device
}

func TestFastCommitsAreTold(t *testing.T) {
	image := fstest.Make(t, 64*mib, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "fast_commit")
	dir, unmount := fstest.Mount(t, image, "ext4", "commit=300")
	write := func(name, content string, sync func(*os.File) error) {
		f, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			_, err = f.WriteString(content)
		}
		if err == nil && sync != nil {
			err = sync(f)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write("committed", "with all others", func(f *os.File) error { return unix.Syncfs(int(f.Fd())) })
	for i := range 3 {
		write(fmt.Sprint("fast-", i), "synced alone", (*os.File).Sync)
	}
	torn := copied(t, image)
	unmount()
	f, err := ext4.Open(fstest.Open(t, torn))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(f.Info().Notes, " ")
	if !strings.Contains(text, "fast commits, which were not replayed: what was synced in the last seconds may be missing") {
		t.Errorf("notes: got %q", text)
	}
	if _, err := f.Lookup(f.Root(), "committed"); err != nil {
		t.Errorf("a file of the last whole commit: %v", err)
	}
	// And they are what is missing: the kernel has them.
	after, _ := fstest.Mount(t, copied(t, torn), "ext4", "noatime")
	for i := range 3 {
		name := fmt.Sprint("fast-", i)
		_, err := f.Lookup(f.Root(), name)
		if b, kernelErr := os.ReadFile(filepath.Join(after, name)); kernelErr != nil || string(b) != "synced alone" || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the kernel has %q, %v; got %v", name, b, kernelErr, err)
		}
	}
}

func TestAJournalOnAnotherDeviceIsTold(t *testing.T) {
	requires.Root(t)
	journalImage := fstest.Make(t, 16*mib, "mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev")
	journal := loop(t, journalImage)
	image := filepath.Join(t.TempDir(), "volume.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64*mib)); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "device="+journal, image)
	id := strings.TrimSpace(fstest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", journal))
	notes := func() string {
		t.Helper()
		f, err := ext4.Open(fstest.Open(t, image))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(f.Info().Notes, " ")
	}
	if text := notes(); !strings.Contains(text, "Its journal is on another device (UUID "+id+").") {
		t.Errorf("unmounted in order: got notes %q", text)
	}
	dir, unmount := fstest.Mount(t, image, "ext4", "journal_path="+journal)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	shut(t, dir, true)
	unmount()
	if text := notes(); !strings.Contains(text, "and its journal is on another device (UUID "+id+"): what that holds is missing") {
		t.Errorf("after a crash: got notes %q", text)
	}
	if _, err := ext4.Open(fstest.Open(t, journalImage)); err == nil || !strings.Contains(err.Error(), "the volume is a journal of another file system") {
		t.Errorf("the journal as a volume: got %v", err)
	}
}
