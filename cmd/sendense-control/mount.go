package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) mount() *cobra.Command {
	var r api.MountRequest
	var foreground bool
	var p passphrases
	c := &cobra.Command{Use: "mount DIR", Short: "Show every point of every VM as a tree of files", Args: cli.Args(1, 1),
		Long: "Mount shows DIR/{vm}/{point}/disk-0.raw, the live image of a disk; files/, the tree as\n" +
			"the machine saw it; and disk-0/, its file systems by position. A control plane serves\n" +
			"until unmount. Without one a process in the background does; with --foreground it is\n" +
			"the command itself. Passphrases are kept in its memory until unmount.\n\n" +
			"Only the user whose process serves gets in: root, if that is a control plane's. With\n" +
			"--allow-other all users of this host do, to each file as far as its mode in the guest\n" +
			"lets a user of that number; disks stay closed to them.",
		RunE: func(c *cobra.Command, args []string) error {
			r.Dir = args[0]
			if err := absolute(&r.Dir); err != nil {
				return err
			}
			return s.runMount(c, r, &p, foreground)
		}}
	f := c.Flags()
	f.BoolVar(&r.Writable, "writable", false, "let disks be written; what is written is thrown away with the mount")
	f.BoolVar(&r.Verified, "verified", false, "compare every cluster with its digest as it is read")
	f.BoolVar(&r.AllowOther, "allow-other", false, "let all users of this host in, as far as the modes of files let them")
	f.BoolVar(&foreground, "foreground", false, "serve until interrupted")
	p.flags(c)
	return c
}

// mounted is what mount prints with --json.
type mounted struct {
	appliance.MountSpec
	PID int `json:"pid,omitempty"` // of the process that serves, if no control plane does
}

func (s service) runMount(c *cobra.Command, r api.MountRequest, p *passphrases, foreground bool) error {
	list, err := p.read(c)
	if err != nil {
		return err
	}
	background := false
	err = s.with(c, false, func(conn *host.Connection) error {
		if background = conn.Embedded && !foreground; background {
			return nil
		}
		m, err := s.mountHere(c, conn, r, list)
		if err != nil {
			return err
		}
		if err := s.Print(c, mounted{m, pidIf(conn.Embedded)}, func(w io.Writer) { fmt.Fprintln(w, m.Dir) }); err != nil || !foreground {
			return err
		}
		return waitMounted(c.Context(), conn, m.Dir)
	})
	if err != nil || !background {
		return err
	}
	var m mounted
	if err := s.detached(c.Context(), list, &m); err != nil {
		return err
	}
	return s.Print(c, m, func(w io.Writer) {
		fmt.Fprintln(w, m.Dir)
		fmt.Fprintf(c.ErrOrStderr(), "Process %d serves it. End it with: sendense-control unmount %s\n", m.PID, m.Dir)
	})
}

// mountHere mounts through a connection. The mount keeps the passphrases.
func (s service) mountHere(c *cobra.Command, conn *host.Connection, r api.MountRequest, list [][]byte) (m appliance.MountSpec, err error) {
	err = withKeyring(c, conn, list, func(conn *host.Connection, keyring string) error {
		// A mount that nobody waits for any more would stay.
		m, err = conn.Mount(context.WithoutCancel(c.Context()), r, keyring)
		return err
	})
	return m, err
}

func isNotFound(err error) bool {
	e := appliance.AsError(err)
	return e != nil && e.Code == appliance.CodeNotFound
}

// waitMounted waits until a mount is gone, and takes it away when ctx ends.
func waitMounted(ctx context.Context, conn *host.Connection, dir string) error {
	return untilGone(ctx, func(ctx context.Context) (bool, error) {
		list, err := conn.Mounts(ctx)
		return slices.ContainsFunc(list, func(m appliance.MountSpec) bool { return m.Dir == dir }), err
	}, func(ctx context.Context) error { return conn.Unmount(ctx, dir) })
}

func (s service) unmount() *cobra.Command {
	return &cobra.Command{Use: "unmount DIR", Short: "Take a mount away", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			dir := args[0]
			if err := absolute(&dir); err != nil {
				return err
			}
			if err := s.unmountAt(c.Context(), dir); err != nil {
				return err
			}
			return s.Print(c, map[string]string{"unmounted": dir}, func(w io.Writer) { fmt.Fprintln(w, "unmounted", dir) })
		}}
}

// unmountAt takes a mount away: that of a control plane, or of another process of
// ours. No repository is needed for that.
func (s service) unmountAt(ctx context.Context, dir string) error {
	conn, err := host.Find(ctx, s.Control, s.Repository)
	if conn != nil {
		defer func() { _ = conn.Close() }() // nothing is kept in it
		if err = conn.Unmount(ctx, dir); err == nil || !isNotFound(err) {
			return err
		}
	}
	other := fusemount.Unmount(dir)
	switch {
	case other == nil:
		return nil
	case errors.Is(other, fs.ErrNotExist) && err != nil:
		return err // the control plane has it, or nobody
	case errors.Is(other, fs.ErrNotExist):
		return &appliance.Error{Code: appliance.CodeNotFound, Err: other, Msg: fmt.Sprintf("Nothing of ours is mounted at %s.", dir),
			Hint: "Take other mounts away with: umount " + dir}
	case errors.Is(other, fusemount.ErrBusy):
		return &appliance.Error{Code: appliance.CodeBusy, Err: other, Msg: cli.Sentence(other.Error()), Hint: "Close what uses it; find out with: fuser -vm " + dir}
	}
	return &appliance.Error{Code: appliance.CodeDenied, Err: other, Msg: cli.Sentence(other.Error()), Hint: "Run as the user who mounted it, or as root."}
}
