package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/restore"
	"github.com/sendense/sendense/internal/restore/fit"
)

// ofMachines are the flags that concern the machine that libvirt gets.
var ofMachines = []string{"name", "storage", "network", "keep-identity", "start"}

func (s service) restore() *cobra.Command {
	var r appliance.RestoreRequest
	var m appliance.RestoreMachine
	var p passphrases
	var disk int
	var dryRun bool
	c := &cobra.Command{Use: "restore VM POINT --to PLACE", Short: "Write the disks of a point to files or block devices, or make a machine of them", Args: cli.Args(2, 2),
		Long: "Restore writes the disks of a point:\n" +
			"  --to file:DIR              to a new image file for each disk, in DIR\n" +
			"  --to blockdev:PATH[,PATH]  over block devices, or raw images, one for each disk\n" +
			"  --to libvirt[:URI]         to image files of a new machine of libvirt on this host\n" +
			"With --delta a device is read first, and only what differs is written.\n\n" +
			"The new machine is described as the one that was captured, fitted to what the host has; what cannot be\n" +
			"carried over is told. Machines that are there are never touched. What its guest needs to run on its new\n" +
			"hardware is looked up on its disks: drivers, and names and addresses of hardware. See it before anything\n" +
			"is done with --dry-run.\n\n" +
			"A restore to files or to libvirt that fails or is cancelled leaves nothing. Devices stay overwritten as far\n" +
			"as it came; run it again, with --delta.",
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point = args[0], args[1]
			if c.Flags().Changed("disk") {
				r.Disk = &disk
			}
			for _, name := range ofMachines {
				if c.Flags().Changed(name) {
					r.Machine = &m
				}
			}
			if err := absolutePlace(&r.To); err != nil {
				return err
			}
			if err := absoluteStorage(&m.Storage); err != nil {
				return err
			}
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				r.Keyring = keyring
				return s.runRestore(c, conn, r, dryRun)
			})
		}}
	f := c.Flags()
	f.StringVar(&r.To, "to", "", "`place`: file:DIR, blockdev:PATH[,PATH] or libvirt[:URI]")
	f.IntVar(&disk, "disk", 0, "restore only the disk with this `number`; default all")
	f.StringVar(&r.Format, "format", "", "`format` of files: qcow2 (default) or raw")
	f.BoolVar(&r.Delta, "delta", false, "write only what differs from what the device holds")
	f.BoolVar(&r.Verified, "verified", false, "compare every cluster with its digest as it is read")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.StringVar(&m.Name, "name", "", "`name` of the machine; default that of the VM")
	f.StringVar(&m.Storage, "storage", "", "`place` of its disks: a folder, or pool:NAME (default the pool \"default\", or /var/lib/libvirt/images)")
	f.StringVar(&m.Network, "network", "", "libvirt `network` for its interfaces, or isolated (default as captured, if it is there)")
	f.BoolVar(&m.KeepIdentity, "keep-identity", false, "give it the UUID and the addresses of the VM, which must be gone from there")
	f.BoolVar(&m.Start, "start", false, "start it")
	p.flags(c)
	return c
}

// absolutePlace makes the paths of a place absolute.
func absolutePlace(to *string) error {
	kind, where, ok := strings.Cut(*to, ":")
	if kind == "libvirt" || kind == "pool" {
		return nil
	}
	if !ok || where == "" {
		return cli.Usagef("Name a place, as in --to file:DIR or --to blockdev:PATH; --help lists them all.", "--to is %q.", *to)
	}
	paths := []string{where}
	if kind == "blockdev" {
		paths = strings.Split(where, ",")
	}
	for i := range paths {
		if err := absolute(&paths[i]); err != nil {
			return err
		}
	}
	*to = kind + ":" + strings.Join(paths, ",")
	return nil
}

func absoluteStorage(storage *string) error {
	if *storage == "" || strings.HasPrefix(*storage, "pool:") {
		return nil
	}
	return absolute(storage)
}

func (s service) runRestore(c *cobra.Command, conn *host.Connection, r appliance.RestoreRequest, dryRun bool) error {
	if dryRun {
		p, err := conn.PlanRestore(c.Context(), r)
		if err != nil {
			return err
		}
		return s.Print(c, p, func(w io.Writer) { printRestorePlan(w, p) })
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
	return s.Print(c, result, func(w io.Writer) { printRestored(w, result) })
}

func printRestorePlan(w io.Writer, p restore.Plan) {
	t := cli.NewTable(w, "disk", "key", "size", "to", "")
	for _, d := range p.Disks {
		what := "new"
		if d.Overwrites {
			what = "OVERWRITTEN"
		}
		t.Row(d.Index, d.Key, cli.Size(d.Size), d.To, what)
	}
	t.Flush()
	if m := p.Machine; m != nil {
		identity, then := "with a UUID and addresses of its own", "is not started"
		if m.UUID != "" {
			identity = "with the UUID " + m.UUID + " and the addresses of the VM"
		}
		if m.Starts {
			then = "is started"
		}
		fmt.Fprintf(w, "machine %s (%s, %s), %s, %s\n", m.Name, m.Hardware.Machine, m.Hardware.Firmware, identity, then)
	}
	printNotes(w, p.Notes)
	printFindings(w, p.Findings)
}

func printRestored(w io.Writer, r restore.Result) {
	t := cli.NewTable(w, "disk", "key", "to", "written", "zeroed", "left")
	for _, d := range r.Disks {
		t.Row(d.Index, d.Key, d.To, cli.Size(d.WrittenBytes), cli.Size(d.ZeroedBytes), cli.Size(d.SameBytes))
	}
	t.Flush()
	if m := r.Machine; m != nil {
		fmt.Fprintf(w, "machine %s, %s, is %s\n", m.Name, m.UUID, m.State)
		for _, console := range m.Consoles {
			fmt.Fprintln(w, "console:", console)
		}
	}
	printNotes(w, r.Notes)
	printFindings(w, r.Findings)
}

func printNotes(w io.Writer, notes []string) {
	for _, n := range notes {
		fmt.Fprintln(w, cli.Sentence(n))
	}
}

// printFindings prints what is known of the guest on its new hardware.
func printFindings(w io.Writer, findings []fit.Finding) {
	for _, f := range findings {
		fmt.Fprintf(w, "%-13s  %s\n", f.Severity, appliance.Visible(f.Text))
		if f.Hint != "" {
			fmt.Fprintf(w, "%-13s  hint: %s\n", "", appliance.Visible(f.Hint))
		}
	}
}
