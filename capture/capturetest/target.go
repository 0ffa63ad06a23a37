// Package capturetest holds what tests of capture share: a target and a source
// in memory that keep the contracts of package capture, and the conformance
// suite that every source passes.
package capturetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
)

// Target is a [capture.Target] that keeps points in memory, each disk as the
// clusters it changed over its parent. The digest algorithm is SHA-256.
type Target struct {
	// ClusterSize is in bytes, a power of two, default 64 KiB.
	ClusterSize int64
	// Fault, if not nil, is asked before each call and may fail it: "begin",
	// "add", "write", "zero", "flush", "differs", "report", "commit".
	Fault func(op string) error

	t      testing.TB
	mu     sync.Mutex // guards the fields below
	points []*Point
	jobs   int
	busy   map[string]string // job by the machine whose writer it is
	aborts []error
}

// NewTarget returns an empty target. When the test ends it must have no draft
// open any more.
func NewTarget(t testing.TB) *Target {
	target := &Target{ClusterSize: 64 << 10, t: t, busy: map[string]string{}}
	t.Cleanup(func() {
		for vm, job := range target.busy {
			t.Errorf("draft %s of machine %s was neither committed nor aborted", job, vm)
		}
	})
	return target
}

// Point is a committed point.
type Point struct {
	ID     string
	VM     capture.VM
	Parent *Point // nil for a full
	Result capture.Result
	Disks  map[string]*Disk
}

// Disk is one disk of a point. It is a block.Device that reads as the disk did.
type Disk struct {
	size, grain int64
	parent      *Disk // nil for none

	mu  sync.RWMutex // guards own and each cluster in it
	own map[int64][]byte
}

// Clusters returns how many clusters the point itself holds of the disk.
func (d *Disk) Clusters() int { return len(d.own) }

// Content returns all that the disk reads as.
func (d *Disk) Content() []byte {
	b := make([]byte, d.size)
	d.read(b, 0)
	return b
}

// Points returns the committed points, oldest first.
func (t *Target) Points() []*Point {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]*Point(nil), t.points...)
}

// Latest returns the newest point; the test fails if there is none.
func (t *Target) Latest() *Point {
	t.t.Helper()
	all := t.Points()
	if len(all) == 0 {
		t.t.Fatal("target has no point")
	}
	return all[len(all)-1]
}

// Aborts returns why drafts were aborted.
func (t *Target) Aborts() []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]error(nil), t.aborts...)
}

func (t *Target) fault(op string) error {
	if t.Fault == nil {
		return nil
	}
	return t.Fault(op)
}

// Begin implements [capture.Target].
func (t *Target) Begin(_ context.Context, b capture.Begin) (capture.Draft, error) {
	if err := t.fault("begin"); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if job := t.busy[b.VM.UUID]; job != "" {
		return nil, fmt.Errorf("machine %s has a writer, %s", b.VM.Name, job)
	}
	t.jobs++
	d := &draft{target: t, vm: b.VM, job: fmt.Sprintf("backup-%d", t.jobs), disks: map[string]*draftDisk{}}
	d.point = time.Date(2025, 10, 1, 12, 0, t.jobs, 0, time.UTC).Format("20060102-150405")
	for _, p := range t.points {
		if p.VM.UUID == b.VM.UUID && !b.Full {
			d.parent = p
		}
	}
	t.busy[b.VM.UUID] = d.job
	return d, nil
}

type draft struct {
	target     *Target
	vm         capture.VM
	job, point string
	parent     *Point

	mu    sync.Mutex // guards the fields below
	disks map[string]*draftDisk
	over  bool
}

// JobID implements [capture.Draft].
func (d *draft) JobID() string { return d.job }

// PointID implements [capture.Draft].
func (d *draft) PointID() string { return d.point }

