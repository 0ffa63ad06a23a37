package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/repository"
)

// site is a repository with a control plane of its own.
type site struct {
	b       *bench
	path    string
	control string // address
	plane   *server
	removal func()
}

// newSite makes a repository, has fill make its points, and starts a control plane.
func (b *bench) newSite(ctx context.Context, name string, fill func(repository.Repository) error) (*site, error) {
	r, remove, err := b.newRepository(name)
	if err != nil {
		return nil, err
	}
	s := &site{b: b, path: filepath.Join(b.dir, name), removal: remove}
	if err := errors.Join(fill(r), r.Close()); err != nil {
		remove()
		return nil, err
	}
	run := filepath.Join(b.dir, name+".run")
	s.plane = &server{name: "control plane", socket: filepath.Join(run, "control.sock")}
	s.plane.cmd = exec.Command(b.program+"-plane", "--run-dir", run, "--repository", s.path, "--log-level", "error")
	s.control = "unix:" + s.plane.socket
	if err := s.plane.start(ctx); err != nil {
		remove()
		return nil, err
	}
	return s, nil
}

func (s *site) close() {
	s.plane.stop()
	s.removal()
}

// run runs a command of sendense-control and decodes what it prints into out, unless
// that is nil.
func (s *site) run(ctx context.Context, out any, args ...string) error {
	b, err := tool(ctx, append([]string{s.b.program, "--json", "--control", s.control}, args...)...)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// boot measures how long it takes from the command until the disks of a session
// answer.
func (b *bench) boot(ctx context.Context) error {
	const size = 1 << 30
	values := samples{}
	for _, depth := range []int{1, 365} {
		name := fmt.Sprintf("depth %d", depth)
		b.logf("build a chain of %d points", depth)
		s, err := b.newSite(ctx, "boot", func(r repository.Repository) error {
			for i := range depth {
				_, err := point(ctx, r, size, func(d block.Device) error { return writeRandom(ctx, newRandom(uint64(100+i)), d, 16) })
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		got, err := b.interleave(ctx,
			subject{name: "sendense/" + name, run: func(ctx context.Context) (float64, error) {
				var x appliance.Session
				seconds, err := timed(func() error {
					err := s.run(ctx, &x, "boot", string(vm), "latest", "--disks-only")
					if err == nil {
						err = answers(x.Socket)
					}
					return err
				})
				if err == nil {
					err = s.run(ctx, nil, "session", "discard", x.ID)
				}
				return seconds * 1000, err
			}},
			subject{name: "qemu-nbd/" + name, run: func(ctx context.Context) (float64, error) { return b.bootQEMU(ctx, s) }})
		s.close()
		if err != nil {
			return err
		}
		for k, v := range got {
			values[k] = v
		}
		own, qemu := values.median("sendense/"+name), values.median("qemu-nbd/"+name)
		b.metric("boot/sendense/depth="+fmt.Sprint(depth), own, "ms")
		b.metric("boot/qemu-nbd/depth="+fmt.Sprint(depth), qemu, "ms")
		b.add(row{figure: "boot command until its export answers, " + name, unit: "ms", own: own, qemuNBD: qemu, checks: []check{limit(own, 200, "ms")}})
	}
	return nil
}

// answers waits until a server greets on a socket.
func answers(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	greeting := make([]byte, 18)
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Read(greeting); err != nil {
		return fmt.Errorf("wait for greeting: %w", err)
	}
	if string(greeting[:8]) != "NBDMAGIC" {
		return fmt.Errorf("greeting: %q", greeting)
	}
	return nil
}

// bootQEMU does what boot does with qemu-img and qemu-nbd.
func (b *bench) bootQEMU(ctx context.Context, s *site) (ms float64, err error) {
	var p struct {
		Point repository.Point `json:"point"`
	}
	if err := s.run(ctx, &p, "info", string(vm), "latest"); err != nil {
		return 0, err
	}
	overlay := filepath.Join(b.dir, "overlay.qcow2")
	defer os.Remove(overlay)
	q := b.newServer("qemu-nbd/overlay")
	q.cmd = exec.Command("qemu-nbd", "-t", "-f", "qcow2", "-k", q.socket, overlay)
	seconds, err := timed(func() error {
		_, err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(s.path, string(vm), p.Point.Disks[0].File), overlay)
		if err == nil {
			err = q.start(ctx)
		}
		if err == nil {
			err = answers(q.socket)
		}
		return err
	})
	if err == nil {
		q.stop()
	}
	return seconds * 1000, err
}

// durable measures small writes at random offsets, each followed by a flush.
func (b *bench) durable(ctx context.Context) error {
	const size = 1 << 30
	b.logf("build a point")
	s, err := b.newSite(ctx, "durable", func(r repository.Repository) error {
		_, err := point(ctx, r, size, func(d block.Device) error { return writeRandom(ctx, newRandom(7), d, size/cluster) })
		return err
	})
	if err != nil {
		return err
	}
	defer s.close()
	var x appliance.Session
	if err := s.run(ctx, &x, "boot", string(vm), "latest", "--disks-only"); err != nil {
		return err
	}
	var p struct {
		Point repository.Point `json:"point"`
	}
	if err := s.run(ctx, &p, "info", string(vm), "latest"); err != nil {
		return err
	}
	overlay := filepath.Join(b.dir, "overlay.qcow2")
	defer os.Remove(overlay)
	if _, err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(s.path, string(vm), p.Point.Disks[0].File), overlay); err != nil {
		return err
	}
	q := b.newServer("qemu-nbd/overlay")
	q.cmd = exec.Command("qemu-nbd", "-t", "-f", "qcow2", "-k", q.socket, overlay)
	stop, err := startAll(ctx, q)
	if err != nil {
		return err
	}
	defer stop()
	for _, load := range []struct {
		name        string
		depth, sync int
		checks      bool
	}{{"a flush after each", 1, 1, true}, {"32 in flight, a flush after 32", 32, 32, false}} {
		got, err := b.interleave(ctx,
			subject{name: "sendense", run: func(ctx context.Context) (float64, error) { return writes(ctx, x.Disks[0].URI, load.depth, load.sync) }},
			subject{name: "qemu-nbd", run: func(ctx context.Context) (float64, error) { return writes(ctx, q.uri, load.depth, load.sync) }})
		if err != nil {
			return err
		}
		r := row{figure: "4 KiB random writes in a session, " + load.name, unit: "1/s", own: got.median("sendense"), qemuNBD: got.median("qemu-nbd")}
		if load.checks {
			r.checks = []check{atLeast("qemu-nbd", got.ratio("sendense", "qemu-nbd"), 1)}
		}
		for _, name := range []string{"sendense", "qemu-nbd"} {
			b.metric(fmt.Sprintf("session-write/%s/depth=%d/flush=%d", name, load.depth, load.sync), got.median(name), "1/s")
		}
		b.add(r)
	}
	return nil
}

// writes returns how many writes in a second an export takes.
func writes(ctx context.Context, uri string, depth, sync int) (float64, error) {
	out, err := tool(ctx, "fio", "--name=write", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=4k", "--norandommap", fmt.Sprintf("--size=%d", int64(1<<30)),
		fmt.Sprintf("--iodepth=%d", depth), fmt.Sprintf("--fsync=%d", sync), "--time_based", "--ramp_time=0.5", "--runtime=3", "--output-format=json")
	if err != nil {
		return 0, err
	}
	var r struct {
		Jobs []struct {
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	out = out[max(0, bytes.IndexByte(out, '{')):] // what fio has to say comes before the report
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, err
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Write.IOPS == 0 {
		return 0, errors.New("fio tells nothing")
	}
	return r.Jobs[0].Write.IOPS, nil
}
