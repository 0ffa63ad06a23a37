package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

const aboutArchives = "If DEST is -, an archive is written to standard output. A tar has all there is, but\n" +
	"for sockets: extract it with tar -xp --xattrs --xattrs-include='*', or bsdtar -xp. A zip\n" +
	"has files, directories and links, with modes, owners and times. What is left out or has\n" +
	"another name is told in an entry called sendense-remarks.txt. What was copied is told\n" +
	"on standard error: with --json as one line of JSON."

// archive writes files of a point to standard output.
func (s service) archive(c *cobra.Command, keys *passphrases, r appliance.ArchiveRequest) error {
	if s.ToTerminal(c) {
		return cli.Usagef("Send it to a file or a program, as in: "+c.CommandPath()+" … - > files."+r.Format, "An archive is nothing to show on a terminal.")
	}
	return s.unlocking(c, keys, func(conn *host.Connection, keyring string) error {
		r.Keyring = keyring
		sum, err := conn.Archive(c.Context(), r, c.OutOrStdout())
		if err != nil {
			return writing(c.Context(), strings.Join(r.Paths, " "), err)
		}
		w := c.ErrOrStderr()
		if s.JSON {
			err = json.NewEncoder(w).Encode(sum)
		} else {
			tellSummary(w, sum)
		}
		return errors.Join(err, foundIf(sum.Incomplete()))
	})
}

// tellSummary tells what was copied.
func tellSummary(w io.Writer, sum appliance.ArchiveSummary) {
	fmt.Fprintf(w, "copied %d files, %s", sum.Files, cli.Size(sum.Bytes))
	if sum.LeftOut > 0 {
		fmt.Fprintf(w, "; left out %d", sum.LeftOut)
	}
	if sum.Changed > 0 {
		fmt.Fprintf(w, "; changed %d", sum.Changed)
	}
	if sum.Remarks != "" {
		fmt.Fprintf(w, "; see %s in the archive", sum.Remarks)
	}
	fmt.Fprintln(w)
}

// foundIf is the error of a command that has told of what it could not read, if
// there was such.
func foundIf(incomplete bool) error {
	if incomplete {
		return cli.ErrFound
	}
	return nil
}
