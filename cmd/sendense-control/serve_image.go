package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/cli"
	"golang.org/x/sys/unix"
)

// openDevice opens the image and adds what has to be closed to open.
func (o *serveOptions) openDevice(path string, open *closers) (block.Device, error) {
	switch o.format {
	case "", "qcow2", "raw":
	default:
		return nil, cli.Usagef("Give qcow2 or raw.", "There is no image format %q.", o.format)
	}
	if !o.writable {
		c, err := image.OpenChain(path, image.ChainOptions{Format: o.format})
		if err != nil {
			return nil, err
		}
		open.add(c)
		return c, nil
	}
	lock, err := lockImage(path)
	if err != nil {
		return nil, err
	}
	open.add(lock)
	if o.format == "raw" {
		w, err := image.OpenRawWriter(path)
		if err != nil {
			return nil, err
		}
		open.add(w)
		return w, nil
	}
	top, err := image.OpenFile(path)
	if o.format == "" && errors.Is(err, image.ErrNotQCOW2) {
		// A guest could make a raw image look like a QCOW2 file to whoever opens it next.
		return nil, cli.Usagef("If it is a raw image, say so with: --format raw", "The format of %s has to be named to write to it.", path)
	}
	if err != nil {
		return nil, err
	}
	return openOverlay(path, top, open)
}

// openOverlay opens a QCOW2 file for writing over what backs it.
func openOverlay(path string, top *image.File, open *closers) (block.Device, error) {
	backing, err := top.Backing()
	format := top.Header().BackingFormat()
	if err := errors.Join(err, top.Close()); err != nil {
		return nil, err
	}
	var wo image.WriterOptions
	if backing != "" {
		c, err := image.OpenChain(backing, image.ChainOptions{Format: format})
		if err != nil {
			return nil, err
		}
		open.add(c)
		wo.Backing = c
	}
	w, err := image.OpenWriter(path, wo)
	if err != nil {
		return nil, err
	}
	open.add(w)
	return w, nil
}

// sinceNames returns the names of the layers that --since names the files of.
func (o *serveOptions) sinceNames(dev block.Device) ([]string, error) {
	if len(o.since) == 0 {
		return nil, nil
	}
	c := dev.(*image.Chain) // as openDevice has it without --writable
	var names []string
	for _, file := range o.since {
		st, err := os.Stat(file)
		if err != nil {
			return nil, explain(file, err)
		}
		name := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
		found, same := false, 0
		for _, l := range c.Layers() {
			other, err := os.Stat(l.Path)
			found = found || err == nil && os.SameFile(st, other)
			if l.Name == name {
				same++
			}
		}
		if !found {
			return nil, noFileInChain(file)
		}
		if same != 1 {
			return nil, cli.Usagef("Rename one of them.", "%d files of the chain are called %s.", same, name)
		}
		names = append(names, name)
	}
	return names, nil
}

// What QEMU locks of an image: a byte for each permission that a program uses, and
// one for each that it does not let others use (QEMU, block/file-posix.c).
const (
	lockUsed    = 100
	lockRefused = 200

	permRead   = 0
	permWrite  = 1
	permResize = 3
)

// lockImage keeps QEMU's programs, and this one, from opening an image while it is
// written, and fails if one of them has it open already. Closing gives it up.
func lockImage(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := lockBytes(f); err != nil {
		f.Close()
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
			return nil, &appliance.Error{Code: appliance.CodeBusy, Msg: fmt.Sprintf("Image %s is open in another program.", path),
				Hint: fmt.Sprintf("Close it there, or serve it without --writable. Who it is: fuser -v %s", path)}
		}
		return nil, fmt.Errorf("lock image %s: %w", path, err)
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
