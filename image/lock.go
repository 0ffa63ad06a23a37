package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another program has an image open.
var ErrLocked = errors.New("it is open in another program")

// What QEMU locks of an image: a byte for each permission that a program uses, and
// one for each that it does not let others use (QEMU, block/file-posix.c).
const (
	lockUsed    = 100
	lockRefused = 200

	permRead   = 0
	permWrite  = 1
	permResize = 3
)

// Lock keeps QEMU's programs, and others that lock as they do, from opening the
// image at path while it is written. It returns ErrLocked if one of them has it open
// already. Closing gives it up.
func Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := lockBytes(f); err != nil {
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock image %s: %w", path, err), f.Close())
	}
	return f, nil
}

func lockBytes(f *os.File) error {
	lock := func(cmd int, kind int16, at int64) (unix.Flock_t, error) {
		l := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: at, Len: 1}
		return l, unix.FcntlFlock(f.Fd(), cmd, &l)
	}
	used, refused := []int64{permRead, permWrite, permResize}, []int64{permWrite, permResize}
	var mine, theirs []int64
	for _, p := range used {
		mine, theirs = append(mine, lockUsed+p), append(theirs, lockRefused+p)
	}
	for _, p := range refused {
		mine, theirs = append(mine, lockRefused+p), append(theirs, lockUsed+p)
	}
	for _, at := range mine {
		if _, err := lock(unix.F_OFD_SETLK, unix.F_RDLCK, at); err != nil {
			return err
		}
	}
	for _, at := range theirs {
		// Only this descriptor's own locks are left out of the answer.
		l, err := lock(unix.F_OFD_GETLK, unix.F_WRLCK, at)
		if err != nil {
			return err
		}
		if l.Type != unix.F_UNLCK {
			return syscall.EAGAIN
		}
	}
	return nil
}
