package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

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
	format       string
	allowMounted bool
}

func (f *sourceFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.kind, "source", "libvirt", "`kind` of source: libvirt or blockdev")
	c.Flags().StringVar(&f.vm, "vm", "", "`name` or UUID of the VM; for blockdev, what to call it")
	c.Flags().StringVar(&f.connect, "connect", "", "libvirt `URI`, default qemu:///system")
	c.Flags().StringVar(&f.scratch, "scratch", "", "`folder` where QEMU keeps what the guest overwrites meanwhile, default /var/tmp")
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "for blockdev, a disk as `PATH[=NAME]`; again for each further one")
	c.Flags().StringVar(&f.format, "format", "", "for blockdev, the `format` of the disks: raw or qcow2; default by the name's ending")
	c.Flags().BoolVar(&f.allowMounted, "allow-mounted", false, "for blockdev, read devices that are mounted read-write all the same")
}

// open returns the source that the flags describe. conns is how many connections
// to read a disk with, 0 for the source's default.
func (f *sourceFlags) open(log *slog.Logger, conns int) (capture.Source, error) {
	if strings.TrimSpace(f.vm) == "" {
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
		src, err := libvirt.New(libvirt.Options{URI: f.connect, ScratchDir: f.scratch, Guard: []string{self, thawGuardName},
			OpenImage: openImage, Conns: conns, Log: log})
		if err != nil {
			return nil, cli.Usagef("Give another address with --connect URI.", "%s", cli.Sentence(err.Error()))
		}
		return src, nil
	case blockdev.Kind:
		disks, err := f.blockdevDisks()
		if err != nil {
			return nil, err
		}
		src, err := blockdev.New(blockdev.Options{Name: f.vm, Disks: disks, AllowMounted: f.allowMounted,
			Open: func(path string) (block.Device, io.Closer, error) { return openImage(path, "qcow2") }})
		if errors.As(err, new(*fs.PathError)) { // the machine's own identity
			return nil, err
		}
		if err != nil {
			return nil, cli.Usagef("Give each disk a name of its own with --disk PATH=NAME.", "%s", cli.Sentence(err.Error()))
		}
		return src, nil
	}
	return nil, cli.Usagef("See the sources with: sendense-capture sources", "There is no source %q.", f.kind)
}

