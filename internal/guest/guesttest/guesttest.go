// Package guesttest gives tests real machines: it wraps
// [github.com/sendense/sendense/internal/guest] so that what a test starts ends
// with it, and skips the test where the machine cannot run guests.
package guesttest

import (
	"context"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/requires"
)

// bootTimeout is how long a guest may take to boot on a busy machine without
// KVM; three seconds are usual.
const bootTimeout = 90 * time.Second

// Image returns the guest's disk and kernel, built at the first call.
func Image(t testing.TB) guest.Image {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, guest.Tools...)
	img, err := guest.Build(t.Context(), cacheDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Host starts a libvirtd that ends with the test, with further drivers if need be.
func Host(t testing.TB, drivers ...string) *guest.Host {
	t.Helper()
	img := Image(t)
	accel, err := guest.Accel(t.Context(), cacheDir(t), img)
	if err != nil {
		t.Fatal(err)
	}
	h, err := guest.StartHost(t.Context(), cacheDir(t), accel, drivers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("libvirtd:\n%s", h.Log())
		}
		if err := h.Close(); err != nil {
			t.Errorf("close host: %v", err)
		}
	})
	return h
}

// Define defines a machine that is gone when the test ends.
func Define(t testing.TB, h *guest.Host, s guest.Spec) *guest.VM {
	t.Helper()
	vm, err := h.Define(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", vm.Name, vm.Console())
		}
		_ = vm.Close(context.Background()) // the test may have undefined it; the host ends anyway
	})
	return vm
}

// Start starts a machine and waits until its guest agent answers.
func Start(t testing.TB, vm *guest.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
}

// Migrate moves a running machine to another host; there it is gone when the test
// ends.
func Migrate(t testing.TB, vm *guest.VM, to *guest.Host, m guest.Migration) *guest.VM {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	moved, err := vm.Migrate(ctx, to, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = moved.Close(context.Background()) }) // it may have moved on; the host ends anyway
	return moved
}

// Exec runs a shell script in the guest and returns its stdout.
func Exec(t testing.TB, vm *guest.VM, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	out, err := vm.Exec(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func cacheDir(t testing.TB) string {
	t.Helper()
	dir, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
