package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) export() *cobra.Command {
	var spec appliance.ExportSpec
	var disk int
	var foreground bool
	c := &cobra.Command{Use: "export VM POINT", Short: "Serve a point over NBD, read-only",
		Long: "Export serves the disks of a point over NBD and prints their URIs. A control\n" +
			"plane serves until unexport. Without one a process in the background does, until\n" +
			"it is terminated; with --foreground it is the command itself.",
		Args: cli.Args(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			spec.VM, spec.Point = args[0], args[1]
			if c.Flags().Changed("disk") {
				spec.Disk = &disk
			}
			if err := absolute(&spec.Socket, &spec.TLSDir); err != nil {
				return err
			}
			return s.runExport(c, spec, foreground)
		}}
	f := c.Flags()
	f.IntVar(&disk, "disk", 0, "serve only the disk with this `number`; default all")
	f.StringVar(&spec.Socket, "socket", "", "`path` of the unix socket to serve on; default one in the run directory")
	f.StringVar(&spec.Listen, "listen", "", "`address` to serve on instead, as 127.0.0.1:10809; others than loopback take --tls-dir")
	f.StringVar(&spec.TLSDir, "tls-dir", "", "`folder` with ca-cert.pem, server-cert.pem and server-key.pem; clients need certificates too")
	f.BoolVar(&spec.Verified, "verified", false, "compare every cluster with its digest as it is read")
	f.BoolVar(&spec.Persist, "persist", false, "bring the export back when the control plane is started again")
	f.BoolVar(&foreground, "foreground", false, "serve until interrupted")
	c.MarkFlagsMutuallyExclusive("socket", "listen")
	return c
}

func absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

func (s service) runExport(c *cobra.Command, spec appliance.ExportSpec, foreground bool) error {
	background := false
	err := s.with(c, false, func(conn *host.Connection) error {
		if conn.Embedded && !foreground {
			background = true
			return nil
		}
		e, err := conn.Export(c.Context(), spec)
		if err != nil {
			return err
		}
		if err := s.Print(c, exported{Export: e, PID: pidIf(conn.Embedded)}, func(w io.Writer) { printExport(w, e) }); err != nil || !foreground {
			return err
		}
		return waitExported(c.Context(), conn, e.ID)
	})
	if err != nil || !background {
		return err
	}
	return s.detach(c)
}

// waitExported waits until an export has ended, and ends it when ctx does.
func waitExported(ctx context.Context, conn *host.Connection, id string) error {
	return untilGone(ctx, func(ctx context.Context) (bool, error) {
		list, err := conn.Exports(ctx)
		return slices.ContainsFunc(list, func(e appliance.Export) bool { return e.ID == id }), err
	}, func(ctx context.Context) error { return conn.Unexport(ctx, id) })
}

// untilGone waits until something is there no more. When ctx ends it is taken away.
func untilGone(ctx context.Context, there func(context.Context) (bool, error), remove func(context.Context) error) error {
	for {
		select {
		case <-ctx.Done():
			err := remove(context.WithoutCancel(ctx))
			if e := appliance.AsError(err); e != nil && e.Code == appliance.CodeNotFound {
				return nil
			}
			return err
		case <-time.After(500 * time.Millisecond):
		}
		if found, err := there(ctx); !found && ctx.Err() == nil {
			return err
		}
	}
}

// exported is what export prints with --json.
type exported struct {
	appliance.Export
	PID int `json:"pid,omitempty"` // of the process that serves, if no control plane does
}

func pidIf(embedded bool) int {
	if !embedded {
		return 0
	}
	return os.Getpid()
}

func printExport(w io.Writer, e appliance.Export) {
	for _, d := range e.Disks {
		fmt.Fprintln(w, d.URI)
	}
}

// detach runs the same command again in the background, and tells what it serves.
func (s service) detach(c *cobra.Command) error {
	var e exported
	if err := s.detached(c.Context(), nil, &e); err != nil {
		return err
	}
	return s.Print(c, e, func(w io.Writer) {
		printExport(w, e.Export)
		fmt.Fprintf(c.ErrOrStderr(), "Process %d serves it. End it with: kill %d\n", e.PID, e.PID)
	})
}

// detached runs the same command again in the background, in the foreground there,
// and decodes what it prints first into out; it is ended if ctx ends before. It is
// given secrets, if there are any, through a pipe.
func (s service) detached(ctx context.Context, secrets [][]byte, out any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args, rest := os.Args[1:], []string(nil)
	if i := slices.Index(args, "--"); i >= 0 { // behind which there are no flags
		args, rest = args[:i], args[i:]
	}
	cmd := exec.Command(self, slices.Concat(args, []string{"--foreground", "--json"}, rest)...)
	if secrets != nil {
		b, err := json.Marshal(secrets)
		if err != nil {
			return err
		}
		cmd.Args = slices.Insert(cmd.Args, 1+len(args), "--"+passedFlag)
		cmd.Stdin = bytes.NewReader(b)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaints strings.Builder
	errs, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if err := json.NewDecoder(bufio.NewReader(stdout)).Decode(out); err != nil {
		_, _ = io.Copy(&complaints, errs)
		_ = cmd.Wait() // what it said tells more than its status
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return cli.ParseError(complaints.String())
	}
	return nil
}

func (s service) exports() *cobra.Command {
	return &cobra.Command{Use: "exports", Short: "List what the control plane serves", Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				exports, err := conn.Exports(c.Context())
				if err != nil {
					return err
				}
				return s.Print(c, exports, func(w io.Writer) {
					t := cli.NewTable(w, "export", "vm", "point", "disk", "size", "clients", "uri")
					for _, e := range exports {
						for _, d := range e.Disks {
							t.Row(e.ID, e.Name, e.Point, d.Index, cli.Size(d.Size), d.Clients, d.URI)
						}
					}
					t.Flush()
				})
			})
		}}
}

func (s service) unexport() *cobra.Command {
	return &cobra.Command{Use: "unexport ID", Short: "End an export; requests in flight are answered first", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				if err := conn.Unexport(c.Context(), args[0]); err != nil {
					return err
				}
				return s.Print(c, map[string]string{"ended": args[0]}, func(w io.Writer) { fmt.Fprintln(w, "ended", args[0]) })
			})
		}}
}
