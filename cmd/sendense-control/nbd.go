package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/nbdclient"
	"github.com/spf13/cobra"
)

func nbdCommands(p *cli.Program) *cobra.Command {
	return cli.Group("nbd", "Serve images over NBD, and look at NBD servers", nbdServe(p), nbdInfo(p))
}

func nbdInfo(p *cli.Program) *cobra.Command {
	certificates := ""
	c := &cobra.Command{
		Use: "info URI", Short: "Describe what an NBD server exports", Args: cobra.ExactArgs(1),
		Long: "Describe what an NBD server exports. URIs look like nbd://host/export, nbds://host:10809/export,\n" +
			"nbd+unix:///export?socket=/path.",
		RunE: func(c *cobra.Command, args []string) error {
			scheme, _, ok := strings.Cut(args[0], "://")
			if !ok || !strings.HasPrefix(scheme, "nbd") {
				return cli.Usagef("NBD URIs look like nbd://host/export or nbd+unix:///export?socket=/path.", "%q is no NBD URI.", args[0])
			}
			i, err := nbdclient.GetInfo(c.Context(), args[0], nbdclient.Options{TLS: nbdclient.TLS{Certificates: certificates}})
			if err != nil {
				return explainNBD(args[0], err)
			}
			if err := refused(i); err != nil {
				return err
			}
			return p.Print(c, i, func(w io.Writer) { printNBD(w, i) })
		},
	}
	c.Flags().StringVar(&certificates, "tls-dir", "", "`folder` of ca-cert.pem, client-cert.pem and client-key.pem")
	return c
}

// refused returns an error if the server describes none of its exports.
func refused(i *nbdclient.Info) error {
	why := "it lists none"
	for _, e := range i.Exports {
		if e.Error == "" {
			return nil
		}
		why = e.Error
	}
	return &appliance.Error{Code: appliance.CodeUnreachable, Msg: cli.Sentence(fmt.Sprintf("%s shows no export: %s", i.URI, why)),
		Hint: "Check the name of the export, and whether the server asks for TLS (nbds://) and certificates (--tls-dir)."}
}

func printNBD(w io.Writer, i *nbdclient.Info) {
	encrypted := "not encrypted"
	if i.TLS {
		encrypted = "encrypted"
	}
	fmt.Fprintf(w, "%s: %s, %s\n", i.URI, i.Protocol, encrypted)
	for _, e := range i.Exports {
		fmt.Fprintf(w, "\nexport %q\n", e.Name)
		if e.Error != "" {
			fmt.Fprintf(w, "  %s\n", cli.Sentence(e.Error))
			continue
		}
		t := cli.NewTable(w)
		if e.Description != "" {
			t.Row("  description:", e.Description)
		}
		t.Row("  size:", exactSize(e.Size))
		t.Row("  block size:", fmt.Sprintf("%s minimum, %s preferred, %s maximum",
			cli.Size(e.BlockSize.Minimum), cli.Size(e.BlockSize.Preferred), cli.Size(e.BlockSize.Maximum)))
		t.Row("  can:", strings.Join(abilities(e), ", "))
		t.Row("  contexts:", strings.Join(e.Contexts, ", "))
		t.Flush()
	}
}

func abilities(e nbdclient.Export) []string {
	all := []string{"read"}
	for _, a := range []struct {
		can  bool
		name string
	}{{!e.ReadOnly, "write"}, {e.Flush, "flush"}, {e.FUA, "FUA"}, {e.Trim, "trim"}, {e.Zero, "zero"},
		{e.FastZero, "fast zero"}, {e.MultiConn, "several connections"}} {
		if a.can {
			all = append(all, a.name)
		}
	}
	return all
}

// closers closes what was opened, in reverse.
type closers []io.Closer

func (c *closers) add(x io.Closer) { *c = append(*c, x) }

func (c *closers) Close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i].Close())
	}
	*c = nil
	return errors.Join(errs...)
}
