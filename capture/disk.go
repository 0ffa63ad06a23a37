package capture

import (
	"context"
	"errors"
	"fmt"
	"math/bits"

	"github.com/sendense/sendense/block"
)

// changeWindow bounds how much of a disk one Changed call is asked about, and so
// the ranges held at a time.
const changeWindow = 4 << 30

// diskJob brings one disk of the instant into the draft.
type diskJob struct {
	run    *run
	disk   Disk
	draft  DraftDisk
	src    block.Device // the instant's, counted and limited
	dst    block.Device // the draft's, counted
	size   int64
	grain  int64 // cluster size
	mode   string
	reason string
	audit  *Audit

	changed *bitset // ModeTracked: clusters to be sent; covers [0, tracked)
	tracked int64   // bytes that the tracker knows of, up to the parent's size

	read, sent block.Counts
}

// prepare adds the disk to the draft and decides how to capture it.
func (r *run) prepare(ctx context.Context, d Disk) (*diskJob, error) {
	size := d.Device.Size()
	draft, err := r.draft.AddDisk(ctx, DiskSpec{Key: d.Key, Size: size})
	if err != nil {
		return nil, fmt.Errorf("add to the draft: %w", err)
	}
	j := &diskJob{run: r, disk: d, draft: draft, size: size, grain: draft.ClusterSize()}
	j.src = block.Counted(d.Device, &j.read)
	if r.o.Limit != nil {
		j.src = block.Throttle(j.src, r.o.Limit)
	}
	j.dst = block.Counted(draft.Device(), &j.sent)
	if err = j.check(); err == nil {
		err = j.choose(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, draft.Close())
	}
	r.o.Log.Info("disk prepared", "vm", r.sum.VM.Name, "disk", d.Key, "bytes", size, "mode", j.mode, "reason", j.reason)
	return j, nil
}

func (j *diskJob) check() error {
	if j.grain <= 0 || bits.OnesCount64(uint64(j.grain)) != 1 {
		return fmt.Errorf("target has clusters of %d bytes, which is no power of two", j.grain)
	}
	if got := j.dst.Size(); got != j.size {
		return fmt.Errorf("draft has %d bytes where the disk has %d", got, j.size)
	}
	return nil
}

// choose decides on the mode and counts the work into the progress.
func (j *diskJob) choose(ctx context.Context) error {
	parent := j.run.parentDisk(j.disk.Key)
	switch {
	case parent == nil:
		j.mode = ModeFull
	case j.size < parent.Size:
		j.compareBecause(fmt.Sprintf("the disk shrank from %d to %d bytes", parent.Size, j.size))
	case !j.disk.Tracked && j.disk.Untracked != "":
		j.compareBecause(j.disk.Untracked)
	case parent.Token == "":
		j.compareBecause("point " + j.run.parent.PointID + " has no change token for the disk")
	case !j.disk.Tracked:
		j.compareBecause("the source does not track changes of the disk")
	default:
		if err := j.findChanges(ctx, parent); err != nil {
			if ctx.Err() != nil {
				return err
			}
			j.compareBecause(fmt.Sprintf("change tracking failed: %v", err))
		}
	}
	work := j.size
	if j.mode == ModeTracked {
		work = j.changed.count()*j.grain + j.size - j.tracked
		if n := j.changed.n; n > 0 && j.changed.has(n-1) {
			work -= n*j.grain - j.tracked // the last cluster ends with the disk
		}
	}
	j.run.progress.total.Add(work)
	return nil
}

func (j *diskJob) compareBecause(reason string) {
	j.mode, j.reason = ModeCompare, reason
}

func (r *run) parentDisk(key string) *ParentDisk {
	for i := range r.parent.Disks {
		if r.parent.Disks[i].Key == key {
			return &r.parent.Disks[i]
		}
	}
	return nil
}

// findChanges marks the clusters that the tracker calls changed. It is asked
// about what the parent had; a disk that grew is captured in full beyond, and
// the cluster in which the parent ended counts as changed.
func (j *diskJob) findChanges(ctx context.Context, parent *ParentDisk) error {
	j.tracked = min(j.up(parent.Size), j.size)
	marked := newBitset(j.clusters(j.tracked))
	if parent.Size != j.size {
		marked.set(parent.Size/j.grain, marked.n)
	}
	for off := int64(0); off < j.tracked; off += changeWindow {
		n := min(changeWindow, j.tracked-off)
		ranges, err := block.Changed(ctx, j.disk.Device, parent.Token, off, n)
		if err != nil {
			return err
		}
		for _, c := range ranges {
			if err := block.CheckRange(j.tracked, c.Off, c.Len); err != nil {
				return fmt.Errorf("changed range: %w", err)
			}
			marked.set(c.Off/j.grain, j.clusters(c.End()))
		}
	}
	j.mode, j.changed = ModeTracked, marked
	return nil
}

func (j *diskJob) up(off int64) int64       { return (off + j.grain - 1) &^ (j.grain - 1) }
func (j *diskJob) down(off int64) int64     { return off &^ (j.grain - 1) }
func (j *diskJob) clusters(end int64) int64 { return j.up(end) / j.grain }

// capture moves the disk's content and makes it durable at the target.
func (j *diskJob) capture(ctx context.Context) error {
	var err error
	switch j.mode {
	case ModeFull:
		j.run.progress.enter(phaseRead, j.disk.Key)
		err = j.copyRange(ctx, 0, j.size, leaveZeroes)
	case ModeTracked:
		j.run.progress.enter(phaseRead, j.disk.Key)
		if err = j.copyChanged(ctx); err == nil {
			err = j.auditTracker(ctx)
		}
	default:
		j.run.progress.enter(phaseCompare, j.disk.Key)
		_, err = j.compare(ctx, nil)
	}
	if err != nil {
		return err
	}
	if err := block.Flush(ctx, j.dst); err != nil {
		return fmt.Errorf("flush the draft: %w", err)
	}
	return nil
}

// copyChanged sends the clusters that the tracker calls changed, and what lies
// beyond the parent.
func (j *diskJob) copyChanged(ctx context.Context) error {
	err := j.copyRuns(ctx, func(yield func(off, n int64) error) error {
		for i := int64(0); i < j.changed.n; {
			end := j.changed.run(i, j.changed.n)
			if j.changed.has(i) {
				if err := yield(i*j.grain, min(end*j.grain, j.size)-i*j.grain); err != nil {
					return err
				}
			}
			i = end
		}
		return nil
	}, sendZeroes)
	if err != nil {
		return err
	}
	return j.copyRange(ctx, j.tracked, j.size-j.tracked, leaveZeroes)
}

func (j *diskJob) result() DiskResult {
	return DiskResult{
		Key: j.disk.Key, Size: j.size, Token: j.disk.Token, Mode: j.mode, Reason: j.reason,
		Read: j.read.ReadBytes.Load(), Sent: j.sent.WrittenBytes.Load(), Audit: j.audit,
	}
}
