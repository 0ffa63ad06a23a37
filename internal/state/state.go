// Package state keeps small JSON documents durable in a folder, and knows which
// of the processes that ever wrote there are still alive. It knows nothing of
// what the documents mean.
//
// Layout: {dir}/{collection}/{id}.json, replaced atomically; {dir}/owners/{owner}
// is locked for as long as that process lives.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// maxDocument bounds what is read back of one document, in bytes.
const maxDocument = 16 << 20

// Store is a folder of documents, held open by one process.
type Store struct {
	dir   string
	owner string
	lock  *os.File
}

// Open opens the store in dir, creating it if need be, and registers the calling
// process as an owner.
func Open(dir string) (*Store, error) {
	owners := filepath.Join(dir, "owners")
	if err := os.MkdirAll(owners, 0o750); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	owner := fmt.Sprintf("%d-%x", os.Getpid(), time.Now().UnixNano()) //permit:time.Now: only has to be unique
	f, err := os.OpenFile(filepath.Join(owners, owner), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return &Store{dir: dir, owner: owner, lock: f}, nil
}

// Close gives up the registration of this process.
func (s *Store) Close() error {
	return errors.Join(os.Remove(s.lock.Name()), s.lock.Close())
}

// Owner returns the name under which this process is registered.
func (s *Store) Owner() string { return s.owner }

// Alive reports whether the process registered as owner still holds the store
// open. The registration of a dead one is removed.
func (s *Store) Alive(owner string) bool {
	if owner == s.owner {
		return true
	}
	if !idPattern.MatchString(owner) {
		return false
	}
	f, err := os.Open(filepath.Join(s.dir, "owners", owner))
	if err != nil {
		return false
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return true
	}
	os.Remove(f.Name())
	return false
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`)

func (s *Store) path(collection, id string) (string, error) {
	if !idPattern.MatchString(collection) || !idPattern.MatchString(id) {
		return "", fmt.Errorf("document %s/%s: name is not usable as a file name", collection, id)
	}
	return filepath.Join(s.dir, collection, id+".json"), nil
}

// Put stores v as the document id of collection, durable when it returns.
func (s *Store) Put(collection, id string, v any) error {
	return s.store(collection, id, v, os.Rename)
}

// Add is Put for a document that must not be there yet; an error that wraps
// fs.ErrExist if it is, also if another process was first.
func (s *Store) Add(collection, id string, v any) error {
	return s.store(collection, id, v, os.Link)
}

// store writes a document; place gives its file the final name.
func (s *Store) store(collection, id string, v any, place func(from, to string) error) error {
	path, err := s.path(collection, id)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode document %s/%s: %w", collection, id, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("store document %s/%s: %w", collection, id, err)
	}
	if err := writeFile(path, append(b, '\n'), place); err != nil {
		return fmt.Errorf("store document %s/%s: %w", collection, id, err)
	}
	return nil
}

// writeFile makes b the content of path: what was there or b is there after a
// crash, never a mixture.
func writeFile(path string, b []byte, place func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // without effect if place took the name away
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o640), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Delete removes a document; one that is not there is no error.
func (s *Store) Delete(collection, id string) error {
	path, err := s.path(collection, id)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete document %s/%s: %w", collection, id, err)
	}
	return nil
}

// Get returns one document; an error that wraps fs.ErrNotExist if it is not there.
func Get[T any](s *Store, collection, id string) (T, error) {
	var v T
	path, err := s.path(collection, id)
	if err != nil {
		return v, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err := load(path, &v); err != nil {
		return v, fmt.Errorf("read document %s/%s: %w", collection, id, err)
	}
	return v, nil
}

// All returns the documents of a collection by id. Documents that cannot be read
// are left out and reported together in the error, beside those that can.
func All[T any](s *Store, collection string) (map[string]T, error) {
	dir := filepath.Join(s.dir, collection)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list documents: %w", err)
	}
	docs := make(map[string]T, len(entries))
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !idPattern.MatchString(id) {
			continue
		}
		var v T
		if err := load(filepath.Join(dir, e.Name()), &v); err != nil {
			errs = append(errs, fmt.Errorf("read document %s/%s: %w", collection, id, err))
			continue
		}
		docs[id] = v
	}
	return docs, errors.Join(errs...)
}

func load(path string, v any) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() > maxDocument {
		return fmt.Errorf("%d bytes, more than %d", info.Size(), maxDocument)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
