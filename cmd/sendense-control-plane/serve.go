package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

// serve makes the program's one command its root.
func serve(p *cli.Program) {
	var runDir, level string
	c := p.Root
	c.Args = cli.Args(0, 0)
	c.Long = "The control plane owns the repository while it runs: it recovers it at start,\n" +
		"receives drafts from capture agents, runs jobs and serves points over NBD, all\n" +
		"on sockets in its run directory. It logs to stderr and ends on SIGTERM."
	control := c.PersistentFlags().Lookup("control")
	p.Control, control.DefValue = "", "" // the variable tells clients where to go
	control.Usage = "where it listens for clients, as unix:`PATH` (default " + host.ControlSocket + " in its run directory)"
	c.Flags().StringVar(&runDir, "run-dir", host.DefaultRunDir, "`folder` of its sockets, made if it is missing")
	c.Flags().StringVar(&level, "log-level", "info", "least `level` that is logged: debug, info, warn, error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var l slog.Level
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return cli.Usagef("Choose debug, info, warn or error.", "There is no log level %q.", level)
		}
		log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: l}))
		return run(c, p, runDir, log)
	}
}

func run(c *cobra.Command, p *cli.Program, runDir string, log *slog.Logger) error {
	if err := makeRunDir(runDir); err != nil {
		return err
	}
	address := strings.TrimPrefix(p.Control, "unix:")
	if address == "" {
		address = filepath.Join(runDir, host.ControlSocket)
	}
	address, err := filepath.Abs(address)
	if err != nil {
		return err
	}
	unlock, err := claim(runDir)
	if err != nil {
		return err
	}
	defer unlock.Close()
	h, err := host.Open(c.Context(), host.Options{Repository: p.Repository, RunDir: runDir, Create: true, Exclusive: true,
		Name: "sendense-control-plane", Version: version, Log: log})
	if err != nil {
		return err
	}
	l, err := appliance.ListenUnix(address, 0o660, "")
	if err != nil {
		return errors.Join(err, h.Close())
	}
	log.Info("control plane is ready", "control", "unix:"+address, "repo", p.Repository, "version", version)
	err = h.Serve(c.Context(), l)
	log.Info("control plane ends")
	return errors.Join(err, h.Close())
}

func makeRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		code := appliance.AsError(err).Code
		if errors.Is(err, syscall.ENOTDIR) {
			code = appliance.CodeInvalid
		}
		return &appliance.Error{Code: code, Err: err, Msg: fmt.Sprintf("The run directory cannot be made: %v.", err),
			Hint: "Run as root, or give a folder of your own with --run-dir."}
	}
	return nil
}

// claim makes sure that no other control plane uses the run directory.
func claim(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("claim run directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &appliance.Error{Code: appliance.CodeBusy, Err: err, Msg: fmt.Sprintf("Another control plane uses %s.", dir),
			Hint: "Stop it, or give another folder with --run-dir."}
	}
	return f, nil
}
