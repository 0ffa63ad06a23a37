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
	// It is going to be removed: nothing it could say at its end matters.
	return r, func() { _ = r.Close(); os.RemoveAll(path) }, err
}

// point makes a point of one disk: write is told the disk's device.
func point(ctx context.Context, r repository.Repository, size int64, write func(block.Device) error) (repository.Point, error) {
	return pointOf(ctx, r, vm, "bench", size, write)
}

// pointOf makes a point of a machine.
func pointOf(ctx context.Context, r repository.Repository, vm repository.VMID, name string, size int64, write func(block.Device) error) (repository.Point, error) {
	d, err := r.Begin(ctx, repository.BeginOptions{VM: vm, Name: name})
	if err != nil {
		return repository.Point{}, err
	}
	return fillPoint(ctx, d, size, repository.PointInfo{}, write)
}

// fillPoint makes a draft with one disk a point.
func fillPoint(ctx context.Context, d repository.Draft, size int64, info repository.PointInfo, write func(block.Device) error) (repository.Point, error) {
	x, err := d.AddDisk(ctx, "vda", size)
	if err == nil {
		err = write(x.Device())
	}
	if err != nil {
		return repository.Point{}, errors.Join(err, d.Abort(ctx))
	}
	return d.Commit(ctx, info)
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
	defer b.dropLayered()
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
	// fresh times what copies to a new file.
	fresh := func(work func() error) (float64, error) {
		os.Remove(target)
		settle()
		seconds, err := timed(work)
		os.Remove(target)
		return seconds, err
	}
	own := struct{ commit, cpu []float64 }{}
	qemuCPU := []float64{}
	s, err := b.interleave(ctx,
		subject{name: "sendense", run: func(ctx context.Context) (float64, error) {
			settle()
			t, err := b.ingestOnce(ctx, r, source)
			own.commit, own.cpu = append(own.commit, t.commit), append(own.cpu, t.cpu)
			return t.copied, err
		}},
		subject{name: "cp", run: func(ctx context.Context) (float64, error) {
			return fresh(func() error {
				_, err := tool(ctx, "cp", "--reflink=never", source, target)
				if err == nil {
					_, err = tool(ctx, "sync", target)
				}
				return err
			})
		}},
		subject{name: "qemu-nbd", run: func(ctx context.Context) (float64, error) {
			seconds, cpu, err := b.ingestQEMU(ctx, source, target)
			qemuCPU = append(qemuCPU, cpu)
			return seconds, err
		}},
		subject{name: "qemu-img", run: func(ctx context.Context) (float64, error) {
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
	b.medians("ingest/", s, "s")
	b.metric("ingest-commit/sendense", median(own.commit), "s")
	b.metric("ingest-cpu/sendense", median(own.cpu), "s")
	b.metric("ingest-cpu/qemu-nbd", median(qemuCPU), "s")
	b.add(row{figure: "ingest into a draft with a parent", unit: "s",
		own: s.median("sendense"), qemuNBD: s.median("qemu-nbd"), qemuImg: s.median("qemu-img"), plain: s.median("cp"), checks: []check{
			atMost("cp + sync", s.ratio("sendense", "cp"), 1.25), atMost("qemu-nbd", s.ratio("sendense", "qemu-nbd"), 0.5)}})
	return nil
}

// ingestQEMU copies source into a new QCOW2 file behind qemu-nbd. It returns the
// seconds that took, and those of CPU time of the server.
func (b *bench) ingestQEMU(ctx context.Context, source, target string) (seconds, cpu float64, err error) {
	defer os.Remove(target)
	if _, err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", target, fmt.Sprint(b.size)); err != nil {
		return 0, 0, err
	}
	s := b.newServer("qemu-nbd/ingest")
	s.cmd = exec.Command("qemu-nbd", "-t", "-e", "16", "-f", "qcow2", "-k", s.socket, target)
	if err := s.start(ctx); err != nil {
		return 0, 0, err
	}
	defer s.stop()
	settle()
	seconds, err = timed(func() error { _, err := tool(ctx, "nbdcopy", "--flush", source, s.uri); return err })
	if err == nil {
		cpu, err = s.cpu()
	}
	return seconds, cpu, err
}

// ingestTimes are seconds.
type ingestTimes struct {
	copied float64 // nbdcopy, with the flush
	commit float64
	cpu    float64 // of this process, during the copy
}

// ingestOnce copies source into a draft, commits it and deletes the point.
func (b *bench) ingestOnce(ctx context.Context, r repository.Repository, source string) (t ingestTimes, err error) {
	d, err := r.Begin(ctx, repository.BeginOptions{VM: vm, Name: "bench"})
	if err != nil {
		return t, err
	}
	x, err := d.AddDisk(ctx, "vda", b.size)
	if err == nil {
		err = b.serving(ctx, x.Device(), func(uri string) (err error) {
			before := ownCPU()
			t.copied, err = timed(func() error { _, err := tool(ctx, "nbdcopy", "--flush", source, uri); return err })
			t.cpu = ownCPU() - before
			return err
		})
	}
	if err != nil {
		return t, errors.Join(err, d.Abort(ctx))
	}
	var p repository.Point
	if t.commit, err = timed(func() (err error) { p, err = d.Commit(ctx, repository.PointInfo{}); return err }); err != nil {
		return t, err
	}
	return t, r.Delete(ctx, vm, p.ID)
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
	written := int64(len(changed)) * cluster
	s, err := b.interleave(ctx,
		subject{name: "sendense", run: func(ctx context.Context) (float64, error) {
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
		subject{name: "raw", run: func(context.Context) (float64, error) {
			target := filepath.Join(b.dir, "changes.raw")
			defer os.Remove(target)
			settle()
			return timed(func() error { return copyRaw(source, target, changed) })
		}})
	if err != nil {
		return err
	}
	mib := float64(written) / (1 << 20)
	b.medians("incremental/", s, "s")
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
