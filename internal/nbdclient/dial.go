package nbdclient

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"libguestfs.org/libnbd"
)

// dial connects to uri within the timeout: through to the export, or up to
// option negotiation if that is asked for.
func dial(ctx context.Context, uri string, o Options, negotiate bool) (*libnbd.Libnbd, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.ConnectTimeout,
		fmt.Errorf("%w: not connected after %v", ErrTimeout, o.ConnectTimeout))
	defer cancel()
	h, err := libnbd.Create()
	if err != nil {
		return nil, err
	}
	ready := h.AioIsReady
	if negotiate {
		ready = h.AioIsNegotiating
	}
	if err = prepare(h, o, negotiate); err == nil {
		if err = h.AioConnectUri(uri); err == nil {
			err = drive(ctx, h, ready)
		}
	}
	if err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("connect to %s: %w", uri, err)
	}
	keepAlive(h)
	return h, nil
}

func prepare(h *libnbd.Libnbd, o Options, negotiate bool) error {
	errs := []error{
		h.SetPreadInitialize(false), // buffers of failed reads are never looked at
		h.SetOptMode(negotiate),
		h.SetFullInfo(negotiate),
	}
	if !negotiate {
		errs = append(errs, h.AddMetaContext(baseAllocation))
		for _, name := range o.Contexts {
			errs = append(errs, h.AddMetaContext(name))
		}
	}
	if o.TLS.Certificates != "" {
		errs = append(errs, h.SetTlsCertificates(o.TLS.Certificates))
	}
	if o.TLS.Username != "" {
		errs = append(errs, h.SetTlsUsername(o.TLS.Username))
	}
	if o.TLS.PSKFile != "" {
		errs = append(errs, h.SetTlsPskFile(o.TLS.PSKFile))
	}
	return errors.Join(errs...)
}

// drive runs the handle's event loop until done, the end of ctx, or the loss of
// the connection.
func drive(ctx context.Context, h *libnbd.Libnbd, done func() (bool, error)) error {
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		for _, gone := range []func() (bool, error){h.AioIsDead, h.AioIsClosed} {
			if yes, err := gone(); yes || err != nil {
				return errors.Join(ErrLost, err)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		direction, err := h.AioGetDirection()
		if err != nil {
			return err
		}
		fd, err := h.AioGetFd()
		if err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: pollEvents(direction)}}
		// A short wait: connecting is rare, and ctx is looked at in between.
		if _, err := unix.Poll(fds, 20); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		if err := notify(h, direction, fds[0].Revents); err != nil {
			return err
		}
	}
}

// keepAlive lets the kernel find out about a peer that is gone without a word.
// Sockets that are not TCP refuse, and need none of it.
func keepAlive(h *libnbd.Libnbd) {
	fd, err := h.AioGetFd()
	if err != nil {
		return
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4},
	} {
		_ = unix.SetsockoptInt(fd, o.level, o.name, o.value)
	}
}
