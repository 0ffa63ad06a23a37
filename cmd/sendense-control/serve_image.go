package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/cli"
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

// lockImage locks an image for as long as it is served.
func lockImage(path string) (io.Closer, error) {
	lock, err := image.Lock(path)
	if errors.Is(err, image.ErrLocked) {
		return nil, &appliance.Error{Code: appliance.CodeBusy, Err: err, Msg: fmt.Sprintf("Image %s is open in another program.", path),
			Hint: fmt.Sprintf("Close it there, or serve it without --writable. Who it is: fuser -v %s", path)}
	}
	return lock, err
}
