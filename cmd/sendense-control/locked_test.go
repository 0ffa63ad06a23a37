package main_test

import (
	"bytes"
	"context"
	"crypto/md5"
	_ "embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

//go:embed testdata/locked.sh
var lockedScript string

// The passphrases of the script.
const (
	firstSecret  = "first secret 4711"
	secondSecret = "second secret 4712"
)

// lockedSite is a site with two points of a machine whose volumes are encrypted: LVM
// with its root and /home inside of LUKS2, and /srv inside of LUKS1. It returns the
// digest of /srv/large.
func lockedSite(t *testing.T) (s *clitest.Site, large string) {
	t.Helper()
	s = clitest.NewSite(t, filepath.Dir(program))
	disk := fstest.Make(t, 144<<20, "sgdisk", "-n1:0:+16M", "-n2:0:+80M", "-n3:0:0")
	for range 2 {
		large = strings.TrimSpace(fstest.InMachine(t, lockedScript, disk))
		s.Good(s.Backup(s.Alone(), disk))
	}
	for name, content := range map[string]string{"first": firstSecret, "second": secondSecret + "\n", "wrong": "wrong secret 4713\n", "empty": "\n"} {
		if err := os.WriteFile(s.Path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s, large
}

func TestEncryptedVolumes(t *testing.T) {
	host := guesttest.Host(t)
	s, large := lockedSite(t)
	for _, mode := range []string{"alone", "with a control plane"} {
		flags := s.Alone()
		var daemon *clitest.Process
		if mode != "alone" {
			daemon = s.Daemon()
			flags = s.Via()
		}
		t.Run(mode, func(t *testing.T) {
			s := *s
			s.T = t
			if daemon != nil { // what is opened without passphrases stays open for a while
				s.Good(s.Control(flags, "cat web1 latest /etc/motd --passphrase-file "+s.Path("first")))
				clitest.Until(t, "what was unlocked is closed", func() bool { return children(t, daemon.PID) == 0 })
			}
			locked(t, &s, flags)
			unlocked(t, &s, flags, large)
			unlockedMount(t, &s, flags)
			unlockedRestore(t, &s, flags, host)
		})
		if daemon != nil {
			r := daemon.Signal(syscall.SIGTERM)
			nowhere(t, "the control plane's output", []byte(r.Stdout+r.Stderr))
		}
	}
	err := filepath.WalkDir(s.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Dir(p) == s.Dir {
			return err
		}
		b, err := os.ReadFile(p)
		nowhere(t, p, b)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// nowhere fails the test if a passphrase is in b.
func nowhere(t *testing.T, what string, b []byte) {
	t.Helper()
	for _, secret := range []string{firstSecret, secondSecret, "Zmlyc3Qgc2VjcmV0"} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("a passphrase is in %s", what)
		}
	}
}

// children returns how many processes a process has started that run.
func children(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err == nil { // a thread may have ended
			n += len(strings.Fields(string(b)))
		}
	}
	return n
}

// locked checks what is told without the passphrases.
func locked(t *testing.T, s *clitest.Site, flags []string) {
	t.Helper()
	r := s.Good(s.Control(flags, "ls web1 latest"))
	for _, want := range []string{"disk-0/p2", "vault", "disk-0/p3", "crypto_LUKS", "Locked. It is encrypted", "--passphrase-file FILE"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("ls of locked volumes: got %s, want it to have %q", r.Stdout, want)
		}
	}
	if c := clitest.Decode[appliance.Contents](t, s.Control(flags, "ls web1 latest --json")); len(c.Volumes) != 3 || c.HasRoot ||
		!c.Volumes[1].Locked || !c.Volumes[2].Locked || c.Volumes[0].Locked {
		t.Errorf("contents: got %+v", c)
	}
	if r := s.Good(s.Control(flags, "ls web1 latest disk-0/p1")); r.Stdout != "lost+found\nvmlinuz\n" {
		t.Errorf("ls of what is not encrypted: got %+v", r)
	}
	wrong := " --passphrase-file " + s.Path("wrong")
	for _, line := range []string{"ls web1 latest /etc", "cat web1 latest disk-0/p2/etc/motd", "find web1 latest /", "diff web1 latest~1 latest /",
		"cp web1 latest /etc " + s.Path("never"), "cp web1 latest /etc -"} {
		clitest.Refused(t, s.Control(flags, line), 7, "disk-0/p2 is encrypted with LUKS, and no passphrase was given")
		clitest.Refused(t, s.Control(flags, line+wrong), 7, "disk-0/p2 is encrypted with LUKS, and no passphrase given fits")
		clitest.RefusedJSON(t, s.Control(flags, line+wrong+" --json"), 7, "denied")
	}
	for _, line := range []string{"ls web1 latest", "versions web1 /etc/motd", "find web1"} {
		clitest.Refused(t, s.Control(flags, line+wrong), 7, "disk-0/p2 is encrypted with LUKS, and no passphrase given fits", "disk-0/p3 is")
	}
	clitest.Refused(t, s.Control(flags, "ls web1 latest --passphrase-file "+s.Path("empty")), 2, "There is no passphrase")
	clitest.Refused(t, s.Control(flags, "ls web1 latest --passphrase-file "+s.Path("none")), 3, "none")
	clitest.Refused(t, s.Control(flags, "ls web1 latest --passphrase-file - --passphrase-file -"), 2, "only once")
}

// unlocked checks what is shown with them.
func unlocked(t *testing.T, s *clitest.Site, flags []string, large string) {
	t.Helper()
	one, both := " --passphrase-file "+s.Path("first"), " --passphrase-file "+s.Path("second")+" --passphrase-file "+s.Path("first")
	for line, want := range map[string]string{
		"cat web1 latest /etc/motd" + one: "two, and longer\n", "cat web1 latest~1 /etc/motd" + both: "one\n", "cat web1 latest /boot/vmlinuz" + one: "kernel\n",
		"cat web1 latest /home/name" + one: "alice\n", "cat web1 latest disk-0/sys/root/etc/motd" + one: "two, and longer\n", "cat web1 latest /srv/new" + both: "new\n",
		"cat web1 latest disk-0/p3/crypt/new" + both: "new\n", "ls web1 latest /srv" + both: "large\nlost+found\nnew\n",
		"find web1 latest / --name motd" + both: "etc/motd\n", "diff web1 latest~1 latest" + both: "C etc/motd\nA srv/new\nR srv/old\n",
	} {
		if r := s.Control(flags, line); r.Code != 0 || r.Stdout != want || r.Stderr != "" {
			t.Errorf("%s: got %+v, want %q", line, r, want)
		}
	}
	r := s.Good(s.Control(flags, "ls web1 latest -l"+one))
	for _, want := range []string{"Demo Linux 7 vaulted", "disk-0/sys/root", "disk-0/p3", "no passphrase given fits", "/dev/mapper/data on /srv, which is not shown there"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("ls with one of two: got %s, want it to have %q", r.Stdout, want)
		}
	}
	// What is beneath a mount that is locked is not shown as what is in it.
	clitest.Refused(t, s.Control(flags, "ls web1 latest /srv"+one), 7, "disk-0/p3 is encrypted with LUKS, and no passphrase given fits")
	if r := s.Control(flags, "find web1 latest / --name motd"+one); r.Stdout != "etc/motd\n" || !strings.Contains(r.Stderr, "srv: disk-0/p3 is encrypted") {
		t.Errorf("find with one of two: got %+v", r)
	}
	var list []appliance.FileVersion
	if r := s.Control(flags, "versions --json web1 /srv/old"+both); json.Unmarshal([]byte(r.Stdout), &list) != nil || len(list) != 2 || list[0].File == nil || list[1].File != nil {
		t.Errorf("versions: got %+v", r)
	}
	out := t.TempDir()
	s.Good(s.Control(flags, "cp web1 latest /srv /etc "+out+both))
	b, err := os.ReadFile(filepath.Join(out, "srv/large"))
	if got := fmt.Sprintf("%x", md5.Sum(b)); err != nil || got != large {
		t.Errorf("copy of /srv/large: got %s, %v, want %s", got, err, large)
	}
	if r := s.Control(flags, "cp web1 latest /srv/new /etc/motd -"+both); r.Code != 0 || !strings.Contains(r.Stdout, "two, and longer\n") || !strings.Contains(r.Stdout, "motd") {
		t.Errorf("archive: got exit code %d, %d bytes, %q", r.Code, len(r.Stdout), r.Stderr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), clitest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"cat", "web1", "latest", "/etc/motd", "--passphrase-file", "-"}, flags...)...)
	cmd.Stdin = strings.NewReader(firstSecret + "\n")
	if out, err := cmd.Output(); err != nil || string(out) != "two, and longer\n" {
		t.Errorf("passphrase from standard input: got %q, %v", out, err)
	}
}

