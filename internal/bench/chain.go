package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// buildChain makes points: a full of half the data, and the rest spread over n-1
// incrementals. weight says how much of that goes into a point.
func (b *bench) buildChain(ctx context.Context, r repository.Repository, n int, weight func(i int) int64) ([]repository.Point, error) {
	random, points := newRandom(7), []repository.Point{}
	total := int64(0)
	for i := 1; i < n; i++ {
		total += weight(i)
	}
	for i := range n {
		clusters := b.size / 2 / cluster
		if i > 0 {
			clusters = max(1, clusters*weight(i)/total)
		}
		p, err := point(ctx, r, b.size, func(d block.Device) error { return writeRandom(ctx, random, d, clusters) })
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	settle()
	return points, nil
}

// verify measures the verification of a hundred points beside reading and hashing
// what their files hold.
func (b *bench) verify(ctx context.Context) error {
	r, remove, err := b.newRepository("verify")
	if err != nil {
		return err
	}
	defer remove()
	b.logf("build a hundred points")
	if _, err := b.buildChain(ctx, r, 100, func(int) int64 { return 1 }); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(r.Root(), string(vm), "disk-0", "*.qcow2"))
	if err != nil {
		return err
	}
	s, err := b.interleave(ctx,
		subject{name: "sendense", run: func(ctx context.Context) (float64, error) {
			return timed(func() error {
				report, err := r.Verify(ctx, repository.VerifyOptions{VM: vm})
				if err == nil && !report.OK() {
					err = fmt.Errorf("points are damaged: %v", report.Problems[0])
				}
				return err
			})
		}},
		subject{name: "hash", run: func(ctx context.Context) (float64, error) {
			return timed(func() error { return hashFiles(ctx, files) })
		}})
	if err != nil {
		return err
	}
	b.medians("verify-100/", s, "s")
	b.add(row{figure: "verify of 100 points", unit: "s", own: s.median("sendense"), plain: s.median("hash"),
		checks: []check{atMost("reading and hashing once", s.ratio("sendense", "hash"), 1.3)}})
	return nil
}

// hashFiles reads files and hashes them by clusters, with every processor.
func hashFiles(ctx context.Context, files []string) error {
	g, ctx := errgroup.WithContext(ctx)
	type piece struct {
		f   *os.File
		off int64
	}
	work := make(chan piece, 64)
	g.Go(func() error {
		defer close(work)
		for _, path := range files {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { f.Close() }) // when all are done
			st, err := f.Stat()
			if err != nil {
				return err
			}
			for off := int64(0); off < st.Size(); off += 1 << 20 {
				select {
				case work <- piece{f, off}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			p := make([]byte, 1<<20)
			for w := range work {
				n, err := w.f.ReadAt(p, w.off)
				if err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				for at := 0; at < n; at += cluster {
					image.Sum(p[at:min(at+cluster, n)])
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// The points that merge removes: as many small ones as large ones, which hold
// four times as much.
const largePoint = 4

// merge measures the removal of points from the middle of a chain.
func (b *bench) merge(ctx context.Context) error {
	r, remove, err := b.newRepository("merge")
	if err != nil {
		return err
	}
	defer remove()
	b.logf("build a chain to merge")
	// Small and large points in turn; every other of each kind is removed.
	weight := func(i int) int64 {
		if i%4 == 2 {
			return 1
		}
		return largePoint
	}
	n := 4*(b.runs+1) + 2
	points, err := b.buildChain(ctx, r, n, weight)
	if err != nil {
		return err
	}
	remove1 := func(first int) func(ctx context.Context) (float64, error) {
		i := first
		return func(ctx context.Context) (float64, error) {
			p := points[i]
			i += 4
			settle()
			return timed(func() error { return r.Delete(ctx, vm, p.ID) })
		}
	}
	bytesOf := func(i int) float64 { return float64(points[i].Disks[0].DataBytes) / (1 << 20) }
	i := 4
	s, err := b.interleave(ctx,
		subject{name: "small", run: remove1(2)}, subject{name: "large", run: remove1(4)},
		subject{name: "raw", run: func(ctx context.Context) (float64, error) {
			defer func() { i += 4 }()
			return b.copyOnce(ctx, int64(bytesOf(4))<<20)
		}})
	if err != nil {
		return err
	}
	small, large := bytesOf(2), bytesOf(4)
	b.metric("merge/small", s.median("small"), "s")
	b.metric("merge/small-holds", small, "MiB")
	b.metric("merge/large", s.median("large"), "s")
	b.metric("merge/large-holds", large, "MiB")
	b.metric("merge/cp", s.median("raw"), "s")
	growth := s.ratio("large", "small")
	b.add(row{figure: fmt.Sprintf("merge of a point of %.0f MiB", small), unit: "s", own: s.median("small")})
	b.add(row{figure: fmt.Sprintf("merge of a point of %.0f MiB", large), unit: "s", own: s.median("large"), plain: s.median("raw"),
		checks: []check{{fmt.Sprintf("≤ %.1f × the smaller one, which holds %.1f × less", 1.25*large/small, large/small),
			fmt.Sprintf("%.2f ×", growth), growth <= 1.25*large/small}}})
	return nil
}

// copyOnce copies n bytes of random data from file to file and makes them durable.
func (b *bench) copyOnce(ctx context.Context, n int64) (float64, error) {
	source, target := filepath.Join(b.dir, "from"), filepath.Join(b.dir, "to")
	defer func() { os.Remove(source); os.Remove(target) }()
	p := make([]byte, n)
	newRandom(8).fill(p)
	if err := os.WriteFile(source, p, 0o600); err != nil {
		return 0, err
	}
	settle()
	return timed(func() error {
		_, err := tool(ctx, "cp", "--reflink=never", source, target)
		if err == nil {
			_, err = tool(ctx, "sync", target)
		}
		return err
	})
}
