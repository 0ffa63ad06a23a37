package libvirt

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// qemuWriteLock is the byte of a disk file that QEMU locks, by an open file
// description lock, for as long as it may write to it (RAW_LOCK_PERM_BASE plus the
// bit of BLK_PERM_WRITE in QEMU's block/file-posix.c).
const qemuWriteLock = 101

// inUse reports whether a QEMU has the file open to write to it, on this host or
// on another one that shares the file. Where locks cannot be asked for, or are not
// told to other hosts, the answer is false.
func inUse(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: qemuWriteLock, Len: 1}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return err == nil && lock.Type != unix.F_UNLCK
}
