package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// VM is a machine on a [Host]. Its methods may be called one at a time.
type VM struct {
	Name string
	UUID string
	// Conn is the machine's own connection to libvirtd, and Domain its handle, for
	// what this package has no method for.
	Conn   *libvirt.Libvirt
	Domain libvirt.Domain

	host    *Host
	console string
}

var names atomic.Int64

// Define defines a machine and does not start it.
func (h *Host) Define(ctx context.Context, s Spec) (*VM, error) {
	if s.Name == "" {
		s.Name = fmt.Sprintf("guest%d", names.Add(1))
	}
	console := filepath.Join(h.dir, "console-"+s.Name+".log")
	x, err := s.xml(h.accel, console)
	if err != nil {
		return nil, fmt.Errorf("define %s: %w", s.Name, err)
	}
	conn, err := h.Connect()
	if err != nil {
		return nil, err
	}
	vm := &VM{Name: s.Name, Conn: conn, host: h, console: console}
	if err := vm.Redefine(ctx, x); err != nil {
		return nil, errors.Join(err, conn.Disconnect())
	}
	return vm, nil
}

// Find returns a machine that somebody else made on the host, by its name. What it
// writes to its console is not known.
func (h *Host) Find(name string) (*VM, error) {
	conn, err := h.Connect()
	if err != nil {
		return nil, err
	}
	dom, err := conn.DomainLookupByName(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find %s: %w", name, err), conn.Disconnect())
	}
	return &VM{Name: name, UUID: uuidText(dom.UUID), Conn: conn, Domain: dom, host: h}, nil
}

func uuidText(u libvirt.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Redefine replaces the machine's definition, that of the next start.
func (v *VM) Redefine(_ context.Context, domainXML string) error {
	dom, err := v.Conn.DomainDefineXML(domainXML)
	if err != nil {
		return fmt.Errorf("define %s: %w", v.Name, err)
	}
	v.Domain, v.UUID = dom, uuidText(dom.UUID)
	return nil
}

// XML returns the machine's present definition.
func (v *VM) XML() (string, error) { return v.Conn.DomainGetXMLDesc(v.Domain, 0) }

// Start starts the machine; WaitAgent waits until it has booted.
func (v *VM) Start(context.Context) error {
	if err := v.Conn.DomainCreate(v.Domain); err != nil {
		return fmt.Errorf("start %s: %w", v.Name, err)
	}
	return nil
}

// WaitAgent waits until the guest agent answers.
func (v *VM) WaitAgent(ctx context.Context) error {
	for {
		x, err := v.XML()
		if err != nil {
			return err
		}
		if strings.Contains(x, "state='connected'") { // libvirt logs every command to one that is not
			if _, err := v.agent("guest-ping", nil, 2); err == nil {
				return nil
			}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("agent of %s does not answer: %w\n%s", v.Name, err, v.Console())
		}
	}
}

// agent sends the guest agent a command and returns what it answers.
func (v *VM) agent(command string, args any, timeoutSeconds int32) (json.RawMessage, error) {
	msg, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return nil, err
	}
	reply, err := v.Conn.QEMUDomainAgentCommand(v.Domain, string(msg), timeoutSeconds, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	var r struct {
		Return json.RawMessage `json:"return"`
	}
	err = json.Unmarshal([]byte(strings.Join(reply, "")), &r)
	return r.Return, err
}

// Exec runs a shell script in the guest and returns what it wrote to stdout. A
// script that exits with another status than 0 gives an error with its stderr.
func (v *VM) Exec(ctx context.Context, script string) (string, error) {
	out, err := v.exec(ctx, script)
	if err != nil {
		return "", fmt.Errorf("run %q in %s: %w", script, v.Name, err)
	}
	return out, nil
}

func (v *VM) exec(ctx context.Context, script string) (string, error) {
	raw, err := v.agent("guest-exec", map[string]any{
		"path": "/bin/sh", "arg": []string{"-c", script}, "capture-output": true,
		"env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
	}, 10)
	if err != nil {
		return "", err
	}
	var started struct{ PID int }
	if err := json.Unmarshal(raw, &started); err != nil {
		return "", err
	}
	for {
		raw, err := v.agent("guest-exec-status", map[string]any{"pid": started.PID}, 10)
		if err != nil {
			return "", err
		}
		var status struct {
			Exited   bool
			ExitCode int
			Out      []byte `json:"out-data"`
			Err      []byte `json:"err-data"`
		}
		if err := json.Unmarshal(raw, &status); err != nil {
			return "", err
		}
		if status.Exited {
			if status.ExitCode != 0 {
				return "", fmt.Errorf("exit status %d: %s", status.ExitCode, status.Err)
			}
			return string(status.Out), nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// Running reports whether the machine runs. One that is gone does not.
func (v *VM) Running() (bool, error) {
	active, err := v.Conn.DomainIsActive(v.Domain)
	var lerr libvirt.Error
	if errors.As(err, &lerr) && lerr.Code == uint32(libvirt.ErrNoDomain) {
		return false, nil
	}
	return active == 1, err
}

// Paused reports whether the machine stands still, for whatever reason.
func (v *VM) Paused() (bool, error) {
	state, _, err := v.Conn.DomainGetState(v.Domain, 0)
	return libvirt.DomainState(state) == libvirt.DomainPaused, err
}

// Shutdown asks the guest to shut down and waits until it has.
func (v *VM) Shutdown(ctx context.Context) error {
	if err := v.Conn.DomainShutdown(v.Domain); err != nil {
		return fmt.Errorf("shut down %s: %w", v.Name, err)
	}
	return v.waitStopped(ctx)
}

// waitStopped waits until the machine does not run any more.
func (v *VM) waitStopped(ctx context.Context) error {
	for {
		running, err := v.Running()
		if err != nil || !running {
			return err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s still runs: %w", v.Name, err)
		}
	}
}

// Destroy stops the machine at once, as if its plug were pulled.
func (v *VM) Destroy(context.Context) error {
	err := v.Conn.DomainDestroy(v.Domain)
	var lerr libvirt.Error
	if errors.As(err, &lerr) && lerr.Code == uint32(libvirt.ErrOperationInvalid) {
		return nil // not running
	}
	return err
}

// Kill kills the machine's QEMU process with SIGKILL and waits until libvirt has
// noticed.
func (v *VM) Kill(ctx context.Context) error {
	pid, err := v.PID()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", v.Name, err)
	}
	return v.waitStopped(ctx)
}

// PID returns the process ID of the machine's QEMU, as seen from outside the
// host's namespace.
func (v *VM) PID() (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), v.UUID) || !strings.Contains(string(b), "guest="+v.Name+",") {
			continue
		}
		return strconv.Atoi(filepath.Base(filepath.Dir(file)))
	}
	return 0, fmt.Errorf("no process runs %s", v.Name)
}

// Console returns what the guest wrote to its serial console so far.
func (v *VM) Console() string {
	b, err := os.ReadFile(v.console)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Close stops the machine and removes its definition, checkpoints included; its
// disks stay.
func (v *VM) Close(ctx context.Context) error {
	err := errors.Join(v.Destroy(ctx), v.Conn.DomainUndefineFlags(v.Domain,
		libvirt.DomainUndefineCheckpointsMetadata|libvirt.DomainUndefineSnapshotsMetadata))
	return errors.Join(err, v.Conn.Disconnect())
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
