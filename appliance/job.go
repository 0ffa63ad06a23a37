package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"
	"sync"
	"time"
)

// JobState says where a job stands.
type JobState string

// The states. All but JobRunning are final.
const (
	JobRunning     JobState = "running"
	JobSucceeded   JobState = "succeeded"
	JobFailed      JobState = "failed"
	JobCancelled   JobState = "cancelled"
	JobInterrupted JobState = "interrupted" // the process that ran it died
)

// Job is one run of a verb. Its id is {verb}-{vm}-{yyyymmddHHMMSS}, UTC.
type Job struct {
	ID       string          `json:"id"`
	Verb     string          `json:"verb"`
	VM       string          `json:"vm,omitempty"`    // the VM's name, "" if about all
	Point    string          `json:"point,omitempty"` // the point made or worked on
	State    JobState        `json:"state"`
	Started  time.Time       `json:"started"`
	Ended    *time.Time      `json:"ended,omitempty"`
	Progress Progress        `json:"progress"`
	Error    *JobError       `json:"error,omitempty"` // why it is not succeeded
	Result   json.RawMessage `json:"result,omitempty"`
	Warning  string          `json:"warning,omitempty"` // what else there is to know: a sentence
	Owner    string          `json:"owner"`             // the process that runs it
}

// JobError is an [Error] as it is kept with a job.
type JobError struct {
	Code Code   `json:"code"`
	Msg  string `json:"message"`
	Hint string `json:"hint,omitempty"`
}

// Progress says how far a job is.
type Progress struct {
	Phase string  `json:"phase,omitempty"`
	Disk  string  `json:"disk,omitempty"` // key of the disk at hand
	Done  int64   `json:"done_bytes"`     // of Total
	Total int64   `json:"total_bytes"`    // 0: not known yet
	Rate  float64 `json:"rate_bytes_per_second"`
	// ETA is the estimated time to go in seconds; negative if not known.
	ETA float64 `json:"eta_seconds"`
}

// Journal keeps jobs and lasting exports over restarts. A nil-free, memory-only
// implementation serves repositories that cannot be written to.
type Journal interface {
	Owner() string
	Alive(owner string) bool
	// AddJob is PutJob for a job whose id is to be its own; an error that wraps
	// fs.ErrExist if the id is taken.
	AddJob(Job) error
	PutJob(Job) error
	DeleteJob(id string) error
	// Job returns one job; an error that wraps fs.ErrNotExist if there is none.
	Job(id string) (Job, error)
	Jobs() ([]Job, error)
	PutExport(ExportSpec) error
	DeleteExport(id string) error
	Exports() ([]ExportSpec, error)
	PutSession(Session) error
	DeleteSession(id string) error
	Sessions() ([]Session, error)
}

// keepJobs is how many finished jobs the journal keeps.
const keepJobs = 1000

// jobs runs and remembers jobs.
type jobs struct {
	journal Journal
	now     func() time.Time
	onEnd   func(Job) // told of each job that ends
	// volatile is why the journal forgets everything, nil if it does not.
	volatile error

	wg         sync.WaitGroup
	closing    chan struct{} // closed when no job begins any more
	mu         sync.Mutex    // guards the fields below
	running    map[string]*running
	unrecorded map[string]Job // final jobs that the journal did not take
	ended      []string       // ids of final jobs, those to be dropped first in front
	closed     bool
}

// running is a job in the making.
type running struct {
	jobs       *jobs
	cancel     context.CancelCauseFunc
	unrecorded bool // the journal does not have it

	mu      sync.Mutex // guards the fields below
	job     Job
	changed chan struct{} // closed and replaced at each change
	since   time.Time     // when the phase at hand began
	base    int64         // Done at that time
}

// errCancelled is the cause given to a job's context by Cancel.
var errCancelled = &Error{Code: CodeCancelled, Msg: "The job was cancelled.", Hint: "Start it again when you want it."}

// errShutdown is the cause given to jobs that run when the appliance closes.
var errShutdown = &Error{Code: CodeInterrupted, Msg: "The control plane was stopped while the job ran.",
	Hint: "Start the job again once the control plane runs."}

// recover marks as interrupted the jobs that dead processes left running, drops
// the oldest finished ones, and returns those it marked.
func (js *jobs) recover() ([]Job, error) {
	all, err := js.journal.Jobs()
	if err != nil {
		err = fmt.Errorf("read jobs: %w", err)
	}
	sort.Slice(all, func(i, k int) bool { return all[i].Started.Before(all[k].Started) })
	var marked []Job
	for i := range all {
		j, settleErr := js.settle(all[i])
		err = errors.Join(err, settleErr)
		if j.State == JobInterrupted && all[i].State == JobRunning {
			marked = append(marked, j)
		}
		if j.State != JobRunning {
			js.ended = append(js.ended, j.ID)
		}
	}
	return marked, errors.Join(err, js.prune())
}

// prune drops the oldest final jobs beyond keepJobs. The caller holds js.mu, or
// is alone.
func (js *jobs) prune() error {
	var errs []error
	for len(js.ended) > keepJobs {
		id := js.ended[0]
		errs = append(errs, js.journal.DeleteJob(id))
		delete(js.unrecorded, id)
		js.ended = js.ended[1:]
	}
	return errors.Join(errs...)
}

