package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"time"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/repository"
)

// CheckTimeout is how long a point may take to boot in a check, unless a request
// says otherwise.
const CheckTimeout = 10 * time.Minute

// The notes that a check leaves with its point.
const (
	checkNote  = "check.json"
	screenNote = "check.png"
)

// CheckRequest says which point is to prove that it boots, and where.
type CheckRequest struct {
	VM      string `json:"vm"`
	Point   string `json:"point,omitempty"`           // default latest
	Connect string `json:"connect,omitempty"`         // URI of libvirt on this host; default qemu:///system
	Timeout int64  `json:"timeout_seconds,omitempty"` // default CheckTimeout
}

// BootCheck is what a check of a point found: evidence that it boots, or how far it
// got. It is kept with the point.
type BootCheck struct {
	VM     string        `json:"vm"` // UUID
	Name   string        `json:"name"`
	Point  string        `json:"point"`
	Began  time.Time     `json:"began"`
	Job    string        `json:"job"`
	Passed bool          `json:"passed"`
	Stage  instant.Stage `json:"stage"`             // how far it got
	Reason string        `json:"problem,omitempty"` // why it got no further: a sentence
	// Seconds from the request until the disks could be used, the machine ran, it
	// asked who is there, and its agent answered; 0: never.
	DisksReady float64 `json:"disks_ready_seconds"`
	Running    float64 `json:"running_seconds,omitempty"`
	Login      float64 `json:"login_seconds,omitempty"`
	Agent      float64 `json:"agent_seconds,omitempty"`
	// RTO is how long it took from the request until the machine was up, as measured.
	RTO         float64 `json:"rto_seconds,omitempty"`
	Accelerated bool    `json:"accelerated"` // by KVM; else the machine was emulated, and slow
	// Volumes are the file systems as they lie in the point, with what their journals
	// tell of how they were left.
	Volumes []guestfs.Volume `json:"volumes"`
	Guest   *instant.Guest   `json:"guest,omitempty"`   // what its agent told
	Console string           `json:"console,omitempty"` // the last of what it printed
	Screen  bool             `json:"screen"`            // there is a picture of its screen
	Notes   []string         `json:"notes,omitempty"`   // sentences
	Written int64            `json:"written_bytes"`     // by the boot
	Network string           `json:"network"`           // of the machine: isolated
	Machine string           `json:"machine,omitempty"` // its name while it ran
	Version int              `json:"version"`           // of this record: 1
}

// Check starts a job that boots a point on a machine that is connected to nothing,
// and keeps with the point what that came to. Its result is a [BootCheck]; a point
// that does not boot fails the job with CodeUnproven.
func (a *Appliance) Check(ctx context.Context, r CheckRequest) (Job, error) {
	if err := a.sessionOwner(); err != nil {
		return Job{}, err
	}
	if r.Point == "" {
		r.Point = "latest"
	}
	if r.Timeout < 0 || r.Timeout > 24*60*60 {
		return Job{}, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("A boot cannot take %d seconds.", r.Timeout), Hint: "Give up to a day."}
	}
	timeout := CheckTimeout
	if r.Timeout > 0 {
		timeout = time.Duration(r.Timeout) * time.Second
	}
	vm, point, err := a.Point(ctx, r.VM, r.Point)
	if err != nil {
		return Job{}, err
	}
	return a.start("check", vm.Name, string(point.ID), func(ctx context.Context, job *running) (any, error) {
		c := &check{a: a, request: r, point: point, result: BootCheck{VM: string(vm.ID), Name: vm.Name, Point: string(point.ID), Version: 1,
			Began: a.opts.Now().UTC(), Job: job.job.ID, Stage: instant.StageNothing, Network: instant.Isolated, Volumes: []guestfs.Volume{}}}
		return c.run(ctx, job, timeout)
	})
}

// check is the work of one job.
type check struct {
	a       *Appliance
	request CheckRequest
	point   Point
	result  BootCheck
}

func (c *check) run(ctx context.Context, job *running, timeout time.Duration) (any, error) {
	job.progress("boot", "", 0, 0)
	boot, err := c.boot(ctx, timeout)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	job.progress("evidence", "", 0, 0)
	if contents, err := c.a.Contents(ctx, FilesRequest{VM: c.result.VM, Point: c.result.Point}); err == nil {
		c.result.Volumes = contents.Volumes
	} else {
		c.result.Notes = append(c.result.Notes, sentence("its file systems could not be looked at: "+err.Error()))
	}
	if err := c.keep(ctx, boot); err != nil {
		return c.result, err
	}
	if !c.result.Passed {
		return c.result, &Error{Code: CodeUnproven, Msg: fmt.Sprintf("Point %s of %s did not boot: it got as far as %s. %s", c.result.Point, c.result.Name, c.result.Stage, c.result.Reason),
			Hint: "See what its console and screen showed: sendense-control check " + c.result.Name + " " + c.result.Point + " --last --screen FILE.png"}
	}
	return c.result, nil
}

