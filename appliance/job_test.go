package appliance_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/repository"
)

const someUUID = "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a"

// clock is a clock that stands still until it is moved.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2025, 10, 2, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func begin(t *testing.T, r *rig, name string) *appliance.Draft {
	t.Helper()
	d, err := r.BeginBackup(t.Context(), appliance.BeginRequest{UUID: someUUID, Name: name, Source: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestJobIDsTellVerbMachineAndTime(t *testing.T) {
	c := newClock()
	r := open(t, func(o *appliance.Options) { o.Now = c.Now })
	for _, test := range []struct{ name, vm, want string }{
		{"a plain name stays", "web1", `^backup-web1-20251002120000$`},
		{"another one in the same second gets a later id", "web1", `^backup-web1-20251002120001$`},
		{"and so does a third", "web1", `^backup-web1-20251002120002$`},
		{"what no file name should hold is replaced", "a/b c%d", `^backup-a-b-c-d-20251002120000$`},
		{"a name of nothing else is left out", "数据库", `^backup-20251002120000$`},
		{"a long name is cut", strings.Repeat("x", 250), `^backup-x{100}-20251002120000$`},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := begin(t, r, test.vm)
			if got := d.Info().Job; !regexp.MustCompile(test.want).MatchString(got) {
				t.Errorf("job id: got %s, want %s", got, test.want)
			}
			d.Abort(nil)
		})
	}
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	if j = r.wait(t, j, err); j.ID != "verify-20251002120000" {
		t.Errorf("job id of a verification of all: got %s, want verify-20251002120000", j.ID)
	}
}

func TestProgressTellsRateAndTimeToGo(t *testing.T) {
	c := newClock()
	r := open(t, func(o *appliance.Options) { o.Now = c.Now })
	d := begin(t, r, "web1")
	defer d.Abort(nil)
	for _, step := range []struct {
		name      string
		after     time.Duration
		report    capture.Progress
		rate, eta float64
	}{
		{"at first nothing is known", 0, capture.Progress{Phase: "read", Disk: "vda", Done: 0, Total: 1000}, 0, -1},
		{"the rate is what was done by the time it took", 2 * time.Second, capture.Progress{Phase: "read", Disk: "vda", Done: 200, Total: 1000}, 100, 8},
		{"it is the mean since the phase began", 2 * time.Second, capture.Progress{Phase: "read", Disk: "vda", Done: 800, Total: 1000}, 200, 1},
		{"without a total there is no time to go", 0, capture.Progress{Phase: "read", Disk: "vda", Done: 800}, 200, -1},
		{"more than all leaves no negative time", 0, capture.Progress{Phase: "read", Disk: "vda", Done: 1200, Total: 1000}, 300, 0},
		{"another phase begins anew", 0, capture.Progress{Phase: "audit", Disk: "vda", Done: 50, Total: 100}, 0, -1},
		{"and does not count what was done before it", time.Second, capture.Progress{Phase: "audit", Disk: "vda", Done: 60, Total: 100}, 10, 4},
		{"a count that goes back begins anew", time.Second, capture.Progress{Phase: "audit", Disk: "vdb", Done: 0, Total: 100}, 0, -1},
		{"a clock that goes back gives no rate", -time.Hour, capture.Progress{Phase: "audit", Disk: "vdb", Done: 10, Total: 100}, 0, -1},
	} {
		c.add(step.after)
		if err := d.Report(step.report); err != nil {
			t.Fatal(err)
		}
		j, err := r.Job(t.Context(), d.Info().Job)
		if err != nil {
			t.Fatal(err)
		}
		want := appliance.Progress{Phase: step.report.Phase, Disk: step.report.Disk, Done: step.report.Done, Total: step.report.Total,
			Rate: step.rate, ETA: step.eta}
		if j.Progress != want {
			t.Errorf("%s: got %+v, want %+v", step.name, j.Progress, want)
		}
	}
}

