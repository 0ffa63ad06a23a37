// Command bench measures the product beside its peers: qemu-nbd, nbdkit, qemu-img
// and plain cp, each doing the same work on the same bytes in turn.
//
// Every figure is printed as a line "name value unit" as soon as it is known; the
// table of docs/PERFORMANCE.md follows at the end. That page says how each figure
// is got.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func main() {
	fstest.Isolate() // as root: what is unmounted has to be so for everybody
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	program string // sendense-control
	dir     string // scratch
	size    int64  // bytes of random data
	runs    int    // of everything that is compared
	out     io.Writer
	log     io.Writer
	start   time.Time

	rows []row
	// Built by who needs them first.
	layered  *layered
	readable *readable
}

// groups are the measurements in the order they are made; -only chooses among
// their names.
var groups = []struct {
	name string
	run  func(b *bench, ctx context.Context) error
}{
	{"sequential", (*bench).sequential},
	{"random", (*bench).random},
	{"deep", (*bench).deep},
	{"ingest", (*bench).ingest},
	{"incremental", (*bench).incremental},
	{"verify", (*bench).verify},
	{"merge", (*bench).merge},
	{"boot", (*bench).boot},
	{"durable", (*bench).durable},
	{"guest", (*bench).guestBoot},
	{"mounted", (*bench).mounted},
	{"verified", (*bench).verified},
	{"files", (*bench).files},
	{"points", (*bench).points},
	{"others", (*bench).others},
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	only := f.String("only", "", "measure the groups whose names match this `expression`: sequential, random, deep, ingest, incremental, verify, merge, boot, durable, guest, mounted, verified, files, points, others")
	size := f.Int64("size", 2048, "amount of random data in `MiB`")
	runs := f.Int("runs", 5, "how often everything is measured")
	update := f.Bool("update", false, "put the table into docs/PERFORMANCE.md")
	program := f.String("program", "bin/sendense-control", "`path` of the program to measure")
	scratch := f.String("scratch", "build/bench", "`folder` for what is made on the way; it is removed")
	profile := f.String("cpuprofile", "", "write a CPU profile of what runs in this process to this `file`")
	if err := f.Parse(args); err != nil {
		return err
	}
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if *size < 64 || *runs < 1 || f.NArg() > 0 {
		return errors.New("give a size of 64 MiB or more, a run or more, and no arguments")
	}
	b := &bench{size: *size << 20, runs: *runs, out: stdout, log: stderr, start: time.Now()}
	if b.program, err = filepath.Abs(*program); err != nil {
		return err
	}
	if b.dir, err = filepath.Abs(*scratch); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(b.dir), os.MkdirAll(b.dir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if *profile != "" {
		p, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer p.Close()
		if err := pprof.StartCPUProfile(p); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	m, err := describeMachine(ctx, b.program)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if !chosen.MatchString(g.name) {
			continue
		}
		b.logf("%s", g.name)
		if err := g.run(b, ctx); err != nil {
			return fmt.Errorf("measure %s: %w", g.name, err)
		}
	}
	table := m.table(b)
	fmt.Fprintf(stdout, "\n%s", table)
	if *update {
		return updatePage("docs/PERFORMANCE.md", table)
	}
	return nil
}

// logf tells how far the run is.
func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.log, "%4.0f s  %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// metric prints one figure.
func (b *bench) metric(name string, value float64, unit string) {
	fmt.Fprintf(b.out, "%s %.4g %s\n", name, value, unit)
}
