package fusemount_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/requires"
	"golang.org/x/sys/unix"
)

// begin starts a role and waits for its first line.
func begin(t *testing.T, cmd *exec.Cmd) (stdin io.WriteCloser) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait() // the test may have waited
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("%v did not begin: %v", cmd.Args, err)
	}
	return stdin
}

func small() *folder {
	root := newFolder()
	root.add("disk", newDocument(blocktest.NewMemory(1<<20)))
	return root
}

func TestAMountIsReadOnlyAndTakesNoPrivileges(t *testing.T) {
	for _, c := range []struct {
		name       string
		opts       fusemount.Options
		want, lack string
	}{
		{"by default", fusemount.Options{}, " ro,nosuid,nodev,", "allow_other"},
		{"writable", fusemount.Options{Writable: true}, " rw,nosuid,nodev,", " ro,"},
		{"for others", fusemount.Options{AllowOther: true}, "default_permissions,allow_other", " rw,"},
		{"with modes", fusemount.Options{CheckModes: true}, "default_permissions", "allow_other"},
		{"a source", fusemount.Options{Source: "vm 1,x"}, `fuse.sendense vm\0401,x ro`, " rw,"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := show(t, small(), c.opts)
			line := mountLine(t, m.dir)
			if !strings.Contains(line, c.want) || strings.Contains(line, c.lack) {
				t.Errorf("got %q, want it to have %q and not %q", line, c.want, c.lack)
			}
			if !strings.Contains(line, "fuse.sendense") {
				t.Errorf("got %q, want type fuse.sendense", line)
			}
			err := os.WriteFile(m.dir+"/new", nil, 0o600)
			if want := map[bool]error{false: unix.EROFS, true: unix.EPERM}[c.opts.Writable]; !errors.Is(err, want) {
				t.Errorf("creating a file: got %v, want %v", err, want)
			}
		})
	}
}

func TestWhatCannotBeMountedOnIsRefusedWithAReason(t *testing.T) {
	requiresFUSE(t)
	full, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	for _, path := range []string{full + "/content", file} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	taken := show(t, small(), fusemount.Options{})
	alias := filepath.Join(t.TempDir(), "alias")
	if err := os.Symlink(taken.dir, alias); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, dir string
		is        error
		says      string
	}{
		{"a folder with content", full, fusemount.ErrNotEmpty, "choose an empty one"},
		{"no folder", full + "/none", fs.ErrNotExist, "mkdir"},
		{"a file", file, nil, "not a folder"},
		{"a mount of ours", taken.dir, fusemount.ErrMounted, "umount " + taken.dir},
		{"a link to a mount of ours", alias, fusemount.ErrMounted, "umount " + taken.dir},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := fusemount.Mount(c.dir, small(), fusemount.Options{})
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.is, c.says)
			}
		})
	}
	if err := fusemount.Clear(taken.dir); !errors.Is(err, fusemount.ErrMounted) {
		t.Errorf("clear a live mount: got %v, want ErrMounted", err)
	}
	if _, err := os.Stat(taken.dir + "/disk"); err != nil {
		t.Errorf("the live mount: %v", err)
	}
	if err := fusemount.Clear(full); err != nil {
		t.Errorf("clear where nothing is mounted: %v", err)
	}
}

func TestUmountFromOutsideEndsServing(t *testing.T) {
	root := small()
	m := show(t, root, fusemount.Options{})
	if _, err := os.ReadFile(m.dir + "/disk"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(m.dir, 0); err != nil {
		t.Fatal(err)
	}
	m.gone(t)
	d := root.nodes["disk"].(*document)
	if o, c := d.opened.Load(), d.closed.Load(); o != 1 || c != 1 {
		t.Errorf("content: opened %d and closed %d times, want once", o, c)
	}
	if err := m.Unmount(); err != nil {
		t.Errorf("unmount what is gone: %v", err)
	}
}

func TestAMountThatIsNeverServedCanBeTakenAway(t *testing.T) {
	requiresFUSE(t)
	dir := t.TempDir()
	s, err := fusemount.Mount(dir, small(), fusemount.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	if line := mountLine(t, dir); line != "" {
		t.Errorf("still mounted: %s", line)
	}
	if err := s.Serve(context.Background()); err != nil {
		t.Errorf("serve what is gone: %v", err)
	}
}

func TestABusyMountStaysAndSaysWhoUsesIt(t *testing.T) {
	var j journal
	m := show(t, small(), fusemount.Options{Log: j.log()})
	holder := role(t, "hold", m.dir+"/disk")
	in := begin(t, holder)
	err := m.Unmount()
	if !errors.Is(err, fusemount.ErrBusy) || !strings.Contains(err.Error(), "(process "+itoa(holder.Process.Pid)+")") ||
		!strings.Contains(err.Error(), "umount -l "+m.dir) {
		t.Errorf("unmount: got %v, want ErrBusy, who uses it, and what to do", err)
	}
	m.leave()
	requires.Until(t, "the log says what is waited for", func() bool { return strings.Contains(j.String(), "waiting for the mount to be left") })
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err != nil {
		t.Errorf("reading the mount that was to end: %v", err)
	}
	m.gone(t)
	if line := mountLine(t, m.dir); line != "" {
		t.Errorf("still mounted: %s", line)
	}
}

func TestALazyMountIsDetachedAndServedToItsLastUser(t *testing.T) {
	m := show(t, small(), fusemount.Options{Lazy: true})
	holder := role(t, "hold", m.dir+"/disk")
	in := begin(t, holder)
	m.leave()
	requires.Until(t, "the mount is detached", func() bool { return mountLine(t, m.dir) == "" })
	select {
	case <-m.done:
		t.Error("serving ended while a file was open")
	default:
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err != nil {
		t.Errorf("reading the detached mount: %v", err)
	}
	m.gone(t)
}

func TestAMountOfAKilledServerIsCleared(t *testing.T) {
	requiresFUSE(t)
	dir := t.TempDir()
	for range 2 {
		server := role(t, "serve", dir)
		begin(t, server)
		if _, err := os.ReadFile(dir + "/disk"); err != nil {
			t.Fatal(err)
		}
		if err := server.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = server.Wait() // was killed
		if _, err := os.ReadDir(dir); !errors.Is(err, unix.ENOTCONN) {
			t.Fatalf("the killed server's mount: got %v, want ENOTCONN", err)
		}
	}
	t.Cleanup(func() { _ = fusemount.Clear(dir) }) // for a test that failed
	s, err := fusemount.Mount(dir, small(), fusemount.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
	if line := mountLine(t, dir); line != "" {
		t.Errorf("still mounted: %s", line)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
