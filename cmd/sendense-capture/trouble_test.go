package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// begun returns a site with one point of a disk, and the disk's path.
func begun(t *testing.T, daemon bool) (s *clitest.Site, flags []string, source string) {
	t.Helper()
	t.Parallel()
	s = clitest.NewSite(t, bin)
	flags = s.Alone()
	if daemon {
		s.Daemon()
		flags = s.Via()
	}
	source = s.Path("disk.raw")
	disk(t, source, 24<<20, 32<<20)
	s.Good(s.Backup(flags, source))
	return s, flags, source
}

// goesOn checks that nothing is left of a draft and that the next backup works and
// verifies.
func goesOn(t *testing.T, s *clitest.Site, flags []string, source string) {
	t.Helper()
	s.Good(s.Backup(flags, source))
	if left := s.Drafts(); len(left) > 0 {
		t.Errorf("drafts: got %q, want none", left)
	}
	if r := s.Good(s.Control(flags, "verify")); !strings.Contains(r.Stdout, "2 points") || !strings.Contains(r.Stdout, "all intact") {
		t.Errorf("verify: got %q, want two points, all intact", r.Stdout)
	}
}

func TestABackupThatEndsEarlyLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name         string
		daemon       bool
		end          func(s *clitest.Site, flags []string, p *clitest.Process) clitest.Ran
		code         int
		state, error string // of the job
	}{
		{"interrupted at the keyboard", false, signal(syscall.SIGINT), 130, "cancelled", "interrupt"},
		{"interrupted at the keyboard, with a control plane", true, signal(syscall.SIGINT), 130, "cancelled", "interrupt"},
		{"terminated, with a control plane", true, signal(syscall.SIGTERM), 130, "cancelled", "terminated"},
		{"killed", false, signal(syscall.SIGKILL), -1, "interrupted", "died before"},
		{"killed, with a control plane", true, signal(syscall.SIGKILL), -1, "interrupted", "capture agent went away"},
		{"cancelled at the control plane", true, cancel, 130, "cancelled", "was cancelled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, flags, source := begun(t, c.daemon)
			p := s.SlowBackup(flags, source)
			job := s.Jobs(flags)[0]
			r := c.end(s, flags, p)
			if r.Code != c.code {
				t.Errorf("agent: got %+v, want exit code %d", r, c.code)
			}
			if c.code > 0 {
				clitest.Refused(t, r, c.code, "")
			}
			clitest.Until(t, "the job is "+c.state, func() bool {
				for _, j := range s.Jobs(flags) {
					if j.ID == job.ID {
						job = j
					}
				}
				return job.State == c.state
			})
			if job.Error == nil || job.Error.Code != c.state || !strings.Contains(job.Error.Message, c.error) || job.Error.Hint == "" {
				t.Errorf("job: got %+v with %+v, want an error with %q", job, job.Error, c.error)
			}
			goesOn(t, s, flags, source)
		})
	}
}

func signal(sig syscall.Signal) func(*clitest.Site, []string, *clitest.Process) clitest.Ran {
	return func(_ *clitest.Site, _ []string, p *clitest.Process) clitest.Ran { return p.Signal(sig) }
}

func cancel(s *clitest.Site, flags []string, p *clitest.Process) clitest.Ran {
	s.Good(s.Control(flags, "cancel "+s.Jobs(flags)[0].ID))
	return p.Wait()
}

func TestASecondBackupOfAVMIsRefusedByName(t *testing.T) {
	for name, daemon := range map[string]bool{"without a control plane": false, "through a control plane": true} {
		t.Run(name, func(t *testing.T) {
			s, flags, source := begun(t, daemon)
			p := s.SlowBackup(flags, source)
			writer := s.Jobs(flags)[0].ID
			clitest.Refused(t, s.Backup(flags, source), 4, "VM web1 is being written by "+writer)
			clitest.RefusedJSON(t, s.Backup(flags, source, "--json"), 4, "busy")
			p.Signal(syscall.SIGINT)
			goesOn(t, s, flags, source)
		})
	}
}

func TestAFullRepositoryKeepsWhatItHas(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "mount", "umount")
	for name, daemon := range map[string]bool{"without a control plane": false, "through a control plane": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := clitest.NewSite(t, bin)
			if err := os.Mkdir(s.Repo, 0o700); err != nil {
				t.Fatal(err)
			}
			clitest.Tool(t, "mount", "-t", "tmpfs", "-o", "size=12m", "sendense-test", s.Repo)
			t.Cleanup(func() { clitest.Tool(t, "umount", "-l", s.Repo) })
			flags := s.Alone()
			if daemon {
				s.Daemon()
				flags = s.Via()
			}
			source, large := s.Path("disk.raw"), s.Path("large.raw")
			disk(t, source, 4<<20, 32<<20)
			disk(t, large, 16<<20, 32<<20)
			s.Good(s.Backup(flags, source))
			clitest.Refused(t, s.Backup(flags, large), 8, "no")
			clitest.RefusedJSON(t, s.Backup(flags, large, "--full", "--json"), 8, "no_space")
			if j := s.Jobs(flags)[0]; j.State != "failed" || j.Error == nil || j.Error.Code != "no_space" {
				t.Errorf("job: got %+v with %+v, want one that failed for space", j, j.Error)
			}
			goesOn(t, s, flags, source)
		})
	}
}

func TestTheControlPlaneAtTheDefaultPlaceIsFound(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "unshare", "mount")
	t.Parallel()
	s := clitest.NewSite(t, bin)
	source := s.Path("disk.raw")
	disk(t, source, 1<<20, 1<<20)
	// In a mount namespace of its own, so that the machine's /run is left alone.
	out := clitest.Tool(t, "unshare", "--mount", "sh", "-ec", `
		mount -t tmpfs none /run
		"$1/sendense-control-plane" --repository "$2" 2>/dev/null & plane=$!
		for i in $(seq 500); do "$1/sendense-control" --control unix:/run/sendense/control.sock vms >/dev/null 2>&1 && break; sleep 0.02; done
		"$1/sendense-capture" backup --source blockdev --disk "$3" --vm web1 --repository "$2" >/dev/null
		"$1/sendense-capture" backup --source blockdev --disk "$3" --vm other --repository "$2-other" >/dev/null
		"$1/sendense-control" --control unix:/run/sendense/control.sock jobs --json
		kill $plane; wait $plane`, "sh", bin, s.Repo, source)
	jobs := clitest.Decode[[]clitest.Job](t, clitest.Ran{Stdout: out})
	if len(jobs) != 1 || jobs[0].VM != "web1" || jobs[0].State != "succeeded" {
		t.Errorf("jobs of the control plane: got %+v, want the backup into its own repository", jobs)
	}
	if _, err := os.Stat(filepath.Join(s.Repo + "-other")); err != nil {
		t.Errorf("another repository: %v, want the command to make it", err)
	}
}
