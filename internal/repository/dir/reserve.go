package dir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// The reserve is a file that takes up room, so that there is some to be had for the
// records of a removal where everything else is full.
const (
	minReserve   = 1 << 20
	reserveSlack = 64 << 10 // left to others where there is no room for all of it
)

func (r *Repository) reserve() string { return filepath.Join(r.root, reserveName) }

// reserveFor returns how much room, in bytes, removals of points of a machine may
// take before they give back any: that of its record, which is written beside the
// old one, and as much again.
func (v *vmFolder) reserveFor() int64 {
	n, err := fileBytes(v.metadata())
	if err != nil {
		return minReserve
	}
	return max(minReserve, (2*n+minReserve-1)/minReserve*minReserve)
}

// SpendReserve gives the room of the reserve back to the file system, for what has
// to be written where nothing else is free. The function it returns ends that: it
// makes the reserve anew, as far as there is room, unless somebody else still needs
// it, who does it then. It is for a repository that can be written.
func (r *Repository) SpendReserve() (end func()) {
	f, err := os.OpenFile(r.reserve(), os.O_RDWR, 0)
	if err != nil {
		return func() { r.keepReserve(minReserve) }
	}
	size := int64(minReserve)
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH); err == nil {
		if st, err := f.Stat(); err == nil {
			size = max(size, st.Size())
		}
		// Some file systems have the room only once that is on disk.
		err = errors.Join(f.Truncate(0), f.Sync())
	}
	if err != nil {
		r.log.Warn("room kept back for removals cannot be used", "repo", r.root, "err", err)
	}
	return func() {
		_ = f.Close()
		r.keepReserve(size)
	}
}

// keepReserve makes the reserve if it is missing or smaller than size, as far as
// there is room, and unless a removal is using it.
func (r *Repository) keepReserve(size int64) {
	if r.readOnly != nil {
		return
	}
	if st, err := os.Stat(r.reserve()); err == nil && st.Size() >= size {
		return
	}
	f, err := os.OpenFile(r.reserve(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		r.log.Warn("no room is kept back for removals", "repo", r.root, "err", err)
		return
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		if err == nil {
			err = growReserve(f, size)
		}
		if err != nil {
			r.log.Warn("less room than wanted is kept back for removals", "repo", r.root, "err", err)
		}
	}
	_ = f.Close()
}

// growReserve appends to the reserve up to size, or as far as there is room. It is
// noise, which no file system can store in less.
func growReserve(f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil || st.Size() >= size {
		return err
	}
	n, err := io.CopyN(f, rand.Reader, size-st.Size())
	if err = errors.Join(err, f.Sync()); err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("write %s: %w", f.Name(), err), f.Truncate(max(0, st.Size()+n-reserveSlack)))
}
