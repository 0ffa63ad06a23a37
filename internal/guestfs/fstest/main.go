package fstest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inOwnNamespace tells a process that it has a mount namespace of its own.
const inOwnNamespace = "FSTEST_MOUNT_NAMESPACE"

// Main runs the tests of a package where nobody else sees what they mount.
func Main(m *testing.M) {
	Isolate()
	os.Exit(m.Run())
}

// Isolate moves a test's process to a mount namespace of its own, by executing it
// anew; to be called first thing in TestMain. A mount lives for as long as any mount
// namespace has it; one that another process made in between, with a copy of all
// there is, keeps an image in use that was unmounted, and not all of it written.
// Without root it does nothing.
func Isolate() {
	if os.Geteuid() != 0 || os.Getenv(inOwnNamespace) != "" {
		return
	}
	if err := moveToOwnNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, "make a mount namespace:", err)
		os.Exit(1)
	}
}

// moveToOwnNamespace executes the program anew, as the same process, in a mount
// namespace of its own. It does not return unless that fails.
func moveToOwnNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := leaveMountsOfOthers(); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inOwnNamespace+"=1"))
}

// leaveMountsOfOthers takes the mounts of other tests out of this namespace.
func leaveMountsOfOthers() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	tmp := filepath.Clean(os.TempDir()) + "/"
	for line := range strings.Lines(string(b)) {
		// A number, that of the parent, a device, what of it, where.
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], tmp) {
			_ = unix.Unmount(f[4], unix.MNT_DETACH) // it may lie below another that is gone by now
		}
	}
	return nil
}
