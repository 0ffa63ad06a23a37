package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

const (
	// frozenAtMost is how long a guest stays frozen whatever happens, beside the
	// time that freezing it may take.
	frozenAtMost = 10 * time.Second
	// guardGivesUp is how long the guard tries to thaw, from then on.
	guardGivesUp = 5 * time.Minute
	// guardStart is how long the guard may take to be ready.
	guardStart = 15 * time.Second
)

// order is what a guard is told, as one line of JSON on its stdin.
type order struct {
	Socket string
	UUID   string
	AtMost time.Duration
}

const guardReady = "ready\n"

// guard is a process that thaws a guest unless it is told that this was done.
type guard struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser // its end is the guard's sign to act
	stdout io.ReadCloser
}

// startGuard starts a guard and waits until it has connected to libvirt. The
// guard has a session of its own: a signal to our process group is not for it.
func startGuard(ctx context.Context, argv []string, o order) (*guard, error) {
	ctx, cancel := context.WithTimeout(ctx, guardStart)
	defer cancel()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	g := &guard{cmd: cmd, stdin: stdin, stdout: stdout}
	kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err = g.brief(o)
	if !kill() {
		err = fmt.Errorf("guard was not ready: %w", ctx.Err())
	}
	if err != nil {
		_ = cmd.Process.Kill() // it may have ended by itself, which err tells of
		_ = cmd.Wait()
		return nil, err
	}
	return g, nil
}

// brief gives the guard its order and waits until it is ready.
func (g *guard) brief(o order) error {
	if err := json.NewEncoder(g.stdin).Encode(o); err != nil {
		return fmt.Errorf("brief guard: %w", err)
	}
	line, err := bufio.NewReader(g.stdout).ReadString('\n')
	if err != nil || line != guardReady {
		return fmt.Errorf("guard is not ready: it said %q: %w", line, err)
	}
	return nil
}

// dismiss ends the guard. Unless the guest was thawed already the guard does it
// first. The error says that it did not succeed.
func (g *guard) dismiss(wasThawed bool) error {
	if wasThawed {
		_, _ = io.WriteString(g.stdin, "thawed\n") // if it is not there to read this, it has acted
	}
	g.stdin.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// RunGuard is the guard process: a program that is started with Options.Guard
// calls it with its stdin and stdout, and exits with status 0 if it returns nil.
// It takes its order from stdin and waits until it is told that the guest was
// thawed. When stdin ends before that, because whoever froze the guest has died,
// or after the time in the order, it thaws the guest.
func RunGuard(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	g, c, err := findGuest(ctx, o)
	if err != nil {
		return err
	}
	defer func() { c.hangUp() }()
	if _, err := io.WriteString(stdout, guardReady); err != nil {
		return fmt.Errorf("say ready: %w", err)
	}

	told := make(chan bool, 1)
	go func() { // ends with stdin, at the latest with the process
		_, err := in.ReadBytes('\n')
		told <- err == nil
	}()
	deadline := time.NewTimer(o.AtMost)
	defer deadline.Stop()
	select {
	case done := <-told:
		if done {
			return nil
		}
	case <-deadline.C:
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), guardGivesUp)
	defer cancel()
	for {
		release := c.bound(ctx)
		_, err = g.thawUntil(attempt(ctx, c))
		release()
		if err == nil || ctx.Err() != nil {
			return err
		}
		// The connection is gone: libvirtd was restarted.
		if again, next, derr := findGuest(ctx, o); derr == nil {
			c.hangUp()
			g, c = again, next
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// attempt returns a context that ends with ctx and with the connection.
func attempt(ctx context.Context, c *conn) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-c.Disconnected():
			cancel(errors.New("connection to libvirt was lost"))
		case <-ctx.Done():
		}
	}()
	return ctx
}

func findGuest(ctx context.Context, o order) (guestAgent, *conn, error) {
	id, err := uuid.Parse(o.UUID)
	if err != nil {
		return guestAgent{}, nil, fmt.Errorf("read order: %w", err)
	}
	c, err := dial(ctx, o.Socket)
	if err != nil {
		return guestAgent{}, nil, err
	}
	dom, err := c.DomainLookupByUUID(libvirt.UUID(id))
	if err != nil {
		c.hangUp()
		return guestAgent{}, nil, explain(ctx, "look up "+o.UUID, err)
	}
	return guestAgent{conn: c.Libvirt, dom: dom}, c, nil
}
