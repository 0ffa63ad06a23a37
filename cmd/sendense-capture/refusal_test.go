package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

func TestBadInputGetsASentenceAHintAndAnExitCode(t *testing.T) {
	requires.Tool(t, "qemu-img")
	s := clitest.NewSite(t, bin)
	file := func(name, content string) string {
		if err := os.WriteFile(s.Path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return s.Path(name)
	}
	good, cut, other := file("good.raw", "x"), file("cut.qcow2", "QFI\xfb\x00\x00\x00\x03"), file("other.qcow2", "hello")
	orphan, disguised := s.Path("orphan.qcow2"), s.Path("disguised.img")
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", disguised, "1M")
	clitest.Tool(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "gone.qcow2", orphan, "1M")
	backup := func(args ...string) []string {
		return append([]string{"backup", "--repository", s.Repo, "--vm", "web1"}, args...)
	}
	blockdev := func(args ...string) []string { return append(backup("--source", "blockdev"), args...) }

	for _, c := range []struct {
		name string
		args []string
		exit int
		code string
		want string // in the sentence
	}{
		{"a command that does not exist", []string{"backups"}, 2, "invalid", "no command"},
		{"a flag that does not exist", backup("--fast"), 2, "invalid", "--fast"},
		{"a flag without its value", backup("--source"), 2, "invalid", "--source"},
		{"a number that is none", blockdev("--disk", good, "--limit", "fast"), 2, "invalid", "fast"},
		{"an argument too many", backup("web2"), 2, "invalid", "web2"},
		{"no VM", []string{"backup"}, 2, "invalid", "No VM"},
		{"a VM without a name", []string{"backup", "--vm", " "}, 2, "invalid", "No VM"},
		{"a source that does not exist", backup("--source", "vmware"), 2, "invalid", "vmware"},
		{"libvirt with a disk", backup("--disk", good), 2, "invalid", "--disk"},
		{"libvirt that does not run", backup("--connect", "qemu+unix:///system?socket=/nonexistent"), 6, "unreachable", "/nonexistent"},
		{"an address of something else", backup("--connect", "xen:///"), 2, "invalid", "xen:///"},
		{"no disk", blockdev(), 2, "invalid", "at least one disk"},
		{"a disk without a path", blockdev("--disk", "=sda"), 2, "invalid", "=sda"},
		{"a disk with an empty name", blockdev("--disk", good+"="), 2, "invalid", "good.raw="},
		{"a disk with a name that is a path", blockdev("--disk", good+"=a/b"), 2, "invalid", "a/b"},
		{"two disks of one name", blockdev("--disk", good+"=a", "--disk", good+"=a"), 2, "invalid", "taken"},
		{"a disk that is not there", blockdev("--disk", s.Path("gone")), 3, "not_found", "gone"},
		{"a folder as a disk", blockdev("--disk", s.Dir), 6, "unreachable", "directory"},
		{"a character device as a disk", blockdev("--disk", "/dev/null"), 6, "unreachable", "/dev/null"},
		{"a QCOW2 image that was cut off", blockdev("--disk", cut), 5, "corrupt", "cut.qcow2"},
		{"a file that only has the name of a QCOW2 image", blockdev("--disk", other), 2, "invalid", "other.qcow2"},
		{"a QCOW2 image of another name", blockdev("--disk", disguised), 2, "invalid", "disguised.img"},
		{"a format that does not exist", blockdev("--disk", good, "--format", "vmdk"), 2, "invalid", "vmdk"},
		{"an image without its backing file", blockdev("--disk", orphan), 3, "not_found", "gone.qcow2"},
		{"a compression that does not exist", blockdev("--disk", good, "--compress", "gzip"), 2, "invalid", "gzip"},
		{"a level that does not exist", blockdev("--disk", good, "--compress", "zstd:99"), 2, "invalid", "zstd:99"},
		{"a negative limit", blockdev("--disk", good, "--limit", "-5"), 2, "invalid", "-5"},
		{"a negative number of clusters", blockdev("--disk", good, "--audit", "-7"), 2, "invalid", "-7"},
		{"a file as the repository", blockdev("--disk", good, "--repository", good), 2, "invalid", "good.raw"},
		{"a repository where none can be made", blockdev("--disk", good, "--repository", "/proc/backups"), 3, "not_found", "/proc/backups"},
		{"a repository inside a file", blockdev("--disk", good, "--repository", filepath.Join(good, "a", "b")), 2, "invalid", "good.raw"},
		{"a control plane that does not run", blockdev("--disk", good, "--control", "unix:"+s.Path("no.sock")), 6, "unreachable", "no.sock"},
		{"an address that is none", blockdev("--disk", good, "--control", "http://x"), 2, "invalid", "http://x"},
		{"a benchmark of no time", []string{"bench", "--source", "blockdev", "--vm", "a", "--disk", good, "--seconds", "0"}, 2, "invalid", "0 seconds"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(bin, "sendense-capture")
			clitest.Refused(t, clitest.Run(t, program, c.args...), c.exit, c.want)
			clitest.RefusedJSON(t, clitest.Run(t, program, append([]string{"--json"}, c.args...)...), c.exit, c.code)
		})
	}
	if points := clitest.Decode[[]any](t, s.Control(s.Alone(), "vms --json")); len(points) != 0 {
		t.Errorf("the repository: got %+v, want nothing in it", points)
	}
}

