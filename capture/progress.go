package capture

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Phases, as Progress tells them.
const (
	phasePrepare = "prepare"
	phaseRead    = "read"
	phaseAudit   = "audit"
	phaseCompare = "compare"
	phaseCommit  = "commit"
)

// progress counts how far a capture is.
type progress struct {
	done, total atomic.Int64

	mu          sync.Mutex // guards the fields below
	phase, disk string
}

func (p *progress) enter(phase, disk string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.disk = phase, disk
}

func (p *progress) now() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Progress{Phase: p.phase, Disk: p.disk, Done: p.done.Load(), Total: p.total.Load()}
}

// reportTimeout bounds how long a target that does not answer delays the end of a
// capture.
const reportTimeout = 10 * time.Second

// report tells the target and the caller how far the capture is until the
// function it returns is called, and once more then. A target that cancelled the
// draft makes it call cancel.
func (r *run) report(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	stopped, over := make(chan struct{}), make(chan struct{})
	send := func() {
		p := r.progress.now()
		if r.o.Progress != nil {
			r.o.Progress(p)
		}
		if r.committed() {
			return
		}
		limited, done := context.WithTimeout(ctx, reportTimeout)
		err := r.draft.Report(limited, p)
		done()
		switch {
		case errors.Is(err, ErrCancelled):
			cancel(err)
		case err != nil && ctx.Err() == nil:
			r.o.Log.Debug("progress not reported", "job", r.sum.JobID, "err", err)
		}
	}
	go func() {
		defer close(over)
		tick := time.NewTicker(r.o.ReportEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				send()
			case <-stopped:
				send()
				return
			}
		}
	}()
	return func() { close(stopped); <-over }
}

// committed says that the draft is over and takes no more reports.
func (r *run) committed() bool { return r.progress.now().Phase == phaseCommit }
