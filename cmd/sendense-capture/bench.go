package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/blockdev"
	"github.com/sendense/sendense/internal/cli"
)

// readRate is one figure of the source-side benchmark.
type readRate struct {
	Disk         string  `json:"disk"`
	Connections  int     `json:"connections,omitempty"` // NBD connections, 0 where there are none
	RequestBytes int64   `json:"request_bytes"`
	InFlight     int     `json:"in_flight"` // requests at a time
	BytesPerSec  float64 `json:"bytes_per_second"`
}

// errEnough ends a capture that was only a benchmark.
var errEnough = errors.New("benchmark is over")

func benchCommand(p *cli.Program) *cobra.Command {
	var from sourceFlags
	var seconds float64
	c := &cobra.Command{Use: "bench", Short: "Measure how fast a source's disks can be read, by request size, connections and requests in flight",
		Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if seconds <= 0 {
				return cli.Usagef("Give the seconds for each figure, as --seconds 1.", "Nothing can be measured in %v seconds.", seconds)
			}
			var rates []readRate
			for _, conns := range from.connections() {
				src, err := from.open(slog.New(slog.DiscardHandler), conns)
				if err != nil {
					return from.explain(err)
				}
				more, err := benchSource(c.Context(), src, from.vm, conns, time.Duration(seconds*float64(time.Second)))
				if err != nil {
					return from.explain(err)
				}
				rates = append(rates, more...)
			}
			return p.Print(c, rates, func(w io.Writer) {
				t := cli.NewTable(w, "disk", "connections", "request", "in flight", "rate")
				for _, r := range rates {
					t.Row(r.Disk, orDash(r.Connections), cli.Size(r.RequestBytes), r.InFlight, cli.Size(int64(r.BytesPerSec))+"/s")
				}
				t.Flush()
			})
		}}
	from.add(c)
	c.Flags().Float64Var(&seconds, "seconds", 1, "`seconds` for each figure")
	return c
}

// connections returns with how many connections a source is measured.
func (f *sourceFlags) connections() []int {
	if f.kind == blockdev.Kind {
		return []int{0}
	}
	return []int{1, 4}
}

func orDash(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func benchSource(ctx context.Context, src capture.Source, name string, conns int, each time.Duration) (rates []readRate, err error) {
	vm, err := src.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	instant, err := src.Begin(ctx, vm, capture.Request{Token: "sendense-bench-" + uuid.NewString()[:8]})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, instant.Close()) }()
	for _, d := range instant.Disks() {
		for _, request := range []int64{64 << 10, 256 << 10, 1 << 20, 4 << 20} {
			for _, inFlight := range []int{1, 4, 16} {
				rate, err := readFor(ctx, d.Device, request, inFlight, each)
				if err != nil {
					return nil, fmt.Errorf("read disk %s: %w", d.Key, err)
				}
				rates = append(rates, readRate{d.Key, conns, request, inFlight, rate})
			}
		}
	}
	return rates, instant.Err()
}

// readFor reads a device from its start, round and round, and returns the bytes
// in a second.
func readFor(ctx context.Context, d block.Device, request int64, inFlight int, each time.Duration) (float64, error) {
	slots := d.Size() / request
	if slots == 0 {
		return 0, nil
	}
	var counts block.Counts
	counted := block.Counted(d, &counts)
	began := time.Now() //permit:time.Now: a benchmark measures real time
	ctx, cancel := context.WithTimeoutCause(ctx, each, errEnough)
	defer cancel()
	var g errgroup.Group
	for w := range inFlight {
		g.Go(func() error {
			p := make([]byte, request)
			for slot := int64(w); ; slot += int64(inFlight) { // one request at least
				// The request itself is not cut short, which would cost the device.
				if err := counted.ReadAt(context.WithoutCancel(ctx), p, slot%slots*request); err != nil || ctx.Err() != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errEnough) {
		return 0, cause
	}
	return float64(counts.ReadBytes.Load()) / time.Since(began).Seconds(), nil
}
