package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/nbdclient"
)

// explain makes an error about the image at path one for users.
func explain(path string, err error) error {
	var e *appliance.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	e = &appliance.Error{Msg: cli.Sentence(err.Error()), Err: err}
	switch {
	case errors.Is(err, image.ErrUnsupported):
		e.Code, e.Hint = appliance.CodeInvalid, "Convert it with: qemu-img convert -O qcow2"
	case errors.Is(err, image.ErrNotQCOW2):
		e.Code, e.Hint = appliance.CodeInvalid, "Give a QCOW2 file; raw images have no structure of their own."
	case errors.Is(err, image.ErrCorrupt):
		e.Code, e.Hint = appliance.CodeCorrupt, fmt.Sprintf("See what is wrong with it: sendense-control image check %s", path)
	case errors.Is(err, fs.ErrNotExist):
		e.Code, e.Hint = appliance.CodeNotFound, "Check the path, and that all backing files are where the image expects them."
	case isFolder(path):
		e.Code, e.Hint = appliance.CodeInvalid, "Give the path of an image file."
	default:
		return err
	}
	return e
}

func isFolder(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// explainNBD makes an error of talking to an NBD server one for users.
func explainNBD(uri string, err error) error {
	var e *appliance.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	e = &appliance.Error{Code: appliance.CodeUnreachable, Msg: cli.Sentence(err.Error()), Err: err,
		Hint: "Check that the server runs and that this is its address: " + uri}
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, nbdclient.ErrNoContext) {
		e.Code, e.Hint = appliance.CodeInvalid, "NBD URIs look like nbd://host/export or nbd+unix:///export?socket=/path."
	}
	return e
}
