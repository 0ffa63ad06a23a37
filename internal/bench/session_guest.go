package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/image"
	realguest "github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/repository"
)

// guestDepth is how many points the chain has that a guest boots from.
const guestDepth = 100

// bootTimeout is how long a guest may take, in a machine that is emulated.
const bootTimeout = 5 * time.Minute

// guestBoot measures how long a guest takes to boot from a session, beside the same
// guest on a local image.
func (b *bench) guestBoot(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		b.logf("left out: guests take root")
		return nil
	}
	cache, err := realguest.CacheDir()
	if err != nil {
		return err
	}
	img, err := realguest.Build(ctx, cache)
	if err != nil {
		return err
	}
	accel, err := realguest.Accel(ctx, cache, img)
	if err != nil {
		return err
	}
	host, err := realguest.StartHost(ctx, cache, accel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	local, definition, err := b.localGuest(ctx, host, img)
	if err != nil {
		return err
	}
	b.logf("build a chain of %d points of the guest", guestDepth)
	s, err := b.newSite(ctx, "guest", func(r repository.Repository) error {
		config, err := json.Marshal(capture.Config{Format: "libvirt-xml", Definition: definition})
		if err != nil {
			return err
		}
		from, err := image.OpenChain(img.Disk, image.ChainOptions{Format: "qcow2"})
		if err != nil {
			return err
		}
		return errors.Join(chainOf(ctx, r, guestDepth, from, repository.PointInfo{Config: config, Disks: []repository.DiskInfo{{Key: "vda"}}}), from.Close())
	})
	if err != nil {
		return err
	}
	defer s.close()
	var commands []float64
	got, err := b.interleave(ctx,
		subject{name: "sendense", run: func(ctx context.Context) (float64, error) {
			command, whole, err := s.bootGuest(ctx, host)
			commands = append(commands, command)
			return whole, err
		}},
		subject{name: "local", run: func(ctx context.Context) (float64, error) {
			seconds, err := timed(func() error { return errors.Join(local.Start(ctx), up(ctx, local)) })
			return seconds, errors.Join(err, local.Destroy(ctx))
		}})
	if err != nil {
		return err
	}
	b.medians("guest-boot/", got, "s")
	command := median(commands)
	b.metric("guest-boot-command/sendense", command, "ms")
	b.add(row{figure: fmt.Sprintf("boot command until the machine runs, depth %d (%s)", guestDepth, accel), unit: "ms", own: command,
		checks: []check{limit(command, 1000, "ms")}})
	b.add(row{figure: fmt.Sprintf("guest boot from a session at depth %d until its agent answers (%s)", guestDepth, accel), unit: "s",
		own: got.median("sendense"), plain: got.median("local"), checks: []check{atMost("a local image", got.ratio("sendense", "local"), 1.1)}})
	return nil
}

// localGuest defines the guest on an image of its own.
func (b *bench) localGuest(ctx context.Context, host *realguest.Host, img realguest.Image) (*realguest.VM, string, error) {
	disk := filepath.Join(b.dir, "local.qcow2")
	if err := img.CopyDisk(ctx, disk, "qcow2"); err != nil {
		return nil, "", err
	}
	v, err := host.Define(ctx, realguest.Spec{Name: "local", Image: img, Disks: []realguest.Disk{{Target: "vda", Source: disk}}})
	if err != nil {
		return nil, "", err
	}
	definition, err := v.XML()
	return v, definition, err
}

func up(ctx context.Context, v *realguest.VM) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	return v.WaitAgent(ctx)
}

// bootGuest times the command, in milliseconds, and the guest until its agent
// answers, in seconds.
func (s *site) bootGuest(ctx context.Context, host *realguest.Host) (command, whole float64, err error) {
	var x appliance.Session
	whole, err = timed(func() error {
		seconds, err := timed(func() error { return s.run(ctx, &x, "boot", string(vm), "latest", "--connect", host.URI()) })
		if err != nil {
			return err
		}
		command = seconds * 1000
		v, err := host.Find(x.Machine.Name)
		if err != nil {
			return err
		}
		return errors.Join(up(ctx, v), v.Conn.Disconnect())
	})
	if err != nil {
		return 0, 0, err
	}
	return command, whole, s.run(ctx, nil, "session", "discard", x.ID)
}

// chainOf makes n points of a disk: a full with a share of the disk's clusters, and
// incrementals with the others, so that neighbours lie in different files and the
// last point has all of them.
func chainOf(ctx context.Context, r repository.Repository, n int, from block.Device, info repository.PointInfo) error {
	p := make([]byte, cluster)
	for i := range n {
		d, err := r.Begin(ctx, repository.BeginOptions{VM: vm, Name: "bench"})
		if err != nil {
			return err
		}
		_, err = fillPoint(ctx, d, from.Size(), info, func(d block.Device) error {
			return block.MapAll(ctx, from, 0, from.Size(), func(e block.Extent) error {
				for off := e.Off / cluster * cluster; e.Kind == block.Data && off < e.Off+e.Len; off += cluster {
					if int(off/cluster*7919)%n != i {
						continue
					}
					k := min(cluster, from.Size()-off)
					if err := errors.Join(from.ReadAt(ctx, p[:k], off), block.Write(ctx, d, p[:k], off)); err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}
