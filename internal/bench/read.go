package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The servers of the read figures.
const (
	own1, own128   = "sendense/depth=1", "sendense/depth=128"
	qemu1, qemu128 = "qemu-nbd/depth=1", "qemu-nbd/depth=128"
	nbdkitRaw      = "nbdkit/raw"
)

// readServers starts a server for each of the layered images.
func (b *bench) readServers(ctx context.Context) (map[string]*server, func(), error) {
	if err := b.buildLayered(ctx); err != nil {
		return nil, nil, err
	}
	l := b.layered
	servers := map[string]*server{
		own1: b.ownServer(own1, l.single), own128: b.ownServer(own128, l.deep),
		qemu1: b.qemuServer(qemu1, "qcow2", l.single), qemu128: b.qemuServer(qemu128, "qcow2", l.deep),
		nbdkitRaw: b.nbdkitServer(nbdkitRaw, l.raw),
	}
	stop, err := startAll(ctx, servers[own1], servers[own128], servers[qemu1], servers[qemu128], servers[nbdkitRaw])
	return servers, stop, err
}

// sequential measures nbdcopy to nowhere: its rate, and the CPU time it costs.
func (b *bench) sequential(ctx context.Context) error {
	servers, stop, err := b.readServers(ctx)
	if err != nil {
		return err
	}
	defer stop()
	gib := float64(b.size) / (1 << 30)
	cpu := samples{}
	subjects := []subject{}
	for _, name := range []string{own1, qemu1, nbdkitRaw, own128, qemu128} {
		s := servers[name]
		subjects = append(subjects, subject{name: name, run: func(ctx context.Context) (float64, error) {
			before, err := s.cpu()
			if err != nil {
				return 0, err
			}
			seconds, err := timed(func() error { _, err := tool(ctx, "nbdcopy", s.uri, "null:"); return err })
			if err != nil {
				return 0, err
			}
			after, err := s.cpu()
			cpu[name] = append(cpu[name], (after-before)/gib)
			return gib * 1024 / seconds, err
		}})
	}
	rate, err := b.interleave(ctx, subjects...)
	if err != nil {
		return err
	}
	b.medians("sequential-read/", rate, "MiB/s")
	b.medians("sequential-read-cpu/", cpu, "s/GiB")
	b.add(row{figure: "sequential read, depth 1", unit: "MiB/s",
		own: rate.median(own1), qemuNBD: rate.median(qemu1), nbdkit: rate.median(nbdkitRaw), checks: []check{
			atLeast("qemu-nbd", rate.ratio(own1, qemu1), 1.5), atLeast("nbdkit", rate.ratio(own1, nbdkitRaw), 1.1)}})
	b.add(row{figure: "sequential read, depth 128", unit: "MiB/s",
		own: rate.median(own128), qemuNBD: rate.median(qemu128), checks: []check{
			atLeast("qemu-nbd", rate.ratio(own128, qemu128), 3.5), atLeast("own depth 1", rate.ratio(own128, own1), 0.95)}})
	b.add(row{figure: "server CPU for a sequential read, depth 1", unit: "s/GiB",
		own: cpu.median(own1), qemuNBD: cpu.median(qemu1), nbdkit: cpu.median(nbdkitRaw), checks: []check{
			atMost("qemu-nbd", cpu.ratio(own1, qemu1), 0.45)}})
	return nil
}

