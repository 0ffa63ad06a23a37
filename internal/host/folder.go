package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// folderLock is the file in a Folder that its owner holds a flock on.
const folderLock = "lock"

// Folder is a private folder for the sockets of one process. It is locked for as
// long as the process lives, so that who comes later can tell whether it was left
// behind.
type Folder struct {
	path string
	lock *os.File
}

// NewFolder makes a folder in base, named for its kind, and clears away those of
// the same kind whose processes died. The caller closes it.
func NewFolder(base, kind string) (*Folder, error) {
	prefix := "sendense-" + kind + "-"
	sweep(base, prefix)
	for try := 0; ; try++ {
		path, err := os.MkdirTemp(base, prefix) // mode 0700
		if err != nil {
			return nil, err
		}
		lock, err := lockFolder(path, os.O_CREATE)
		if err == nil {
			return &Folder{path: path, lock: lock}, nil
		}
		// A sweeper may have come between the making and the locking.
		err = fmt.Errorf("lock %s: %w", path, err)
		_ = os.Remove(path) // unless somebody is at it
		if try == 10 {
			return nil, err
		}
	}
}

// lockFolder locks a folder; an error if somebody else has, or if it is gone. flags
// are those of open besides the usual ones.
func lockFolder(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, folderLock), os.O_RDWR|syscall.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	mine, mineErr := f.Stat()
	named, namedErr := os.Lstat(f.Name())
	if err = errors.Join(err, mineErr, namedErr); err == nil && !os.SameFile(mine, named) {
		err = errors.New("it was replaced")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Path returns where the folder is.
func (f *Folder) Path() string { return f.path }

// Close removes the folder with all that is in it.
func (f *Folder) Close() error {
	return errors.Join(clearFolder(f.path), f.lock.Close())
}

// clearFolder removes a folder, its lock last: until then it can be told whose it
// is.
func clearFolder(path string) error {
	entries, err := os.ReadDir(path)
	errs := []error{err}
	for _, e := range entries {
		if e.Name() != folderLock {
			errs = append(errs, os.RemoveAll(filepath.Join(path, e.Name())))
		}
	}
	errs = append(errs, os.Remove(filepath.Join(path, folderLock)))
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) { // a sweeper may come first
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweep removes the folders in base that dead processes of this user left: those
// whose lock nobody holds, and empty ones, whose process died before it made one.
// What cannot be removed is left to who comes next.
func sweep(base, prefix string) {
	paths, err := filepath.Glob(filepath.Join(base, prefix+"*"))
	if err != nil {
		return
	}
	for _, path := range paths {
		st, err := os.Lstat(path)
		if err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
			continue
		}
		lock, err := lockFolder(path, 0)
		if errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(path) // which fails unless it is empty
		}
		if err == nil {
			_ = errors.Join(clearFolder(path), lock.Close())
		}
	}
}
