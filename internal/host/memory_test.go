package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/requires"
)

func TestAHostThatCannotKeepRecordsWorksWithoutThem(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	repository := filepath.Join(t.TempDir(), "repo")
	if err := os.Mkdir(repository, 0o700); err != nil {
		t.Fatal(err)
	}
	// Where the folder of records should be there is something else.
	state := filepath.Join(repository, ".sendense")
	if err := os.WriteFile(state, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, end := embedded(t, repository)
	src := machine(t)
	sum, err := backup(t, c, src)
	if err != nil {
		t.Fatal(err)
	}
	checkPoint(t, c, src)
	for range 2 { // in the same second, perhaps
		j, err := c.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
		if err == nil {
			j, err = c.Wait(t.Context(), j.ID, nil)
		}
		if err != nil || j.State != appliance.JobSucceeded || !strings.Contains(j.Warning, "not recorded") || !strings.Contains(j.Warning, ".sendense") {
			t.Errorf("verify: got %+v (%v), want it done, and why it is not recorded", j, err)
		}
	}
	d, err := c.Target().Begin(t.Context(), capture.Begin{Source: "test",
		VM: capture.VM{UUID: "11111111-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web2"}})
	if err != nil {
		t.Fatal(err)
	}
	if j, err := c.Job(t.Context(), d.JobID()); err != nil || j.State != appliance.JobRunning || j.Point != d.PointID() {
		t.Errorf("job that runs: got %+v (%v), want it with its point", j, err)
	}
	if err := c.CancelJob(t.Context(), d.JobID()); err != nil {
		t.Error(err)
	}
	if j, _ := c.Wait(t.Context(), d.JobID(), nil); j.State != appliance.JobCancelled {
		t.Errorf("job that was cancelled: got %s", j.State)
	}
	jobs, err := c.Jobs(t.Context())
	if err != nil || len(jobs) != 5 || jobs[0].ID != d.JobID() || jobs[4].ID != sum.JobID {
		t.Errorf("jobs: got %d (%v), want five, newest first", len(jobs), err)
	}
	_, err = c.Job(t.Context(), "verify-of-nothing")
	wantCode(t, err, appliance.CodeNotFound, "verify-of-nothing")
	end()

	next, _ := embedded(t, repository)
	if jobs, err := next.Jobs(t.Context()); err != nil || len(jobs) != 0 {
		t.Errorf("jobs of another process: got %v (%v), want none", jobs, err)
	}
	checkPoint(t, next, src)
	if b, err := os.ReadFile(state); err != nil || string(b) != "mine" {
		t.Errorf("what was there: got %q (%v), want it untouched", b, err)
	}
	if _, err := host.Open(t.Context(), host.Options{Repository: repository, RunDir: t.TempDir(), Exclusive: true}); err == nil {
		t.Error("a control plane runs without records")
	}
}