// random measures small reads at random offsets.
func (b *bench) random(ctx context.Context) error {
	servers, stop, err := b.readServers(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var subjects []subject
	for _, name := range []string{own1, qemu1, own128, qemu128, nbdkitRaw} {
		subjects = append(subjects, subject{name: name, run: func(ctx context.Context) (float64, error) {
			return fio(ctx, servers[name].uri, "randread", b.size, 32, "--time_based", "--runtime=2", "--ramp_time=500ms")
		}})
	}
	rate, err := b.interleave(ctx, subjects...)
	if err != nil {
		return err
	}
	b.medians("random-read-4k-qd32/", rate, "1/s")
	b.add(row{figure: "4 KiB random read, queue depth 32, depth 1", unit: "1/s",
		own: rate.median(own1), qemuNBD: rate.median(qemu1), nbdkit: rate.median(nbdkitRaw), checks: []check{
			atLeast("qemu-nbd", rate.ratio(own1, qemu1), 2.3)}})
	b.add(row{figure: "4 KiB random read, queue depth 32, depth 128", unit: "1/s",
		own: rate.median(own128), qemuNBD: rate.median(qemu128), checks: []check{
			atLeast("qemu-nbd", rate.ratio(own128, qemu128), 12), atLeast("own depth 1", rate.ratio(own128, own1), 0.9)}})
	return nil
}

// fio reads or writes 4 KiB at random offsets, some at a time, and returns how many in
// a second.
func fio(ctx context.Context, uri, rw string, size int64, depth int, more ...string) (float64, error) {
	out, err := tool(ctx, append([]string{"fio", "--name=" + rw, "--ioengine=nbd", "--uri=" + uri, "--rw=" + rw, "--bs=4k",
		fmt.Sprintf("--iodepth=%d", depth), "--norandommap", "--output-format=json", fmt.Sprintf("--size=%d", size)}, more...)...)
	if err != nil {
		return 0, err
	}
	var report struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	// What fio has to say comes before the report.
	out = out[max(0, bytes.IndexByte(out, '{')):]
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		return 0, fmt.Errorf("read fio's report: %v, %d jobs", err, len(report.Jobs))
	}
	rate := report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS // one of them is 0
	if rate == 0 {
		return 0, errors.New("read fio's report: nothing was done")
	}
	return rate, nil
}

// deepLayers and deepSize are the chain and the disk of the deep figures: a point
// each day for a year.
const (
	deepLayers   = 365
	deepSize     = 1 << 40
	deepClusters = 48   // scattered clusters that each point holds
	fullClusters = 4096 // of the first
)

// deep measures the first read of a long chain, and the memory it takes.
func (b *bench) deep(ctx context.Context) error {
	folder := filepath.Join(b.dir, "deep")
	top, err := buildDeep(ctx, folder)
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	settle()
	random := newRandom(3)
	subjects := []subject{}
	for name, make := range map[string]func() *server{
		"sendense": func() *server { return b.ownServer("sendense/first", top) },
		"qemu-nbd": func() *server { return b.qemuServer("qemu-nbd/first", "qcow2", top) },
	} {
		subjects = append(subjects, subject{name: name, run: func(ctx context.Context) (float64, error) {
			s := make()
			seconds, err := timed(func() error {
				if err := s.start(ctx); err != nil {
					return err
				}
				return readOnce(ctx, s.uri, random.Int64N(deepSize/4096)*4096)
			})
			s.stop()
			return seconds * 1000, err
		}})
	}
	first, err := b.interleave(ctx, subjects...)
	if err != nil {
		return err
	}
	b.medians("first-read-depth-365/", first, "ms")
	b.add(row{figure: "first 4 KiB read, depth 365, 1 TiB, cold process", unit: "ms",
		own: first.median("sendense"), qemuNBD: first.median("qemu-nbd"), checks: []check{limit(first.median("sendense"), 100, "ms")}})
	return b.deepMemory(ctx, top)
}

// deepMemory measures what a server takes after a million random reads, and
// qemu-nbd after a tenth of that.
func (b *bench) deepMemory(ctx context.Context, top string) error {
	peak := map[string]float64{}
	for _, x := range []struct {
		*server
		reads int
	}{{b.ownServer("sendense", top), 1_000_000}, {b.qemuServer("qemu-nbd", "qcow2", top), 100_000}} { // the peer would take minutes
		s := x.server
		if err := s.start(ctx); err != nil {
			return err
		}
		rate, err := fio(ctx, s.uri, "randread", deepSize, 32, fmt.Sprintf("--number_ios=%d", x.reads))
		memory, memoryErr := s.peakMemory()
		s.stop()
		if err == nil {
			err = memoryErr
		}
		if err != nil {
			return err
		}
		peak[s.name] = float64(memory) / (1 << 20)
		b.metric("memory-depth-365/"+s.name, peak[s.name], "MiB")
		b.metric("random-read-4k-qd32-depth-365/"+s.name, rate, "1/s")
	}
	b.add(row{figure: "memory, depth 365, 1 TiB, after a million random reads", unit: "MiB",
		own: peak["sendense"], qemuNBD: peak["qemu-nbd"], checks: []check{limit(peak["sendense"], 256, "MiB")}})
	return nil
}
