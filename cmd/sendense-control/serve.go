package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/nbdserver"
	"github.com/spf13/cobra"
)

// serveOptions are the flags of nbd serve.
type serveOptions struct {
	socket, listen, tlsDir string
	readOnly, writable     bool
	export, format         string
	since                  []string
	pidFile                string
}

func nbdServe(p *cli.Program) *cobra.Command {
	var o serveOptions
	c := &cobra.Command{
		Use: "serve IMAGE", Short: "Serve an image over NBD until terminated", Args: cobra.ExactArgs(1),
		Long: "Serve a QCOW2 or raw image, with all that backs it, to any number of NBD clients until SIGINT or SIGTERM.\n" +
			"The URI for clients is printed when the server is ready. Without --socket and --listen that is a new\n" +
			"unix socket for nobody but the user. An address that other machines can reach needs --tls-dir; clients\n" +
			"then have to show a certificate of its authority.\n\n" +
			"For each --since there is a metadata context qemu:dirty-bitmap:since-NAME that tells what changed since the\n" +
			"disk was as that file of the chain has it; NAME is the file's without folder and extension.",
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, p, args[0]) },
	}
	f := c.Flags()
	f.StringVar(&o.socket, "socket", "", "`path` of the unix socket to make")
	f.StringVar(&o.listen, "listen", "", "TCP `address` to listen on, as host:port")
	f.StringVar(&o.tlsDir, "tls-dir", "", "`folder` of ca-cert.pem, server-cert.pem and server-key.pem")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse writes (the default)")
	f.BoolVar(&o.writable, "writable", false, "let clients change the image")
	f.StringVar(&o.export, "export", "", "`name` of the export (empty by default)")
	f.StringVar(&o.format, "format", "", "`format` of the image: qcow2 or raw (found out by default)")
	f.StringArrayVar(&o.since, "since", nil, "`file` of the chain to tell changes since (may be repeated)")
	f.StringVar(&o.pidFile, "pid-file", "", "`path` of a file to write the process id to when ready")
	c.MarkFlagsMutuallyExclusive("socket", "listen")
	c.MarkFlagsMutuallyExclusive("read-only", "writable")
	return c
}

// served is what nbd serve prints.
type served struct {
	URI      string `json:"uri"`
	Export   string `json:"export"`
	ReadOnly bool   `json:"read_only"`
	PID      int    `json:"pid"`
}

func (o *serveOptions) run(c *cobra.Command, p *cli.Program, path string) (err error) {
	if o.writable && len(o.since) > 0 {
		return cli.Usagef("Leave out --since or --writable.", "What changes cannot be told of a disk that is being written.")
	}
	if len(o.export) > 4096 {
		return cli.Usagef("NBD allows 4096 bytes.", "The name of the export is too long.")
	}
	var open closers
	defer func() { err = errors.Join(err, open.Close()) }()
	dev, err := o.openDevice(path, &open)
	if err != nil {
		return explain(path, err)
	}
	e := nbdserver.Export{Name: o.export, Description: path, Device: dev, ReadOnly: !o.writable}
	if e.Since, err = o.sinceNames(dev); err != nil {
		return err
	}
	if err := absolute(&o.socket); err != nil {
		return err
	}
	at, err := o.listener()
	if err != nil {
		return err
	}
	open.add(at)
	opts := nbdserver.Options{Log: slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if at.TLS != nil {
		opts.TLS, opts.TLSMode = at.TLS, nbdserver.TLSForced
	}
	s := nbdserver.New(opts)
	if err := s.Add(e); err != nil {
		return cli.Usagef("Give another name with --export.", "%s", cli.Sentence(err.Error()))
	}
	if o.pidFile != "" {
		if err := os.WriteFile(o.pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return err
		}
		open.add(removal(o.pidFile))
	}
	r := served{URI: at.URI(o.export), Export: o.export, ReadOnly: !o.writable, PID: os.Getpid()}
	if err := p.Print(c, r, func(w io.Writer) { fmt.Fprintln(w, r.URI) }); err != nil {
		return err
	}
	err = s.Serve(c.Context(), at.Listener)
	if w, ok := dev.(block.Flusher); ok && o.writable {
		err = errors.Join(err, w.Flush(context.WithoutCancel(c.Context())))
	}
	return err
}

// removal removes a file when it is closed.
type removal string

func (r removal) Close() error {
	if err := os.Remove(string(r)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// noFileInChain says that --since named something else than a file of the chain.
func noFileInChain(file string) error {
	return &appliance.Error{Code: appliance.CodeNotFound, Msg: fmt.Sprintf("%s is no file of the image's chain.", file),
		Hint: "List the files of the chain with: sendense-control image info --backing-chain IMAGE"}
}
