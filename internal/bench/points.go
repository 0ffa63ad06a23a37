package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/repository"
)

// A thousand points of a hundred machines, and a year of one.
const (
	machines      = 100
	machinePoints = 10
	chainPoints   = 365
)

// points measures listing a mount that shows many points, for the first time.
func (b *bench) points(ctx context.Context) error {
	if !b.mayMount() {
		return nil
	}
	b.logf("build many points")
	many, removeMany, err := b.smallPoints(ctx, "many", machines, machinePoints)
	if err != nil {
		return err
	}
	defer removeMany()
	long, removeLong, err := b.smallPoints(ctx, "long", 1, chainPoints)
	if err != nil {
		return err
	}
	defer removeLong()
	settle()
	s, err := b.interleave(ctx, b.listing("root", many, "", machines), b.listing("machine", long, "machine-000", chainPoints))
	if err != nil {
		return err
	}
	b.metric("mount-ls/1000-points", s.median("root"), "ms")
	b.metric("mount-ls/machine-365-points", s.median("machine"), "ms")
	b.add(row{figure: fmt.Sprintf("first ls of a mount with %d points of %d machines", machines*machinePoints, machines), unit: "ms",
		own: s.median("root"), checks: []check{limit(s.median("root"), 50, "ms")}})
	b.add(row{figure: fmt.Sprintf("first ls of a machine with %d points in it", chainPoints), unit: "ms", own: s.median("machine")})
	return nil
}

// smallPoints makes a repository of machines with points of one cluster each.
func (b *bench) smallPoints(ctx context.Context, name string, machines, points int) (path string, remove func(), err error) {
	r, remove, err := b.newRepository(name)
	if err != nil {
		return "", nil, err
	}
	write := func(d block.Device) error { return block.Write(ctx, d, make([]byte, cluster), 0) }
	for i := range machines {
		id := repository.VMID(fmt.Sprintf("5e0d0000-0000-4000-8000-%012d", i))
		for range points {
			if _, err := pointOf(ctx, r, id, fmt.Sprintf("machine-%03d", i), 1<<30, write); err != nil {
				remove()
				return "", nil, err
			}
		}
	}
	return r.Root(), remove, nil
}

// listing is having ls list a folder of a mount that is new, where it has to find
// so many names: in milliseconds.
func (b *bench) listing(name, repository, folder string, want int) subject {
	return subject{name: name, run: func(ctx context.Context) (float64, error) {
		m, dir := b.mountServer("points", repository)
		if err := makePlace(dir, ""); err != nil {
			return 0, err
		}
		if err := m.start(ctx); err != nil {
			return 0, err
		}
		defer m.stop()
		seconds, err := timed(func() error {
			out, err := tool(ctx, "ls", filepath.Join(dir, folder))
			if n := len(strings.Fields(string(out))); err == nil && n != want {
				err = fmt.Errorf("%q has %d names, want %d", folder, n, want)
			}
			return err
		})
		return seconds * 1000, err
	}}
}
