package clitest

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Site is a repository, the programs that work on it, and a disk to back up as VM
// web1. Its control plane does not run until it is started.
type Site struct {
	T    testing.TB
	Bin  string // folder of the programs
	Dir  string // for anything, with a short path
	Repo string // path of the repository, which does not exist yet
	Run  string // run directory of the control plane
}

// NewSite returns a site that is gone after the test.
func NewSite(t testing.TB, bin string) *Site {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd-") // a socket's path is at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &Site{T: t, Bin: bin, Dir: dir, Repo: filepath.Join(dir, "backups"), Run: filepath.Join(dir, "run")}
}

// Path returns the path of a file in the site's folder.
func (s *Site) Path(name string) string { return filepath.Join(s.Dir, name) }

// service is how long a control plane runs at most, in the longest of tests.
const service = 10 * time.Minute

// Daemon starts the control plane and waits until it answers.
func (s *Site) Daemon() *Process {
	s.T.Helper()
	p := start(s.T, service, filepath.Join(s.Bin, "sendense-control-plane"), "--run-dir", s.Run, "--repository", s.Repo)
	Until(s.T, "the control plane answers", func() bool {
		select {
		case <-p.done:
			s.T.Fatalf("control plane ended: %+v", p.Wait())
		default:
		}
		c, err := net.Dial("unix", filepath.Join(s.Run, "control.sock"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

// Alone are the flags for working without a control plane.
func (s *Site) Alone() []string { return []string{"--repository", s.Repo} }

// Via are the flags for working through the control plane.
func (s *Site) Via() []string {
	return []string{"--control", "unix:" + filepath.Join(s.Run, "control.sock")}
}

// Control runs sendense-control with flags and a command line, split at spaces.
func (s *Site) Control(flags []string, line string) Ran {
	s.T.Helper()
	return Run(s.T, filepath.Join(s.Bin, "sendense-control"), append(strings.Fields(line), flags...)...)
}

// Backup backs the disk at path up as sda of VM web1.
func (s *Site) Backup(flags []string, path string, more ...string) Ran {
	s.T.Helper()
	return s.StartBackup(flags, path, more...).Wait()
}

// StartBackup begins what Backup does.
func (s *Site) StartBackup(flags []string, path string, more ...string) *Process {
	s.T.Helper()
	args := append([]string{"backup", "--source", "blockdev", "--vm", "web1", "--disk", path + "=sda"}, flags...)
	return Start(s.T, filepath.Join(s.Bin, "sendense-capture"), append(args, more...)...)
}

// SlowBackup begins a full backup that takes long, and waits until it has written
// something.
func (s *Site) SlowBackup(flags []string, path string) *Process {
	s.T.Helper()
	p := s.StartBackup(flags, path, "--full", "--limit", "4")
	Until(s.T, "the draft has data", func() bool {
		select {
		case <-p.done:
			s.T.Fatalf("slow backup ended: %+v", p.Wait())
		default:
		}
		for _, name := range s.Drafts() {
			if st, err := os.Stat(name); err == nil && st.Size() > 1<<20 {
				return true
			}
		}
		return false
	})
	return p
}

// Drafts returns the files of drafts that are in the repository.
func (s *Site) Drafts() []string {
	names, err := filepath.Glob(filepath.Join(s.Repo, "*", "disk-*", "*.partial*"))
	if err != nil {
		s.T.Fatal(err)
	}
	return names
}

// Job is what the tests look at of a job.
type Job struct {
	ID, Verb, VM, Point, State string
	Error                      *struct{ Code, Message, Hint string }
}

// Jobs returns the jobs, newest first.
func (s *Site) Jobs(flags []string) []Job {
	s.T.Helper()
	return Decode[[]Job](s.T, s.Control(flags, "jobs --json"))
}

// Good fails the test unless a program succeeded.
func (s *Site) Good(r Ran) Ran {
	s.T.Helper()
	if r.Code != 0 {
		s.T.Fatalf("got %+v, want success", r)
	}
	return r
}

// Refused checks that a program ended with an exit code, one sentence that has all
// of want, and a hint.
func Refused(t testing.TB, r Ran, code int, want ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	if r.Code != code || r.Stdout != "" || len(lines) != 2 {
		t.Fatalf("got exit code %d, stdout %q, stderr %q, want %d and two lines of stderr", r.Code, r.Stdout, r.Stderr, code)
	}
	_, sentence, _ := strings.Cut(lines[0], ": ")
	for _, w := range want {
		if !strings.Contains(sentence, w) {
			t.Errorf("sentence: got %q, want one with %q", sentence, w)
		}
	}
	if !strings.HasSuffix(sentence, ".") {
		t.Errorf("sentence: got %q, want a full stop", sentence)
	}
	if !strings.HasPrefix(lines[1], "hint: ") || len(lines[1]) < 15 || strings.Contains(lines[1], "report it") {
		t.Errorf("hint: got %q, want advice", lines[1])
	}
}

// RefusedJSON checks that a program run with --json told an error with a code.
func RefusedJSON(t testing.TB, r Ran, exit int, code string) {
	t.Helper()
	var e struct {
		Error struct{ Code, Message, Hint string }
	}
	err := json.Unmarshal([]byte(r.Stderr), &e)
	if err != nil || r.Code != exit || r.Stdout != "" || e.Error.Code != code || e.Error.Message == "" || e.Error.Hint == "" {
		t.Errorf("with --json: got %+v, want exit code %d and an error with code %s, message and hint", r, exit, code)
	}
}
