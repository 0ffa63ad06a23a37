// Package requires lets a test say what it needs from the machine. On a lesser
// machine the test is skipped with the reason; with CI=true in the environment
// a missing requirement fails it, so that no skip counts as a pass. It also has
// what every test waits with, and runs tools with.
package requires

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Tool skips the test unless every program named is on PATH.
func Tool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, "program "+name+" (install it with: make deps)")
		}
	}
}

// File skips the test unless a file is there that a package installs.
func File(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		Missing(t, path+" (install it with: make deps)")
	}
}

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Missing skips the test because of what is missing, or fails it under CI.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("requires %s", what)
	}
	t.Skipf("requires %s", what)
}

// patience is how long a test waits for what is to come about: far longer than it
// takes on a busy machine.
const patience = time.Minute

// Until waits until a condition holds, and fails the test if that takes too long.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for late := time.After(patience); !holds(); {
		select {
		case <-late:
			t.Fatalf("waited in vain: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// limit is how long a tool may take.
const limit = 5 * time.Minute

// Run runs a tool that has to succeed, also when the test ends, and returns what it
// printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	Tool(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
