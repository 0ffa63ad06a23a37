package appliance_test

import (
	"context"
	"testing"
	"time"

	"github.com/sendense/sendense/appliance"
)

// elsewhere is a job that another process runs.
func elsewhere() appliance.Job {
	return appliance.Job{ID: "verify-web1-20251002120000", Verb: "verify", VM: "web1", State: appliance.JobRunning,
		Started: time.Date(2025, 10, 2, 12, 0, 0, 0, time.UTC), Owner: "4711-other"}
}

// following starts an appliance beside another process that runs a job, and follows
// that. told gets each state of the job and is closed at the end, ended
// gets why the watch was over.
func following(t *testing.T) (r *rig, told chan appliance.Job, ended chan error) {
	t.Helper()
	r = open(t, nil)
	r.journal.spawn("4711-other")
	if err := r.journal.PutJob(elsewhere()); err != nil {
		t.Fatal(err)
	}
	told, ended = make(chan appliance.Job, 100), make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	go func() {
		defer close(told)
		ended <- r.WatchJob(ctx, elsewhere().ID, func(j appliance.Job) error { told <- j; return nil })
	}()
	if j := <-told; j.State != appliance.JobRunning {
		t.Errorf("at first: got %s, want running", j.State)
	}
	return r, told, ended
}

func TestAJobThatRunsElsewhereIsFollowed(t *testing.T) {
	r, told, ended := following(t)
	j := elsewhere()
	j.Point = "20251002-120000"
	if err := r.journal.PutJob(j); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got.Point != j.Point || got.State != appliance.JobRunning {
		t.Errorf("a change: got %+v, want it told", got)
	}
	j.State = appliance.JobSucceeded
	if err := r.journal.PutJob(j); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got.State != appliance.JobSucceeded {
		t.Errorf("the end: got %+v, want succeeded", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("watch: got %v, want no error", err)
	}
	for j := range told {
		t.Errorf("behind the end: got %+v, want nothing", j)
	}
}

func TestAJobWhoseProcessDiesElsewhereIsInterrupted(t *testing.T) {
	r, told, ended := following(t)
	r.journal.kill("4711-other")
	check := func(what string, j appliance.Job) {
		t.Helper()
		if j.State != appliance.JobInterrupted || j.Ended == nil || j.Error == nil || j.Error.Code != appliance.CodeInterrupted || j.Error.Hint == "" {
			t.Errorf("%s: got %+v, want interrupted", what, j)
		}
	}
	check("who follows", <-told)
	if err := <-ended; err != nil {
		t.Errorf("watch: got %v, want no error", err)
	}
	j, err := r.Job(t.Context(), elsewhere().ID)
	if err != nil {
		t.Fatal(err)
	}
	check("who asks", j)
}

func TestJobsOfTheDeadAreListedAsInterrupted(t *testing.T) {
	r := open(t, nil)
	if err := r.journal.PutJob(elsewhere()); err != nil {
		t.Fatal(err)
	}
	jobs, err := r.Jobs(t.Context())
	if err != nil || len(jobs) != 1 || jobs[0].State != appliance.JobInterrupted {
		t.Errorf("jobs: got %+v (%v), want it interrupted: nobody runs it", jobs, err)
	}
}

func TestFollowingEndsWithTheAppliance(t *testing.T) {
	r, told, ended := following(t)
	r.close()
	wantCode(t, <-ended, appliance.CodeInterrupted, "stopped")
	for j := range told {
		t.Errorf("job: got %+v, want nothing: it still runs", j)
	}
}

func TestFollowingAJobThatIsForgotten(t *testing.T) {
	r, _, ended := following(t)
	if err := r.journal.DeleteJob(elsewhere().ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-ended, appliance.CodeNotFound, elsewhere().ID)
}
