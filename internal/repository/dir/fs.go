package dir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// filesystem is everything by which a repository changes folders and files, but
// for what package image writes into a QCOW2 file that is open. Tests put one in
// its place that fails or stops at the k-th operation.
type filesystem interface {
	Mkdir(path string) error
	Create(path string) (file, error) // truncates
	Sync(path string) error           // of a file written by others
	SyncDir(path string) error
	Rename(from, to string) error
	Link(from, to string) error
	Remove(path string) error // of a file or an empty folder
}

type file interface {
	io.Writer
	Sync() error
	Close() error
}

// disk is the operating system's.
type disk struct{}

func (disk) Mkdir(path string) error { return os.Mkdir(path, 0o700) }

func (disk) Create(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (disk) Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d disk) SyncDir(path string) error  { return d.Sync(path) }
func (disk) Rename(from, to string) error { return os.Rename(from, to) }
func (disk) Link(from, to string) error   { return os.Link(from, to) }
func (disk) Remove(path string) error     { return os.Remove(path) }

// mkdir makes a folder durably unless it is there.
func mkdir(f filesystem, path string) error {
	if err := f.Mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make folder: %w", err)
	}
	return f.SyncDir(filepath.Dir(path))
}

// writeSynced makes a file with the content that fill writes and syncs it, but
// not its name.
func writeSynced(f filesystem, path string, fill func(io.Writer) error) error {
	w, err := f.Create(path)
	if err != nil {
		return err
	}
	if err := fill(w); err != nil {
		return errors.Join(err, w.Close())
	}
	return errors.Join(w.Sync(), w.Close())
}

// replaceFile puts content in place of the file at path: after a crash it has the
// old content or the new. renamed reports whether the new one is in place, if
// perhaps not durably.
func replaceFile(f filesystem, path string, content []byte) (renamed bool, err error) {
	temp := path + partialSuffix
	err = writeSynced(f, temp, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	if err != nil {
		return false, errors.Join(fmt.Errorf("write %s: %w", path, err), removeFile(f, temp))
	}
	if err := f.Rename(temp, path); err != nil {
		return false, errors.Join(fmt.Errorf("replace %s: %w", path, err), removeFile(f, temp))
	}
	return true, f.SyncDir(filepath.Dir(path))
}

// removeFile removes a file or an empty folder if it is there.
func removeFile(f filesystem, path string) error {
	if err := f.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// linkFile gives a file a second name, which it may have already.
func linkFile(f filesystem, from, to string) error {
	err := f.Link(from, to)
	if errors.Is(err, fs.ErrExist) {
		a, err1 := os.Stat(from)
		b, err2 := os.Stat(to)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if os.SameFile(a, b) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return nil
}
