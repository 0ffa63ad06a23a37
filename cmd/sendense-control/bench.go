package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

// benchResult is a figure of the target-side benchmark.
type benchResult struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func (s service) bench() *cobra.Command {
	var mib int64
	c := &cobra.Command{Use: "bench", Short: "Measure how fast the repository takes and gives data",
		Long: "Bench writes random data into a draft, as a capture agent does, reads it back\n" +
			"and discards the draft: what it measures is the whole way over NBD, digests,\n" +
			"QCOW2 and the repository's file system. Nothing of it stays.",
		Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if mib < 1 {
				return cli.Usagef("Give the amount of data in MiB, as --size 1024.", "%d MiB are nothing to measure with.", mib)
			}
			return s.with(c, true, func(conn *host.Connection) error {
				results, err := benchDraft(c.Context(), conn.Target(), mib<<20)
				if err != nil {
					return err
				}
				return s.Print(c, results, func(w io.Writer) {
					for _, r := range results {
						fmt.Fprintf(w, "%s %.1f %s\n", r.Name, r.Value, r.Unit)
					}
				})
			})
		}}
	c.Flags().Int64Var(&mib, "size", 1024, "`MiB` of data")
	return c
}

// benchRequest is the length of one request, in bytes.
const benchRequest = 1 << 20

var errBenchDone = errors.New("benchmark is over; its draft is never kept")

func benchDraft(ctx context.Context, t capture.Target, size int64) (results []benchResult, err error) {
	draft, err := t.Begin(ctx, capture.Begin{VM: capture.VM{UUID: uuid.NewString(), Name: "bench"}, Source: "bench"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, draft.Abort(context.WithoutCancel(ctx), errBenchDone)) }()
	disk, err := draft.AddDisk(ctx, capture.DiskSpec{Key: "bench", Size: size})
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	dev := disk.Device()
	for _, pass := range []struct {
		name string
		fn   func(p []byte, off int64) error
		end  func() error
	}{
		{"ingest_random", func(p []byte, off int64) error { return block.Write(ctx, dev, p, off) }, func() error { return block.Flush(ctx, dev) }},
		{"read_back", func(p []byte, off int64) error { return dev.ReadAt(ctx, p, off) }, func() error { return nil }},
		{"zeroes", func(p []byte, off int64) error { return block.WriteZeroes(ctx, dev, off, int64(len(p)), block.MayTrim) }, func() error { return block.Flush(ctx, dev) }},
	} {
		seconds, err := inParallel(size, pass.fn, pass.end)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pass.name, err)
		}
		results = append(results, benchResult{pass.name, float64(size) / (1 << 20) / seconds, "MiB/s"})
	}
	return results, nil
}

// inParallel calls fn for every request of a disk, a few at a time, then end, and
// returns the seconds that took.
func inParallel(size int64, fn func(p []byte, off int64) error, end func() error) (float64, error) {
	const workers = 8
	began := time.Now() //permit:time.Now: a benchmark measures real time
	var g errgroup.Group
	for w := range int64(workers) {
		g.Go(func() error {
			p := make([]byte, benchRequest)
			_, _ = rand.NewChaCha8([32]byte{byte(w)}).Read(p) // never fails
			for off := w * benchRequest; off < size; off += workers * benchRequest {
				if err := fn(p[:min(benchRequest, size-off)], off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	if err := end(); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}
