package host_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/api/client"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/requires"
)

const mib = 1 << 20

// kinds are the two ways to run an appliance: in the process of a command, and as
// a daemon. Each returns a client and what ends it.
var kinds = []struct {
	name string
	open func(t *testing.T, repository string) (*client.Client, func())
}{{"embedded", embedded}, {"daemon", daemon}}

func embedded(t *testing.T, repository string) (*client.Client, func()) {
	t.Helper()
	c, err := host.Connect(t.Context(), "", host.Options{Repository: repository, Create: true, Name: "command"})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Embedded {
		t.Fatal("got a connection to somebody else, want an appliance in this process")
	}
	return c.Client, once(t, c.Close)
}

func daemon(t *testing.T, repository string) (*client.Client, func()) {
	t.Helper()
	run, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	h, err := host.Open(t.Context(), host.Options{Repository: repository, RunDir: run, Create: true, Exclusive: true, Name: "daemon"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(run, host.ControlSocket))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	c, err := host.Connect(t.Context(), "unix:"+l.Addr().String(), host.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c.Client, once(t, func() error {
		cancel()
		return errors.Join(<-served, h.Close(), c.Close(), os.RemoveAll(run))
	})
}

func once(t *testing.T, end func() error) func() {
	f := sync.OnceFunc(func() {
		if err := end(); err != nil {
			t.Errorf("end: %v", err)
		}
	})
	t.Cleanup(f)
	return f
}

func machine(t *testing.T) *capturetest.Source {
	t.Helper()
	s := capturetest.NewSource(t, "web1")
	s.Add("vda", mib)
	s.Write("vda", bytes.Repeat([]byte("sendense"), 256<<10/8), 0)
	return s
}

func backup(t *testing.T, c *client.Client, s *capturetest.Source) (capture.Summary, error) {
	t.Helper()
	return capture.Run(t.Context(), s, c.Target(), capture.Options{VM: "web1", Source: "test"})
}

func wantCode(t *testing.T, err error, code appliance.Code, word string) {
	t.Helper()
	var e *appliance.Error
	if !errors.As(err, &e) || e.Code != code || e.Hint == "" || !strings.Contains(e.Msg+" "+e.Hint, word) {
		t.Errorf("error: got %#v (%v), want code %s, a hint and %q", e, err, code, word)
	}
}

func TestBothHostsDoTheSame(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			repository := filepath.Join(t.TempDir(), "new", "repo")
			c, end := kind.open(t, repository)
			src := machine(t)
			var sums []capture.Summary
			for i := range 2 {
				src.Write("vda", []byte("changed"), int64(i)*(128<<10))
				sum, err := backup(t, c, src)
				if err != nil {
					t.Fatal(err)
				}
				sums = append(sums, sum)
			}
			if sums[1].Parent != sums[0].PointID || sums[1].Disks[0].Mode != capture.ModeTracked {
				t.Errorf("second point: got %+v, want one tracked since the first", sums[1])
			}
			checkPoint(t, c, src)
			if j, err := c.Job(t.Context(), sums[1].JobID); err != nil || j.State != appliance.JobSucceeded {
				t.Errorf("job: got %s (%v), want succeeded", j.State, err)
			}
			end()
			again, _ := kind.open(t, repository)
			checkPoint(t, again, src)
			if jobs, err := again.Jobs(t.Context()); err != nil || len(jobs) < 3 {
				t.Errorf("jobs after a restart: got %d (%v), want all of them", len(jobs), err)
			}
		})
	}
}

