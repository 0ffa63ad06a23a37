package appliance_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/repository"
)

// wantUnrecorded checks that a job succeeded and says that it was not recorded, to
// whoever asks for it.
func wantUnrecorded(t *testing.T, r *rig, j appliance.Job) {
	t.Helper()
	again, err := r.Job(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := r.Jobs(t.Context())
	if err != nil || len(jobs) == 0 {
		t.Fatalf("jobs: got %v (%v), want it in the list", jobs, err)
	}
	for what, j := range map[string]appliance.Job{"its end": j, "asked for": again, "listed": jobs[0]} {
		if j.State != appliance.JobSucceeded || j.Error != nil || !strings.Contains(j.Warning, "not recorded") || !strings.Contains(j.Warning, "no room") {
			t.Errorf("%s: got %+v, want it succeeded and not recorded for want of room", what, j)
		}
	}
	if _, err := r.journal.Job(j.ID); err == nil {
		t.Error("it is recorded, want it not to be")
	}
}

func TestAVerificationNeedsNoRecord(t *testing.T) {
	c := newClock()
	r := open(t, func(o *appliance.Options) { o.Now = c.Now })
	three(t, r)
	r.journal.refuse(errors.New("there is no room"))
	first, err := r.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
	if err != nil || second.ID == first.ID {
		t.Fatalf("a second one: got %s (%v), want another id than %s", second.ID, err, first.ID)
	}
	r.final(t, first.ID)
	c.add(60e9)
	last, err := r.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
	last = r.wait(t, last, err)
	wantUnrecorded(t, r, last)
	var report repository.Report
	if err := json.Unmarshal(last.Result, &report); err != nil || report.Points != 3 || !report.OK() {
		t.Errorf("report: got %s (%v), want three points without damage", last.Result, err)
	}

	// As soon as there is room they are recorded after all.
	r.journal.refuse(nil)
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
	r.wait(t, j, err)
	r.close()
	for _, id := range []string{first.ID, second.ID, last.ID, j.ID} {
		if j, err := r.journal.Job(id); err != nil || j.State != appliance.JobSucceeded || j.Warning != "" {
			t.Errorf("record of %s: got %+v (%v), want it there", id, j, err)
		}
	}
}

func TestRecordsThatWereMissingAreWrittenAtTheEnd(t *testing.T) {
	r := open(t, nil)
	three(t, r)
	r.journal.refuse(errors.New("there is no room"))
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	wantUnrecorded(t, r, r.wait(t, j, err))
	r.journal.refuse(nil)
	r.close()
	if j, err := r.journal.Job(j.ID); err != nil || j.State != appliance.JobSucceeded {
		t.Errorf("record: got %+v (%v), want it there", j, err)
	}
}

func TestARemovalNeedsNoRecordWhereNothingIsFree(t *testing.T) {
	r := open(t, nil)
	_, ids, _ := three(t, r)
	r.journal.refuse(errors.New("broken"))
	if _, err := r.Delete(t.Context(), "web1", ids[2]); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("removal with a broken journal: got %v, want its error", err)
	}
	r.journal.refuse(fmt.Errorf("there is no room: %w", syscall.ENOSPC))
	j, err := r.Delete(t.Context(), "web1", ids[2])
	wantUnrecorded(t, r, r.wait(t, j, err))
	if points, err := r.Points(t.Context(), "web1"); err != nil || len(points) != 2 {
		t.Errorf("points: got %v (%v), want two", points, err)
	}
}

func TestABackupWhoseEndCannotBeRecordedIsNotSaidToRun(t *testing.T) {
	r := open(t, nil)
	d := begin(t, r, "web1")
	if _, err := d.AddDisk(t.Context(), "vda", mib); err != nil {
		t.Fatal(err)
	}
	r.journal.refuse(fmt.Errorf("there is no room: %w", syscall.ENOSPC))
	if _, err := d.Commit(t.Context(), appliance.CommitRequest{}); err != nil {
		t.Fatal(err)
	}
	wantUnrecorded(t, r, r.final(t, d.Info().Job))
}

func TestAJournalThatForgetsIsTold(t *testing.T) {
	r := open(t, func(o *appliance.Options) { o.Volatile = errors.New("there is no room for records") })
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	j = r.wait(t, j, err)
	r.close()
	kept, err := r.journal.Job(j.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range []appliance.Job{j, kept} {
		if !strings.Contains(j.Warning, "is not recorded: there is no room") || j.State != appliance.JobSucceeded {
			t.Errorf("job: got %+v, want that it is not recorded", j)
		}
	}
}

func TestAnUnrecordedJobTakesNoIDThatIsRecorded(t *testing.T) {
	c := newClock()
	r := open(t, func(o *appliance.Options) { o.Now = c.Now })
	first, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	r.wait(t, first, err)
	r.journal.refuse(errors.New("there is no room"))
	second, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	if r.wait(t, second, err); second.ID == first.ID {
		t.Errorf("id: got %s, want another than that of the job before", second.ID)
	}
}
