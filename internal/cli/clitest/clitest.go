// Package clitest runs the real programs in tests: it builds them, runs them with
// a bound on time, and ends by their process ids those that a test leaves running.
//
// It knows the programs' command lines and nothing of what is behind them.
package clitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/requires"
)

// Patience is how long a test waits for anything before it fails.
const Patience = time.Minute

// Build builds the three programs into the folder dir.
func Build(dir string) error {
	out, err := exec.Command("go", "build", "-ldflags", "-X main.version=v9-test", "-o", dir+string(filepath.Separator),
		"github.com/sendense/sendense/cmd/...").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// Main builds the programs, tells use in which folder they are, runs the tests and
// returns the exit code for TestMain.
func Main(m *testing.M, use func(dir string)) int {
	dir, err := os.MkdirTemp("", "sd-") // the path of a socket below it is at most 107 bytes
	if err == nil {
		defer os.RemoveAll(dir)
		err = Build(dir)
	}
	if err == nil { // what programs leave that are killed goes with it
		err = os.Setenv("TMPDIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	use(dir)
	return m.Run()
}

// Ran is what a run of a program left.
type Ran struct {
	Stdout, Stderr string
	Code           int // -1 if a signal ended it
}

// Run runs a program to its end.
func Run(t testing.TB, program string, args ...string) Ran {
	t.Helper()
	return Start(t, program, args...).Wait()
}

// Tool runs a program that has to succeed, and returns its output.
func Tool(t testing.TB, program string, args ...string) string {
	t.Helper()
	r := Run(t, program, args...)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", program, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Process is a program that runs.
type Process struct {
	PID  int
	cmd  *exec.Cmd
	out  output
	errs output
	done chan struct{}
}

// Start runs a program, at most for Patience and for as long as the test.
func Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	return start(t, Patience, program, args...)
}

func start(t testing.TB, atMost time.Duration, program string, args ...string) *Process {
	t.Helper()
	p := &Process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errs
	p.cmd.WaitDelay = time.Second // what it started may hold on to its output
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SENDENSE_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.PID = p.cmd.Process.Pid
	watch := time.AfterFunc(atMost, func() { _ = p.cmd.Process.Kill() }) // it may have ended
	go func() {
		defer close(p.done)
		defer watch.Stop()
		_ = p.cmd.Wait() // the exit code says it
	}()
	t.Cleanup(func() { p.Kill() })
	return p
}

// Wait waits for the program's end.
func (p *Process) Wait() Ran {
	<-p.done
	return Ran{p.out.String(), p.errs.String(), p.cmd.ProcessState.ExitCode()}
}

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal and waits for the program's end.
func (p *Process) Signal(s syscall.Signal) Ran {
	_ = p.cmd.Process.Signal(s) // it may have ended
	return p.Wait()
}

// Kill ends the program as a crash would, and waits for it.
func (p *Process) Kill() Ran { return p.Signal(syscall.SIGKILL) }

// Stdout returns what the program printed so far.
func (p *Process) Stdout() string { return p.out.String() }

// output is a buffer that is read while it is written.
type output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Decode reads what a program printed with --json.
func Decode[T any](t testing.TB, r Ran) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil || r.Code != 0 {
		t.Fatalf("got %v from exit code %d, stdout %q, stderr %q, want JSON", err, r.Code, r.Stdout, r.Stderr)
	}
	return v
}

// Until waits until a condition holds.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	requires.Until(t, what, holds)
}

// EndOther terminates a process that is no child of the test, and waits until it
// is gone.
func EndOther(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	Until(t, "the process has ended", func() bool { return !Runs(pid) })
}

// Runs reports whether a process runs; one that has ended and that nobody waited
// for does not.
func Runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}