func TestACancelledBackupLeavesNothing(t *testing.T) {
	r := open(t, nil)
	src := machine(t, "web1", 8*mib)
	before := r.backup(t, src, "web1")
	src.Write("vda", noise(2, 2*mib), 0)

	// The job is cancelled while the disk is read, as a user would do it.
	cancelled := make(chan string, 1)
	slow := capture.Options{VM: "web1", Source: "test", ReportEvery: time.Millisecond, Progress: func(p capture.Progress) {
		jobs, _ := r.client.Jobs(t.Context())
		if jobs[0].State != appliance.JobRunning || jobs[0].ID == before.JobID {
			return
		}
		if err := r.client.CancelJob(t.Context(), jobs[0].ID); err == nil {
			select {
			case cancelled <- jobs[0].ID:
			default: // it has been before
			}
		}
	}}
	_, err := capture.Run(t.Context(), src, r.client.Target(), slow)
	if err == nil {
		t.Fatal("the capture succeeded, want it to be cancelled")
	}
	j := r.final(t, <-cancelled)
	if j.State != appliance.JobCancelled || j.Error == nil || j.Error.Code != appliance.CodeCancelled {
		t.Errorf("job: got %s (%+v), want cancelled", j.State, j.Error)
	}
	if err := src.Clean(); err != nil {
		t.Errorf("source: %v", err)
	}
	r.wantPointAndRoom(t, src, before.PointID)
}

// wantPointAndRoom checks that web1's latest point is the one given, that no draft
// is left, and that the next backup of src works and builds on that point.
func (r *rig) wantPointAndRoom(t *testing.T, src capture.Source, point string) {
	t.Helper()
	r.wantNoDrafts(t)
	_, p, err := r.Point(t.Context(), "web1", "latest")
	if err != nil || string(p.ID) != point {
		t.Errorf("latest point: got %s (%v), want %s", p.ID, err, point)
	}
	sum, err := capture.Run(t.Context(), src, r.client.Target(), capture.Options{VM: "web1", Source: "test"})
	if err != nil || sum.Parent != point {
		t.Errorf("next backup: got one on %q (%v), want one on %s", sum.Parent, err, point)
	}
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	if j = r.wait(t, j, err); j.State != appliance.JobSucceeded {
		t.Errorf("verification: got %s (%+v), want succeeded", j.State, j.Error)
	}
}

// held is a repository whose verifications wait until they are cancelled.
type held struct {
	repository.Repository
	reached chan struct{}
}

func (h held) Verify(ctx context.Context, o repository.VerifyOptions) (*repository.Report, error) {
	report := o.Report
	o.Report = func(s repository.Status) {
		report(s)
		select {
		case h.reached <- struct{}{}:
		default:
		}
		<-ctx.Done()
	}
	return h.Repository.Verify(ctx, o)
}

func TestAVerificationCanBeCancelled(t *testing.T) {
	h := held{reached: make(chan struct{}, 1)}
	r := open(t, func(o *appliance.Options) { h.Repository, o.Repository = o.Repository, &h })
	r.backup(t, machine(t, "web1", 8*mib), "web1")
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
	if err != nil {
		t.Fatal(err)
	}
	<-h.reached
	if err := r.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	j = r.final(t, j.ID)
	if j.State != appliance.JobCancelled || j.Error == nil || j.Error.Msg != "The job was cancelled." {
		t.Errorf("job: got %s (%+v), want that it was cancelled", j.State, j.Error)
	}
	wantCode(t, r.CancelJob(t.Context(), j.ID), appliance.CodeInvalid, "cancelled")
	wantCode(t, r.CancelJob(t.Context(), "verify-no-such-job"), appliance.CodeNotFound)
}

func TestAMachineHasOneBackupAtATime(t *testing.T) {
	r := open(t, nil)
	first := begin(t, r, "web1")
	_, err := r.BeginBackup(t.Context(), appliance.BeginRequest{UUID: someUUID, Name: "web1", Source: "test"})
	wantCode(t, err, appliance.CodeBusy, first.Info().Job)

	other, err := r.BeginBackup(t.Context(), appliance.BeginRequest{UUID: "11111111-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web2", Source: "test"})
	if err != nil {
		t.Fatalf("backup of another machine: %v", err)
	}
	other.Abort(nil)
	first.Abort(nil)
	begin(t, r, "web1").Abort(nil)
}

