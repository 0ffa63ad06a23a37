package main_test

import (
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// bin is the folder of the programs under test.
var bin string

func TestMain(m *testing.M) {
	os.Exit(clitest.Main(m, func(dir string) { bin = dir }))
}

// begun returns a site with one point of a disk of 24 MiB and a control plane that
// exports it for good, on the socket that is returned.
func begun(t *testing.T) (s *clitest.Site, daemon *clitest.Process, source, socket string) {
	t.Helper()
	t.Parallel()
	s = clitest.NewSite(t, bin)
	source, socket = s.Path("disk.raw"), s.Path("point.sock")
	b := make([]byte, 24<<20)
	rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))).Read(b)
	if err := os.WriteFile(source, b, 0o600); err != nil {
		t.Fatal(err)
	}
	daemon = s.Daemon()
	s.Good(s.Backup(s.Via(), source))
	s.Good(s.Control(s.Via(), "export web1 latest --persist --socket "+socket))
	return s, daemon, source, socket
}

// serves checks that a socket shows what is in a file.
func serves(t *testing.T, socket, path string) {
	t.Helper()
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", "nbd+unix:///?socket="+socket, path)
}

// job returns the job with an id.
func job(t *testing.T, s *clitest.Site, flags []string, id string) clitest.Job {
	t.Helper()
	for _, j := range s.Jobs(flags) {
		if j.ID == id {
			return j
		}
	}
	t.Fatalf("there is no job %s", id)
	return clitest.Job{}
}

func TestAControlPlaneThatEndsInABackupGoesOn(t *testing.T) {
	requires.Tool(t, "qemu-img")
	for _, c := range []struct {
		name string
		sig  syscall.Signal
		code int
		why  string // the job's record
		left bool   // a draft may be left until the next start
	}{
		{"killed", syscall.SIGKILL, -1, "died before the job was done", true},
		{"terminated", syscall.SIGTERM, 0, "The control plane was stopped", false},
		{"interrupted", syscall.SIGINT, 0, "The control plane was stopped", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, daemon, source, socket := begun(t)
			p := s.SlowBackup(s.Via(), source)
			running := s.Jobs(s.Via())[0]
			if running.State != "running" || running.Point == "" {
				t.Errorf("job: got %+v, want one that runs and names its point", running)
			}
			if r := daemon.Signal(c.sig); r.Code != c.code {
				t.Errorf("control plane: got %+v, want exit code %d", r, c.code)
			}
			r, code := p.Wait(), 6
			if !c.left && r.Code == 9 { // it was told before the connection was cut
				code = 9
			}
			clitest.Refused(t, r, code, "control plane")
			if left := s.Drafts(); len(left) > 0 && !c.left {
				t.Errorf("drafts: got %q, want none", left)
			}
			if _, err := os.Stat(socket); err == nil && !c.left {
				t.Error("the export's socket is still there")
			}

			s.Daemon()
			j := job(t, s, s.Via(), running.ID)
			if j.State != "interrupted" || j.Error == nil || j.Error.Code != "interrupted" || !strings.Contains(j.Error.Message, c.why) || j.Error.Hint == "" {
				t.Errorf("job: got %+v with %+v, want it interrupted, with %q", j, j.Error, c.why)
			}
			if left := s.Drafts(); len(left) > 0 {
				t.Errorf("drafts: got %q, want none", left)
			}
			serves(t, socket, source)
			if err := os.WriteFile(s.Path("patch"), []byte("changed"), 0o600); err != nil {
				t.Fatal(err)
			}
			clitest.Tool(t, "cp", source, s.Path("before.raw"))
			clitest.Tool(t, "dd", "if="+s.Path("patch"), "of="+source, "conv=notrunc", "status=none")
			s.Good(s.Backup(s.Via(), source))
			if r := s.Good(s.Control(s.Via(), "verify")); !strings.Contains(r.Stdout, "2 points") {
				t.Errorf("verify: got %q, want two points", r.Stdout)
			}
			serves(t, socket, s.Path("before.raw"))
		})
	}
}

func TestAnExportThatWasEndedDoesNotComeBack(t *testing.T) {
	s, daemon, _, socket := begun(t)
	type export struct{ ID, Socket string }
	exports := clitest.Decode[[]export](t, s.Control(s.Via(), "exports --json"))
	if len(exports) != 1 || exports[0].Socket != socket {
		t.Fatalf("exports: got %+v, want the one on %s", exports, socket)
	}
	s.Good(s.Control(s.Via(), "export web1 latest")) // without --persist
	s.Good(s.Control(s.Via(), "unexport "+exports[0].ID))
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket of an export that was ended is still there")
	}
	daemon.Kill()
	s.Daemon()
	if exports = clitest.Decode[[]export](t, s.Control(s.Via(), "exports --json")); len(exports) != 0 {
		t.Errorf("exports after a restart: got %+v, want none", exports)
	}
}

