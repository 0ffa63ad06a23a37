package sandbox_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Run(map[string]sandbox.Task{"echo": echo, "try": try, "eat": eat, "panic": func([]*os.File) error { panic("taken over") }})
	os.Exit(m.Run())
}

func echo(sockets []*os.File) error {
	c, err := net.FileConn(sockets[0])
	if err != nil {
		return err
	}
	_, err = io.Copy(c, c)
	return err
}

// try does what a confined process must not be able to do, and reports what it
// could.
func try(sockets []*os.File) error {
	could := []string{}
	for what, f := range map[string]func() error{
		"open a file":      func() error { _, err := os.ReadFile("/etc/passwd"); return err },
		"list a folder":    func() error { _, err := os.ReadDir("/"); return err },
		"write a file":     func() error { return os.WriteFile("/tmp/escaped", []byte("x"), 0o600) },
		"make a socket":    func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
		"connect":          func() error { _, err := net.Dial("tcp", "127.0.0.1:22"); return err },
		"run a program":    func() error { return exec.Command("/bin/true").Run() },
		"exec":             func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"signal others":    func() error { return unix.Kill(os.Getppid(), unix.SIGTERM) },
		"make a namespace": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"mount":            func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
		"trace":            func() error { return unix.PtraceAttach(1) },
		"become root":      func() error { return syscall.Setuid(0) },
		"fork":             func() error { return fork(uintptr(unix.SIGCHLD)) },
		// A number that a call has which may be made.
		"fork under another name": func() error { return fork(unix.SYS_MMAP) },
		"fork with clone3": func() error {
			args := [8]uint64{4: uint64(unix.SIGCHLD)}
			pid, _, err := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
			return inChild(pid, err)
		},
		"share memory":       func() error { return mapped(unix.MAP_SHARED | unix.MAP_ANON) },
		"have stacks grow":   func() error { return mapped(unix.MAP_PRIVATE | unix.MAP_ANON | unix.MAP_GROWSDOWN) },
		"signal a neighbour": func() error { return permitted(unix.Tgkill(os.Getpid()+1, os.Getpid()+1, 0)) },
		"limit a neighbour": func() error {
			return permitted(unix.Prlimit(os.Getpid()+1, unix.RLIMIT_NOFILE, nil, new(unix.Rlimit)))
		},
		"be signalled by a socket": func() error {
			_, err := unix.FcntlInt(sockets[0].Fd(), unix.F_SETOWN, os.Getpid())
			return err
		},
	} {
		if f() == nil {
			could = append(could, what)
		}
	}
	_, err := sockets[0].WriteString(strings.Join(could, ", ") + ".")
	return err
}

// fork makes a process that ends at once.
func fork(flags uintptr) error {
	pid, _, err := unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	return inChild(pid, err)
}

func inChild(pid uintptr, err syscall.Errno) error {
	if err != 0 {
		return err
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return nil
}

func mapped(flags int) error {
	_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, flags)
	return err
}

// permitted turns what may be tried, in vain, into what could be done.
func permitted(err error) error {
	if errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

func eat([]*os.File) error {
	var held [][]byte
	for range 4 << 10 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	runtime.KeepAlive(held)
	return nil
}

func start(t *testing.T, task string, limits sandbox.Limits) (*sandbox.Child, net.Conn) {
	t.Helper()
	near, far, err := sandbox.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	c, err := sandbox.Start(task, limits, far)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	conn, err := net.FileConn(near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return c, conn
}

func TestChildTalksThroughItsSocket(t *testing.T) {
	c, conn := start(t, "echo", sandbox.Limits{})
	for _, msg := range []string{"hello", strings.Repeat("x", 1<<20)} {
		go io.WriteString(conn, msg)
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != msg {
			t.Fatalf("echo of %d bytes: %v", len(msg), err)
		}
	}
	c.Close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read from a closed child: got %d, %v", n, err)
	}
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error of a closed child: got %v", err)
	}
}

func TestChildCannotReachAnything(t *testing.T) {
	_, conn := start(t, "try", sandbox.Limits{})
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "." {
		t.Errorf("a confined process could: %s (%v)", got, err)
	}
}

func TestChildIsNobody(t *testing.T) {
	c, conn := start(t, "echo", sandbox.Limits{})
	io.WriteString(conn, "x")
	io.ReadFull(conn, make([]byte, 1)) // it is confined by now
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && !strings.Contains(string(status), "\nUid:\t65534\t65534\t65534\t65534\n") {
		t.Errorf("user of the child: got\n%s", status)
	}
	adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.PID()))
	if os.Geteuid() == 0 && string(adj) != "1000\n" {
		t.Errorf("how soon the kernel ends the child for want of memory: got %q, %v, want 1000", adj, err)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status of the child: want %q in\n%s", want, status)
		}
	}
}

func TestMemoryIsLimited(t *testing.T) {
	if !sandbox.LimitsMemory {
		t.Skip("the race detector takes more than any limit")
	}
	c, _ := start(t, "eat", sandbox.Limits{MemoryBytes: 256 << 20})
	select {
	case <-c.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("a child that takes 4 GiB is still there")
	}
	// The runtime calls it out of memory, or a thread that cannot be had.
	if err := c.Err(); err == nil {
		t.Error("end of a child that takes 4 GiB: got no error")
	}
}

func TestChildThatPanicsIsReported(t *testing.T) {
	c, _ := start(t, "panic", sandbox.Limits{})
	<-c.Done()
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "taken over") {
		t.Errorf("end of a child that panics: got %v", err)
	}
}
