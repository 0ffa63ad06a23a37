package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/restore"
)

func (s service) restore() *cobra.Command {
	var r appliance.RestoreRequest
	var disk int
	var dryRun bool
	c := &cobra.Command{Use: "restore VM POINT --to PLACE", Short: "Write the disks of a point to files or block devices", Args: cli.Args(2, 2),
		Long: "Restore writes the disks of a point:\n" +
			"  --to file:DIR              to a new image file for each disk, in DIR\n" +
			"  --to blockdev:PATH[,PATH]  over block devices, or raw images, one for each disk\n" +
			"With --delta a device is read first, and only what differs is written.",
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point = args[0], args[1]
			if c.Flags().Changed("disk") {
				r.Disk = &disk
			}
			if err := absolutePlace(&r.To); err != nil {
				return err
			}
			return s.with(c, false, func(conn *host.Connection) error { return s.runRestore(c, conn, r, dryRun) })
		}}
	f := c.Flags()
	f.StringVar(&r.To, "to", "", "`place`: file:DIR or blockdev:PATH[,PATH]")
	f.IntVar(&disk, "disk", 0, "restore only the disk with this `number`; default all")
	f.StringVar(&r.Format, "format", "", "`format` of files: qcow2 (default) or raw")
	f.BoolVar(&r.Delta, "delta", false, "write only what differs from what the device holds")
	f.BoolVar(&r.Verified, "verified", false, "compare every cluster with its digest as it is read")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	return c
}

// absolutePlace makes the paths of a place absolute.
func absolutePlace(to *string) error {
	kind, where, ok := strings.Cut(*to, ":")
	if !ok || where == "" {
		return cli.Usagef("Give --to file:DIR or --to blockdev:PATH.", "--to is %q.", *to)
	}
	paths := []string{where}
	if kind == "blockdev" {
		paths = strings.Split(where, ",")
	}
	for i, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		paths[i] = abs
	}
	*to = kind + ":" + strings.Join(paths, ",")
	return nil
}

func (s service) runRestore(c *cobra.Command, conn *host.Connection, r appliance.RestoreRequest, dryRun bool) error {
	if dryRun {
		p, err := conn.PlanRestore(c.Context(), r)
		if err != nil {
			return err
		}
		return s.Print(c, p, func(w io.Writer) {
			t := cli.NewTable(w, "disk", "key", "size", "to", "")
			for _, d := range p.Disks {
				what := "new"
				if d.Overwrites {
					what = "OVERWRITTEN"
				}
				t.Row(d.Index, d.Key, cli.Size(d.Size), d.To, what)
			}
			t.Flush()
			printNotes(w, p.Notes)
		})
	}
	job, err := conn.Restore(c.Context(), r)
	if err != nil {
		return err
	}
	if job, err = s.follow(c, conn, job); err != nil {
		return err
	}
	var result restore.Result
	if err := json.Unmarshal(job.Result, &result); err != nil {
		return fmt.Errorf("read the result of %s: %w", job.ID, err)
	}
	return s.Print(c, result, func(w io.Writer) {
		t := cli.NewTable(w, "disk", "key", "to", "written", "zeroed", "left")
		for _, d := range result.Disks {
			t.Row(d.Index, d.Key, d.To, cli.Size(d.WrittenBytes), cli.Size(d.ZeroedBytes), cli.Size(d.SameBytes))
		}
		t.Flush()
		printNotes(w, result.Notes)
	})
}

func printNotes(w io.Writer, notes []string) {
	for _, n := range notes {
		fmt.Fprintln(w, cli.Sentence(n))
	}
}
