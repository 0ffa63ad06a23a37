package xfs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// history changes a mounted file system at random, told by a seed, until it is told
// to stop or the file system is shut down.
type history struct {
	t     testing.TB
	dir   string
	rng   *rand.Rand
	count int
	held  []*os.File // unlinked, and open
	down  bool       // the file system was shut down
}

// note keeps an error that says that the file system was shut down.
func (h *history) note(err error) {
	h.down = h.down || errors.Is(err, unix.EIO)
}

// dirs are directories that are always there, or may be.
var dirs = []string{"", "a", "b", "a/c", "a/c/d", "b/e"}

func (h *history) place() string { return filepath.Join(h.dir, dirs[h.rng.IntN(len(dirs))]) }

// name is one of few, so that they collide.
func (h *history) name() string {
	return filepath.Join(h.place(), fmt.Sprintf("%c%s", 'a'+h.rng.IntN(16), strings.Repeat("-long", h.rng.IntN(2)*30)))
}

// existing is the name of a file that there is, most likely.
func (h *history) existing() string {
	for range 40 {
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
		b[i] = byte(h.rng.Uint32())
	}
	return b
}

// open opens a file and calls f with it.
func (h *history) open(name string, flags int, f func(*os.File)) {
	file, err := os.OpenFile(name, os.O_RDWR|flags, 0o644)
	h.note(err)
	if err != nil {
		return
	}
	defer file.Close()
	f(file)
}

// step does one thing, which may fail: then nothing happens.
func (h *history) step() {
	size := []int{0, 10, 3000, 4096, 20000, 150000}[h.rng.IntN(6)]
	at := int64(h.rng.IntN(60)) * 4096
	switch h.rng.IntN(26) {
	case 0, 1, 2:
		h.open(h.name(), os.O_CREATE|os.O_TRUNC, func(f *os.File) { _, err := f.Write(h.bytes(size)); h.note(err) })
	case 3, 4:
		h.open(h.existing(), 0, func(f *os.File) { _, err := f.WriteAt(h.bytes(size), at+int64(h.rng.IntN(3)*100)); h.note(err) })
	case 5:
		h.note(os.Truncate(h.existing(), at+int64(h.rng.IntN(2)*77)))
	case 6:
		h.open(h.existing(), 0, func(f *os.File) {
			h.note(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(size)+1))
		})
	case 7:
		h.open(h.existing(), 0, func(f *os.File) {
			h.note(unix.Fallocate(int(f.Fd()), uint32(h.rng.IntN(2))*unix.FALLOC_FL_KEEP_SIZE, at, int64(size)+1))
		})
	case 8:
		h.note(os.Link(h.existing(), h.name()))
	case 9, 10:
		h.note(os.Rename(h.existing(), h.name()))
	case 11:
		h.note(os.Remove(h.existing()))
	case 12:
		h.unlinkOpen()
	case 13:
		h.note(unix.Lsetxattr(h.existing(), fmt.Sprint("user.", h.rng.IntN(6)), h.bytes([]int{1, 60, 300, 3000, 9000, 60000}[h.rng.IntN(6)]), 0))
	case 14:
		h.note(unix.Lremovexattr(h.existing(), fmt.Sprint("user.", h.rng.IntN(6))))
	case 15:
		h.note(os.Mkdir(h.name(), 0o755))
	case 16:
		h.note(os.Symlink(strings.Repeat("t", []int{1, 100, 250, 400, 1023}[h.rng.IntN(5)]), h.name()))
	case 17:
		h.note(os.Lchown(h.existing(), h.rng.IntN(1<<20), h.rng.IntN(1<<20)))
	case 18:
		from, to := filepath.Join(h.dir, dirs[1+h.rng.IntN(5)]), filepath.Join(h.place(), fmt.Sprint("moved-", h.rng.IntN(3)))
		if os.Rename(from, to) == nil {
			h.layout()
		}
	case 19:
		from, to := h.existing(), h.name()
		h.open(to, os.O_CREATE, func(f *os.File) {
			h.open(from, 0, func(g *os.File) { h.note(unix.IoctlFileClone(int(f.Fd()), int(g.Fd()))) })
		})
	case 20:
		h.note(unix.Renameat2(unix.AT_FDCWD, h.existing(), unix.AT_FDCWD, h.existing(), unix.RENAME_EXCHANGE))
	case 21:
		h.many()
	case 22:
		h.fragment()
	case 23:
		h.note(unix.Renameat2(unix.AT_FDCWD, h.existing(), unix.AT_FDCWD, h.name(), unix.RENAME_WHITEOUT))
	case 24:
		h.note(os.RemoveAll(filepath.Join(h.dir, "many", fmt.Sprint(h.rng.IntN(4)))))
	case 25:
		h.open(h.existing(), 0, func(f *os.File) { h.note(f.Sync()) })
	}
}

// unlinkOpen removes a file that stays open.
func (h *history) unlinkOpen() {
	name := h.existing()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	h.note(os.Remove(name))
	_, err = f.WriteAt(h.bytes(5000), 9000)
	h.note(err)
	h.held = append(h.held, f)
}

// many makes or thins out a directory with many entries, so that it changes its form.
func (h *history) many() {
	dir := filepath.Join(h.dir, "many", fmt.Sprint(h.rng.IntN(4)))
	h.note(os.MkdirAll(dir, 0o755))
	n := []int{3, 30, 200, 900}[h.rng.IntN(4)]
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("an entry with a name of some length %d", h.rng.IntN(1200)))
		var err error
		switch {
		case h.rng.IntN(3) > 0:
			var f *os.File
			if f, err = os.Create(name); err == nil {
				f.Close()
			}
		case i%2 == 0:
			err = os.Remove(name)
		default:
			err = os.Rename(name, name+" and more of it")
		}
		if h.note(err); h.down {
			return
		}
	}
}

// fragment makes a file of many extents, or takes some of them away again.
func (h *history) fragment() {
	h.open(filepath.Join(h.dir, fmt.Sprint("fragments-", h.rng.IntN(3))), os.O_CREATE, func(f *os.File) {
		for range 80 {
			at := int64(h.rng.IntN(2000)) * 2 * 4096
			if h.rng.IntN(4) == 0 {
				h.note(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, 8192))
			} else {
				_, err := f.WriteAt(h.bytes(4096), at)
				h.note(err)
			}
		}
		if h.rng.IntN(5) == 0 {
			h.note(f.Truncate(int64(h.rng.IntN(2000)) * 8192))
		}
	})
}

// layout makes the directories.
func (h *history) layout() {
	for _, d := range dirs {
		h.note(os.MkdirAll(filepath.Join(h.dir, d), 0o755))
	}
}

// run takes steps, and writes everything out after some.
func (h *history) run(steps int) {
	h.layout()
	for i := range steps {
		if h.down {
			return
		}
		h.step()
		switch h.rng.IntN(150) {
		case 0:
			unix.Sync()
		case 1:
			if d, err := os.Open(h.dir); err == nil {
				h.note(d.Sync())
				d.Close()
			}
		}
		h.count = i
	}
}

// close gives up the files that are held open.
func (h *history) close() {
	for _, f := range h.held {
		f.Close()
	}
	h.held = nil
}