func TestWhatTheUserMayNotTouchIsDenied(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "setpriv")
	s := clitest.NewSite(t, bin)
	for _, dir := range []string{s.Dir, bin} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret, open := s.Path("secret.raw"), s.Path("open.raw")
	for path, mode := range map[string]os.FileMode{secret: 0o600, open: 0o644} {
		if err := os.WriteFile(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
	}
	s.Good(s.Backup(s.Alone(), open))
	mine := s.Path("mine")
	if err := os.Mkdir(mine, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(mine, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", mine)
	s.Daemon()
	for _, c := range []struct {
		name, disk, want string
		flags            []string
	}{
		{"a disk that may not be read", secret, "secret.raw", []string{"--repository", filepath.Join(mine, "r")}},
		{"a repository that may not be written", open, s.Repo, s.Alone()},
		{"a folder where no repository may be made", open, "not-mine", []string{"--repository", s.Path("not-mine")}},
		{"a control plane that may not be talked to", open, "control.sock", s.Via()},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"--reuid=65534", "--regid=65534", "--clear-groups", filepath.Join(bin, "sendense-capture"),
				"backup", "--source", "blockdev", "--vm", "web1", "--disk", c.disk}
			r := clitest.Run(t, "setpriv", append(args, c.flags...)...)
			clitest.Refused(t, r, 7, c.want)
			clitest.RefusedJSON(t, clitest.Run(t, "setpriv", append(append(args, c.flags...), "--json")...), 7, "denied")
		})
	}
}

func TestSourcesAndBench(t *testing.T) {
	s := clitest.NewSite(t, bin)
	program := filepath.Join(bin, "sendense-capture")
	type source struct{ Name, Captures, Tracking string }
	sources := clitest.Decode[[]source](t, clitest.Run(t, program, "sources", "--json"))
	text := s.Good(clitest.Run(t, program, "sources")).Stdout
	if len(sources) < 2 {
		t.Errorf("sources: got %+v, want libvirt and blockdev", sources)
	}
	for _, so := range sources {
		if so.Name == "" || so.Captures == "" || so.Tracking == "" || !strings.Contains(text, so.Captures) {
			t.Errorf("source: got %+v, want it complete and in the table %q", so, text)
		}
	}
	disk(t, s.Path("disk.raw"), 1<<20, 4<<20)
	bench := []string{"bench", "--source", "blockdev", "--vm", "x", "--disk", s.Path("disk.raw") + "=sda", "--seconds", "0.01"}
	rates := clitest.Decode[[]struct {
		Disk     string
		Request  int64   `json:"request_bytes"`
		InFlight int     `json:"in_flight"`
		Rate     float64 `json:"bytes_per_second"`
	}](t, clitest.Run(t, program, append(bench, "--json")...))
	if len(rates) != 12 {
		t.Errorf("bench: got %d figures, want 12", len(rates))
	}
	for _, r := range rates {
		if r.Disk != "sda" || r.Request < 64<<10 || r.InFlight < 1 || r.Rate <= 0 {
			t.Errorf("figure: got %+v, want a rate of sda", r)
		}
	}
	if r := s.Good(clitest.Run(t, program, bench...)); strings.Count(r.Stdout, "\n") != 13 {
		t.Errorf("bench: got %q, want a heading and 12 lines", r.Stdout)
	}
}
