package btrfs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// history changes a mounted file system at random, told by a seed.
type history struct {
	t   *testing.T
	dir string
	rng *rand.Rand
}

func (h *history) pick(from ...string) string {
	return filepath.Join(h.dir, from[h.rng.IntN(len(from))])
}

// name is one of few, so that they collide.
func (h *history) name() string {
	at := h.pick("", "d1", "d2", "d1/e")
	return filepath.Join(at, fmt.Sprint(string(rune('a'+h.rng.IntN(12))), strings.Repeat("-long", h.rng.IntN(2)*20)))
}

// existing is the name of a file that there is.
func (h *history) existing() string {
	for range 50 {
		name := h.name()
		if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() {
			return name
		}
	}
	return h.name()
}

func (h *history) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(h.rng.Uint32() & 15)
	}
	return b
}

// write opens a file and calls f with it.
func (h *history) open(name string, flags int, f func(*os.File)) {
	file, err := os.OpenFile(name, os.O_RDWR|flags, 0o644)
	if err != nil {
		return
	}
	f(file)
	file.Close()
}

func (h *history) sync(name string) {
	if f, err := os.Open(name); err == nil {
		if st, err := f.Stat(); err == nil && (st.IsDir() || st.Mode().IsRegular()) {
			if err := f.Sync(); err != nil {
				h.t.Error(err)
			}
		}
		f.Close()
	}
}

// step does one thing, which may fail: then nothing happens.
func (h *history) step() {
	size := []int{0, 10, 3000, 4096, 20000, 150000}[h.rng.IntN(6)]
	at := int64(h.rng.IntN(40)) * 4096
	switch h.rng.IntN(24) {
	case 0, 1, 2:
		h.open(h.name(), os.O_CREATE|os.O_TRUNC, func(f *os.File) { f.Write(h.bytes(size)) })
	case 3, 4, 5:
		h.open(h.existing(), 0, func(f *os.File) { f.WriteAt(h.bytes(size), at+int64(h.rng.IntN(3)*100)) })
	case 6:
		os.Truncate(h.existing(), at+int64(h.rng.IntN(2)*77))
	case 7:
		h.open(h.existing(), 0, func(f *os.File) {
			unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(size))
		})
	case 8:
		h.open(h.existing(), 0, func(f *os.File) {
			unix.Fallocate(int(f.Fd()), uint32(h.rng.IntN(2))*unix.FALLOC_FL_KEEP_SIZE, at, int64(size)+1)
		})
	case 9:
		os.Link(h.existing(), h.name())
	case 10, 11:
		os.Rename(h.existing(), h.name())
	case 12:
		os.Remove(h.existing())
	case 13:
		unix.Lsetxattr(h.existing(), fmt.Sprint("user.", h.rng.IntN(5)), h.bytes(h.rng.IntN(200)), 0)
	case 14:
		unix.Lremovexattr(h.existing(), fmt.Sprint("user.", h.rng.IntN(5)))
	case 15:
		if name := h.name(); os.Mkdir(name, 0o755) != nil {
			syscall.Rmdir(name)
		}
	case 16:
		os.Symlink("target "+fmt.Sprint(size), h.name())
	case 17:
		os.Chmod(h.existing(), os.FileMode(h.rng.IntN(0o777)))
	case 18:
		dirs := []string{"d1", "d2", "d1/e", "d2/e", "d1/f", "e"}
		os.Rename(h.pick(dirs...), h.pick(dirs...))
	case 19:
		from, to := h.existing(), h.name()
		h.open(to, os.O_CREATE, func(f *os.File) {
			h.open(from, 0, func(g *os.File) { unix.IoctlFileClone(int(f.Fd()), int(g.Fd())) })
		})
	case 20:
		unix.Renameat2(unix.AT_FDCWD, h.existing(), unix.AT_FDCWD, h.existing(), unix.RENAME_EXCHANGE)
	case 21:
		h.open(h.pick("", "d1"), unix.O_TMPFILE, func(f *os.File) {
			f.Write(h.bytes(size))
			if h.rng.IntN(2) == 0 {
				f.Sync()
			}
			if h.rng.IntN(2) == 0 {
				unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", f.Fd()), unix.AT_FDCWD, h.name(), unix.AT_SYMLINK_FOLLOW)
			}
		})
	case 22: // more names than fit into one item
		from := h.existing()
		for i := range 20 + h.rng.IntN(60) {
			name := filepath.Join(h.dir, "d1", fmt.Sprint(strings.Repeat("many", 25), i))
			if os.Link(from, name) != nil && h.rng.IntN(3) == 0 {
				os.Remove(name)
			}
		}
	case 23:
		unix.Renameat2(unix.AT_FDCWD, h.existing(), unix.AT_FDCWD, h.name(), unix.RENAME_WHITEOUT)
	}
}

