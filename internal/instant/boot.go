package instant

import (
	"context"
	"errors"
	"fmt"
	"image"
	"strings"
	"sync"
	"time"
)

// Boot is what a boot came to.
type Boot struct {
	Stage   Stage  // how far it got
	Failure string // why it got no further; "": it is up
	// Login and Agent are when it asked who is there, and when its agent answered,
	// after it began to run; 0: never.
	Login, Agent time.Duration
	Console      string      // the last of what it printed
	ConsoleErr   error       // why that is not all
	Screen       image.Image // nil: see ScreenErr
	ScreenErr    error
	Guest        *Guest // what its agent tells; nil if there is none
}

// Guest is what a guest's agent tells.
type Guest struct {
	OS          string            `json:"os,omitempty"`
	Kernel      string            `json:"kernel,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	FileSystems []GuestFileSystem `json:"file_systems"`
	// FailedUnits are those of systemd; nil if the agent does not tell.
	FailedUnits []string `json:"failed_units"`
	// Notes say what the agent did not tell, and why.
	Notes []string `json:"notes,omitempty"`
}

// GuestFileSystem is a file system that a guest has mounted.
type GuestFileSystem struct {
	Path       string `json:"path"`
	Type       string `json:"type"`
	TotalBytes int64  `json:"total_bytes,omitempty"`
	UsedBytes  int64  `json:"used_bytes,omitempty"`
	ReadOnly   bool   `json:"read_only,omitempty"`
	Errors     int64  `json:"errors,omitempty"` // that it has recorded on disk, where it does
}

// How a boot is looked at.
const (
	bootLookEvery = 200 * time.Millisecond
	bootLookTime  = 15 * time.Second // that one look may take, and what comes before the first
	// agentGrace is how long a guest that asks who is there is given until its agent
	// answers, too.
	agentGrace = 10 * time.Second
	// deathGrace is how long a boot that failed is given to print why.
	deathGrace = 2 * time.Second
)

// WatchBoot has a machine run that was started with Observed, and watches it until
// it is up, has failed, or ctx is done, which is a failure like others. The error
// is for what kept it from looking.
func WatchBoot(ctx context.Context, uri, uuid string, now func() time.Time) (b Boot, err error) {
	begin, begun := context.WithTimeout(ctx, bootLookTime)
	defer begun()
	h, err := Dial(begin, uri)
	if err != nil {
		return b, err
	}
	defer h.Close()
	ear, err := Dial(begin, uri)
	if err != nil {
		return b, err
	}
	defer ear.Close()
	log := &BootLog{}
	listenCtx, deaf := context.WithCancel(context.WithoutCancel(ctx))
	var listening sync.WaitGroup
	var earErr error // read once nobody listens any more
	listening.Go(func() { earErr = ear.Listen(listenCtx, uuid, log) })
	defer func() {
		deaf()
		listening.Wait()
		if earErr != nil && !errors.Is(earErr, context.Canceled) {
			b.ConsoleErr = fmt.Errorf("listen to the console: %w", earErr)
		}
	}()
	if err := h.Resume(begin, uuid); err != nil {
		return b, fmt.Errorf("let the machine run: %w", err)
	}
	w := &bootWatch{h: h, uuid: uuid, log: log, now: now, began: now()}
	if err := w.until(ctx); err != nil {
		return b, err
	}
	// What there is to see is looked at even if the time is up.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	b = w.boot
	b.Console = log.Text()
	b.Screen, b.ScreenErr = h.Screenshot(after, uuid)
	if b.Agent > 0 {
		b.Guest = h.guest(after, uuid)
	}
	return b, nil
}

// bootWatch is the watching of one boot.
type bootWatch struct {
	h     *Hypervisor
	uuid  string
	log   *BootLog
	now   func() time.Time
	began time.Time
	boot  Boot
	died  time.Duration // when it printed that it will not boot
}

// until looks at the machine until it is known how its boot ends. A look that has
// begun is brought to its end: the connection would go with it.
func (w *bootWatch) until(ctx context.Context) error {
	for {
		look, cancel := context.WithTimeout(context.WithoutCancel(ctx), bootLookTime)
		over, err := w.look(look)
		cancel()
		if over || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			w.boot.Failure = "it was neither up nor had it failed when the time was up"
			return nil
		case <-time.After(bootLookEvery):
		}
	}
}

// look looks at the machine once and reports whether its boot is over. That the
// hypervisor does not answer says nothing of that.
func (w *bootWatch) look(ctx context.Context) (over bool, err error) {
	now := w.now().Sub(w.began)
	stage, death := w.log.Stage()
	w.boot.Stage = stage
	if stage == StageLogin && w.boot.Login == 0 {
		w.boot.Login = now
	}
	switch state, err := w.h.State(ctx, w.uuid); {
	case errors.Is(err, ErrUnreachable):
		return false, err
	case err == nil && state == Stopped:
		w.boot.Failure = "the machine ended"
		if death != "" {
			w.boot.Failure = death + ", and the machine ended"
		}
		return true, nil
	}
	if open, err := w.h.HasAgent(ctx, w.uuid); err == nil && open && w.h.Agent(ctx, w.uuid, "guest-ping", nil, nil) == nil {
		w.boot.Agent, w.boot.Stage, w.boot.Failure = w.now().Sub(w.began), StageAgent, ""
		return true, nil
	}
	if death != "" {
		if w.died == 0 {
			w.died = now
		}
		w.boot.Failure = death
		return now-w.died > deathGrace, nil
	}
	return w.boot.Login > 0 && now-w.boot.Login > agentGrace, nil
}

// guest asks the agent what there is to know. What it does not tell is noted.
func (h *Hypervisor) guest(ctx context.Context, uuid string) *Guest {
	g := &Guest{FileSystems: []GuestFileSystem{}}
	note := func(what string, err error) bool {
		if err != nil {
			g.Notes = append(g.Notes, fmt.Sprintf("%s: %v", what, err))
		}
		return err == nil
	}
	var system struct {
		Name   string `json:"pretty-name"`
		Kernel string `json:"kernel-release"`
	}
	if note("operating system", h.Agent(ctx, uuid, "guest-get-osinfo", nil, &system)) {
		g.OS, g.Kernel = system.Name, system.Kernel
	}
	var host struct {
		Name string `json:"host-name"`
	}
	if note("hostname", h.Agent(ctx, uuid, "guest-get-host-name", nil, &host)) {
		g.Hostname = host.Name
	}
	var mounted []struct {
		Path  string `json:"mountpoint"`
		Type  string `json:"type"`
		Total int64  `json:"total-bytes"`
		Used  int64  `json:"used-bytes"`
	}
	if note("file systems", h.Agent(ctx, uuid, "guest-get-fsinfo", nil, &mounted)) {
		for _, m := range mounted {
			g.FileSystems = append(g.FileSystems, GuestFileSystem{Path: m.Path, Type: m.Type, TotalBytes: m.Total, UsedBytes: m.Used})
		}
	}
	if strings.Contains(g.OS, "Windows") {
		return g
	}
	if out, err := h.run(ctx, uuid, mountStates); note("states of file systems", err) {
		g.states(out)
	}
	if out, err := h.run(ctx, uuid, "systemctl --failed --no-legend --plain --full 2>/dev/null || [ ! -d /run/systemd/system ]"); note("failed units", err) {
		g.FailedUnits = []string{}
		for line := range strings.Lines(out) {
			if unit := strings.Fields(line); len(unit) > 0 {
				g.FailedUnits = append(g.FailedUnits, unit[0])
			}
		}
	}
	return g
}

// mountStates prints mount point, options and the number of recorded errors of what
// is mounted from disks.
const mountStates = `while read -r dev dir kind opts rest; do case $dev in /dev/*)
	real=$(readlink -f "$dev"); n=$(cat "/sys/fs/$kind/${real##*/}/errors_count" 2>/dev/null || echo 0)
	printf '%s %s %s\n' "$dir" "$opts" "$n";; esac; done </proc/mounts`

// states adds what mountStates printed.
func (g *Guest) states(out string) {
	for line := range strings.Lines(out) {
		var dir, options string
		var n int64
		if _, err := fmt.Sscanf(line, "%s %s %d", &dir, &options, &n); err != nil {
			continue
		}
		for i := range g.FileSystems {
			if f := &g.FileSystems[i]; f.Path == dir {
				f.ReadOnly, f.Errors = options == "ro" || strings.HasPrefix(options, "ro,"), n
			}
		}
	}
}

// run runs a shell script in a guest and returns what it prints.
func (h *Hypervisor) run(ctx context.Context, uuid, script string) (string, error) {
	var started struct{ PID int }
	err := h.Agent(ctx, uuid, "guest-exec", map[string]any{"path": "/bin/sh", "arg": []string{"-c", script}, "capture-output": true,
		"env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}}, &started)
	if err != nil {
		return "", err
	}
	for {
		var status struct {
			Exited   bool
			ExitCode int
			Out      []byte `json:"out-data"`
		}
		if err := h.Agent(ctx, uuid, "guest-exec-status", map[string]any{"pid": started.PID}, &status); err != nil {
			return "", err
		}
		switch {
		case status.Exited && status.ExitCode != 0:
			return "", fmt.Errorf("it ended with status %d", status.ExitCode)
		case status.Exited:
			return string(status.Out), nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(bootLookEvery):
		}
	}
}