// blockdevDisks parses --disk PATH[=NAME]. Without --format, QCOW2 files are known
// by their name and no other: what a raw disk begins with is the guest's to write.
func (f *sourceFlags) blockdevDisks() ([]blockdev.Disk, error) {
	if f.format != "" && f.format != blockdev.Raw && f.format != "qcow2" {
		return nil, cli.Usagef("Give raw or qcow2.", "There is no format %q.", f.format)
	}
	if len(f.disks) == 0 {
		return nil, cli.Usagef("Name each with --disk PATH[=NAME].", "The source blockdev takes at least one disk.")
	}
	var disks []blockdev.Disk
	for i, s := range f.disks {
		path, key, named := strings.Cut(s, "=")
		if path == "" || named && key == "" {
			return nil, cli.Usagef("Give a disk as --disk PATH or --disk PATH=NAME.", "--disk %s lacks a path or a name.", s)
		}
		if !named {
			key = fmt.Sprintf("disk%d", i)
		}
		d := blockdev.Disk{Path: path, Key: key, Format: f.format}
		if f.format == "" && strings.HasSuffix(path, ".qcow2") {
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

// explain tells what a source reports to a user.
func (f *sourceFlags) explain(err error) error {
	var e *appliance.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	e = &appliance.Error{Msg: cli.Sentence(err.Error()), Err: err}
	switch {
	case errors.Is(err, capture.ErrNoVM):
		e.Code, e.Hint = appliance.CodeNotFound, "List the VMs of the source, for libvirt with: virsh list --all"
	case errors.Is(err, capture.ErrUnreachable):
		// What comes before says which step it was, which helps nobody.
		_, cause, _ := strings.Cut(err.Error(), capture.ErrUnreachable.Error()+": ")
		e.Code, e.Msg = appliance.CodeUnreachable, cli.Sentence(cause)
		e.Hint = "Check that it runs and that you may use it; another address goes with --connect URI."
		if f.kind == blockdev.Kind {
			explainDisk(e)
		}
	case errors.Is(err, blockdev.ErrFormat):
		e.Code, e.Hint = appliance.CodeInvalid, "Say it with --format qcow2 to store the disk inside the image, or with --format raw to store the file as it is."
	case errors.Is(err, capture.ErrVMChanged):
		e.Code, e.Hint = appliance.CodeInterrupted, "Nothing was kept of this backup; start it again."
	default:
		return err
	}
	return e
}

// explainDisk says what is wrong with a device or file that cannot be opened.
func explainDisk(e *appliance.Error) {
	e.Hint = "A disk is a block device or an image file that nothing writes to; --allow-mounted reads a mounted device all the same."
	var at *fs.PathError
	if errors.As(e.Err, &at) {
		e.Msg = fmt.Sprintf("%s cannot be read: %v.", at.Path, at.Err)
	}
	switch {
	case errors.Is(e.Err, fs.ErrNotExist):
		e.Code, e.Hint = appliance.CodeNotFound, "Check the path that --disk gives."
	case errors.Is(e.Err, fs.ErrPermission):
		e.Code, e.Hint = appliance.CodeDenied, "Run as a user who may read it."
	case errors.Is(e.Err, image.ErrNotQCOW2):
		e.Code, e.Hint = appliance.CodeInvalid, "Files whose names end in .qcow2 are read as QCOW2; say that it is something else with --format raw."
	case errors.Is(e.Err, image.ErrCorrupt):
		e.Code, e.Hint = appliance.CodeCorrupt, "See what is wrong with it: sendense-control image check FILE"
	}
}

func backupCommand(p *cli.Program) *cobra.Command {
	var from sourceFlags
	var o capture.Options
	var rate int64
	c := &cobra.Command{Use: "backup", Short: "Capture a VM into its next point", Args: cli.Args(0, 0),
		Long: "Backup makes the next point of a VM: a full the first time or with --full, what\n" +
			"changed since the latest point otherwise. It goes to the control plane that owns\n" +
			"the repository; without one the command writes the repository itself.",
		RunE: func(c *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			src, err := from.open(log, 0)
			if err != nil {
				return from.explain(err)
			}
			switch {
			case rate < 0:
				return cli.Usagef("Give the MiB to read in a second; 0 is no limit.", "--limit %d is no rate.", rate)
			case o.AuditClusters < -1:
				return cli.Usagef("Give a number of clusters; -1 is none.", "--audit %d is no number of clusters.", o.AuditClusters)
			}
			o.VM, o.Source, o.Log = from.vm, from.kind, log
			if rate > 0 {
				o.Limit = block.NewLimit(rate<<20, nil)
			}
			return runBackup(c, p, &from, src, o)
		}}
	from.add(c)
	f := c.Flags()
	f.BoolVar(&o.Full, "full", false, "begin a new chain")
	f.StringVar(&o.Compress, "compress", "", "store clusters compressed: `zstd` or zstd:LEVEL")
	f.IntVar(&o.AuditClusters, "audit", 0, "`clusters` of each disk read to check the source's change tracking, default 256; -1: none")
	f.Int64Var(&rate, "limit", 0, "read at most so many `MiB` in a second")
	return c
}

func runBackup(c *cobra.Command, p *cli.Program, from *sourceFlags, src capture.Source, o capture.Options) error {
	conn, err := host.Connect(c.Context(), p.Control, host.Options{Repository: p.Repository, Create: true,
		Name: "sendense-capture backup", Version: version})
	if err != nil {
		return err
	}
	bar := p.NewProgress(c, "backup")
	o.Progress = func(s capture.Progress) { bar.Set(strings.TrimSpace(s.Phase+" "+s.Disk), s.Done, s.Total) }
	sum, err := capture.Run(c.Context(), src, conn.Target(), o)
	bar.Close()
	if err != nil {
		return errors.Join(from.explain(whyEnded(c.Context(), conn, sum.JobID, err)), conn.Close())
	}
	vp, err := conn.Point(c.Context(), sum.VM.UUID, sum.PointID)
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	return p.Print(c, backedUp{Summary: sum, Point: vp.Point}, func(w io.Writer) { printSummary(w, sum, vp.Point) })
}

// whyEnded returns why a backup failed with err. Of a draft that somebody ended the
// capture sees no more than a connection that broke; the control plane knows why.
func whyEnded(ctx context.Context, conn *host.Connection, job string, err error) error {
	if ctx.Err() != nil || job == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	j, e := conn.WatchJob(ctx, job, nil)
	var gone *appliance.Error
	switch {
	case errors.As(e, &gone) && gone.Code == appliance.CodeUnreachable:
		return &appliance.Error{Code: appliance.CodeUnreachable, Msg: "The control plane went away before the backup was done.", Err: errors.Join(err, e),
			Hint: "Nothing is kept of the draft, and earlier points are as they were. See its log, then start the backup again."}
	case e == nil && (j.State == appliance.JobCancelled || j.State == appliance.JobInterrupted):
		return &appliance.Error{Code: j.Error.Code, Msg: j.Error.Msg, Hint: j.Error.Hint, Err: err}
	}
	return err
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
