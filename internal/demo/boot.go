package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// bootTimeout is how long a guest may take to boot on a busy machine without KVM.
const bootTimeout = 3 * time.Minute

// bootPoint starts a second machine from the last point, while the first one runs,
// compares a file with what the point holds, writes to it, and throws that away.
func (d *demo) bootPoint(ctx context.Context) (err error) {
	point := d.rows[len(d.rows)-1].Point
	say("Booting a second machine from point %s, an incremental one …", point)
	began := time.Now()
	var session struct {
		ID           string
		ReadySeconds float64 `json:"ready_seconds"`
		Machine      struct{ Name string }
	}
	if err := product(ctx, &session, "sendense-control", "boot", "demo", point, "--connect", d.host.URI(), "--control", d.control); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, product(ctx, nil, "sendense-control", "session", "discard", session.ID, "--control", d.control))
	}()
	running := time.Since(began)
	vm, err := d.host.Find(session.Machine.Name)
	if err != nil {
		return err
	}
	bootCtx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := vm.WaitAgent(bootCtx); err != nil {
		return err
	}
	say("Its disk was ready after %.0f ms, the machine ran after %.1f s, and the guest was up after %.1f s.",
		session.ReadySeconds*1000, running.Seconds(), time.Since(began).Seconds())
	kept, err := output(ctx, "sendense-control", "cat", "demo", point, accounts, "--control", d.control)
	if err != nil {
		return err
	}
	there, err := vm.Exec(ctx, "cat "+accounts)
	if err != nil {
		return err
	}
	if there != kept || kept == "" {
		return fmt.Errorf("%s in the machine booted from %s: got %q, want %q", accounts, point, there, kept)
	}
	if _, err := vm.Exec(ctx, "rm "+accounts+" && sync"); err != nil {
		return err
	}
	if again, err := output(ctx, "sendense-control", "cat", "demo", point, accounts, "--control", d.control); err != nil || again != kept {
		return fmt.Errorf("%s in the point, after the machine removed it: got %q (%v), want %q", accounts, again, err, kept)
	}
	text, err := output(ctx, "sendense-control", "session", "list", "--control", d.control)
	if err != nil {
		return err
	}
	d.shown = append(d.shown, "$ sendense-control session list", strings.TrimRight(text, "\n"))
	return vm.Conn.Disconnect()
}
