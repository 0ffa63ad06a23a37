package restore

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// isBlock reports whether a file is a block device.
func isBlock(mode fs.FileMode) bool { return mode&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice }

// deviceNumber returns the number of a block device.
func deviceNumber(st fs.FileInfo) (uint64, bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !isBlock(st.Mode()) {
		return 0, false
	}
	return sys.Rdev, true
}

// overlaps reports whether writing to one of two files writes to the other: they are
// one, or one is a partition of the other.
func overlaps(a, b fs.FileInfo) bool {
	x, ok1 := deviceNumber(a)
	y, ok2 := deviceNumber(b)
	if !ok1 || !ok2 {
		return os.SameFile(a, b)
	}
	return overlapping(x)[y]
}

// overlapping returns the numbers of a block device, of its partitions, and of what
// it is a partition of.
func overlapping(number uint64) map[uint64]bool {
	found := map[uint64]bool{number: true}
	at, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number)))
	if err != nil {
		return found
	}
	folders, _ := filepath.Glob(filepath.Join(at, "*", "partition")) // the pattern is a good one
	for i := range folders {
		folders[i] = filepath.Dir(folders[i])
	}
	if _, err := os.Stat(filepath.Join(at, "partition")); err == nil {
		folders = append(folders, filepath.Dir(at))
	}
	for _, f := range folders {
		var major, minor uint32
		text, err := os.ReadFile(filepath.Join(f, "dev"))
		if err != nil {
			continue
		}
		if n, _ := fmt.Sscanf(string(text), "%d:%d", &major, &minor); n == 2 {
			found[unix.Mkdev(major, minor)] = true
		}
	}
	return found
}

// writerOf returns another process that has a block device, a part of it or the
// whole of it open for writing, as far as this one may see; "" if there is none. A
// machine that runs on a device does not claim it as a mount does. Who only reads
// may be udev, which looks at each device now and then.
func writerOf(number uint64) string {
	numbers := overlapping(number)
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is a good one
	self := strconv.Itoa(os.Getpid())
	for _, d := range descriptors {
		pid := strings.Split(d, "/")[2]
		if pid == self {
			continue
		}
		st, err := os.Stat(d)
		if err != nil {
			continue
		}
		if n, ok := deviceNumber(st); !ok || !numbers[n] {
			continue
		}
		if link, err := os.Lstat(d); err != nil || link.Mode().Perm()&0o200 == 0 {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			continue // it ended meanwhile
		}
		return fmt.Sprintf("process %s (%q)", pid, strings.TrimSpace(string(name)))
	}
	return ""
}

// loopOf returns the loop device that shows a file; "" if none does.
func loopOf(file fs.FileInfo) string {
	paths, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is a good one
	for _, p := range paths {
		backing, err := os.ReadFile(p)
		if err != nil {
			continue // it was given up meanwhile
		}
		if st, err := os.Stat(strings.TrimSpace(string(backing))); err == nil && os.SameFile(st, file) {
			return "/dev/" + strings.Split(p, "/")[3]
		}
	}
	return ""
}
