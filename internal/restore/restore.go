// Package restore writes the disks of a machine to places where they are used
// again. A [Target] is such a place; [Run] fills it.
//
// The package knows block devices, images and descriptions of machines, and nothing
// of points, repositories and jobs.
package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/restore/fit"
)

// Disk is a disk to be restored.
type Disk struct {
	Index  int
	Key    string // what the machine called it, such as vda
	Device block.Device
}

// Machine is what is restored.
type Machine struct {
	Name  string // fit for a file's name
	Disks []Disk
	// Captured is its description, which targets that only take disks ignore.
	Captured machine.Captured
	// UEFI says that its disks boot with no other firmware, for want of a
	// description.
	UEFI bool
}

// Plan says what a restore would do.
type Plan struct {
	Disks []PlannedDisk `json:"disks"`
	Notes []string      `json:"notes"` // what an operator should know first, each in a sentence
	// Machine is what machine would be made; nil: none.
	Machine *PlannedMachine `json:"machine,omitempty"`
	// Findings say whether the guest fits the machine.
	Findings []fit.Finding `json:"findings,omitempty"`
}

// PlannedMachine is a machine that would be made.
type PlannedMachine struct {
	Name     string           `json:"name"`
	UUID     string           `json:"uuid,omitempty"` // empty: a new one
	Starts   bool             `json:"starts"`
	Hardware machine.Hardware `json:"hardware"`
	// Before is the hardware that was captured; nil if that is not known.
	Before     *machine.Hardware `json:"before,omitempty"`
	Definition string            `json:"definition"` // as libvirt gets it
}

// PlannedDisk is where a disk would go.
type PlannedDisk struct {
	Index int    `json:"index"`
	Key   string `json:"key"`
	Size  int64  `json:"size"` // bytes
	To    string `json:"to"`   // path
	// Overwrites says that there is something that would be lost.
	Overwrites bool `json:"overwrites"`
}

// Target is a place to restore to. Plan may be called any number of times; then it is
// used once: Open for each disk, then Commit or Abort. restoretest has its conformance
// suite.
type Target interface {
	// Plan checks that the machine fits and says what would happen. It changes
	// nothing. Errors wrap [ErrRefused] where another target would do.
	Plan(ctx context.Context, m Machine) (Plan, error)
	// Open returns a device of the disk's size to write its content to. Fresh says
	// that it reads as zeroes.
	Open(ctx context.Context, d Disk) (dev block.Device, fresh bool, err error)
	// Commit makes what was written durable and gives it its place, unless ctx has
	// ended. After an error the restore is given up with Abort.
	Commit(ctx context.Context) (Made, error)
	// Abort gives the restore up. A target that made something new leaves none of
	// it; one that overwrote something cannot bring it back. After a Commit without
	// error it does nothing.
	Abort() error
}

// Made is what a target made beside the disks.
type Made struct {
	Machine *MadeMachine
	Notes   []string
}

// MadeMachine is a machine that was made.
type MadeMachine struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	State string `json:"state"` // running or shut off
	// Consoles are URIs of screens and paths of serial ports of one that runs.
	Consoles []string `json:"consoles,omitempty"`
}

// Refusal is an [ErrRefused] with advice.
type Refusal struct{ Msg, Hint string }

// Error returns the sentence, without its full stop.
func (r *Refusal) Error() string { return r.Msg }

// Is says that it is an ErrRefused.
func (r *Refusal) Is(target error) bool { return target == ErrRefused }

// ErrRefused says that a target cannot or must not take the machine.
var ErrRefused = errors.New("refused")

// PartialError says that a restore failed when it had written to devices that were
// to be overwritten: they hold neither what they did nor what they should.
type PartialError struct {
	Paths []string
	Err   error
}

// Error names the devices.
func (e *PartialError) Error() string {
	return fmt.Sprintf("%v; overwritten in part: %s", e.Err, strings.Join(e.Paths, ", "))
}

// Unwrap returns why it failed.
func (e *PartialError) Unwrap() error { return e.Err }

// Options say how disks are written.
type Options struct {
	// Delta reads what the target holds and writes only what differs.
	Delta bool
	// Progress is called with the bytes done and all there are, now and then.
	Progress func(disk string, done, total int64)
}

// Result says what a restore did.
type Result struct {
	Disks    []RestoredDisk `json:"disks"`
	Notes    []string       `json:"notes"`
	Machine  *MadeMachine   `json:"machine,omitempty"`
	Findings []fit.Finding  `json:"findings,omitempty"`
}

// RestoredDisk is a disk with what was written of it.
type RestoredDisk struct {
	PlannedDisk
	WrittenBytes int64 `json:"written_bytes"` // of data
	ZeroedBytes  int64 `json:"zeroed_bytes"`  // made zero
	SameBytes    int64 `json:"same_bytes"`    // left, for they were the same
}

