// Package restoretest holds what every target of a restore has to keep to.
package restoretest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/restore"
)

// Subject is a target to be tested, fresh for each test.
type Subject struct {
	Target restore.Target
	// Prepare changes what is restored, if the target needs more than disks.
	Prepare func(m *restore.Machine)
	// Read returns what a disk of the target holds after a commit, at least as many
	// bytes as the disk has.
	Read func(t *testing.T, d restore.PlannedDisk) []byte
	// Left tells what a restore that was given up left behind; nil if nothing is
	// promised.
	Left func(t *testing.T) []string
}

// machine makes what is restored.
func (s Subject) machine(sizes []int64) (restore.Machine, [][]byte) {
	m, contents := machine(sizes)
	if s.Prepare != nil {
		s.Prepare(&m)
	}
	return m, contents
}

// nothingLeft checks that a restore left nothing.
func (s Subject) nothingLeft(t *testing.T, after string) {
	t.Helper()
	if s.Left == nil {
		return
	}
	if left := s.Left(t); len(left) > 0 {
		t.Errorf("left after %s: %q", after, left)
	}
}

// Run runs the suite. newSubject makes a target for disks of these sizes.
func Run(t *testing.T, newSubject func(t *testing.T, sizes []int64) Subject) {
	sizes := []int64{5<<20 + 512, 64 << 10, 512}
	t.Run("holds what the disks held", func(t *testing.T) {
		for _, delta := range []bool{false, true} {
			s := newSubject(t, sizes)
			m, contents := s.machine(sizes)
			last := int64(0)
			r, err := restore.Run(t.Context(), s.Target, m, restore.Options{Delta: delta, Progress: func(_ string, done, total int64) {
				if done < last || done > total {
					t.Errorf("progress: got %d of %d after %d", done, total, last)
				}
				last = done
			}})
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range r.Disks {
				if got := s.Read(t, d.PlannedDisk); len(got) < len(contents[i]) || !bytes.Equal(got[:len(contents[i])], contents[i]) {
					t.Errorf("disk %d, delta %v: got other bytes than it held", i, delta)
				}
				if n := d.WrittenBytes + d.ZeroedBytes + d.SameBytes; n != sizes[i] {
					t.Errorf("disk %d: %d bytes written, %d zeroed, %d the same, of %d", i, d.WrittenBytes, d.ZeroedBytes, d.SameBytes, sizes[i])
				}
			}
		}
	})
	t.Run("a plan changes nothing", func(t *testing.T) {
		s := newSubject(t, sizes)
		m, _ := s.machine(sizes)
		for range 2 {
			p, err := s.Target.Plan(t.Context(), m)
			if err != nil || len(p.Disks) != len(sizes) {
				t.Fatalf("plan: got %+v, %v", p, err)
			}
		}
		s.nothingLeft(t, "a plan")
	})
	t.Run("what was given up after the last disk is cleared away", func(t *testing.T) {
		s := newSubject(t, sizes)
		m, _ := s.machine(sizes)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := restore.Run(ctx, s.Target, m, restore.Options{Progress: func(_ string, done, total int64) {
			if done == total {
				cancel()
			}
		}})
		if err == nil {
			t.Fatal("got no error")
		}
		s.nothingLeft(t, "a restore that was cancelled at its end")
	})
	t.Run("what is cancelled before it is done is not done", func(t *testing.T) {
		s := newSubject(t, sizes)
		m, _ := s.machine(sizes)
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := restore.Run(ctx, late{s.Target, cancel}, m, restore.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		s.nothingLeft(t, "a restore that was cancelled before its commit")
	})
	t.Run("what is done cannot be given up", func(t *testing.T) {
		s := newSubject(t, sizes)
		m, contents := s.machine(sizes)
		r, err := restore.Run(t.Context(), s.Target, m, restore.Options{})
		if err := errors.Join(err, s.Target.Abort()); err != nil {
			t.Fatal(err)
		}
		for i, d := range r.Disks {
			if got := s.Read(t, d.PlannedDisk); !bytes.Equal(got[:min(len(got), len(contents[i]))], contents[i]) {
				t.Errorf("disk %d: got other bytes than it held", i)
			}
		}
	})
	t.Run("a source that fails is told, and what can be is cleared away", func(t *testing.T) {
		s := newSubject(t, sizes)
		m, _ := s.machine(sizes)
		m.Disks[1].Device = failing{m.Disks[1].Device}
		if _, err := restore.Run(t.Context(), s.Target, m, restore.Options{}); !errors.Is(err, errFails) {
			t.Errorf("got %v, want the error of the source", err)
		}
		s.nothingLeft(t, "a failure")
	})
	t.Run("a restore can be cancelled", func(t *testing.T) {
		s := newSubject(t, sizes)
		m, _ := s.machine(sizes)
		ctx, cancel := context.WithCancel(t.Context())
		m.Disks[0].Device = stopping{m.Disks[0].Device, cancel}
		if _, err := restore.Run(ctx, s.Target, m, restore.Options{}); err == nil {
			t.Error("got no error")
		}
		s.nothingLeft(t, "a restore that was cancelled")
	})
}

// late is a target whose restore is cancelled when all is written.
type late struct {
	restore.Target
	cancel func()
}

func (l late) Commit(ctx context.Context) (restore.Made, error) {
	l.cancel()
	return l.Target.Commit(ctx)
}

var errFails = errors.New("the source fails")

type failing struct{ block.Device }

func (failing) ReadAt(context.Context, []byte, int64) error { return errFails }

type stopping struct {
	block.Device
	stop func()
}

func (s stopping) ReadAt(ctx context.Context, p []byte, off int64) error {
	s.stop()
	return errors.Join(s.Device.ReadAt(context.WithoutCancel(ctx), p, off), ctx.Err())
}

// machine makes a machine whose disks hold runs of data and of zeroes.
func machine(sizes []int64) (restore.Machine, [][]byte) {
	rng := rand.New(rand.NewPCG(1, 1))
	m := restore.Machine{Name: "web1"}
	var contents [][]byte
	for i, size := range sizes {
		d := blocktest.NewMemory(size)
		content := make([]byte, size)
		for off := int64(0); off < size; {
			n := min(size-off, 1+rng.Int64N(700<<10))
			if rng.IntN(2) == 0 {
				for j := range n {
					content[off+j] = byte(rng.Uint32())
				}
				if err := d.WriteAt(context.Background(), content[off:off+n], off); err != nil {
					panic(err)
				}
			}
			off += n
		}
		m.Disks = append(m.Disks, restore.Disk{Index: i, Key: string(rune('a' + i)), Device: d})
		contents = append(contents, content)
	}
	return m, contents
}