func TestARepositoryHasOneOwner(t *testing.T) {
	s, _, source, _ := begun(t)
	plane := filepath.Join(bin, "sendense-control-plane")
	other := s.Path("other-run")
	for _, c := range []struct {
		name string
		run  func(more ...string) clitest.Ran
		want string
	}{
		{"a second control plane in the same run directory", func(more ...string) clitest.Ran {
			return clitest.Run(t, plane, append(more, "--run-dir", s.Run, "--repository", s.Path("elsewhere"))...)
		}, s.Run},
		{"a second control plane on the same repository", func(more ...string) clitest.Ran {
			return clitest.Run(t, plane, append(more, "--run-dir", other, "--repository", s.Repo)...)
		}, "sendense-control-plane (pid"},
		{"a backup past the control plane", func(more ...string) clitest.Ran {
			return s.Backup(s.Alone(), source, more...)
		}, "sendense-control-plane (pid"},
		{"a removal past the control plane", func(more ...string) clitest.Ran {
			return s.Control(append(s.Alone(), more...), "delete web1 latest")
		}, "sendense-control-plane (pid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.run()
			clitest.Refused(t, r, 4, c.want)
			if c.want != s.Run && !strings.Contains(r.Stderr, "--control") {
				t.Errorf("hint: got %q, want one that names --control", r.Stderr)
			}
			clitest.RefusedJSON(t, c.run("--json"), 4, "busy")
		})
	}
	if vms := clitest.Decode[[]any](t, s.Control(s.Alone(), "vms --json")); len(vms) != 1 {
		t.Errorf("reading past the control plane: got %d VMs, want 1", len(vms))
	}
	if _, err := os.Stat(s.Path("elsewhere")); err == nil {
		t.Error("a control plane that was refused made a repository")
	}
}

func TestBadInputGetsASentenceAHintAndAnExitCode(t *testing.T) {
	s := clitest.NewSite(t, bin)
	file := s.Path("notes")
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		exit int
		code string
		want string // in the sentence
	}{
		{"an argument", []string{"start"}, 2, "invalid", "start"},
		{"a flag that does not exist", []string{"--fast"}, 2, "invalid", "--fast"},
		{"a log level that does not exist", []string{"--log-level", "loud"}, 2, "invalid", "loud"},
		{"a file as the run directory", []string{"--run-dir", file}, 2, "invalid", file},
		{"a run directory where none can be made", []string{"--run-dir", "/proc/run"}, 3, "not_found", "/proc/run"},
		{"a file as the repository", []string{"--run-dir", s.Run, "--repository", file}, 2, "invalid", file},
		{"a run directory with too long a path", []string{"--run-dir", s.Path(strings.Repeat("x", 100)), "--repository", s.Repo}, 2, "invalid", "too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			plane := filepath.Join(bin, "sendense-control-plane")
			clitest.Refused(t, clitest.Run(t, plane, c.args...), c.exit, c.want)
			clitest.RefusedJSON(t, clitest.Run(t, plane, append([]string{"--json"}, c.args...)...), c.exit, c.code)
		})
	}
}

func TestSocketsAreForOwnerAndGroup(t *testing.T) {
	s, _, _, socket := begun(t)
	for _, path := range []string{filepath.Join(s.Run, "control.sock"), filepath.Join(s.Run, "drafts.sock"), socket} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm()&0o007 != 0 {
			t.Errorf("%s: got %v, %v, want a socket that others may not use", path, st.Mode(), err)
		}
	}
}

func TestTheControlSocketTakesNothingElsesPlace(t *testing.T) {
	t.Parallel()
	s := clitest.NewSite(t, bin)
	plane, file := filepath.Join(bin, "sendense-control-plane"), s.Path("precious")
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := func() {
		t.Helper()
		if b, err := os.ReadFile(file); err != nil || string(b) != "hello" {
			t.Errorf("the file: got %q, %v", b, err)
		}
	}
	daemon := clitest.Start(t, "env", "SENDENSE_CONTROL=unix:"+file, plane, "--run-dir", s.Run, "--repository", s.Repo)
	clitest.Until(t, "the control plane answers at its usual place", func() bool {
		if daemon.Ended() {
			t.Fatalf("it ended: %+v", daemon.Wait())
		}
		return s.Control(s.Via(), "vms").Code == 0
	})
	kept()

	other := []string{"--run-dir", s.Path("other-run"), "--repository", s.Path("elsewhere"), "--control"}
	clitest.Refused(t, clitest.Run(t, plane, append(other, "unix:"+file)...), 4, file)
	kept()
	socket := filepath.Join(s.Run, "control.sock")
	clitest.Refused(t, clitest.Run(t, plane, append(other, "unix:"+socket)...), 4, socket)
	s.Good(s.Control(s.Via(), "vms"))

	daemon.Kill() // which leaves its socket
	next := clitest.Start(t, plane, append(other, "unix:"+socket)...)
	clitest.Until(t, "another one answers there", func() bool {
		if next.Ended() {
			t.Fatalf("it ended: %+v", next.Wait())
		}
		return s.Control(s.Via(), "vms").Code == 0
	})
}
