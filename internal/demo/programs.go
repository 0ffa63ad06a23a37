package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tool runs a program and gives what it printed with the error if it fails.
func tool(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// product runs one of the programs in bin/ and decodes its result into v, unless
// that is nil.
func product(ctx context.Context, v any, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join("bin", name), append(args, "--json")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(stderr.String()))
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%s %s: result: %w", name, args[0], err)
	}
	return nil
}

// output runs one of the programs in bin/ and returns what it printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join("bin", name), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// startControlPlane starts the control plane on the demo's repository and waits
// until it answers. Its sockets are in a short path, as they must be.
func (d *demo) startControlPlane(ctx context.Context) (stop func() error, err error) {
	runDir, err := os.MkdirTemp("", "sendense-demo-")
	if err != nil {
		return nil, err
	}
	logPath := filepath.Join(d.dir, "control-plane.log")
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join("bin", "sendense-control-plane"), "--repository", d.repo, "--run-dir", runDir)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		return errors.Join(<-exited, os.RemoveAll(runDir))
	}
	d.control = "unix:" + filepath.Join(runDir, "control.sock")
	for range 100 {
		if err = product(ctx, nil, "sendense-control", "vms", "--control", d.control); err == nil {
			return stop, nil
		}
		select {
		case e := <-exited:
			text, _ := os.ReadFile(logPath)
			return nil, fmt.Errorf("control plane ended: %w: %s", e, text)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("control plane does not answer: %w", err), stop())
}
