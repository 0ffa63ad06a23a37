package guest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

//go:embed host.sh
var hostScript string

// startTimeout is how long libvirtd may take to listen.
const startTimeout = 60 * time.Second

// Host is a libvirtd with its machines, in namespaces of its own: it shares no
// configuration, no state and no sockets with the libvirt of the system, so that
// names and UUIDs cannot clash. Files have the same paths inside and outside.
// When the program that started it ends, however it ends, so does everything
// that runs on the host.
type Host struct {
	dir    string
	accel  string
	cmd    *exec.Cmd
	stdin  io.Closer // open as long as the host shall run
	output *bytes.Buffer
	done   chan struct{} // closed when cmd has ended

	close sync.Once
}

// StartHost starts a libvirtd whose machines run under accel ([KVM] or [TCG]).
// It takes root. What libvirt finds out about QEMU, which takes it seconds, is
// kept in the folder cache. Beside that of QEMU it has the drivers named, such as
// "storage"; with "network" it is in a network of its own.
func StartHost(ctx context.Context, cache, accel string, drivers ...string) (*Host, error) {
	// The path must be short: that of a unix socket fits in 107 bytes.
	dir, err := os.MkdirTemp("", "host-")
	if err != nil {
		return nil, err
	}
	h := &Host{dir: dir, accel: accel, output: new(bytes.Buffer), done: make(chan struct{})}
	args := []string{"-c", hostScript, "host.sh", dir, accel, filepath.Join(cache, "libvirt-"+accel)}
	h.cmd = exec.Command("sh", append(args, drivers...)...)
	h.cmd.Stdout, h.cmd.Stderr = h.output, h.output
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	if slices.Contains(drivers, "network") {
		h.cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := h.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start libvirtd in namespaces: %w", err), os.RemoveAll(dir))
	}
	go func() {
		_ = h.cmd.Wait() // its output tells more
		close(h.done)
	}()
	if err := h.waitReady(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// waitReady waits until libvirtd answers.
func (h *Host) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := h.Connect()
		if err == nil {
			return conn.Disconnect()
		}
		select {
		case <-h.done:
			return fmt.Errorf("libvirtd ended: %s", h.Log())
		case <-ctx.Done():
			return fmt.Errorf("libvirtd does not answer: %w: %s", err, h.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Socket returns the path of libvirtd's socket.
func (h *Host) Socket() string { return filepath.Join(h.dir, "run", "libvirt-sock") }

// URI returns the libvirt URI of the host.
func (h *Host) URI() string { return "qemu+unix:///system?socket=" + h.Socket() }

// Dir returns a folder that lives as long as the host, for disks and sockets.
func (h *Host) Dir() string { return h.dir }

// PID returns the process whose namespaces the host is in, as seen from outside.
func (h *Host) PID() int { return h.cmd.Process.Pid }

// Accel returns how the host's machines run: [KVM] or [TCG].
func (h *Host) Accel() string { return h.accel }

// Log returns what libvirtd had to say.
func (h *Host) Log() string {
	b, err := os.ReadFile(filepath.Join(h.dir, "log", "libvirtd.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Connect returns a new connection to libvirtd; the caller disconnects it.
func (h *Host) Connect() (*libvirt.Libvirt, error) {
	conn := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(h.Socket())))
	if err := conn.ConnectToURI(libvirt.QEMUSystem); err != nil {
		return nil, err
	}
	return conn, nil
}

// Close stops the host and its machines and deletes their state.
func (h *Host) Close() error {
	var err error
	h.close.Do(func() {
		h.stdin.Close()
		select {
		case <-h.done:
		case <-time.After(10 * time.Second):
			_ = h.cmd.Process.Kill() // the first process of the namespace: takes all others along
			<-h.done
		}
		err = os.RemoveAll(h.dir)
	})
	return err
}
