package main_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// scribble writes, zeroes and discards at random places of an export.
func scribble(t *testing.T, uri string, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	args := []string{"-f", "raw", "-d", "unmap"}
	for range 40 {
		off, n := r.IntN(4000)*512, (1+r.IntN(150))*512
		n = min(n, 2<<20-off)
		command := []string{fmt.Sprintf("write -P %d", 1+r.IntN(255)), "write -z", "discard"}[r.IntN(3)]
		args = append(args, "-c", fmt.Sprintf("%s %d %d", command, off, n))
	}
	clitest.Tool(t, "qemu-io", append(args, "-c", "flush", uri)...)
}

// What a session wrote becomes a point whatever the VM's newest point is by then,
// and survives restarts of the control plane until it does.
func TestWhatASessionWroteIsKept(t *testing.T) {
	requires.Tool(t, "qemu-io", "qemu-img", "nbdcopy")
	s, flags, points := site(t, true)
	for i, from := range []string{points[3], points[1], points[0]} {
		x := clitest.Decode[appliance.Session](t, s.Control(flags, "boot web1 "+from+" --disks-only --json"))
		if x.State != appliance.SessionServed || x.Point != from {
			t.Errorf("session: got %+v, want %s served", x, from)
		}
		uri, now := x.Disks[0].URI, s.Path("now.raw")
		scribble(t, uri, uint64(i))
		scribble(t, uri, uint64(i)+100)
		clitest.Tool(t, "nbdcopy", uri, now)
		if i == 1 { // a newer point comes, which the session does not build on
			s.Good(s.Backup(flags, s.Path("then-2")))
		}
		job := clitest.Decode[appliance.Job](t, s.Control(flags, "session keep --json "+x.ID))
		serves := clitest.Decode[appliance.Export](t, s.Control(flags, "export web1 "+job.Point+" --json"))
		clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", serves.Disks[0].URI, now)
		if r := s.Control(flags, "session show "+x.ID); r.Code != 3 {
			t.Errorf("session after it was kept: got %+v, want none", r)
		}
	}
	s.Good(s.Control(flags, "verify"))
	for i, p := range points {
		e := clitest.Decode[appliance.Export](t, s.Control(flags, "export web1 "+p+" --json"))
		clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", e.Disks[0].URI, s.Path(fmt.Sprintf("then-%d", i)))
	}
}

