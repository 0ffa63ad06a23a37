package libvirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// prefix begins the names of everything that is ours on a host.
const prefix = "sendense-"

// maxSocketPath is what fits in a unix socket's address, in bytes.
const maxSocketPath = 107

// folder is the folder of one backup job: its scratch files, its socket, and a
// lock that its owner holds for as long as it lives.
type folder struct {
	path string
	lock *os.File
}

const lockName = "owner"

// newFolder makes a folder for a job in dir. QEMU has to write into it: it
// belongs to QEMU's user, where that is known, and is closed to everybody else.
func newFolder(dir string, d *domain) (*folder, error) {
	path, err := os.MkdirTemp(dir, prefix)
	if err != nil {
		return nil, fmt.Errorf("make folder for the backup job: %w", err)
	}
	f := &folder{path: path}
	if len(f.socket()) > maxSocketPath {
		return nil, errors.Join(fmt.Errorf("path of socket %s has %d bytes, more than %d; use a scratch folder with a shorter path",
			f.socket(), len(f.socket()), maxSocketPath), f.remove())
	}
	if err := f.own(); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.remove())
	}
	uid, gid, ok := d.owner()
	if !ok || uid == os.Geteuid() {
		return f, nil
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return nil, errors.Join(fmt.Errorf("give the scratch folder to QEMU's user %d: %w; run the capture agent as root", uid, err), f.remove())
	}
	return f, nil
}

// own takes the lock. The file has its name only once it is locked, so that
// nobody ever finds it unlocked while we live.
func (f *folder) own() (err error) {
	name := filepath.Join(f.path, lockName)
	if f.lock, err = os.OpenFile(name+".new", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func (f *folder) socket() string { return filepath.Join(f.path, "nbd") }

func (f *folder) scratch(key string, attempt int) string {
	return filepath.Join(f.path, fmt.Sprintf("%s.%d.scratch", key, attempt))
}

// remove deletes the folder and gives up the lock; once is enough.
func (f *folder) remove() error {
	err := os.RemoveAll(f.path)
	if f.lock != nil {
		err = errors.Join(err, f.lock.Close())
		f.lock = nil
	}
	return err
}

// folderOf returns the folder of a job with the NBD server at socket, and whether
// it is one of ours.
func folderOf(socket string) (path string, ours bool) {
	path = filepath.Dir(socket)
	return path, filepath.Base(socket) == "nbd" && strings.HasPrefix(filepath.Base(path), prefix)
}

// abandoned reports whether nobody who is alive holds the folder's lock.
func abandoned(path string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("find the owner of %s: %w", path, err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// sweep removes the folders that dead captures left in dir. Where QEMU still has
// such a job its files lose their names and no more.
func sweep(dir string) {
	paths, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		return
	}
	for _, path := range paths {
		if _, err := os.Stat(filepath.Join(path, lockName)); err != nil {
			continue // not one of a job, or not ours to look into
		}
		if gone, err := abandoned(path); err == nil && gone {
			os.RemoveAll(path)
		}
	}
}
