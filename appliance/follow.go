package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sort"
	"strings"
	"time"
)

// followEvery is how often the record of a job is looked at that another process
// runs.
const followEvery = 250 * time.Millisecond

// errUnwatched ends the watch of a job that goes on elsewhere.
var errUnwatched = &Error{Code: CodeInterrupted, Msg: "The control plane was stopped while the job was followed; another process runs it.",
	Hint: "See how the job stands with: sendense-control jobs"}

// settle returns a job as it stands: one that is said to run and whose process is
// dead was interrupted, and is recorded as such.
func (js *jobs) settle(j Job) (Job, error) {
	alive, mine := js.journal.Alive(j.Owner), j.Owner == js.journal.Owner()
	if j.State != JobRunning || alive && !mine {
		return j, nil
	}
	// It may have ended after it was read: all that run here are remembered.
	if now, err := js.journal.Job(j.ID); err == nil && now.State != JobRunning {
		return now, nil
	}
	if alive {
		return j, nil
	}
	end := js.now().UTC()
	j.State, j.Ended = JobInterrupted, &end
	j.Error = &JobError{Code: CodeInterrupted,
		Msg:  fmt.Sprintf("The process that ran the job (%s) died before the job was done.", processOf(j.Owner)),
		Hint: "Nothing was left half-done: the draft is discarded and earlier points are as they were. Start the job again."}
	return j, js.journal.PutJob(j)
}

// processOf names the process behind an owner, whose name begins with its id.
func processOf(owner string) string {
	pid, _, _ := strings.Cut(owner, "-")
	return "pid " + pid
}

// look returns a job as it stands, wherever it runs.
func (a *Appliance) look(j Job) Job {
	if j, ok := a.jobs.remembered(j.ID); ok {
		return j
	}
	settled, err := a.jobs.settle(j)
	if err != nil {
		a.log.Warn("job that was interrupted is not recorded as such", "job", j.ID, "err", err)
	}
	return settled
}

// Jobs returns all jobs that are remembered, newest first.
func (a *Appliance) Jobs(context.Context) ([]Job, error) {
	all, err := a.opts.Journal.Jobs()
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for i := range all {
		known[all[i].ID] = true
		all[i] = a.look(all[i])
	}
	for _, id := range a.jobs.memory() {
		if j, ok := a.jobs.remembered(id); ok && !known[id] {
			all = append(all, j)
		}
	}
	sort.Slice(all, func(i, k int) bool {
		if !all[i].Started.Equal(all[k].Started) {
			return all[i].Started.After(all[k].Started)
		}
		return all[i].ID > all[k].ID
	})
	return all, nil
}

// Job returns one job; CodeNotFound if it is not remembered.
func (a *Appliance) Job(_ context.Context, id string) (Job, error) {
	if j, ok := a.jobs.remembered(id); ok {
		return j, nil
	}
	j, err := a.opts.Journal.Job(id)
	if errors.Is(err, fs.ErrNotExist) {
		return Job{}, &Error{Code: CodeNotFound, Err: err, Msg: fmt.Sprintf("There is no job %s.", id),
			Hint: "List the jobs with: sendense-control jobs"}
	}
	if err != nil {
		return Job{}, err
	}
	return a.look(j), nil
}

// WatchJob calls fn with the job as it stands and again when it has changed, at
// most ten times a second, until it is final, fn returns an error or ctx ends. Of a
// job that another process runs it tells what that records: its beginning and its
// end, and no progress.
func (a *Appliance) WatchJob(ctx context.Context, id string, fn func(Job) error) error {
	r := a.jobs.get(id)
	if r == nil {
		return a.follow(ctx, id, fn)
	}
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for {
		j, changed := r.snapshot()
		if err := fn(j); err != nil || changed == nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		if j.State == JobRunning {
			select {
			case <-pause.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// follow is WatchJob for a job that does not run here.
func (a *Appliance) follow(ctx context.Context, id string, fn func(Job) error) error {
	again := time.NewTicker(followEvery)
	defer again.Stop()
	for last := (Job{}); ; {
		j, err := a.Job(ctx, id)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(j, last) {
			if err := fn(j); err != nil {
				return err
			}
		}
		if last = j; j.State != JobRunning {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.jobs.closing:
			return errUnwatched
		}
	}
}
