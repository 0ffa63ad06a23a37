package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync/atomic"
	"syscall"

	"github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
)

// conn is a connection to libvirtd. Its calls take no context: bound makes a
// context's end close the connection, upon which they return.
type conn struct {
	*libvirt.Libvirt
	net net.Conn
	cut atomic.Bool // closed by the end of a context
}

// fixed is a dialer for a connection that exists.
type fixed struct{ net.Conn }

// Dial implements socket.Dialer.
func (f fixed) Dial() (net.Conn, error) { return f.Conn, nil }

// dial connects to libvirtd. The caller hangs up.
func dial(ctx context.Context, socket string) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, explainDial(socket, err)
	}
	c := &conn{Libvirt: libvirt.NewWithDialer(fixed{nc}), net: nc}
	release := c.bound(ctx)
	err = c.ConnectToURI(libvirt.QEMUSystem)
	if !release() {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to libvirt at %s: %w: %w", socket, capture.ErrUnreachable, err)
	}
	return c, nil
}

func explainDial(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: libvirt does not listen at %s; start it with: systemctl start libvirtd (or virtqemud)",
			capture.ErrUnreachable, socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: no permission for libvirt's socket %s; run the capture agent as root, or add its user to the group libvirt",
			capture.ErrUnreachable, socket)
	}
	return fmt.Errorf("%w: libvirt at %s: %w", capture.ErrUnreachable, socket, err)
}

// bound closes the connection when ctx ends. release undoes that and reports
// whether it was in time; when it returns the connection is closed or stays open.
func (c *conn) bound(ctx context.Context) (release func() bool) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c.cut.Store(true)
		c.net.Close()
	})
	return func() bool {
		if stop() {
			return true
		}
		<-done
		return false
	}
}

// usable reports whether the connection is still there.
func (c *conn) usable() bool { return !c.cut.Load() && c.IsConnected() }

// hangUp ends the connection.
func (c *conn) hangUp() {
	_ = c.Disconnect() // says good-bye; the error of a connection that is gone tells nothing
	c.net.Close()
}

// explain gives the error of a call its meaning for a user.
func explain(ctx context.Context, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case hasCode(err, libvirt.ErrNoDomain):
		return fmt.Errorf("%s: %w", what, capture.ErrNoVM)
	case hasCode(err, 0): // an answer of libvirt
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: connection to libvirt was lost: %w", what, capture.ErrUnreachable, err)
}

// hasCode reports whether err is an answer of libvirt with one of the codes; 0
// stands for any.
func hasCode(err error, codes ...libvirt.ErrorNumber) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if c == 0 || e.Code == uint32(c) {
			return true
		}
	}
	return false
}
