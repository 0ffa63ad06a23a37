package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sendense/sendense/api/client"
)

// DefaultRunDir is where a control plane has its sockets unless told otherwise.
const DefaultRunDir = "/run/sendense"

// ControlSocket is the name of the control socket in a run directory.
const ControlSocket = "control.sock"

// answersWithin is how long a control plane may take to say that it is there.
const answersWithin = 10 * time.Second

// Connection is a client of an appliance, and the appliance itself where it runs
// in this process.
type Connection struct {
	*client.Client
	// Embedded says that the appliance runs in this process and ends with it.
	Embedded bool
	close    func() error
}

// Close gives the connection up, and ends an embedded appliance.
func (c *Connection) Close() error {
	c.Client.Close()
	return c.close()
}

// Connect reaches the control plane that Find does. If there is none it runs an
// appliance in this process, on o.Repository.
func Connect(ctx context.Context, control string, o Options) (*Connection, error) {
	c, err := Find(ctx, control, o.Repository)
	if c != nil || err != nil {
		return c, err
	}
	return embed(ctx, o)
}

// Find reaches the control plane at the address control; if that is "", the one at
// the default place, should it run and own the repository at a path. It returns nil
// if there is none.
func Find(ctx context.Context, control, repository string) (*Connection, error) {
	open := func(c *client.Client) *Connection { return &Connection{Client: c, close: func() error { return nil }} }
	if control == "" {
		if c := running(ctx, repository); c != nil {
			return open(c), nil
		}
		return nil, nil
	}
	c, err := client.New(control)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	if _, err := c.Health(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return open(c), nil
}

// running returns a client of the control plane at the default place if it runs
// and owns the repository at path.
func running(ctx context.Context, path string) *client.Client {
	socket := filepath.Join(DefaultRunDir, ControlSocket)
	if _, err := os.Stat(socket); err != nil {
		return nil
	}
	c, err := client.New("unix:" + socket)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	health, err := c.Health(ctx)
	if err != nil || !samePath(health.Repository, path) {
		c.Close()
		return nil
	}
	return c
}

func samePath(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}

// embed runs an appliance in this process, behind a socket that nobody else can
// reach.
func embed(ctx context.Context, o Options) (*Connection, error) {
	folder, err := NewFolder(os.TempDir(), "run")
	if err != nil {
		return nil, fmt.Errorf("make a folder for sockets: %w", err)
	}
	o.RunDir, o.Exclusive = folder.Path(), false
	h, err := Open(ctx, o)
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	socket := filepath.Join(folder.Path(), ControlSocket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(err, h.Close(), folder.Close())
	}
	c, err := client.New("unix:" + socket)
	if err != nil {
		return nil, errors.Join(err, l.Close(), h.Close(), folder.Close())
	}
	serveCtx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(serveCtx, l) }()
	return &Connection{Client: c, Embedded: true, close: func() error {
		stop()
		return errors.Join(<-served, h.Close(), folder.Close())
	}}, nil
}
