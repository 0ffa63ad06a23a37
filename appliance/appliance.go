// Package appliance is the product: machines, their disks, points and chains,
// and the verbs on them. [Appliance] backs up, lists, verifies, exports and
// deletes points in a repository; long work runs as a [Job].
//
// It is the same code in both of its hosts, the control plane's daemon and a
// command that works without one. It knows nothing of SQL, HTTP and SSH.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/nbdserver"
)

// The records of the repository are the product's own.
type (
	// VM is the record of a machine.
	VM = repository.VM
	// Point is the record of a point: all disks of a machine at one time.
	Point = repository.Point
	// PointDisk is the record of one disk of a point.
	PointDisk = repository.PointDisk
)

// Options configure an Appliance.
type Options struct {
	Repository repository.Repository
	Journal    Journal
	// Volatile is why the journal forgets everything when the process ends, which
	// jobs then tell. Default: it does not.
	Volatile error
	// RunDir is where sockets are made; it exists and nobody else uses it.
	RunDir string
	// RestoreExports brings back the exports that were asked to last. Only the
	// one host that owns the repository does that.
	RestoreExports bool
	// SessionDir is where the files of sessions lie; default: there are none. Only
	// the one host that owns the repository has sessions.
	SessionDir  string
	MaxSessions int // default MaxSessions
	// ScratchDir is where what is written to mounts lies until they end, made if it
	// is missing; default RunDir, as where it cannot be written.
	ScratchDir string
	Metrics    *Metrics         // default: none
	Log        *slog.Logger     // default: discard
	Now        func() time.Time // default time.Now
}

// Appliance does the product's work on one repository. Its methods may be called
// concurrently. Errors that a user can act on are of type [*Error].
type Appliance struct {
	opts     Options
	repo     repository.Repository
	log      *slog.Logger
	jobs     *jobs
	inbox    *nbdserver.Server // receives drafts
	inboxAt  *Listener
	guests   *guests // points being browsed
	keyrings keyrings

	stop func() // ends the inbox
	wg   sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	drafts  map[string]*Draft
	exports map[string]*export
	// sessions by id, and how often each point is being deleted.
	sessions map[string]*session
	deleting map[pin]int
	mounts   map[string]*mount // by folder
	closed   bool              // no export begins any more
}

// Open starts an appliance: it marks jobs that dead processes left, brings back
// the exports that were asked to last, and receives drafts. The caller closes it.
func Open(ctx context.Context, o Options) (*Appliance, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now //permit:time.Now: the default of an injected clock
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	a := &Appliance{opts: o, repo: o.Repository, log: o.Log,
		jobs: &jobs{journal: o.Journal, now: o.Now, volatile: o.Volatile, closing: make(chan struct{}),
			running: map[string]*running{}, unrecorded: map[string]Job{}},
		drafts: map[string]*Draft{}, exports: map[string]*export{},
		sessions: map[string]*session{}, deleting: map[pin]int{}, mounts: map[string]*mount{}}
	a.jobs.onEnd = a.jobEnded
	a.guests = &guests{a: a, unlocking: make(chan struct{}, 1), open: map[guestKey]*openGuest{}}
	marked, err := a.jobs.recover()
	if err != nil {
		a.log.Warn("jobs could not all be read", "err", err)
	}
	for _, j := range marked {
		a.log.Warn("job was interrupted", "job", j.ID, "owner", j.Owner)
	}
	if err := a.openInbox(); err != nil {
		return nil, err
	}
	if o.RestoreExports {
		a.restoreExports(ctx)
		a.restoreSessions(ctx)
	}
	return a, nil
}

// openInbox starts the server that drafts are written to.
func (a *Appliance) openInbox() error {
	l, err := ListenUnix(filepath.Join(a.opts.RunDir, "drafts.sock"), 0o660, "")
	if err != nil {
		return err
	}
	a.inboxAt = l
	a.inbox = nbdserver.New(nbdserver.Options{MaxConns: 1024, Log: a.log, Observer: a.opts.Metrics.observer("draft")})
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	a.wg.Go(func() {
		if err := a.inbox.Serve(ctx, l); err != nil {
			a.log.Error("drafts are not received any more", "err", err)
		}
	})
	return nil
}

// Close cancels the jobs that run, ends the exports and waits for all of it. The
// repository stays open.
func (a *Appliance) Close() error {
	a.jobs.close()
	a.mu.Lock()
	a.closed = true
	exports := make([]*export, 0, len(a.exports))
	for _, e := range a.exports {
		exports = append(exports, e)
	}
	a.mu.Unlock()
	errs := []error{a.closeSessions()}
	for _, e := range exports {
		errs = append(errs, a.endExport(e))
	}
	a.closeMounts()
	a.closeKeyrings()
	a.guests.closeIdle()
	a.stop()
	a.wg.Wait()
	return errors.Join(errs...)
}

// jobEnded logs and counts a job that is final.
func (a *Appliance) jobEnded(j Job) {
	took := j.Ended.Sub(j.Started)
	a.opts.Metrics.job(j, took)
	if j.Warning != "" {
		a.log.Warn("job is not recorded", "job", j.ID, "err", j.Warning)
	}
	if j.Error != nil {
		a.log.Warn("job ended", "job", j.ID, "vm", j.VM, "state", j.State, "took", took, "err", j.Error.Msg)
		return
	}
	a.log.Info("job ended", "job", j.ID, "vm", j.VM, "point", j.Point, "state", j.State, "took", took)
}

// VMs lists the machines by name.
func (a *Appliance) VMs(ctx context.Context) ([]VM, error) {
	vms, err := a.repo.VMs(ctx)
	return vms, userError(err)
}