// checkPoint checks that what there is can be listed, verified and read.
func checkPoint(t *testing.T, c *client.Client, src *capturetest.Source) {
	t.Helper()
	vms, err := c.VMs(t.Context())
	if err != nil || len(vms) != 1 || vms[0].Name != "web1" {
		t.Errorf("VMs: got %v (%v), want web1", vms, err)
	}
	if points, err := c.Points(t.Context(), "web1"); err != nil || len(points) == 0 {
		t.Errorf("points: got %v (%v), want some", points, err)
	}
	j, err := c.Verify(t.Context(), appliance.VerifyRequest{})
	if err == nil {
		_, err = c.Wait(t.Context(), j.ID, nil)
	}
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	e, err := c.Export(t.Context(), appliance.ExportSpec{VM: "web1", Point: "latest"})
	if err != nil {
		t.Errorf("export: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := exec.CommandContext(ctx, "nbdcopy", e.Disks[0].URI, "-").Output()
	if err != nil || !bytes.Equal(got, src.Content()["vda"]) {
		t.Errorf("export: got %d bytes (%v), want what the disk held", len(got), err)
	}
	if err := c.Unexport(t.Context(), e.ID); err != nil {
		t.Errorf("unexport: %v", err)
	}
}

func TestAReadOnlyRepositoryCanBeRead(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	repository := filepath.Join(t.TempDir(), "repo")
	c, end := embedded(t, repository)
	src := machine(t)
	if _, err := backup(t, c, src); err != nil {
		t.Fatal(err)
	}
	end()
	for name, open := range map[string]func(*testing.T) *client.Client{
		"opened for reading": func(t *testing.T) *client.Client {
			c, err := host.Connect(t.Context(), "", host.Options{Repository: repository, ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			once(t, c.Close)
			return c.Client
		},
		"mounted for reading": func(t *testing.T) *client.Client {
			c, _ := embedded(t, mountReadOnly(t, repository))
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			checkPoint(t, c, src)
			_, err := backup(t, c, src)
			wantCode(t, err, appliance.CodeDenied, "read-only")
			j, err := c.Delete(t.Context(), "web1", "latest")
			if err == nil {
				_, err = c.Wait(t.Context(), j.ID, nil)
			}
			wantCode(t, err, appliance.CodeDenied, "read-only")
			checkPoint(t, c, src)
		})
	}
	if _, err := host.Open(t.Context(), host.Options{Repository: mountReadOnly(t, repository), RunDir: t.TempDir(), Exclusive: true}); err == nil {
		t.Error("a control plane owns a repository that it cannot write")
	}
}

// mountReadOnly shows a folder at another place where nothing can be written.
func mountReadOnly(t *testing.T, dir string) string {
	t.Helper()
	requires.Root(t)
	at := t.TempDir()
	if err := syscall.Mount(dir, at, "", syscall.MS_BIND, ""); err != nil {
		requires.Missing(t, "a machine on which folders can be mounted: "+err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if err := syscall.Mount("", at, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return at
}

func TestAnOwnerKeepsOtherWritersOut(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	repository := filepath.Join(t.TempDir(), "repo")
	c, end := daemon(t, repository)
	src := machine(t)
	if _, err := backup(t, c, src); err != nil {
		t.Fatal(err)
	}
	_, err := host.Connect(t.Context(), "", host.Options{Repository: repository})
	wantCode(t, err, appliance.CodeBusy, "--control")
	_, err = host.Open(t.Context(), host.Options{Repository: repository, RunDir: t.TempDir(), Exclusive: true})
	wantCode(t, err, appliance.CodeBusy, "daemon")

	reader, err := host.Connect(t.Context(), "", host.Options{Repository: repository, ReadOnly: true})
	if err != nil {
		t.Fatalf("reader beside the owner: %v", err)
	}
	checkPoint(t, reader.Client, src)
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	end()
	next, _ := embedded(t, repository)
	if _, err := backup(t, next, src); err != nil {
		t.Errorf("backup once the owner is gone: %v", err)
	}
	_, err = host.Open(t.Context(), host.Options{Repository: repository, RunDir: t.TempDir(), Exclusive: true})
	wantCode(t, err, appliance.CodeBusy, "in use")
}

func TestStoppingTellsTheAgentWhy(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			repository := filepath.Join(t.TempDir(), "repo")
			c, end := kind.open(t, repository)
			d, err := c.Target().Begin(t.Context(), capture.Begin{Source: "test",
				VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web1"}})
			if err != nil {
				t.Fatal(err)
			}
			end()
			err = d.Report(t.Context(), capture.Progress{})
			wantCode(t, err, appliance.CodeInterrupted, "stopped")
			if err := d.Abort(t.Context(), err); err != nil {
				t.Errorf("abort: got %v, want none: the draft is over", err)
			}
			again, _ := kind.open(t, repository)
			j, err := again.Job(t.Context(), d.JobID())
			if err != nil || j.State != appliance.JobInterrupted || j.Error == nil || !strings.Contains(j.Error.Msg, "stopped") {
				t.Errorf("job: got %s %+v (%v), want interrupted because it was stopped", j.State, j.Error, err)
			}
		})
	}
}

func TestAJobOfAnotherProcessIsFollowed(t *testing.T) {
	repository := filepath.Join(t.TempDir(), "repo")
	worker, _ := embedded(t, repository)
	follower, _ := embedded(t, repository)
	for _, test := range []struct {
		name string
		end  func(d capture.Draft) error
		want appliance.JobState
	}{
		{"to its failure", func(d capture.Draft) error {
			return d.Abort(t.Context(), &appliance.Error{Code: appliance.CodeUnreachable, Msg: "The host is gone.", Hint: "Find it."})
		}, appliance.JobFailed},
		{"to its success", func(d capture.Draft) error {
			disk, err := d.AddDisk(t.Context(), capture.DiskSpec{Key: "vda", Size: mib})
			if err != nil {
				return err
			}
			return errors.Join(disk.Close(), d.Commit(t.Context(), capture.Result{}))
		}, appliance.JobSucceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := worker.Target().Begin(t.Context(), capture.Begin{Source: "test",
				VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web1"}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var states []appliance.JobState
			j, err := follower.WatchJob(ctx, d.JobID(), func(j appliance.Job) {
				if states = append(states, j.State); len(states) == 1 {
					if err := test.end(d); err != nil {
						t.Errorf("end: %v", err)
					}
				}
			})
			if err != nil || j.State != test.want || len(states) != 2 || states[0] != appliance.JobRunning {
				t.Errorf("job: got %v, at last %s (%v), want running, then %s", states, j.State, err, test.want)
			}
		})
	}
}

func TestFollowingAJobOfAnotherProcessEndsWithAReason(t *testing.T) {
	repository := filepath.Join(t.TempDir(), "repo")
	worker, _ := embedded(t, repository)
	follower, end := embedded(t, repository)
	d, err := worker.Target().Begin(t.Context(), capture.Begin{Source: "test",
		VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web1"}})
	if err != nil {
		t.Fatal(err)
	}
	begun, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := follower.WatchJob(t.Context(), d.JobID(), func(appliance.Job) { close(begun) })
		ended <- err
	}()
	<-begun
	end()
	wantCode(t, <-ended, appliance.CodeInterrupted, "another process runs it")
	if err := d.Abort(t.Context(), errors.New("the test is over")); err != nil {
		t.Error(err)
	}
}

func TestAJobEndsBeforeTheStreamsThatFollowIt(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			c, end := kind.open(t, filepath.Join(t.TempDir(), "repo"))
			d, err := c.Target().Begin(t.Context(), capture.Begin{Source: "test",
				VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web1"}})
			if err != nil {
				t.Fatal(err)
			}
			type outcome struct {
				job appliance.Job
				err error
			}
			const watchers = 3
			begun, ended := make(chan struct{}, watchers), make(chan outcome, watchers)
			for range watchers {
				go func() {
					once := sync.OnceFunc(func() { begun <- struct{}{} })
					j, err := c.WatchJob(t.Context(), d.JobID(), func(appliance.Job) { once() })
					ended <- outcome{j, err}
				}()
			}
			for range watchers {
				<-begun
			}
			end()
			for range watchers {
				if o := <-ended; o.err != nil || o.job.State != appliance.JobInterrupted || o.job.Error == nil || !strings.Contains(o.job.Error.Msg, "stopped") {
					t.Errorf("watch: got %s %+v (%v), want the job interrupted because it was stopped", o.job.State, o.job.Error, o.err)
				}
			}
		})
	}
}

func TestARepositoryThatIsNotThere(t *testing.T) {
	_, err := host.Connect(t.Context(), "", host.Options{Repository: filepath.Join(t.TempDir(), "none")})
	wantCode(t, err, appliance.CodeNotFound, "There is no repository")
	_, err = host.Connect(t.Context(), "unix:"+filepath.Join(t.TempDir(), "none"), host.Options{})
	wantCode(t, err, appliance.CodeUnreachable, "none")
}
