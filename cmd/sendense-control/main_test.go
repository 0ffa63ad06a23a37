package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// program is the path of the binary under test.
var program string

func TestMain(m *testing.M) {
	fstest.Isolate()
	os.Exit(clitest.Main(m, func(dir string) { program = filepath.Join(dir, "sendense-control") }))
}

// call runs the program.
func call(t testing.TB, args ...string) clitest.Ran {
	t.Helper()
	return clitest.Run(t, program, args...)
}

// decode reads what --json printed, whatever the exit code is.
func decode[T any](t testing.TB, r clitest.Ran) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
		t.Fatalf("output %q: %v; stderr: %s", r.Stdout, err, r.Stderr)
	}
	return v
}

// server is a running nbd serve.
type server struct {
	*clitest.Process
	uri    string
	killed bool
}

// serve runs nbd serve until the test is over.
func serve(t testing.TB, args ...string) *server {
	t.Helper()
	p := clitest.Start(t, program, append([]string{"nbd", "serve"}, args...)...)
	clitest.Until(t, "nbd serve prints its URI", func() bool { return strings.HasSuffix(p.Stdout(), "\n") || p.Ended() })
	if p.Ended() {
		t.Fatalf("nbd serve: %+v", p.Wait())
	}
	s := &server{Process: p, uri: strings.TrimSpace(p.Stdout())}
	t.Cleanup(func() { s.stop(t) })
	return s
}

// stop terminates the server, which has to end well unless it was killed.
func (s *server) stop(t testing.TB) {
	t.Helper()
	if r := s.Signal(syscall.SIGTERM); r.Code != 0 && !s.killed {
		t.Errorf("nbd serve: %+v", r)
	}
}

// kill ends the server as a crash would.
func (s *server) kill() {
	s.killed = true
	s.Kill()
}

// callTo runs the program with another stdout.
func callTo(t testing.TB, stdout *os.File, args ...string) clitest.Ran {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = stdout, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return clitest.Ran{Stderr: errs.String(), Code: cmd.ProcessState.ExitCode()}
}

// shortDir makes a folder for sockets, whose paths are at most 107 bytes long.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
