package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/blockdev"
	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

// sourceFlags choose and configure a source.
type sourceFlags struct {
	kind         string
	vm           string
	connect      string
	scratch      string
	disks        []string
	allowMounted bool
}

func (f *sourceFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.kind, "source", "libvirt", "`kind` of source: libvirt or blockdev")
	c.Flags().StringVar(&f.vm, "vm", "", "`name` or UUID of the VM; for blockdev, what to call it")
	c.Flags().StringVar(&f.connect, "connect", "", "libvirt `URI`, default qemu:///system")
	c.Flags().StringVar(&f.scratch, "scratch", "", "`folder` where QEMU keeps what the guest overwrites meanwhile, default /var/tmp")
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "for blockdev, a disk as `PATH[=NAME]`; again for each further one")
	c.Flags().BoolVar(&f.allowMounted, "allow-mounted", false, "for blockdev, read devices that are mounted read-write all the same")
}

// open returns the source that the flags describe.
func (f *sourceFlags) open(log *slog.Logger) (capture.Source, error) {
	if f.vm == "" {
		return nil, cli.Usagef("Name it with --vm NAME.", "No VM was named.")
	}
	switch f.kind {
	case "libvirt":
		if len(f.disks) > 0 {
			return nil, cli.Usagef("Leave --disk out: every disk of the VM is captured.", "--disk goes with --source blockdev.")
		}
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return libvirt.New(libvirt.Options{URI: f.connect, ScratchDir: f.scratch, Guard: []string{self, thawGuardName},
			OpenImage: openImage, Log: log})
	case blockdev.Kind:
		disks, err := f.blockdevDisks()
		if err != nil {
			return nil, err
		}
		return blockdev.New(blockdev.Options{Name: f.vm, Disks: disks, AllowMounted: f.allowMounted,
			Open: func(path string) (block.Device, io.Closer, error) { return openImage(path, "qcow2") }})
	}
	return nil, cli.Usagef("See the sources with: sendense-capture sources", "There is no source %q.", f.kind)
}

// blockdevDisks parses --disk PATH[=NAME]. Files in QCOW2 format are known by
// their name: what is inside a disk is the guest's to write.
func (f *sourceFlags) blockdevDisks() ([]blockdev.Disk, error) {
	if len(f.disks) == 0 {
		return nil, cli.Usagef("Name each with --disk PATH[=NAME].", "The source blockdev takes at least one disk.")
	}
	var disks []blockdev.Disk
	for i, s := range f.disks {
		path, key, named := strings.Cut(s, "=")
		if !named {
			key = fmt.Sprintf("disk%d", i)
		}
		d := blockdev.Disk{Path: path, Key: key, Format: blockdev.Raw}
		if strings.HasSuffix(path, ".qcow2") {
			d.Format = "qcow2"
		}
		disks = append(disks, d)
	}
	return disks, nil
}

func openImage(path, format string) (block.Device, io.Closer, error) {
	c, err := image.OpenChain(path, image.ChainOptions{Format: format})
	if err != nil {
		return nil, nil, err
	}
	return c, c, nil
}

// captureError tells what a source reports to a user.
func captureError(err error) error {
	var e *appliance.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return err
	case errors.Is(err, capture.ErrNoVM):
		return &appliance.Error{Code: appliance.CodeNotFound, Msg: cli.Sentence(err.Error()), Err: err,
			Hint: "List the VMs of the source, for libvirt with: virsh list --all"}
	case errors.Is(err, capture.ErrUnreachable):
		return &appliance.Error{Code: appliance.CodeUnreachable, Msg: cli.Sentence(err.Error()), Err: err,
			Hint: "Check that it runs and that you may use it; another address goes with --connect URI."}
	case errors.Is(err, capture.ErrVMChanged):
		return &appliance.Error{Code: appliance.CodeInterrupted, Msg: cli.Sentence(err.Error()), Err: err,
			Hint: "Nothing was kept of this backup; start it again."}
	}
	return err
}

func backupCommand(p *cli.Program) *cobra.Command {
	var from sourceFlags
	var o capture.Options
	var rate int64
	c := &cobra.Command{Use: "backup", Short: "Capture a VM into its next point", Args: cobra.NoArgs,
		Long: "Backup makes the next point of a VM: a full the first time or with --full, what\n" +
			"changed since the latest point otherwise. It goes to the control plane that owns\n" +
			"the repository; without one the command writes the repository itself.",
		RunE: func(c *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			src, err := from.open(log)
			if err != nil {
				return captureError(err)
			}
			o.VM, o.Source, o.Log = from.vm, from.kind, log
			if rate > 0 {
				o.Limit = block.NewLimit(rate<<20, nil)
			}
			return runBackup(c, p, src, o)
		}}
	from.add(c)
	f := c.Flags()
	f.BoolVar(&o.Full, "full", false, "begin a new chain")
	f.StringVar(&o.Compress, "compress", "", "store clusters compressed: `zstd` or zstd:LEVEL")
	f.IntVar(&o.AuditClusters, "audit", 0, "`clusters` of each disk read to check the source's change tracking, default 256; -1: none")
	f.Int64Var(&rate, "limit", 0, "read at most so many `MiB` in a second")
	return c
}

func runBackup(c *cobra.Command, p *cli.Program, src capture.Source, o capture.Options) error {
	conn, err := host.Connect(c.Context(), p.Control, host.Options{Repository: p.Repository, Create: true,
		Name: "sendense-capture backup", Version: version})
	if err != nil {
		return err
	}
	bar := p.NewProgress(c, "backup")
	o.Progress = func(s capture.Progress) { bar.Set(strings.TrimSpace(s.Phase+" "+s.Disk), s.Done, s.Total) }
	sum, err := capture.Run(c.Context(), src, conn.Target(), o)
	bar.Close()
	if err = captureError(err); err != nil {
		return errors.Join(err, conn.Close())
	}
	vp, err := conn.Point(c.Context(), sum.VM.UUID, sum.PointID)
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	return p.Print(c, backedUp{Summary: sum, Point: vp.Point}, func(w io.Writer) { printSummary(w, sum, vp.Point) })
}

// backedUp is what backup prints with --json.
type backedUp struct {
	capture.Summary
	Point appliance.Point `json:"record"` // of the point made
}

func printSummary(w io.Writer, s capture.Summary, p appliance.Point) {
	kind := "full"
	if s.Parent != "" {
		kind = "incremental on " + s.Parent
	}
	fmt.Fprintf(w, "%s %s: %s, %s-consistent\n", s.VM.Name, s.PointID, kind, s.Config.Consistency)
	t := cli.NewTable(w, "disk", "captured", "read", "sent", "changed", "stored", "audit")
	for _, d := range s.Disks {
		changed, stored, audit := "-", "-", "-"
		if r := p.Disk(d.Key); r != nil {
			changed, stored = cli.Size(r.DataBytes), cli.Size(r.StoredBytes)
		}
		if d.Audit != nil {
			audit = fmt.Sprintf("%d read, %d missed, miss rate ≤ %.2g", d.Audit.Sampled, d.Audit.Missed, d.Audit.MissRateBound)
		}
		t.Row(d.Key, d.Mode, cli.Size(d.Read), cli.Size(d.Sent), changed, stored, audit)
	}
	t.Flush()
	for _, d := range s.Disks {
		if d.Reason != "" {
			fmt.Fprintf(w, "note: disk %s was read whole: %s\n", d.Key, d.Reason)
		}
	}
	for _, n := range append(s.Config.Notes, s.Warnings...) {
		fmt.Fprintln(w, "note:", n)
	}
}
