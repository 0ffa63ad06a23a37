package fusemount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mounted is a line of /proc/self/mountinfo.
type mounted struct {
	device string // major:minor
	dir    string
	kind   string // fuse.sendense
}

func (m *mounted) ours() bool { return m.kind == "fuse."+subtype }

// mounts returns what is mounted, in the order in which it hides one another.
func mounts() ([]mounted, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []mounted
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /mount options optional… - type source options
		head, tail, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(kind) < 1 {
			continue
		}
		list = append(list, mounted{device: fields[2], dir: unescape(fields[4]), kind: kind[0]})
	}
	return list, nil
}

// unescape decodes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt returns what is mounted at dir, on top; nil if nothing is.
func mountAt(dir string) (*mounted, error) {
	list, err := mounts()
	if err != nil {
		return nil, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].dir == dir {
			return &list[i], nil
		}
	}
	return nil, nil
}

// patience is for how long a mount may take to say that it is there.
const patience = 5 * time.Second

// dead reports whether nobody serves a FUSE mount any more. Attributes would come
// from the kernel's memory; how much room there is has to be asked.
func dead(dir string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(patience):
		return false // it hangs, which is not for us to end
	}
}

// Clear takes away the mounts of servers of ours that were killed, at dir. A mount
// that is served, or that is not ours, stays; ErrMounted says so.
func Clear(dir string) error {
	dir, err := Resolve(dir)
	if err != nil {
		return err
	}
	for {
		m, err := mountAt(dir)
		if err != nil || m == nil {
			return err
		}
		switch isDead := strings.HasPrefix(m.kind, "fuse") && dead(dir); {
		case m.ours() && isDead:
			if err := unmount(dir, true); err != nil {
				return fmt.Errorf("clear %s, where a killed server left its mount: %w", dir, err)
			}
		case m.ours() || isDead:
			return fmt.Errorf("mount %s: %w, of type %s: unmount it with: umount %s", dir, ErrMounted, m.kind, dir)
		default:
			return nil // a file system like any other, on which one may mount
		}
	}
}

// unmount takes the topmost mount at dir away.
func unmount(dir string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(dir, flags)
	}
	program, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", dir}
	if lazy {
		args = []string{"-u", "-z", "--", dir}
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil && strings.Contains(string(out), "busy") {
		return unix.EBUSY
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, bytes.TrimSpace(out))
	}
	return nil
}

// fusermount finds the program that mounts for users.
func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: there is no program fusermount3: install it with: apt install fuse3", ErrNoFUSE)
}

// checkFUSE says what is missing for a mount, before it fails for reasons that are
// hard to read.
func checkFUSE(o *Options) error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: there is no /dev/fuse: load it with: modprobe fuse", ErrNoFUSE)
	case err != nil:
		return fmt.Errorf("%w: open /dev/fuse: %w: a container needs the device passed to it", ErrNoFUSE, err)
	}
	f.Close()
	if os.Geteuid() == 0 {
		return nil
	}
	if _, err := fusermount(); err != nil {
		return err
	}
	if o.AllowOther && !usersMayAllowOthers() {
		return fmt.Errorf("%w for others by who is not root: add a line to /etc/fuse.conf: user_allow_other", ErrNoFUSE)
	}
	return nil
}

func usersMayAllowOthers() bool {
	b, _ := os.ReadFile("/etc/fuse.conf") // without it nothing is allowed
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// readAhead raises how far the kernel reads ahead, which is 128 KiB else. Only root
// may.
func (s *Server) readAhead() {
	m, err := mountAt(s.dir)
	if err != nil || m == nil || os.Geteuid() != 0 {
		return
	}
	path := "/sys/class/bdi/" + m.device + "/read_ahead_kb"
	if err := os.WriteFile(path, []byte(strconv.Itoa(readAhead>>10)), 0); err != nil {
		s.opts.Log.Debug("the kernel reads ahead as it does by default", "err", err)
	}
}

// maxUsers is how many users of a mount are named.
const maxUsers = 5

// users names who keeps a mount busy, as far as this process may know: other
// mounts, loop devices and processes.
func users(dir string) []string {
	var names []string
	inside := func(path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	if list, err := mounts(); err == nil {
		for _, m := range list {
			if m.dir != dir && inside(m.dir) {
				names = append(names, "the mount "+m.dir)
			}
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && inside(strings.TrimSpace(string(b))) {
			names = append(names, "/dev/"+strings.Split(l, "/")[3])
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		if len(names) >= maxUsers {
			return append(names, "others")
		}
		if processUses(p, inside) {
			comm, _ := os.ReadFile(p + "/comm") // it may have ended
			names = append(names, fmt.Sprintf("%s (process %s)", bytes.TrimSpace(comm), filepath.Base(p)))
		}
	}
	return names
}

func processUses(proc string, inside func(string) bool) bool {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	fds, _ := filepath.Glob(proc + "/fd/*")
	for _, l := range append(links, fds...) {
		if target, err := os.Readlink(l); err == nil && inside(target) {
			return true
		}
	}
	maps, _ := os.ReadFile(proc + "/maps")
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 && inside(strings.TrimSpace(line[i:])) {
			return true
		}
	}
	return false
}

func stack() string { return string(debug.Stack()) }
