package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/nbdserver"
)

// vm is the machine whose points are made.
const vm = repository.VMID("5e0d0000-0000-4000-8000-00000000bec4")

// newRepository makes an empty repository.
func (b *bench) newRepository(name string) (*dir.Repository, func(), error) {
	path := filepath.Join(b.dir, name)
	r, err := dir.Open(path, dir.Options{Create: true})
	return r, func() { r.Close(); os.RemoveAll(path) }, err
}

// point makes a point of one disk: write is told the disk's device.
func point(ctx context.Context, r repository.Repository, size int64, write func(block.Device) error) (repository.Point, error) {
	d, err := r.Begin(ctx, repository.BeginOptions{VM: vm, Name: "bench"})
	if err != nil {
		return repository.Point{}, err
	}
	x, err := d.AddDisk(ctx, "vda", size)
	if err == nil {
		err = write(x.Device())
	}
	if err != nil {
		return repository.Point{}, errors.Join(err, d.Abort(ctx))
	}
	return d.Commit(ctx, repository.PointInfo{})
}

// writeRandom writes n clusters of random data, in order, spread evenly over the
// disk; all of them if n is what the disk has.
func writeRandom(ctx context.Context, r random, d block.Device, n int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	all := d.Size() / cluster
	for i := range n {
		p := make([]byte, cluster)
		r.fill(p)
		g.Go(func() error { return block.Write(ctx, d, p, i*all/n*cluster) })
	}
	return g.Wait()
}

// ingest measures how fast a draft takes a disk of random data over NBD.
func (b *bench) ingest(ctx context.Context) error {
	if err := b.buildLayered(ctx); err != nil {
		return err
	}
	source := b.layered.raw
	r, remove, err := b.newRepository("ingest")
	if err != nil {
		return err
	}
	defer remove()
	b.logf("build the parent of the ingest")
	if _, err := point(ctx, r, b.size, func(d block.Device) error { return writeRandom(ctx, newRandom(4), d, b.size/cluster) }); err != nil {
		return err
	}
	target := filepath.Join(b.dir, "copy")
	// begun prepares a destination; what copies to it is timed.
	fresh := func(work func() error) (float64, error) {
		os.Remove(target)
		settle()
		seconds, err := timed(work)
		os.Remove(target)
		return seconds, err
	}
	commits := []float64{}
	s, err := b.interleave(ctx,
		subject{"sendense", func(ctx context.Context) (float64, error) {
			settle()
			seconds, commit, err := b.ingestOnce(ctx, r, source)
			commits = append(commits, commit)
			return seconds, err
		}},
		subject{"cp", func(ctx context.Context) (float64, error) {
			return fresh(func() error {
				_, err := tool(ctx, "cp", "--reflink=never", source, target)
				if err == nil {
					_, err = tool(ctx, "sync", target)
				}
				return err
			})
		}},
		subject{"qemu-nbd", func(ctx context.Context) (float64, error) { return b.ingestQEMU(ctx, source, target) }},
		subject{"qemu-img", func(ctx context.Context) (float64, error) {
			return fresh(func() error {
				_, err := tool(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, target)
				if err == nil {
					_, err = tool(ctx, "sync", target)
				}
				return err
			})
		}})
	if err != nil {
		return err
	}
	for _, name := range []string{"sendense", "cp", "qemu-nbd", "qemu-img"} {
		b.metric("ingest/"+name, s.median(name), "s")
	}
	b.metric("ingest-commit/sendense", median(commits), "s")
	b.add(row{figure: "ingest into a draft with a parent", unit: "s",
		own: s.median("sendense"), qemuNBD: s.median("qemu-nbd"), qemuImg: s.median("qemu-img"), plain: s.median("cp"), checks: []check{
			atMost("cp + sync", s.ratio("sendense", "cp"), 1.25), atMost("qemu-nbd", s.ratio("sendense", "qemu-nbd"), 0.5)}})
	return nil
}

// ingestQEMU copies source into a new QCOW2 file behind qemu-nbd.
func (b *bench) ingestQEMU(ctx context.Context, source, target string) (float64, error) {
	defer os.Remove(target)
	if _, err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", target, fmt.Sprint(b.size)); err != nil {
		return 0, err
	}
	s := b.newServer("qemu-nbd/ingest")
	s.cmd = exec.Command("qemu-nbd", "-t", "-e", "16", "-f", "qcow2", "-k", s.socket, target)
	if err := s.start(ctx); err != nil {
		return 0, err
	}
	defer s.stop()
	settle()
	return timed(func() error { _, err := tool(ctx, "nbdcopy", "--flush", source, s.uri); return err })
}

// ingestOnce copies source into a draft, commits it and deletes the point. It
// returns the seconds that the copy and the commit took.
func (b *bench) ingestOnce(ctx context.Context, r repository.Repository, source string) (seconds, commit float64, err error) {
	d, err := r.Begin(ctx, repository.BeginOptions{VM: vm, Name: "bench"})
	if err != nil {
		return 0, 0, err
	}
	x, err := d.AddDisk(ctx, "vda", b.size)
	if err == nil {
		err = b.serving(ctx, x.Device(), func(uri string) error {
			var err error
			seconds, err = timed(func() error { _, err := tool(ctx, "nbdcopy", "--flush", source, uri); return err })
			return err
		})
	}
	if err != nil {
		return 0, 0, errors.Join(err, d.Abort(ctx))
	}
	var p repository.Point
	if commit, err = timed(func() (err error) { p, err = d.Commit(ctx, repository.PointInfo{}); return err }); err != nil {
		return 0, 0, err
	}
	return seconds, commit, r.Delete(ctx, vm, p.ID)
}