// begin registers a job and returns it with the context it is to run under. The
// caller ends it with finish.
func (js *jobs) begin(verb, vm, point string) (*running, context.Context, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.closed {
		return nil, nil, errShutdown
	}
	started := js.now().UTC()
	r := &running{jobs: js, changed: make(chan struct{}), since: started,
		job: Job{Verb: verb, VM: vm, Point: point, State: JobRunning, Started: started,
			Owner: js.journal.Owner(), Progress: Progress{ETA: -1}}}
	for at := started; ; at = at.Add(time.Second) { // an id names one job
		r.job.ID = strings.Trim(verb+"-"+fileName(vm), "-") + "-" + at.Format("20060102150405")
		if js.taken(r.job.ID) {
			continue
		}
		err := js.journal.AddJob(r.job)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil && !runsUnrecorded(verb, err) {
			return nil, nil, err
		}
		if _, known := js.journal.Job(r.job.ID); err != nil && known == nil {
			continue
		}
		r.unrecorded = err != nil
		break
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancelCause(context.Background())
	js.running[r.job.ID] = r
	js.wg.Add(1)
	return r, ctx, nil
}

// finish ends the job with its result or the error that ended it.
func (r *running) finish(result any, err error) Job {
	r.mu.Lock()
	end := r.jobs.now().UTC()
	r.job.Ended = &end
	r.job.State = JobSucceeded
	if result != nil {
		if b, e := json.Marshal(result); e == nil {
			r.job.Result = b
		} else {
			err = errors.Join(err, fmt.Errorf("encode result: %w", e))
		}
	}
	if err != nil {
		e := AsError(err)
		r.job.State = stateOf(e.Code)
		r.job.Error = &JobError{Code: e.Code, Msg: e.Error(), Hint: e.Hint}
	}
	recorded := r.record()
	job := r.job
	close(r.changed)
	r.changed = nil
	r.mu.Unlock()

	r.cancel(nil)
	r.jobs.mu.Lock()
	delete(r.jobs.running, job.ID)
	if recorded {
		r.jobs.catchUp()
	} else {
		r.jobs.unrecorded[job.ID] = job
	}
	r.jobs.ended = append(r.jobs.ended, job.ID)
	_ = r.jobs.prune() // what stays is tried again when the journal is opened
	r.jobs.mu.Unlock()
	if r.jobs.onEnd != nil {
		r.jobs.onEnd(job)
	}
	r.jobs.wg.Done()
	return job
}

func stateOf(c Code) JobState {
	switch c {
	case CodeCancelled:
		return JobCancelled
	case CodeInterrupted:
		return JobInterrupted
	}
	return JobFailed
}

// progress records how far the job is, and works out rate and time to go.
func (r *running) progress(phase, disk string, done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.jobs.now()
	if phase != r.job.Progress.Phase || done < r.job.Progress.Done {
		r.since, r.base = now, done
	}
	p := Progress{Phase: phase, Disk: disk, Done: done, Total: total, ETA: -1}
	if took := now.Sub(r.since).Seconds(); took > 0 {
		p.Rate = float64(done-r.base) / took
	}
	if p.Rate > 0 && total > 0 {
		p.ETA = float64(max(total-done, 0)) / p.Rate
	}
	r.job.Progress = p
	r.notify()
}

// setPoint names the point that the job makes, also for those who find the job
// after this process has died.
func (r *running) setPoint(point string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job.Point = point
	r.notify()
	return r.jobs.journal.PutJob(r.job)
}

// warn adds what there is to know besides the result.
func (r *running) warn(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job.Warning = sentence(text)
	r.notify()
}

// notify wakes who watches. The caller holds r.mu.
func (r *running) notify() {
	if r.changed != nil {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// snapshot returns the job as it stands and a channel that is closed when that
// changes; nil if it is final.
func (r *running) snapshot() (Job, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job, r.changed
}

// close refuses new jobs, cancels what runs and waits for it to end.
func (js *jobs) close() {
	js.mu.Lock()
	if !js.closed {
		js.closed = true
		close(js.closing)
	}
	for _, r := range js.running {
		r.cancel(errShutdown)
	}
	js.mu.Unlock()
	js.wg.Wait()
	js.mu.Lock()
	defer js.mu.Unlock()
	js.catchUp()
}

// get returns a running job by id, nil if none runs under it.
func (js *jobs) get(id string) *running {
	js.mu.Lock()
	defer js.mu.Unlock()
	return js.running[id]
}

// CancelJob asks a running job to stop; it is final soon after. CodeNotFound if
// no such job runs here.
func (a *Appliance) CancelJob(ctx context.Context, id string) error {
	r := a.jobs.get(id)
	if r == nil {
		j, err := a.Job(ctx, id)
		if err != nil {
			return err
		}
		return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("Job %s does not run here; it is %s.", id, j.State),
			Hint: "Only a running job can be cancelled, at the control plane or process that runs it."}
	}
	r.cancel(errCancelled)
	return nil
}

// fileName reduces a name to what job ids and file names are made of, and to a
// length that they bear.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, s)
	return strings.Trim(s[:min(len(s), 100)], "-.")
}
