// Package fstest proves readers of guest file systems against others: it makes
// images with the file system's own tools, fills them through a mount, compares
// what a reader sees with what the mount shows entry by entry, and damages copies
// to see that a reader survives.
package fstest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/requires"
)

// File is a Volume in a file.
type File struct {
	*os.File
	size int64
}

// Open opens an image as a Volume, until the test ends.
func Open(t testing.TB, path string) File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return File{f, st.Size()}
}

// ReadAt implements fsys.Volume.
func (f File) ReadAt(p []byte, off int64) error { return readFull(f.File, p, off) }

// Size implements fsys.Volume.
func (f File) Size() int64 { return f.size }

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

var _ fsys.Volume = File{}

// Run runs a program and returns what it printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return requires.Run(t, name, args...)
}

// Make makes a sparse image of size bytes and has mkfs, given with its arguments,
// make a file system in it. It returns the path.
func Make(t testing.TB, size int64, mkfs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	Run(t, mkfs[0], append(mkfs[1:], path)...)
	return path
}

// Mount has the kernel mount an image, through a loop device, until the returned
// function is called or the test ends. Options are those of mount(8).
func Mount(t testing.TB, image, fsType, options string) (dir string, unmount func()) {
	t.Helper()
	requires.Root(t)
	dir = t.TempDir()
	if options != "" {
		options += ","
	}
	Run(t, "mount", "-t", fsType, "-o", options+"loop", image, dir)
	return dir, Unmounting(t, dir)
}

// Unmounting returns a function that unmounts dir, which also the test's end does.
func Unmounting(t testing.TB, dir string) func() {
	mounted := true
	unmount := func() {
		if !mounted {
			return
		}
		mounted = false
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = syscall.Unmount(dir, syscall.MNT_DETACH) // the failure is told already
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// Filled makes an image with mkfs, mounts it as fsType, lets fill change it, and
// unmounts it.
func Filled(t testing.TB, size int64, fsType string, fill func(dir string), mkfs ...string) string {
	t.Helper()
	path := Make(t, size, mkfs...)
	dir, unmount := Mount(t, path, fsType, "")
	fill(dir)
	unmount()
	return path
}

// Exhaust takes all the room of the file system that dir is on, for a file ballast
// in dir.
func Exhaust(t testing.TB, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "ballast"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 1 << 20; n >= 512; n /= 2 {
		for err = error(nil); err == nil; {
			if _, err = f.Write(make([]byte, n)); err == nil {
				err = f.Sync()
			}
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}
