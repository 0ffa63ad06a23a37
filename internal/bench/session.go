package main

import (
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
			subject{name: "qemu-nbd/" + name, run: func(ctx context.Context) (float64, error) { return bootQEMU(ctx, s) }})
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

// overlay is what a session is to qemu-img and qemu-nbd: a server of a file that is
// based on a point's.
type overlay struct {
	*server
	base, path string
}

// overlay returns one of the newest point, whose file is not made yet.
func (s *site) overlay(ctx context.Context) (overlay, error) {
	var p struct {
		Point repository.Point `json:"point"`
	}
	if err := s.run(ctx, &p, "info", string(vm), "latest"); err != nil {
		return overlay{}, err
	}
	q := overlay{s.b.newServer("qemu-nbd/overlay"), filepath.Join(s.path, string(vm), p.Point.Disks[0].File), filepath.Join(s.b.dir, "overlay.qcow2")}
	q.cmd = exec.Command("qemu-nbd", "-t", "-f", "qcow2", "-k", q.socket, q.path)
	return q, nil
}

// create makes the file.
func (o overlay) create(ctx context.Context) error {
	_, err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", o.base, o.path)
	return err
}

// bootQEMU does what boot does with qemu-img and qemu-nbd.
func bootQEMU(ctx context.Context, s *site) (ms float64, err error) {
	q, err := s.overlay(ctx)
	if err != nil {
		return 0, err
	}
	defer os.Remove(q.path)
	seconds, err := timed(func() error {
		err := q.create(ctx)
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
	q, err := s.overlay(ctx)
	if err != nil {
		return err
	}
	if err := q.create(ctx); err != nil {
		return err
	}
	defer os.Remove(q.path)
	stop, err := startAll(ctx, q.server)
	if err != nil {
		return err
	}
	defer stop()
	for _, load := range []struct {
		name        string
		depth, sync int
		checks      bool
	}{{"a flush after each", 1, 1, true}, {"32 in flight, a flush after 32", 32, 32, false}} {
		write := func(ctx context.Context, uri string) (float64, error) {
			return fio(ctx, uri, "randwrite", size, load.depth, fmt.Sprintf("--fsync=%d", load.sync), "--time_based", "--ramp_time=0.5", "--runtime=3")
		}
		got, err := b.interleave(ctx,
			subject{name: "sendense", run: func(ctx context.Context) (float64, error) { return write(ctx, x.Disks[0].URI) }},
			subject{name: "qemu-nbd", run: func(ctx context.Context) (float64, error) { return write(ctx, q.uri) }})
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