func (h *history) run(committed, synced int) {
	for _, d := range []string{"d1", "d2", "d1/e"} {
		if err := os.MkdirAll(filepath.Join(h.dir, d), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	for range committed {
		h.step()
	}
	fstest.Sync(h.t, h.dir)
	for range synced {
		for range 1 + h.rng.IntN(8) {
			h.step()
		}
		if h.rng.IntN(4) == 0 {
			h.sync(h.pick("", "d1", "d2", "d1/e"))
		} else {
			h.sync(h.existing())
		}
	}
}

// historiesDir is set where TestHistories is to run: it holds empty file systems.
const historiesDir = "BTRFS_HISTORIES"

// TestReplaysTheLogAsTheKernelDoes has the kernel of a virtual machine make
// histories, and replay the logs that they leave: there are kernels that such logs
// bring down.
func TestReplaysTheLogAsTheKernelDoes(t *testing.T) {
	t.Parallel()
	requires.Root(t)
	requires.Tool(t, "mkfs.btrfs", "mkfs.ext4")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fstest.Run(t, "cp", self, filepath.Join(dir, "test"))
	for i, options := range [][]string{{"-n", "4096", "-O", "^no-holes"}, {"-n", "16384"}} {
		image := fstest.Make(t, 128<<20, append([]string{"mkfs.btrfs", "-q"}, options...)...)
		fstest.Run(t, "cp", "--sparse=always", image, filepath.Join(dir, fmt.Sprint("empty-", i)))
	}
	data := fstest.Make(t, 2<<30, "mkfs.ext4", "-q", "-d", dir)
	out := fstest.InMachine(t, `set -e
		mount /dev/vdc /mnt
		modprobe loop
		modprobe btrfs
		mkdir /mnt/tmp
		TMPDIR=/mnt/tmp `+historiesDir+`=/mnt BTRFS_SEEDS=`+os.Getenv("BTRFS_SEEDS")+` \
			timeout 200 /mnt/test -test.run '^TestHistories$' -test.v 2>&1 || echo failed with $?`, data)
	var replayed int
	if _, after, ok := strings.Cut(out, "logs replayed: "); ok {
		fmt.Sscan(after, &replayed)
	}
	if strings.Contains(out, "failed with") || replayed == 0 {
		t.Fatalf("%d logs were replayed\n%s", replayed, out)
	}
	t.Logf("%d logs were replayed", replayed)
}

func TestHistories(t *testing.T) {
	dir := os.Getenv(historiesDir)
	if dir == "" {
		t.Skip("runs in the machine of TestReplaysTheLogAsTheKernelDoes")
	}
	seeds, err := strconv.Atoi(os.Getenv("BTRFS_SEEDS"))
	if err != nil {
		seeds = 8
	}
	logs := 0
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			empty := filepath.Join(dir, fmt.Sprint("empty-", seed%2))
			logs += replayed(t, empty, []string{"", ",compress=zstd"}[seed%5/4], seed)
		})
	}
	t.Logf("logs replayed: %d", logs)
}

// replayed makes a history, and compares what a copy of the disk then shows with
// what the kernel shows of it. It returns how many logs were replayed.
func replayed(t *testing.T, empty, options string, seed uint64) int {
	image := filepath.Join(t.TempDir(), "image")
	fstest.Run(t, "cp", "--sparse=always", empty, image)
	forget(t)
	dir, unmount := fstest.Mount(t, image, "btrfs", "commit=300"+options)
	h := &history{t, dir, rand.New(rand.NewPCG(7, seed))}
	h.run(60, 1+int(seed%6))
	now := time.Now()
	read, mounted := image+".read", image+".mounted"
	fstest.Run(t, "cp", "--sparse=always", image, read)
	fstest.Run(t, "cp", "--sparse=always", image, mounted)
	unmount()
	forget(t)
	dir, unmount = fstest.Mount(t, mounted, "btrfs", "")
	// What loses a name in the replay gets the time of the replay.
	f := compare(t, read, dir, btrfs.Options{VerifyData: true}, fstest.Ignoring{Since: now})
	unmount()
	notes := f.Info().Notes
	if len(notes) > 1 || len(notes) == 1 && !strings.Contains(notes[0], "was replayed") {
		t.Errorf("got notes %q, want at most that the log was replayed", notes)
	}
	return len(notes)
}

// forget has the kernel forget a file system that is not mounted any more, so that
// it takes a copy of it for what it is.
func forget(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/btrfs-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all [4096]byte // struct btrfs_ioctl_vol_args without a name
	if err := ioctl(f, 0x50009405, &all); err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
}

// ioctl calls ioctl(2) with a structure.
func ioctl[T any](f *os.File, request uintptr, arg *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}
