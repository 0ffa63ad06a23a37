package capture

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/sendense/sendense/block"
)

// Options say what to capture and how.
type Options struct {
	VM       string // name or UUID of the machine
	Source   string // kind of source, told to the target: "libvirt", "blockdev"
	Full     bool   // begin a new chain
	Compress string // as in Begin

	// AuditClusters is how many clusters of each tracked disk are read to check
	// the tracker, default 256. Negative: none.
	AuditClusters int
	// Workers is how many ranges are read and written at a time, default 16. Each
	// takes a buffer of 1 MiB, or of a cluster if that is more; up to 8 MiB each
	// for at most 8 of them while a disk is compared.
	Workers int
	// Limit is the rate at which the source is read; nil for none.
	Limit *block.Limit
	// Rand chooses the clusters to be audited, default one that nobody can
	// foresee. It is used by one goroutine at a time.
	Rand *mathrand.Rand

	Log         *slog.Logger   // default: discard
	Progress    func(Progress) // called about once in ReportEvery, never concurrently; nil for none
	ReportEvery time.Duration  // between reports to the target, default 1 s
}

func (o Options) withDefaults() Options {
	if o.AuditClusters == 0 {
		o.AuditClusters = 256
	}
	if o.Workers <= 0 {
		o.Workers = 16
	}
	if o.Rand == nil {
		var seed [32]byte
		rand.Read(seed[:])
		o.Rand = mathrand.New(mathrand.NewChaCha8(seed))
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ReportEvery <= 0 {
		o.ReportEvery = time.Second
	}
	return o
}

// Summary is the outcome of a capture.
type Summary struct {
	VM      VM           `json:"vm"`
	JobID   string       `json:"job"`
	PointID string       `json:"point"`
	Parent  string       `json:"parent,omitempty"` // point built on, "" for a full
	Config  Config       `json:"config"`
	Disks   []DiskResult `json:"disks"`
	// Warnings are sentences on what went wrong without harm to the point.
	Warnings []string `json:"warnings,omitempty"`
}

// Run makes one point of one machine: all of its disks or nothing. On an error
// the draft has been aborted with it and the instant given up; the Summary then
// says as much as was known.
func Run(ctx context.Context, src Source, dst Target, o Options) (Summary, error) {
	r := &run{src: src, o: o.withDefaults()}
	var err error
	if r.sum.VM, err = src.Resolve(ctx, o.VM); err != nil {
		return r.sum, fmt.Errorf("find virtual machine %q: %w", o.VM, err)
	}
	r.draft, err = dst.Begin(ctx, Begin{VM: r.sum.VM, Source: o.Source, Full: o.Full, Compress: o.Compress})
	if err != nil {
		return r.sum, fmt.Errorf("begin a point of %s: %w", r.sum.VM.Name, err)
	}
	r.sum.JobID, r.sum.PointID = r.draft.JobID(), r.draft.PointID()
	if p := r.draft.Parent(); p != nil {
		r.parent, r.sum.Parent = *p, p.PointID
	}
	if err = r.capture(ctx); err == nil {
		r.o.Log.Info("point captured", "vm", r.sum.VM.Name, "point", r.sum.PointID, "disks", len(r.sum.Disks))
		return r.sum, nil
	}
	if !r.committing {
		// The abort has to reach the target although ctx may be what ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if abortErr := r.draft.Abort(ctx, err); abortErr != nil {
			err = errors.Join(err, fmt.Errorf("abort point %s: %w", r.sum.PointID, abortErr))
		}
	}
	return r.sum, err
}

// run is one capture under way.
type run struct {
	src        Source
	draft      Draft
	parent     Parent // zero for a full
	o          Options
	sum        Summary
	progress   progress
	committing bool // the draft is over, whatever comes of it
}

// warn records what went wrong without harm to the point.
func (r *run) warn(what string, err error) {
	r.sum.Warnings = append(r.sum.Warnings, fmt.Sprintf("%s: %v.", what, err))
	r.o.Log.Warn("capture warning", "vm", r.sum.VM.Name, "point", r.sum.PointID, "what", what, "err", err)
}

// capture takes the instant and brings it into the draft.
func (r *run) capture(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopReports := r.report(ctx, cancel)
	defer stopReports()
	r.progress.enter(phasePrepare, "")
	instant, err := r.src.Begin(ctx, r.sum.VM, r.request())
	if err != nil {
		return fmt.Errorf("take an instant of %s: %w", r.sum.VM.Name, cause(ctx, err))
	}
	defer func() {
		if closeErr := instant.Close(); closeErr != nil {
			r.warn("The source could not give up the instant cleanly", closeErr)
		}
	}()
	r.sum.Config = instant.Config()
	if err = r.disks(ctx, instant.Disks()); err != nil {
		err = cause(ctx, err)
	}
	if why := instant.Err(); why != nil {
		return why // it explains err too, if there is one
	}
	if err != nil {
		return err
	}
	r.progress.enter(phaseCommit, "")
	r.committing = true
	if err := r.draft.Commit(ctx, Result{Config: r.sum.Config, Disks: r.sum.Disks}); err != nil {
		return fmt.Errorf("commit point %s: %w", r.sum.PointID, cause(ctx, err))
	}
	if err := instant.Commit(context.WithoutCancel(ctx)); err != nil {
		r.warn("The point is stored, but the source could not drop what came before it", err)
	}
	return nil
}

// request says what the parent point has of the machine.
func (r *run) request() Request {
	var unique [3]byte // two appliances may name a point in the same second
	rand.Read(unique[:])
	q := Request{Token: r.sum.PointID + "-" + hex.EncodeToString(unique[:]), Since: map[string]string{}}
	for _, d := range r.parent.Disks {
		if d.Token != "" {
			q.Since[d.Key] = d.Token
		}
	}
	return q
}

// disks captures every disk. All are prepared first, so that the total is known
// when copying begins and a disk that cannot be had costs nothing.
func (r *run) disks(ctx context.Context, disks []Disk) (err error) {
	if len(disks) == 0 {
		return fmt.Errorf("%s has no disk that can be captured", r.sum.VM.Name)
	}
	var jobs []*diskJob
	defer func() {
		for _, j := range jobs {
			if closeErr := j.draft.Close(); closeErr != nil && err == nil {
				err = fmt.Errorf("disk %s: close the draft: %w", j.disk.Key, closeErr)
			}
		}
	}()
	for _, d := range disks {
		j, err := r.prepare(ctx, d)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Key, err)
		}
		jobs = append(jobs, j)
	}
	for _, j := range jobs {
		if err := j.capture(ctx); err != nil {
			return fmt.Errorf("disk %s: %w", j.disk.Key, err)
		}
		r.sum.Disks = append(r.sum.Disks, j.result())
	}
	return nil
}

// cause replaces the mere news that ctx ended by the reason for it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}
