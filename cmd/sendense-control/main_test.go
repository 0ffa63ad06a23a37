package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// program is the path of the binary under test.
var program string

func TestMain(m *testing.M) {
	fstest.Isolate()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sendense-control-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "sendense-control")
	out, err := exec.Command("go", "build", "-ldflags", "-X main.version=v9-test", "-o", program, ".").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// ran is what a run of a program left.
type ran struct {
	stdout, stderr string
	code           int
}

// call runs the program.
func call(t testing.TB, args ...string) ran {
	t.Helper()
	return start(t, exec.Command(program, args...))
}

func start(t testing.TB, cmd *exec.Cmd) ran {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	watch := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer watch.Stop()
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return ran{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// tool runs another program and returns its output.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := start(t, exec.Command(name, args...))
	if r.code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// decode reads what --json printed.
func decode[T any](t testing.TB, r ran) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("output %q: %v; stderr: %s", r.stdout, err, r.stderr)
	}
	return v
}

// server is a running nbd serve.
type server struct {
	cmd    *exec.Cmd
	uri    string
	stderr bytes.Buffer
	ended  bool
}

// serve runs nbd serve until the test is over.
func serve(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{cmd: exec.Command(program, append([]string{"nbd", "serve"}, args...)...)}
	s.cmd.Stderr = &s.stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(t) })
	watch := time.AfterFunc(time.Minute, func() { _ = s.cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	watch.Stop()
	if err != nil {
		_ = s.cmd.Wait()
		s.ended = true
		t.Fatalf("nbd serve: no URI: %v; stderr: %s", err, s.stderr.String())
	}
	s.uri = strings.TrimSpace(line)
	return s
}

// stop terminates the server, which has to end well.
func (s *server) stop(t testing.TB) {
	t.Helper()
	if s.ended {
		return
	}
	s.ended = true
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	watch := time.AfterFunc(time.Minute, func() { _ = s.cmd.Process.Kill() })
	defer watch.Stop()
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("nbd serve: %v; stderr: %s", err, s.stderr.String())
	}
}

// callTo runs the program with another stdout.
func callTo(t testing.TB, stdout *os.File, args ...string) ran {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = stdout, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return ran{stderr: errs.String(), code: cmd.ProcessState.ExitCode()}
}