// serving serves a device while fn runs.
func (b *bench) serving(ctx context.Context, d block.Device, fn func(uri string) error) error {
	socket := filepath.Join(b.dir, "draft.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := nbdserver.New(nbdserver.Options{})
	if err := s.Add(nbdserver.Export{Device: d}); err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	err = fn("nbd+unix:///?socket=" + socket)
	stop()
	return errors.Join(err, <-done)
}

// incremental measures a point of 1 % of a disk, in scattered clusters, beside
// reading those clusters and writing them to a file.
func (b *bench) incremental(ctx context.Context) error {
	size := 10 * b.size
	r, remove, err := b.newRepository("incremental")
	if err != nil {
		return err
	}
	defer remove()
	b.logf("build the parent of the incremental")
	if _, err := point(ctx, r, size, func(d block.Device) error { return writeRandom(ctx, newRandom(5), d, size/cluster) }); err != nil {
		return err
	}
	source, err := os.Create(filepath.Join(b.dir, "source.raw"))
	if err != nil {
		return err
	}
	defer func() { source.Close(); os.Remove(source.Name()) }()
	changed, err := changeSource(source, size)
	if err != nil {
		return err
	}
	s, err := b.interleave(ctx,
		subject{"sendense", func(ctx context.Context) (float64, error) {
			settle()
			var p repository.Point
			seconds, err := timed(func() (err error) {
				p, err = point(ctx, r, size, func(d block.Device) error { return copyChanged(ctx, source, d, changed) })
				return err
			})
			if err != nil {
				return 0, err
			}
			return seconds, r.Delete(ctx, vm, p.ID)
		}},
		subject{"raw", func(context.Context) (float64, error) {
			settle()
			target := filepath.Join(b.dir, "changes.raw")
			defer os.Remove(target)
			return timed(func() error { return copyRaw(source, target, changed) })
		}})
	if err != nil {
		return err
	}
	mib := float64(len(changed)*cluster) / (1 << 20)
	b.metric("incremental/sendense", s.median("sendense"), "s")
	b.metric("incremental/raw", s.median("raw"), "s")
	b.metric("incremental/changed", mib, "MiB")
	b.add(row{figure: fmt.Sprintf("incremental of 1 %% scattered changes, %d GiB disk (%.0f MiB)", size>>30, mib), unit: "s",
		own: s.median("sendense"), plain: s.median("raw"), checks: []check{atMost("reading and writing the bytes", s.ratio("sendense", "raw"), 3)}})
	return nil
}

// changeSource writes new data to one cluster of each hundred and returns where.
func changeSource(f *os.File, size int64) ([]int64, error) {
	r, p := newRandom(6), make([]byte, cluster)
	var changed []int64
	for first := int64(0); first < size/cluster; first += 100 {
		off := (first + r.Int64N(min(100, size/cluster-first))) * cluster
		r.fill(p)
		if _, err := f.WriteAt(p, off); err != nil {
			return nil, err
		}
		changed = append(changed, off)
	}
	return changed, f.Truncate(size)
}

// copyChanged copies clusters to a draft, several at a time.
func copyChanged(ctx context.Context, source io.ReaderAt, d block.Device, changed []int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	for _, off := range changed {
		g.Go(func() error {
			p := make([]byte, cluster)
			if _, err := source.ReadAt(p, off); err != nil {
				return err
			}
			return block.Write(ctx, d, p, off)
		})
	}
	return g.Wait()
}

// copyRaw writes the clusters one after another to a file and makes it durable.
func copyRaw(source io.ReaderAt, target string, changed []int64) error {
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	p := make([]byte, cluster)
	for i, off := range changed {
		if _, err = source.ReadAt(p, off); err == nil {
			_, err = f.WriteAt(p, int64(i)*cluster)
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

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
		subject{"sendense", func(ctx context.Context) (float64, error) {
			return timed(func() error {
				report, err := r.Verify(ctx, repository.VerifyOptions{VM: vm})
				if err == nil && !report.OK() {
					err = fmt.Errorf("points are damaged: %v", report.Problems[0])
				}
				return err
			})
		}},
		subject{"hash", func(ctx context.Context) (float64, error) {
			return timed(func() error { return hashFiles(ctx, files) })
		}})
	if err != nil {
		return err
	}
	b.metric("verify-100/sendense", s.median("sendense"), "s")
	b.metric("verify-100/hash", s.median("hash"), "s")
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
	n := 4*b.runs + 2
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
			seconds, err := timed(func() error { return r.Delete(ctx, vm, p.ID) })
			return seconds, err
		}
	}
	bytesOf := func(i int) float64 { return float64(points[i].Disks[0].DataBytes) / (1 << 20) }
	i := 4
	s, err := b.interleave(ctx,
		subject{"small", remove1(2)}, subject{"large", remove1(4)},
		subject{"raw", func(ctx context.Context) (float64, error) {
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