func TestDraftsAreRefusedWithAReason(t *testing.T) {
	r := open(t, nil)
	d := begin(t, r, "web1")
	for _, c := range []struct {
		name string
		err  error
		code appliance.Code
	}{
		{"a machine without UUID", second(r.BeginBackup(t.Context(), appliance.BeginRequest{Name: "x"})), appliance.CodeInvalid},
		{"a machine without name", second(r.BeginBackup(t.Context(), appliance.BeginRequest{UUID: someUUID})), appliance.CodeInvalid},
		{"a draft that does not exist", second(r.Draft("backup-x")), appliance.CodeNotFound},
		{"digests of a disk that was not added", second(d.Differs(t.Context(), 0, 0, nil)), appliance.CodeNotFound},
	} {
		t.Run(c.name, func(t *testing.T) { wantCode(t, c.err, c.code) })
	}
	if err := d.Err(); err != nil {
		t.Errorf("reason of an open draft: got %v, want none", err)
	}
	reason := &appliance.Error{Code: appliance.CodeUnreachable, Msg: "The host is gone.", Hint: "Find it."}
	d.Abort(reason)
	d.Abort(errors.New("another reason"))
	<-d.Ended()
	wantCode(t, d.Err(), appliance.CodeUnreachable, "The host is gone.")
	wantCode(t, second(d.AddDisk(t.Context(), "vda", mib)), appliance.CodeUnreachable, "The host is gone.")
	wantCode(t, second(d.Commit(t.Context(), appliance.CommitRequest{})), appliance.CodeUnreachable)
	j := r.final(t, d.Info().Job)
	if j.State != appliance.JobFailed || j.Error.Code != appliance.CodeUnreachable || j.Error.Hint != "Find it." {
		t.Errorf("job: got %s %+v, want failed with the reason", j.State, j.Error)
	}
}

// second returns the error of a call.
func second[T any](_ T, err error) error { return err }

func TestACommittedDraftHasNoError(t *testing.T) {
	r := open(t, nil)
	d := begin(t, r, "web1")
	if _, err := d.AddDisk(t.Context(), "vda", mib); err != nil {
		t.Fatal(err)
	}
	p, err := d.Commit(t.Context(), appliance.CommitRequest{Disks: []capture.DiskResult{{Key: "vda", Size: mib, Mode: capture.ModeFull, Sent: 7}}})
	if err != nil {
		t.Fatal(err)
	}
	<-d.Ended()
	if err := d.Err(); err != nil {
		t.Errorf("reason: got %v, want none", err)
	}
	wantCode(t, second(d.Commit(t.Context(), appliance.CommitRequest{})), appliance.CodeInvalid, "over")
	j := r.final(t, d.Info().Job)
	if j.State != appliance.JobSucceeded || j.Point != string(p.ID) || !strings.Contains(string(j.Result), `"sent":7`) {
		t.Errorf("job: got %s of %s with %s, want succeeded of %s with what was sent", j.State, j.Point, j.Result, p.ID)
	}
}

func TestClosingInterruptsABackup(t *testing.T) {
	r := open(t, nil)
	src := machine(t, "web1", mib)
	before := r.backup(t, src, "web1")
	d, err := r.client.Target().Begin(t.Context(), mustBegin(t, src))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddDisk(t.Context(), capture.DiskSpec{Key: "vda", Size: mib}); err != nil {
		t.Fatal(err)
	}
	r.close()
	d.Abort(t.Context(), errors.New("the control plane is gone"))
	j := r.journal.jobs[d.JobID()]
	if j.State != appliance.JobInterrupted || j.Error == nil || !strings.Contains(j.Error.Msg, "stopped") {
		t.Errorf("job: got %s (%+v), want interrupted because it was stopped", j.State, j.Error)
	}
	if _, err := r.BeginBackup(t.Context(), appliance.BeginRequest{UUID: someUUID, Name: "x"}); appliance.AsError(err).Code != appliance.CodeInterrupted {
		t.Errorf("backup after the end: got %v, want it to be refused", err)
	}
	if _, err := r.Export(t.Context(), appliance.ExportSpec{VM: "web1", Point: "latest"}); appliance.AsError(err).Code != appliance.CodeInterrupted {
		t.Errorf("export after the end: got %v, want it to be refused", err)
	}
	next := start(t, r.repo, r.journal.reborn("owner-2"), shortDir(t), nil)
	next.wantPointAndRoom(t, src, before.PointID)
}

