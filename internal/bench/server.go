package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// server is an NBD server in a process of its own.
type server struct {
	name   string
	uri    string
	socket string
	cmd    *exec.Cmd
	up     func() error // nil once it can be used; default: its socket can be connected to
	stderr bytes.Buffer
}

// The servers that are compared. path is an image, format what QEMU calls its
// format; access is read-only.
func (b *bench) ownServer(name, path string) *server {
	s := b.newServer(name)
	s.cmd = exec.Command(b.program, "nbd", "serve", "--socket", s.socket, path)
	return s
}

func (b *bench) qemuServer(name, format, path string) *server {
	s := b.newServer(name)
	s.cmd = exec.Command("qemu-nbd", "-t", "-r", "-e", "16", "-f", format, "-k", s.socket, path)
	return s
}

func (b *bench) nbdkitServer(name, path string) *server {
	s := b.newServer(name)
	s.cmd = exec.Command("nbdkit", "-f", "-r", "-U", s.socket, "file", path)
	return s
}

func (b *bench) newServer(name string) *server {
	socket := filepath.Join(b.dir, strings.ReplaceAll(name, "/", "-")+".sock")
	return &server{name: name, socket: socket, uri: "nbd+unix:///?socket=" + socket}
}

// startAll starts servers and returns what stops them all.
func startAll(ctx context.Context, servers ...*server) (stop func(), err error) {
	var started []*server
	stop = func() {
		for _, s := range started {
			s.stop()
		}
	}
	for _, s := range servers {
		if err := s.start(ctx); err != nil {
			stop()
			return nil, err
		}
		started = append(started, s)
	}
	return stop, nil
}

// start starts the server and waits until it can be used.
func (s *server) start(ctx context.Context) error {
	s.cmd.Stderr = &s.stderr
	if s.up == nil {
		s.up = s.listens
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for range 60_000 {
		if s.up() == nil {
			return nil
		}
		if ctx.Err() != nil || syscall.Kill(s.cmd.Process.Pid, 0) != nil {
			break
		}
		time.Sleep(500 * time.Microsecond)
	}
	s.stop()
	return errors.Join(ctx.Err(), fmt.Errorf("%s does not serve: %s", s.name, s.stderr.String()))
}

func (s *server) listens() error {
	c, err := net.Dial("unix", s.socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// stop ends the server.
func (s *server) stop() {
	// It is told to end and then made to; how it ended is of no interest.
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait()
	kill.Stop()
	os.Remove(s.socket) // if it is one
}

// cpu returns the CPU time that the server has used, in seconds.
func (s *server) cpu() (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var user, system float64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, fmt.Errorf("read the CPU time of %s: %w", s.name, err)
	}
	return (user + system) / 100, nil // USER_HZ
}

// peakMemory returns the most memory that the server had resident, in bytes.
func (s *server) peakMemory() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("the kernel does not tell the memory of %s", s.name)
}
