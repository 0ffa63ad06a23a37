package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/host"
)

// place is where a server listens, and the folder made for it, if one was.
type place struct {
	*appliance.Listener
	folder *host.Folder
}

// Close closes the listener and removes what was made for it.
func (p *place) Close() error {
	err := p.Listener.Close()
	if errors.Is(err, net.ErrClosed) { // by the server, as it should be
		err = nil
	}
	if p.folder != nil {
		err = errors.Join(err, p.folder.Close())
	}
	return err
}

// listener opens the socket that the flags ask for.
func (o *serveOptions) listener() (*place, error) {
	if o.listen != "" {
		l, err := appliance.ListenTCP(o.listen, o.tlsDir)
		return &place{Listener: l}, err
	}
	p, socket := &place{}, o.socket
	if socket == "" {
		var err error
		if p.folder, err = socketFolder(); err != nil {
			return nil, err
		}
		socket = filepath.Join(p.folder.Path(), "nbd.sock")
	}
	var err error
	if p.Listener, err = appliance.ListenUnix(socket, 0o600, o.tlsDir); err != nil && p.folder != nil {
		err = errors.Join(err, p.folder.Close())
	}
	return p, err
}

// socketFolder makes a folder for a socket that is nobody else's.
func socketFolder() (*host.Folder, error) {
	var errs []error
	for _, base := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run", os.TempDir()} {
		if base == "" {
			continue
		}
		f, err := host.NewFolder(base, "nbd")
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