// Parent implements [capture.Draft].
func (d *draft) Parent() *capture.Parent {
	if d.parent == nil {
		return nil
	}
	p := &capture.Parent{PointID: d.parent.ID}
	for _, r := range d.parent.Result.Disks {
		p.Disks = append(p.Disks, capture.ParentDisk{Key: r.Key, Size: d.parent.Disks[r.Key].size, Token: r.Token})
	}
	return p
}

// AddDisk implements [capture.Draft].
func (d *draft) AddDisk(_ context.Context, s capture.DiskSpec) (capture.DraftDisk, error) {
	if err := d.target.fault("add"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.disks[s.Key] != nil {
		return nil, fmt.Errorf("disk %s is there already", s.Key)
	}
	disk := &Disk{size: s.Size, grain: d.target.ClusterSize, own: map[int64][]byte{}}
	if d.parent != nil {
		disk.parent = d.parent.Disks[s.Key]
	}
	d.disks[s.Key] = &draftDisk{draft: d, disk: disk}
	return d.disks[s.Key], nil
}

// Report implements [capture.Draft].
func (d *draft) Report(context.Context, capture.Progress) error { return d.target.fault("report") }

// Commit implements [capture.Draft].
func (d *draft) Commit(_ context.Context, r capture.Result) error {
	err := d.target.fault("commit")
	d.mu.Lock()
	defer d.mu.Unlock()
	if endErr := d.end(); endErr != nil || err != nil {
		return errors.Join(endErr, err)
	}
	p := &Point{ID: d.point, VM: d.vm, Parent: d.parent, Result: r, Disks: map[string]*Disk{}}
	for _, k := range r.Disks {
		disk := d.disks[k.Key]
		switch {
		case disk == nil:
			return fmt.Errorf("disk %s was not added", k.Key)
		case !disk.closed:
			return fmt.Errorf("disk %s is still open", k.Key)
		case disk.dirty:
			return fmt.Errorf("disk %s has writes that were not flushed", k.Key)
		}
		p.Disks[k.Key] = disk.disk
	}
	if len(p.Disks) != len(d.disks) {
		return fmt.Errorf("result has %d disks of %d", len(p.Disks), len(d.disks))
	}
	d.target.mu.Lock()
	defer d.target.mu.Unlock()
	d.target.points = append(d.target.points, p)
	return nil
}

// Abort implements [capture.Draft].
func (d *draft) Abort(_ context.Context, why error) error {
	if why == nil {
		d.target.t.Error("draft aborted for no reason")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.target.mu.Lock()
	d.target.aborts = append(d.target.aborts, why)
	d.target.mu.Unlock()
	return d.end()
}

func (d *draft) end() error {
	if d.over {
		return errors.New("draft is over")
	}
	d.over = true
	d.target.mu.Lock()
	defer d.target.mu.Unlock()
	delete(d.target.busy, d.vm.UUID)
	return nil
}

type draftDisk struct {
	draft *draft
	disk  *Disk

	closed, dirty bool // guarded by disk.mu
}

// Device implements [capture.DraftDisk].
func (d *draftDisk) Device() block.Device { return (*draftDevice)(d) }

// ClusterSize implements [capture.DraftDisk].
func (d *draftDisk) ClusterSize() int64 { return d.disk.grain }

// Sum implements [capture.DraftDisk].
func (d *draftDisk) Sum(c []byte) capture.Digest { return sha256.Sum256(c) }

// Close implements [capture.DraftDisk].
func (d *draftDisk) Close() error {
	d.disk.mu.Lock()
	defer d.disk.mu.Unlock()
	d.closed = true
	return nil
}

// Differs implements [capture.DraftDisk]. The parent of a disk that changed its
// size has no last cluster in common with it, but for the bytes.
func (d *draftDisk) Differs(_ context.Context, first int64, sums []capture.Digest) ([]bool, error) {
	if err := d.draft.target.fault("differs"); err != nil {
		return nil, err
	}
	out := make([]bool, len(sums))
	for i, s := range sums {
		off := (first + int64(i)) * d.disk.grain
		if off >= d.disk.size {
			return nil, fmt.Errorf("cluster %d: %w", first+int64(i), block.ErrOutOfRange)
		}
		p := d.disk.parent
		if p == nil || off >= p.size {
			out[i] = true
			continue
		}
		c := make([]byte, d.disk.grain)
		p.read(c[:min(d.disk.grain, d.disk.size-off)], off)
		out[i] = sha256.Sum256(c) != s
	}
	return out, nil
}

// draftDevice is the device of a draft's disk.
type draftDevice draftDisk

// Size implements [block.Device].
func (d *draftDevice) Size() int64 { return d.disk.size }

// ReadAt implements [block.Device].
func (d *draftDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := block.CheckRange(d.disk.size, off, int64(len(p))); err != nil {
		return err
	}
	d.disk.read(p, off)
	return nil
}

// WriteAt implements [block.Writer].
func (d *draftDevice) WriteAt(_ context.Context, p []byte, off int64) error {
	if err := d.draft.target.fault("write"); err != nil {
		return err
	}
	return d.store(off, int64(len(p)), func(c []byte, at int64) { copy(c, p[at:]) })
}

// WriteZeroes implements [block.Zeroer].
func (d *draftDevice) WriteZeroes(_ context.Context, off, n int64, _ block.ZeroFlags) error {
	if err := d.draft.target.fault("zero"); err != nil {
		return err
	}
	return d.store(off, n, func(c []byte, _ int64) { clear(c) })
}

// Flush implements [block.Flusher].
func (d *draftDevice) Flush(context.Context) error {
	if err := d.draft.target.fault("flush"); err != nil {
		return err
	}
	d.disk.mu.Lock()
	defer d.disk.mu.Unlock()
	d.dirty = false
	return nil
}

// store lets fill put the bytes at each part of the range into its cluster.
func (d *draftDevice) store(off, n int64, fill func(part []byte, at int64)) error {
	if err := block.CheckRange(d.disk.size, off, n); err != nil {
		return err
	}
	d.disk.mu.Lock()
	defer d.disk.mu.Unlock()
	if d.closed {
		return errors.New("draft disk is closed")
	}
	d.dirty = true
	for at := int64(0); at < n; {
		c, in := (off+at)/d.disk.grain, (off+at)%d.disk.grain
		l := min(d.disk.grain-in, n-at)
		own := d.disk.own[c]
		if own == nil {
			own = make([]byte, d.disk.grain)
			d.disk.cluster(own, c)
		}
		fill(own[in:in+l], at)
		d.disk.own[c] = own
		at += l
	}
	return nil
}

// read fills p, beyond the end with zeroes.
func (d *Disk) read(p []byte, off int64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	c := make([]byte, d.grain)
	for at := int64(0); at < int64(len(p)); {
		d.cluster(c, (off+at)/d.grain)
		at += int64(copy(p[at:], c[(off+at)%d.grain:]))
	}
}

// cluster fills c with cluster i; d.mu is held.
func (d *Disk) cluster(c []byte, i int64) {
	off := i * d.grain
	switch own := d.own[i]; {
	case own != nil:
		copy(c, own)
	case d.parent != nil && off < d.parent.size:
		d.parent.mu.RLock()
		d.parent.cluster(c, i)
		d.parent.mu.RUnlock()
		clear(c[min(d.grain, d.parent.size-off):])
	default:
		clear(c)
	}
	if off+d.grain > d.size {
		clear(c[max(0, d.size-off):])
	}
}

// Compact drops clusters that equal the parent's, as a real target does, and
// returns how many are left for each disk.
func (p *Point) Compact() map[string]int {
	left := map[string]int{}
	for key, d := range p.Disks {
		maps.DeleteFunc(d.own, func(i int64, own []byte) bool {
			parent := make([]byte, d.grain)
			if d.parent != nil && i*d.grain < d.parent.size {
				d.parent.read(parent, i*d.grain)
			}
			return bytes.Equal(own, parent)
		})
		left[key] = len(d.own)
	}
	return left
}