// unlockedMount checks a mount with passphrases and one without.
func unlockedMount(t *testing.T, s *clitest.Site, flags []string) {
	t.Helper()
	for _, keys := range []string{"", " --passphrase-file " + s.Path("first") + " --passphrase-file " + s.Path("second"), " --passphrase-file " + s.Path("wrong")} {
		dir := t.TempDir()
		s.Good(s.Control(flags, "mount "+dir+keys))
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
		points, err := os.ReadDir(filepath.Join(dir, "web1"))
		if err != nil || len(points) != 2 {
			t.Fatalf("points: got %v, %v", points, err)
		}
		at := filepath.Join(dir, "web1", points[1].Name())
		if b, err := os.ReadFile(filepath.Join(at, "disk-0/p1/vmlinuz")); err != nil || string(b) != "kernel\n" {
			t.Errorf("what is not encrypted, mounted with%s: got %q, %v", keys, b, err)
		}
		b, err := os.ReadFile(filepath.Join(at, "files/srv/new"))
		if strings.Contains(keys, "second") {
			if err != nil || string(b) != "new\n" {
				t.Errorf("what was unlocked, mounted: got %q, %v", b, err)
			}
		} else if !os.IsPermission(err) {
			t.Errorf("what is locked, mounted with%s: got %q, %v", keys, b, err)
		}
		s.Good(s.Control(flags, "unmount "+dir))
	}
}

// unlockedRestore checks what is found out about a guest for its new hardware.
func unlockedRestore(t *testing.T, s *clitest.Site, flags []string, host *guest.Host) {
	t.Helper()
	line := "restore web1 latest --dry-run --network isolated --storage " + t.TempDir() + " --to libvirt:" + host.URI()
	const nothing = "No operating system was found"
	if r := s.Good(s.Control(flags, line)); !strings.Contains(r.Stdout, nothing) {
		t.Errorf("a restore without a passphrase: got %s, want %q", r.Stdout, nothing)
	}
	if r := s.Good(s.Control(flags, line+" --passphrase-file "+s.Path("first"))); strings.Contains(r.Stdout, nothing) || !strings.Contains(r.Stdout, "machine web1") {
		t.Errorf("a restore with its passphrase: got %s", r.Stdout)
	}
}
