package restore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// owner is whom a file is given to.
type owner struct{ uid, gid int }

// madeFile is an image file in the making: it lies beside its place, locked, until
// it is complete.
type madeFile struct {
	index         int
	partial, path string

	dev       io.Closer // while it is written
	ours      bool
	lock      *os.File // held while it is written, for others to see
	published bool
}

func newMadeFile(index int, path string) *madeFile {
	return &madeFile{index: index, partial: path + ".partial", path: path}
}

// look finds out whether the file can be made, and what will be removed for it.
func (m *madeFile) look() (note string, err error) {
	_, err = os.Lstat(m.path)
	switch {
	case err == nil && same(m.path, m.partial):
		return "", &Refusal{fmt.Sprintf("%s was left by a restore that was interrupted at its very end: it is complete, and %s is the same file", m.path, m.partial),
			fmt.Sprintf("If nothing uses it, remove it: rm %s %s", m.path, m.partial)}
	case err == nil:
		return "", fmt.Errorf("%w: %s is there already; move it away or choose another folder", ErrRefused, m.path)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	_, err = os.Lstat(m.partial)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	l, err := take(m.partial)
	if err != nil {
		return "", err
	}
	l.Close()
	return fmt.Sprintf("%s was left by a restore that was interrupted; it is removed.", m.partial), nil
}

// same reports whether two names are of one file.
func same(a, b string) bool {
	x, err1 := os.Lstat(a)
	y, err2 := os.Lstat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// take locks a file that is not complete. Whoever writes one has it locked.
func take(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	busy := &Refusal{fmt.Sprintf("%s is being written by another restore", path), "Wait for it to end: sendense-control jobs"}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = busy
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	now, err := os.Lstat(path)
	held, err2 := f.Stat()
	if err != nil || err2 != nil || !os.SameFile(now, held) {
		f.Close()
		return nil, busy
	}
	return f, nil
}

// create makes the file and opens it for writing. What a killed restore left there
// goes.
func (m *madeFile) create(format string, size int64) (block.Device, error) {
	if l, err := take(m.partial); err == nil {
		err = errors.Join(os.Remove(m.partial), l.Close())
		if err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := newImage(m.partial, format, size); err != nil {
		return nil, err
	}
	var err error
	if m.lock, err = take(m.partial); err != nil {
		if !errors.Is(err, ErrRefused) { // another restore has it, and removes it
			err = errors.Join(err, remove(m.partial))
		}
		return nil, err
	}
	m.ours = true
	if format == Raw {
		w, err := image.OpenRawWriter(m.partial)
		if err != nil {
			return nil, err
		}
		m.dev = w
		return w, nil
	}
	w, err := image.OpenWriter(m.partial, image.WriterOptions{Direct: true})
	if err != nil {
		return nil, err
	}
	m.dev = w
	return w, nil
}

func newImage(path, format string, size int64) error {
	if format != Raw {
		return image.Create(path, image.CreateOptions{Size: size})
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return errors.Join(err, remove(path))
	}
	return nil
}

// finish makes what was written durable.
func (m *madeFile) finish(to *owner) error {
	if m.dev == nil {
		return nil
	}
	err := m.dev.Close()
	m.dev = nil
	if err != nil || to == nil {
		return err
	}
	if err := m.lock.Chown(to.uid, to.gid); err != nil {
		return fmt.Errorf("give the disk to the user that machines run as: %w", err)
	}
	return m.lock.Sync()
}

// publish gives the file its name, beside the one that it has, and not over what
// somebody has put there meanwhile. On some file systems the lock would keep QEMU
// out.
func (m *madeFile) publish() error {
	if !m.ours {
		return nil
	}
	defer m.close()
	err := os.Link(m.partial, m.path)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) { // a file system without links
		err = unix.Renameat2(unix.AT_FDCWD, m.partial, unix.AT_FDCWD, m.path, unix.RENAME_NOREPLACE)
	}
	m.published = err == nil
	return err
}

// settle leaves the file under its name alone.
func (m *madeFile) settle() error {
	if !m.ours {
		return nil
	}
	m.ours = false
	return remove(m.partial)
}

// remove deletes the file, if it is ours.
func (m *madeFile) remove() error {
	defer m.close()
	if !m.ours {
		return nil
	}
	m.ours = false
	var errs []error
	if m.published {
		errs = append(errs, remove(m.path))
	}
	return errors.Join(append(errs, remove(m.partial))...)
}

func (m *madeFile) close() {
	if m.dev != nil {
		_ = m.dev.Close() // nobody wants it any more
		m.dev = nil
	}
	if m.lock != nil {
		m.lock.Close()
		m.lock = nil
	}
}