func mustBegin(t *testing.T, src capture.Source) capture.Begin {
	t.Helper()
	vm, err := src.Resolve(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	return capture.Begin{VM: vm, Source: "test"}
}

func TestAnAgentThatGoesAwayInterruptsItsBackup(t *testing.T) {
	r := open(t, nil)
	src := machine(t, "web1", mib)
	before := r.backup(t, src, "web1")

	// The agent's process ends: its connections break, nothing else is said.
	agent := r.dropAgent(t, mustBegin(t, src))
	j := r.final(t, agent)
	if j.State != appliance.JobInterrupted || j.Error == nil || !strings.Contains(j.Error.Msg, "went away") {
		t.Errorf("job: got %s (%+v), want interrupted because the agent went away", j.State, j.Error)
	}
	r.wantPointAndRoom(t, src, before.PointID)
}

func TestJobsOfTheDeadAreMarked(t *testing.T) {
	repo := open(t, nil)
	repo.close()
	j := newJournal("me")
	j.alive["other"] = true
	then := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, x := range []appliance.Job{
		{ID: "a", State: appliance.JobRunning, Owner: "dead", Started: then},
		{ID: "b", State: appliance.JobRunning, Owner: "other", Started: then.Add(1)},
		{ID: "c", State: appliance.JobFailed, Owner: "dead", Started: then.Add(2)},
	} {
		j.jobs[x.ID] = x
	}
	c := newClock()
	r := start(t, repo.repo, j, shortDir(t), func(o *appliance.Options) { o.Now = c.Now })
	for id, want := range map[string]appliance.JobState{"a": appliance.JobInterrupted, "b": appliance.JobRunning, "c": appliance.JobFailed} {
		if got := j.jobs[id].State; got != want {
			t.Errorf("job %s: got %s, want %s", id, got, want)
		}
	}
	a := j.jobs["a"]
	if a.Error == nil || a.Error.Code != appliance.CodeInterrupted || a.Error.Hint == "" || !strings.Contains(a.Error.Msg, "dead") {
		t.Errorf("error: got %+v, want the process that died and a hint", a.Error)
	}
	if a.Ended == nil || !a.Ended.Equal(c.Now()) {
		t.Errorf("ended: got %v, want %v", a.Ended, c.Now())
	}
	jobs, err := r.Jobs(t.Context())
	if err != nil || len(jobs) != 3 || jobs[0].ID != "c" || jobs[2].ID != "a" {
		t.Errorf("jobs: got %v (%v), want c, b, a", jobs, err)
	}
}

func TestTheOldestFinishedJobsAreForgotten(t *testing.T) {
	repo := open(t, nil)
	repo.close()
	j := newJournal("me")
	j.alive["other"] = true
	then := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	j.jobs["running"] = appliance.Job{ID: "running", State: appliance.JobRunning, Owner: "other", Started: then}
	for i := range 1010 {
		id := fmt.Sprintf("done-%04d", i)
		j.jobs[id] = appliance.Job{ID: id, State: appliance.JobSucceeded, Started: then.Add(time.Duration(i+1) * time.Second)}
	}
	r := start(t, repo.repo, j, shortDir(t), nil)
	want := func(n int, oldest, gone string) {
		t.Helper()
		if len(j.jobs) != n {
			t.Errorf("jobs: got %d, want %d", len(j.jobs), n)
		}
		if _, ok := j.jobs[gone]; ok {
			t.Errorf("job %s is still there", gone)
		}
		if _, ok := j.jobs[oldest]; !ok {
			t.Errorf("job %s was forgotten", oldest)
		}
	}
	want(1001, "done-0010", "done-0009")
	job, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	r.wait(t, job, err)
	r.close() // which waits for the end of the job
	want(1001, "done-0011", "done-0010")
	if _, ok := j.jobs["running"]; !ok {
		t.Error("a running job was forgotten")
	}
}

func TestAJobThatCannotBeRecordedDoesNotBegin(t *testing.T) {
	r := open(t, nil)
	r.journal.refuse(errors.New("no room"))
	_, err := r.BeginBackup(t.Context(), appliance.BeginRequest{UUID: someUUID, Name: "web1"})
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("error: got %v, want that of the journal", err)
	}
	r.journal.refuse(nil)
	begin(t, r, "web1").Abort(nil)
}
