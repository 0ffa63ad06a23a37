// Package sandbox runs a part of this program in a process that can do nothing
// but compute: it talks through sockets that it inherits, and has no files, no
// network, no other processes and no privileges. What such a process parses may
// take it over; it is worth nothing then.
//
// A program that starts children calls [Run] first thing in main, with what they
// are to do. The layers are, from the outside: namespaces for users, network,
// mounts, processes and System V objects; limits of memory, descriptors and file
// size; a seccomp filter that admits what the Go runtime needs. Where the kernel
// lets nobody make namespaces they are left out; without the filter and the limits
// a child refuses to start.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waitDelay is how long it is waited for what a child that has ended still has to say.
const waitDelay = 5 * time.Second

// name is what a child finds as its argv[0].
const name = "sendense-sandbox"

// Limits bound what a child may take.
type Limits struct {
	MemoryBytes int64 // of heap and stacks; default 1 GiB
}

// Child is a confined process.
type Child struct {
	cmd    *exec.Cmd
	stderr head
	once   sync.Once
	done   chan struct{}
	err    error
}

// Start starts a child that does the named task, with sockets as its descriptors
// from 3. The files are its own from then on and stay open here. Close ends it.
func Start(task string, limits Limits, sockets ...*os.File) (*Child, error) {
	if limits.MemoryBytes == 0 {
		limits.MemoryBytes = 1 << 30
	}
	var errs []error
	for _, a := range attributes() {
		c, err := start(task, limits, sockets, a)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("start a confined process: %w", errors.Join(errs...))
}

func start(task string, limits Limits, sockets []*os.File, a *syscall.SysProcAttr) (*Child, error) {
	c := &Child{done: make(chan struct{})}
	c.cmd = &exec.Cmd{
		// By this name it can be run by a user who cannot reach its folder.
		Path: "/proc/self/exe", Args: []string{name, task, fmt.Sprint(limits.MemoryBytes), fmt.Sprint(len(sockets))},
		// Garbage may wait until memory gets tight, as Limits say.
		Env: []string{"GOTRACEBACK=single", "GOGC=400", fmt.Sprintf("GOMAXPROCS=%d", min(2, runtime.NumCPU()))},
		Dir: "/", ExtraFiles: sockets, Stderr: &c.stderr, SysProcAttr: a, WaitDelay: waitDelay,
	}
	// The signal that follows a parent's death follows that of its thread: this one
	// has to stay.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- c.cmd.Start()
		if c.cmd.Process == nil {
			return
		}
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	c.expendable()
	return c, nil
}

// expendable has the kernel end the child, and not who started it, should memory run
// out. Not every user may say so.
func (c *Child) expendable() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.PID()), []byte("1000"), 0)
}

// nobody is the user that a child of root is outside.
const nobody = 65534

// attributes are the ways to start a child, best first: not every kernel lets
// everybody make namespaces, nor is every program one that nobody may run.
func attributes() []*syscall.SysProcAttr {
	const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	as := func(uid, gid int) *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Cloneflags:  namespaces,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: gid, Size: 1}},
			Credential:  &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true},
		}
	}
	own := as(os.Geteuid(), os.Getegid())
	list := []*syscall.SysProcAttr{own, {}}
	if os.Geteuid() == 0 {
		list = []*syscall.SysProcAttr{as(nobody, nobody), own, {Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}}
	}
	for _, a := range list {
		a.Pdeathsig = syscall.SIGKILL
	}
	return list
}

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err says how a child that is done ended, with what it said first. Nil
// means that it ended in order.
func (c *Child) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(c.err, &exit) {
		return c.err
	}
	how := exit.String()
	if said := c.stderr.line(); said != "" {
		how += ": " + said
	}
	return errors.New(how)
}

// Close kills the child and waits for its end.
func (c *Child) Close() {
	c.once.Do(func() { _ = c.cmd.Process.Kill() }) // it may have ended
	<-c.done
}

// Wait waits for the child to end, or for ctx.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// head keeps the first of what is written to it, which is what a runtime that
// gives up says about the cause.
type head struct {
	mu sync.Mutex // guards the field below
	b  []byte
}

const headBytes = 4 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.b = append(h.b, p[:min(len(p), headBytes-len(h.b))]...)
	return len(p), nil
}

// line returns the first line.
func (h *head) line() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, _, _ := strings.Cut(strings.TrimSpace(string(h.b)), "\n")
	return first
}

// Pair returns the two ends of a new connection between processes.
func Pair() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far"), nil
}

// PID returns the child's process ID.
func (c *Child) PID() int { return c.cmd.Process.Pid }