// Run plans, writes all disks and commits.
func Run(ctx context.Context, t Target, m Machine, o Options) (_ Result, err error) {
	plan, err := t.Plan(ctx, m)
	if err != nil {
		return Result{}, err
	}
	r := Result{Notes: plan.Notes}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	var written []string
	defer func() {
		if err != nil && len(written) > 0 {
			err = &PartialError{written, err}
		}
	}()
	total, done := int64(0), int64(0)
	for _, d := range m.Disks {
		total += d.Device.Size()
	}
	for i, d := range m.Disks {
		x := RestoredDisk{PlannedDisk: plan.Disks[i]}
		c := &copier{src: d.Device, opts: o, out: &x, report: func(n int64) { o.Progress(d.Key, done+n, total) }}
		err := c.restore(ctx, t, d)
		if x.Overwrites && c.wrote.Load() {
			written = append(written, x.To)
		}
		if err != nil {
			return r, errors.Join(fmt.Errorf("restore disk %s to %s: %w", d.Key, x.To, err), t.Abort())
		}
		done += d.Device.Size()
		r.Disks = append(r.Disks, x)
	}
	made, err := t.Commit(ctx)
	if err != nil {
		return r, errors.Join(err, t.Abort())
	}
	r.Machine, r.Notes = made.Machine, append(r.Notes, made.Notes...)
	return r, nil
}

const (
	piece   = 1 << 20  // bytes read at a time
	cluster = 64 << 10 // unit of comparison, in bytes
	writers = 4        // pieces under way
)

// copier copies one disk.
type copier struct {
	src    block.Device
	dst    block.Device
	fresh  bool
	opts   Options
	out    *RestoredDisk
	report func(done int64)
	wrote  atomic.Bool // something, or tried to
}

func (c *copier) restore(ctx context.Context, t Target, d Disk) (err error) {
	if c.dst, c.fresh, err = t.Open(ctx, d); err != nil {
		return err
	}
	size := c.src.Size()
	for off := int64(0); off < size; {
		exts, err := block.Map(ctx, c.src, off, min(size-off, 64<<20))
		if err != nil {
			return err
		}
		if err := c.extents(ctx, exts); err != nil {
			return err
		}
		off = exts[len(exts)-1].End()
		c.report(off)
	}
	return block.Flush(ctx, c.dst)
}

// counts are how many bytes of a run became what.
type counts struct{ written, zeroed, same int64 }

func (c *copier) extents(ctx context.Context, exts []block.Extent) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	results := make(chan counts, 1)
	total := counts{}
	added := make(chan struct{})
	go func() {
		defer close(added)
		for r := range results {
			total.written, total.zeroed, total.same = total.written+r.written, total.zeroed+r.zeroed, total.same+r.same
		}
	}()
	for _, e := range exts {
		for off := e.Off; off < e.End(); off += piece {
			n := min(piece, e.End()-off)
			g.Go(func() error {
				r, err := c.piece(ctx, off, n, e.Kind == block.Data)
				results <- r
				return err
			})
		}
	}
	err := g.Wait()
	close(results)
	<-added
	c.out.WrittenBytes += total.written
	c.out.ZeroedBytes += total.zeroed
	c.out.SameBytes += total.same
	return err
}

// piece restores one run, of data or of zeroes.
func (c *copier) piece(ctx context.Context, off, n int64, data bool) (counts, error) {
	if !data && c.fresh {
		return counts{same: n}, nil
	}
	want := make([]byte, n)
	if data {
		if err := c.src.ReadAt(ctx, want, off); err != nil {
			return counts{}, err
		}
	}
	if !c.opts.Delta {
		return c.put(ctx, want, off, data)
	}
	held := make([]byte, n)
	if err := c.dst.ReadAt(ctx, held, off); err != nil {
		return counts{}, err
	}
	var sum counts
	for at := int64(0); at < n; {
		end := min(at+cluster, n)
		if bytes.Equal(want[at:end], held[at:end]) {
			sum.same += end - at
			at = end
			continue
		}
		for end < n && !bytes.Equal(want[end:min(end+cluster, n)], held[end:min(end+cluster, n)]) {
			end = min(end+cluster, n)
		}
		r, err := c.put(ctx, want[at:end], off+at, data)
		if err != nil {
			return sum, err
		}
		sum.written, sum.zeroed = sum.written+r.written, sum.zeroed+r.zeroed
		at = end
	}
	return sum, nil
}

// put writes a run.
func (c *copier) put(ctx context.Context, p []byte, off int64, data bool) (counts, error) {
	n := int64(len(p))
	c.wrote.Store(true)
	if !data {
		return counts{zeroed: n}, block.WriteZeroes(ctx, c.dst, off, n, block.MayTrim)
	}
	return counts{written: n}, block.Write(ctx, c.dst, p, off)
}
