package appliance

import (
	"context"
	"errors"
	"fmt"

	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/repository"
)

// VerifyRequest chooses what is verified.
type VerifyRequest struct {
	VM    string `json:"vm,omitempty"`    // name or UUID; "": all
	Point string `json:"point,omitempty"` // of VM, with all it builds on; "": all
}

// Verify starts a job that reads every cluster of the points chosen and compares
// it with its digest. Its result is a [repository.Report]; damage fails the job
// with CodeCorrupt.
func (a *Appliance) Verify(ctx context.Context, r VerifyRequest) (Job, error) {
	var o repository.VerifyOptions
	var name string
	switch {
	case r.VM != "" && r.Point != "":
		vm, p, err := a.Point(ctx, r.VM, r.Point)
		if err != nil {
			return Job{}, err
		}
		name, o.VM, o.Points = vm.Name, vm.ID, []repository.PointID{p.ID}
	case r.VM != "":
		vm, err := a.VM(ctx, r.VM)
		if err != nil {
			return Job{}, err
		}
		name, o.VM = vm.Name, vm.ID
	case r.Point != "":
		return Job{}, &Error{Code: CodeInvalid, Msg: "A point was given without its VM.", Hint: "Name the VM too."}
	}
	point := ""
	if len(o.Points) > 0 {
		point = string(o.Points[0])
	}
	return a.start("verify", name, point, func(ctx context.Context, job *running) (any, error) {
		o.Report = func(s repository.Status) { job.progress("verify", s.File, s.Done, s.Total) }
		report, err := a.repo.Verify(ctx, o)
		if err != nil {
			return nil, userError(err)
		}
		a.opts.Metrics.verified(report)
		if !report.OK() {
			p := report.Problems[0]
			found := fmt.Sprintf("A problem was found: %s", p)
			if n := int64(len(report.Problems)) + report.Omitted; n > 1 {
				found = fmt.Sprintf("%d problems were found; the first: %s", n, p)
			}
			err = &Error{Code: CodeCorrupt, Msg: sentence(found), Hint: p.Hint}
		}
		return report, err
	})
}

// Delete starts a job that removes a point; what newer points need of it is kept
// for them.
func (a *Appliance) Delete(ctx context.Context, vm, point string) (Job, error) {
	v, p, err := a.Point(ctx, vm, point)
	if err != nil {
		return Job{}, err
	}
	for _, e := range a.Exports(ctx) {
		if e.VM == string(v.ID) && e.Point == string(p.ID) {
			return Job{}, &Error{Code: CodeBusy, Msg: fmt.Sprintf("Point %s of VM %s is exported as %s.", p.ID, v.Name, e.ID),
				Hint: "End the export first, with: sendense-control unexport " + e.ID}
		}
	}
	if err := a.pinned(ctx, pin{string(v.ID), string(p.ID)}, v.Name); err != nil {
		return Job{}, err
	}
	return a.start("delete", v.Name, string(p.ID), func(ctx context.Context, _ *running) (any, error) {
		return nil, a.deleteUnpinned(ctx, v, p.ID)
	})
}

// start runs fn as a job of its own.
func (a *Appliance) start(verb, vm, point string, fn func(context.Context, *running) (any, error)) (Job, error) {
	job, ctx, err := a.jobs.begin(verb, vm, point)
	if err != nil {
		return Job{}, err
	}
	first, _ := job.snapshot()
	go func() { // Close waits for it through the jobs
		result, err := fn(ctx, job)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = ended(cause, err)
		}
		job.finish(result, err)
	}()
	return first, nil
}

// remains is an error that tells of something that a job leaves behind, which has to
// be known however the job ended.
type remains struct{ error }

// Unwrap returns the error.
func (r remains) Unwrap() error { return r.error }

// ended returns what to tell of a job that was ended for a cause, and then returned
// err: that it was, and what of err does not follow from that.
func ended(cause, err error) error {
	var left remains
	if !errors.As(err, &left) && !errors.Is(err, machine.ErrRemains) {
		return cause
	}
	why, what := AsError(cause), AsError(err)
	return &Error{Code: why.Code, Err: errors.Join(cause, err), Msg: sentence(why.Error()) + " " + sentence(what.Error()), Hint: what.Hint}
}
