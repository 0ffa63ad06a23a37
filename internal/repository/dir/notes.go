package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/sendense/sendense/internal/repository"
)

// notesDir is the folder of a machine that has the notes on its points: files named
// {point}.{name}.
const notesDir = "notes"

// noteNames matches the names of notes.
var noteNames = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}\.[a-z0-9]{1,8}$`)

// noteFiles matches the files of notes, also those in the making.
var noteFiles = regexp.MustCompile(`^([0-9]{8}-[0-9]{6})\.[a-z][a-z0-9-]{0,30}\.[a-z0-9]{1,8}(\.partial)?$`)

// PutNote implements repository.Repository.
func (r *Repository) PutNote(_ context.Context, vm repository.VMID, point repository.PointID, name string, content []byte) error {
	if err := r.putNote(vm, point, name, content); err != nil {
		return fmt.Errorf("keep note %s of point %s: %w", name, point, err)
	}
	return nil
}

func (r *Repository) putNote(vm repository.VMID, point repository.PointID, name string, content []byte) error {
	if !noteNames.MatchString(name) || len(content) > repository.MaxNote {
		return fmt.Errorf("%w: a note named %q of %d bytes", repository.ErrInvalid, name, len(content))
	}
	if err := r.ReadOnly(); err != nil {
		return err
	}
	v, _, err := r.find(vm)
	if err != nil {
		return err
	}
	folder := filepath.Join(v.path, notesDir)
	if _, err := os.Stat(folder); err != nil {
		if err := mkdir(v.fs, folder); err != nil {
			return err
		}
	}
	unlock, err := lockNotes(folder)
	if err != nil {
		return err
	}
	defer unlock()
	// Under the lock: who removes the point removes its notes after this, or did
	// before.
	rec, err := v.load()
	if err != nil {
		return err
	}
	if rec == nil || rec.point(point) == nil {
		return fmt.Errorf("%w: %s", repository.ErrNoPoint, point)
	}
	_, err = replaceFile(v.fs, filepath.Join(folder, string(point)+"."+name), content)
	return err
}

// Note implements repository.Repository.
func (r *Repository) Note(_ context.Context, vm repository.VMID, point repository.PointID, name string) ([]byte, error) {
	v, rec, err := r.find(vm)
	if err != nil {
		return nil, err
	}
	if rec.point(point) == nil {
		return nil, fmt.Errorf("%w: %s", repository.ErrNoPoint, point)
	}
	if !noteNames.MatchString(name) {
		return nil, fmt.Errorf("%w: a note named %q", repository.ErrInvalid, name)
	}
	b, err := readBounded(filepath.Join(v.path, notesDir, string(point)+"."+name), repository.MaxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s of point %s", repository.ErrNoNote, name, point)
	}
	return b, err
}

// lockNotes keeps others from writing to and clearing a folder of notes for a
// moment. No writer lock is taken: a backup that runs for hours does not matter.
func lockNotes(folder string) (unlock func(), err error) {
	d, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", folder, err), d.Close())
	}
	return func() { d.Close() }, nil
}

// sweepNotes removes notes of points that are gone, and those in the making. rec is
// nil for a machine that is gone. The folder goes with the last of its files.
func (v *vmFolder) sweepNotes(rec *record) error {
	folder := filepath.Join(v.path, notesDir)
	if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockNotes(folder)
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	removed := 0
	for _, e := range entries {
		m := noteFiles.FindStringSubmatch(e.Name())
		if m == nil || rec != nil && rec.point(repository.PointID(m[1])) != nil && !strings.HasSuffix(e.Name(), partialSuffix) {
			continue
		}
		if err := removeFile(v.fs, filepath.Join(folder, e.Name())); err != nil {
			return err
		}
		removed++
	}
	switch {
	case removed == 0 && len(entries) > 0:
		return nil
	case removed < len(entries):
		return v.fs.SyncDir(folder)
	}
	if err := removeFile(v.fs, folder); err != nil {
		return err
	}
	return v.fs.SyncDir(v.path)
}