func TestSessionsComeBackAndHaveALimit(t *testing.T) {
	requires.Tool(t, "qemu-io", "nbdcopy")
	s := clitest.NewSite(t, filepath.Dir(program))
	if err := os.WriteFile(s.Path("disk.raw"), bytes.Repeat([]byte("sendense"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := s.Daemon()
	s.Good(s.Backup(s.Via(), s.Path("disk.raw")))
	x := clitest.Decode[appliance.Session](t, s.Control(s.Via(), "boot web1 latest --disks-only --json"))
	scribble(t, x.Disks[0].URI, 5)
	clitest.Tool(t, "nbdcopy", x.Disks[0].URI, s.Path("now.raw"))
	for _, how := range []func(){func() { daemon.Kill() }, func() { daemon.Signal(15) }} {
		how()
		daemon = s.Daemon()
		clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", x.Disks[0].URI, s.Path("now.raw"))
	}
	clitest.Tool(t, "qemu-img", "check", "-q", x.Disks[0].File)

	for range appliance.MaxSessions - 1 {
		s.Good(s.Control(s.Via(), "boot web1 latest --disks-only"))
	}
	clitest.Refused(t, s.Control(s.Via(), "boot web1 latest --disks-only"), 4, "as many as there may be")
	s.Good(s.Control(s.Via(), "session discard "+x.ID))
	s.Good(s.Control(s.Via(), "boot web1 latest --disks-only"))
}

func TestSessionsRefuseWhatMakesNoSense(t *testing.T) {
	s, flags, points := site(t, true)
	x := clitest.Decode[appliance.Session](t, s.Control(flags, "boot web1 latest --disks-only --json"))
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"boot nobody latest", 3, "nobody"},
		{"boot web1 latest~9", 3, "latest~9"},
		{"boot web1 latest --quota -1", 2, "quota"},
		{"boot web1 latest --disks-only --name x", 2, "disks-only"},
		{"boot web1 latest --connect qemu+ssh://elsewhere/system", 2, "this host only"},
		{"boot web1 latest --connect qemu+unix:///system?socket=" + s.Path("nothing"), 6, "does not answer"},
		{"boot web1", 2, "arg"},
		{"session show nothing", 3, "nothing"},
		{"session keep nothing", 3, "nothing"},
		{"session discard nothing", 3, "nothing"},
		{"session resume " + x.ID + " --quota -5", 2, "quota"},
		{"session migrate " + x.ID + " --to file:" + s.Dir, 2, "no machine"},
		{"session migrate nothing --to file:" + s.Dir, 3, "nothing"},
		{"session migrate " + x.ID, 2, "--to"},
		{"check nobody", 3, "nobody"},
		{"check web1 --timeout 1ms", 2, "--timeout"},
		{"check web1 --connect qemu+unix:///system?socket=" + s.Path("nothing"), 6, "does not answer"},
		{"check web1 latest --last", 3, "has not been checked"},
		{"delete web1 " + points[3], 4, x.ID},
	} {
		t.Run(c.line, func(t *testing.T) {
			clitest.Refused(t, s.Control(flags, c.line), c.code, c.want)
			r := s.Control(append([]string{"--json"}, flags...), c.line)
			if r.Code != c.code || !strings.HasPrefix(r.Stderr, `{"error":{`) {
				t.Errorf("with --json: got %+v, want an error of exit code %d", r, c.code)
			}
		})
	}
	if all := clitest.Decode[[]appliance.Session](t, s.Control(flags, "session list --json")); len(all) != 1 {
		t.Errorf("sessions: got %d, want the one that was there", len(all))
	}
	alone := clitest.NewSite(t, s.Bin)
	s.Good(alone.Backup(alone.Alone(), s.Path("disk.raw")))
	clitest.Refused(t, alone.Control(alone.Alone(), "boot web1 latest"), 2, "kept by a control plane")
	clitest.Refused(t, alone.Control(alone.Alone(), "check web1"), 2, "kept by a control plane")
}

func TestAWritableMountIsScratch(t *testing.T) {
	requires.Root(t)
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, points := site(t, daemon)
		dir := s.Path("mount")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s.Good(s.Control(flags, "mount --writable "+dir))
		t.Cleanup(func() { s.Control(flags, "unmount "+dir) })
		disk := filepath.Join(dir, "web1", points[2], "disk-0.raw")
		f, err := os.OpenFile(disk, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("scratch"), 4096); err != nil {
			t.Error(err)
		}
		if err := f.Sync(); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		want, err := os.ReadFile(s.Path("then-2"))
		if err != nil {
			t.Fatal(err)
		}
		copy(want[4096:], "scratch")
		if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got, want) {
			t.Errorf("disk that was written: got other bytes (%v)", err)
		}
		for _, place := range []string{s.Run, s.Path("backups/.sendense/scratch"), os.TempDir() + "/sendense-run-*"} {
			if left, err := filepath.Glob(place + "/scratch*"); err != nil || len(left) > 0 {
				t.Errorf("what a kill would leave: got %q, %v", left, err)
			}
		}
		if _, err := os.Stat(s.Path("backups/.sendense/scratch")); err != nil {
			t.Errorf("the place of scratch copies: %v", err)
		}
		s.Good(s.Control(flags, "unmount "+dir))
		s.Good(s.Control(flags, "mount "+dir))
		if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got[:8192], append(append(want[:4096:4096], got[4096:4103]...), want[4103:8192]...)) || bytes.Contains(got, []byte("scratch")) {
			t.Errorf("disk in the next mount: got what was scratch (%v)", err)
		}
		if _, err := os.OpenFile(disk, os.O_RDWR, 0); err == nil {
			t.Error("a disk of a mount that is not writable can be written")
		}
	})
}