// boot boots the point in a session that ends with it.
func (c *check) boot(ctx context.Context, timeout time.Duration) (boot instant.Boot, err error) {
	a := c.a
	s, point, err := a.open(ctx, SessionSpec{VM: c.result.VM, Point: c.result.Point}, true)
	if err != nil {
		return boot, err
	}
	defer s.busy.Unlock()
	defer func() {
		if len(s.over) > 0 {
			for _, d := range s.view().Disks {
				c.result.Written += d.FileBytes
			}
		}
		if left := a.abandon(ctx, s); left != nil {
			c.result.Notes = append(c.result.Notes, sentence("its machine is not stopped yet: "+left.Error()))
		}
	}()
	c.result.DisksReady = c.since()
	if err := a.startMachine(ctx, s, MachineSpec{Connect: c.request.Connect}, point); err != nil {
		return boot, err
	}
	c.result.Running, c.result.Machine = c.since(), s.doc.Machine.Name
	c.result.Notes, c.result.Accelerated = s.doc.Notes, s.doc.Machine.Accelerated
	watchCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	boot, err = instant.WatchBoot(watchCtx, c.request.Connect, s.doc.Machine.UUID, a.opts.Now)
	if err != nil {
		return boot, hypervisorError(err)
	}
	if err := s.failed.any(); err != nil && boot.Failure != "" {
		why := AsError(userError(err))
		return boot, &Error{Code: why.Code, Err: err, Hint: why.Hint,
			Msg: fmt.Sprintf("Nothing is known of point %s: a request to its disks failed while it was checked. %s", c.result.Point, sentence(why.Error()))}
	}
	c.judge(boot)
	return boot, nil
}

func (c *check) since() float64 { return c.a.opts.Now().Sub(c.result.Began).Seconds() }

// judge takes over what a boot came to.
func (c *check) judge(b instant.Boot) {
	r := &c.result
	r.Stage, r.Console, r.Guest, r.Passed = b.Stage, b.Console, b.Guest, b.Failure == ""
	if b.Failure != "" {
		r.Reason = sentence(b.Failure)
	}
	if b.Login > 0 {
		r.Login = r.Running + b.Login.Seconds()
		r.RTO = r.Login
	}
	if b.Agent > 0 {
		r.Agent = r.Running + b.Agent.Seconds()
		if r.RTO == 0 {
			r.RTO = r.Agent
		}
	}
	if !r.Passed {
		r.RTO = 0
	}
	for _, err := range []error{b.ConsoleErr, b.ScreenErr} {
		if err != nil {
			r.Notes = append(r.Notes, sentence(err.Error()))
		}
	}
}

// keep keeps the evidence with the point.
func (c *check) keep(ctx context.Context, b instant.Boot) error {
	var picture bytes.Buffer
	if b.Screen != nil {
		if err := png.Encode(&picture, b.Screen); err != nil {
			return fmt.Errorf("draw the screen: %w", err)
		}
		if err := c.note(ctx, screenNote, picture.Bytes()); err != nil {
			return err
		}
		c.result.Screen = true
	}
	record, err := json.MarshalIndent(c.result, "", "  ")
	if err != nil {
		return err
	}
	return c.note(ctx, checkNote, append(record, '\n'))
}

func (c *check) note(ctx context.Context, name string, content []byte) error {
	return userError(c.a.repo.PutNote(ctx, c.point.VM, c.point.ID, name, content))
}

// LastCheck returns what the last check of a point found. CodeNotFound if there was
// none.
func (a *Appliance) LastCheck(ctx context.Context, vm, point string) (BootCheck, error) {
	b, err := a.checkNote(ctx, vm, point, checkNote)
	if err != nil {
		return BootCheck{}, err
	}
	var c BootCheck
	if err := json.Unmarshal(b, &c); err != nil {
		return c, &Error{Code: CodeCorrupt, Err: err, Msg: sentence("the record of the last check cannot be read: " + err.Error()), Hint: "Check the point again."}
	}
	return c, nil
}

// CheckScreen returns the picture of the screen, as PNG, at the end of the last
// check of a point.
func (a *Appliance) CheckScreen(ctx context.Context, vm, point string) ([]byte, error) {
	last, err := a.LastCheck(ctx, vm, point)
	if err != nil {
		return nil, err
	}
	if !last.Screen { // there may be one of an earlier check
		return nil, noScreen(repository.ErrNoNote, last.Name, last.Point)
	}
	return a.checkNote(ctx, vm, point, screenNote)
}

func noScreen(err error, vm, point string) error {
	return &Error{Code: CodeNotFound, Err: err, Msg: fmt.Sprintf("There is no picture of the screen of point %s.", point),
		Hint: fmt.Sprintf("See why: sendense-control check %s %s --last", vm, point)}
}

func (a *Appliance) checkNote(ctx context.Context, vm, point, name string) ([]byte, error) {
	_, p, err := a.Point(ctx, vm, point)
	if err != nil {
		return nil, err
	}
	b, err := a.repo.Note(ctx, p.VM, p.ID, name)
	if errors.Is(err, repository.ErrNoNote) && name == screenNote {
		return nil, noScreen(err, p.Name, string(p.ID))
	}
	if errors.Is(err, repository.ErrNoNote) {
		return nil, &Error{Code: CodeNotFound, Err: err, Msg: fmt.Sprintf("Point %s has not been checked.", p.ID),
			Hint: fmt.Sprintf("Check it with: sendense-control check %s %s", p.Name, p.ID)}
	}
	return b, userError(err)
}