// VM finds a machine by name or UUID; CodeNotFound if there is none.
func (a *Appliance) VM(ctx context.Context, nameOrUUID string) (VM, error) {
	vm, err := a.repo.VM(ctx, nameOrUUID)
	if errors.Is(err, repository.ErrNoVM) {
		return VM{}, &Error{Code: CodeNotFound, Err: err,
			Msg:  fmt.Sprintf("There is no VM %q in the repository.", nameOrUUID),
			Hint: "List the VMs that have points with: sendense-control vms"}
	}
	return vm, userError(err)
}

// Points lists the points of a machine, oldest first.
func (a *Appliance) Points(ctx context.Context, vm string) ([]Point, error) {
	v, err := a.VM(ctx, vm)
	if err != nil {
		return nil, err
	}
	points, err := a.repo.Points(ctx, v.ID)
	return points, userError(err)
}

// Usage tells what the points of a machine take.
func (a *Appliance) Usage(ctx context.Context, vm string) (repository.Usage, error) {
	v, err := a.VM(ctx, vm)
	if err != nil {
		return repository.Usage{}, err
	}
	u, err := a.repo.Usage(ctx, v.ID)
	return u, userError(err)
}

// Point finds a point of a machine: by its timestamp as in file names, as
// "latest", or as "latest~N" for the N-th before that.
func (a *Appliance) Point(ctx context.Context, vm, ref string) (VM, Point, error) {
	v, err := a.VM(ctx, vm)
	if err != nil {
		return VM{}, Point{}, err
	}
	points, err := a.repo.Points(ctx, v.ID)
	if err != nil {
		return VM{}, Point{}, userError(err)
	}
	p, err := choosePoint(points, ref)
	if err != nil {
		e := AsError(err)
		e.Hint = "List the points of the VM with: sendense-control points " + vm
		return VM{}, Point{}, e
	}
	return v, p, nil
}

var latestPattern = regexp.MustCompile(`^latest(?:~(\d{1,9}))?$`)

// choosePoint finds what ref means among points, which are oldest first.
func choosePoint(points []Point, ref string) (Point, error) {
	if m := latestPattern.FindStringSubmatch(ref); m != nil {
		back, _ := strconv.Atoi("0" + m[1])
		if i := len(points) - 1 - back; i >= 0 {
			return points[i], nil
		}
		return Point{}, &Error{Code: CodeNotFound, Msg: fmt.Sprintf("The VM has %d points, none is %s.", len(points), ref)}
	}
	id, err := repository.ParsePointID(ref)
	if err != nil {
		return Point{}, &Error{Code: CodeInvalid, Err: err,
			Msg: fmt.Sprintf("%q names no point: a point is a timestamp such as 20251002-120000, latest, or latest~N.", ref)}
	}
	for _, p := range points {
		if p.ID == id {
			return p, nil
		}
	}
	return Point{}, &Error{Code: CodeNotFound, Msg: fmt.Sprintf("The VM has no point %s.", ref)}
}

// userError turns what a repository reports into what a user is told.
func userError(err error) error {
	var locked *repository.LockedError
	var damage *repository.CorruptError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &locked):
		return &Error{Code: CodeBusy, Msg: sentence(locked.Error()), Err: err,
			Hint: "Wait for it to end, or stop it, and start again."}
	case errors.As(err, &damage):
		return &Error{Code: CodeCorrupt, Msg: sentence(damage.Error()), Err: err,
			Hint: "Find out what is damaged with: sendense-control verify " + string(damage.VM)}
	case errors.Is(err, repository.ErrCorrupt):
		return &Error{Code: CodeCorrupt, Msg: sentence(err.Error()), Err: err,
			Hint: "Find out what is damaged with: sendense-control verify"}
	case errors.Is(err, repository.ErrNoVM), errors.Is(err, repository.ErrNoPoint), errors.Is(err, repository.ErrNoDisk), errors.Is(err, repository.ErrNoNote):
		return &Error{Code: CodeNotFound, Msg: sentence(err.Error()), Err: err,
			Hint: "List what there is with: sendense-control vms, and: sendense-control points VM"}
	case errors.Is(err, repository.ErrInvalid):
		return &Error{Code: CodeInvalid, Msg: sentence(err.Error()), Err: err, Hint: "Ask for something else."}
	case errors.Is(err, repository.ErrAmbiguous):
		return &Error{Code: CodeInvalid, Msg: sentence(err.Error()), Err: err,
			Hint: "Name the VM by its UUID: sendense-control vms"}
	case errors.Is(err, repository.ErrReadOnly):
		return &Error{Code: CodeDenied, Msg: sentence(err.Error()), Err: err,
			Hint: "Mount the repository read-write, or run as a user who may write to it."}
	case errors.Is(err, repository.ErrNoSpace):
		return &Error{Code: CodeNoSpace, Msg: sentence(err.Error()), Err: err,
			Hint: "Free space on the repository's file system and start again."}
	case errors.Is(err, repository.ErrTooNew):
		return &Error{Code: CodeInvalid, Msg: sentence(err.Error()), Err: err,
			Hint: "Use the version of Sendense that wrote the repository, or a newer one."}
	}
	return AsError(err)
}

// sentence makes an error's text a sentence.
func sentence(s string) string {
	if s == "" {
		return s
	}
	word, _, _ := strings.Cut(s, " ")
	if c := s[0]; c >= 'a' && c <= 'z' && !strings.ContainsAny(word, "-/0123456789") { // which names have
		s = string(c-'a'+'A') + s[1:]
	}
	if last := s[len(s)-1]; last != '.' && last != '!' && last != '?' {
		s += "."
	}
	return s
}