// As long as a record cannot be read nobody knows which point its session needs.
func TestARecordThatCannotBeReadKeepsThePoints(t *testing.T) {
	s := clitest.NewSite(t, filepath.Dir(program))
	if err := os.WriteFile(s.Path("disk.raw"), bytes.Repeat([]byte("sendense"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := s.Daemon()
	s.Good(s.Backup(s.Via(), s.Path("disk.raw")))
	good := clitest.Decode[appliance.Session](t, s.Control(s.Via(), "boot web1 latest --disks-only --json"))
	bad := clitest.Decode[appliance.Session](t, s.Control(s.Via(), "boot web1 latest --disks-only --json"))
	s.Good(s.Backup(s.Via(), s.Path("disk.raw")))
	daemon.Signal(15)
	if err := os.WriteFile(filepath.Join(s.Repo, ".sendense", "sessions", bad.ID+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	clitest.Refused(t, s.Control(s.Alone(), "delete web1 latest"), 4, bad.ID)
	s.Daemon()
	all := clitest.Decode[[]appliance.Session](t, s.Control(s.Via(), "session list --json"))
	states := map[string]appliance.SessionState{}
	for _, x := range all {
		states[x.ID] = x.State
	}
	if len(all) != 2 || states[good.ID] != appliance.SessionServed || states[bad.ID] != appliance.SessionBroken {
		t.Errorf("sessions: got %+v, want one served and one broken", all)
	}
	clitest.Refused(t, s.Control(s.Via(), "delete web1 latest"), 4, bad.ID, "cannot be read")
	clitest.Refused(t, s.Control(s.Via(), "session discard "+bad.ID), 2, "cannot be read")
	s.Good(s.Control(s.Via(), "session discard --force "+bad.ID))
	clitest.Refused(t, s.Control(s.Via(), "delete web1 latest~1"), 4, good.ID)
	s.Good(s.Control(s.Via(), "delete web1 latest"))
	s.Good(s.Control(s.Via(), "session show "+good.ID))
}

// After a failure to make something durable nobody knows what is on disk. The log of
// what was answered since knows what has to be.
func TestASessionGoesOnAfterAFailedSync(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "qemu-io", "mkfs.ext4", "mount")
	s := clitest.NewSite(t, filepath.Dir(program))
	for _, dir := range []string{s.Path("thin"), s.Repo} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// A file system that believes to have room which is not there.
	clitest.Tool(t, "mount", "-t", "tmpfs", "-o", "size=16m", "sendense-test", s.Path("thin"))
	t.Cleanup(func() { clitest.Tool(t, "umount", s.Path("thin")) })
	clitest.Tool(t, "truncate", "-s", "512M", s.Path("thin/fs"))
	clitest.Tool(t, "mkfs.ext4", "-q", "-O", "^has_journal", s.Path("thin/fs"))
	clitest.Tool(t, "mount", "-o", "loop,errors=continue", s.Path("thin/fs"), s.Repo)
	t.Cleanup(func() { clitest.Tool(t, "umount", s.Repo) })
	if err := os.WriteFile(s.Path("disk.raw"), make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := s.Daemon()
	t.Cleanup(func() { daemon.Signal(15) })
	s.Good(s.Backup(s.Via(), s.Path("disk.raw")))
	x := clitest.Decode[appliance.Session](t, s.Control(s.Via(), "boot web1 latest --disks-only --json"))
	io := func(commands ...string) clitest.Ran {
		args := []string{"-f", "raw", "-t", "writeback"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		return clitest.Run(t, "qemu-io", append(args, x.Disks[0].URI)...)
	}
	s.Good(io("write -P 1 0 1M", "flush"))
	r := io("write -P 2 512k 20M", "flush")
	if r.Code == 0 || !strings.HasPrefix(r.Stdout, "wrote ") {
		t.Fatalf("a write where there is no room: got %+v, want it answered, and that it cannot be made durable", r)
	}
	clitest.Tool(t, "mount", "-o", "remount,size=400m", s.Path("thin"))
	clitest.Until(t, "the session takes writes again", func() bool { return io("write -P 5 31M 1M", "flush").Code == 0 })
	r = s.Good(io("read -P 1 0 512k", "read -P 2 512k 20M", "read -P 5 31M 1M"))
	if strings.Contains(r.Stdout+r.Stderr, "failed") {
		t.Errorf("disk after a failed sync: got %s, want what was written", r.Stdout)
	}
}
