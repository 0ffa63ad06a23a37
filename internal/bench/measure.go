package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// subject is one of several that do the same work.
type subject struct {
	name string
	// run does the work once and returns what is measured of it.
	run func(ctx context.Context) (float64, error)
	// rounds is how often it is run, if that takes long; default always.
	rounds int
}

// samples are what runs of subjects gave: one value for each round.
type samples map[string][]float64

// interleave runs the subjects in turn, one round after another, and each round
// begins with another of them: what else happens on the machine then hits all. A
// first round does not count: it fills the caches.
func (b *bench) interleave(ctx context.Context, subjects ...subject) (samples, error) {
	s := samples{}
	for round := range b.runs + 1 {
		for i := range subjects {
			x := subjects[(i+round)%len(subjects)]
			if x.rounds > 0 && round > x.rounds {
				continue
			}
			v, err := x.run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
			b.logf("round %d  %-20s %.4g", round, x.name, v)
			if round > 0 {
				s[x.name] = append(s[x.name], v)
			}
		}
	}
	return s, nil
}

// median returns the median of a subject's values.
func (s samples) median(name string) float64 { return median(s[name]) }

// medians prints the median of each subject's values.
func (b *bench) medians(prefix string, s samples, unit string) {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		b.metric(prefix+name, s.median(name), unit)
	}
}

// ratio returns the median over the rounds of a's value by b's.
func (s samples) ratio(a, b string) float64 {
	r := make([]float64, min(len(s[a]), len(s[b])))
	for i := range r {
		r[i] = s[a][i] / s[b][i]
	}
	return median(r)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}

// timed returns how many seconds fn takes.
func timed(fn func() error) (float64, error) {
	start := time.Now()
	err := fn()
	return time.Since(start).Seconds(), err
}

// tool runs a program to its end and returns its output.
func tool(ctx context.Context, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// settle makes durable what earlier steps left to be written, so that it does not
// disturb what comes next.
func settle() { syscall.Sync() }

// ownCPU returns the CPU time that this process has used, in seconds.
func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
