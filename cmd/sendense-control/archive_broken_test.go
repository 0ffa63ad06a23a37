package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// siteOf is a site with one point of an ext4 that holds what fill puts into a
// folder. More are flags of the backup.
func siteOf(t *testing.T, size int64, fill func(dir string), more ...string) *clitest.Site {
	t.Helper()
	dir := t.TempDir()
	fill(dir)
	s := clitest.NewSite(t, filepath.Dir(program))
	disk := fstest.Make(t, size, "mkfs.ext4", "-q", "-d", dir)
	s.Good(s.Backup(s.Alone(), disk, more...))
	return s
}

// marked is content with a mark towards its end.
func marked(n int, mark string) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	copy(b[n/16*15:], mark)
	return string(b)
}

// damage changes what stands in the repository where mark is.
func damage(t *testing.T, s *clitest.Site, mark string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Repo, "*", "disk-0", "*.qcow2"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files of the point: got %q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte(mark))
	if at < 0 {
		t.Fatalf("%q is not in %s", mark, files[0])
	}
	setByte(t, files[0], int64(at), 'X')
}

func TestAnArchiveThatBreaksOffIsSeen(t *testing.T) {
	requires.Tool(t, "curl", "tar", "bsdtar", "unzip")
	s := siteOf(t, 64<<20, func(dir string) {
		put(t, "first", dir, "a/first")
		put(t, marked(8<<20, "the mark"), dir, "a/large")
		put(t, "last", dir, "a/last")
	})
	damage(t, s, "the mark")
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		for format, test := range map[string][][]string{"tar": {{"tar", "-tf"}, {"bsdtar", "-tf"}}, "zip": {{"unzip", "-tq"}, {"bsdtar", "-tf"}}} {
			path, r := archived(t, s, flags, "cp --verified --format "+format+" web1 latest /a -")
			if r.Code != 9 || !strings.Contains(r.Stderr, "broke off") || !strings.Contains(r.Stderr, "hint: ") || strings.Contains(r.Stderr, "copied") {
				t.Errorf("%s of a damaged file: got exit code %d, %s", format, r.Code, r.Stderr)
			}
			for _, argv := range test {
				if out, err := exec.CommandContext(t.Context(), argv[0], append(argv[1:], path)...).CombinedOutput(); err == nil {
					t.Errorf("%q takes it for an archive: %s", argv, out)
				}
			}
			_, r = archived(t, s, flags, "cp --json --verified --format "+format+" web1 latest /a -")
			clitest.RefusedJSON(t, clitest.Ran{Stderr: r.Stderr, Code: r.Code}, 9, "interrupted")
			// What is not damaged can be had.
			if _, r := archived(t, s, flags, "cp --verified --format "+format+" web1 latest /a/first /a/last -"); r.Code != 0 {
				t.Errorf("%s of what is not damaged: %+v", format, r)
			}
		}
	})
	socket := filepath.Join(s.Run, "control.sock")
	for _, format := range []string{"tar", "zip"} {
		out := filepath.Join(t.TempDir(), "archive")
		c := exec.CommandContext(t.Context(), "curl", "-sS", "-o", out, "--unix-socket", socket,
			"http://control/v1/vms/web1/points/latest/files/archive?verified=true&path=/a&format="+format)
		said, err := c.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 18 {
			t.Errorf("curl of a %s: got %v, %s, want exit code 18: a part of a file", format, err, said)
		}
	}
	c := exec.CommandContext(t.Context(), "curl", "-sS", "-0", "--unix-socket", socket, "http://control/v1/vms/web1/points/latest/files/archive?path=/a")
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), `"code":"invalid"`) {
		t.Errorf("curl with HTTP/1.0: got %s, %v, want that it is refused", out, err)
	}
}

func TestAnArchiveThatFailsAtOnceSaysWhy(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, marked(100_000, "the mark"), dir, "a/small") })
	damage(t, s, "the mark")
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		for _, format := range []string{"tar", "zip"} {
			clitest.Refused(t, s.Control(flags, "cp --verified web1 latest /a - --format "+format), 5, "digest")
		}
	})
}

func TestWhatTheRepositoryLostIsNotLeftOut(t *testing.T) {
	s := siteOf(t, 128<<20, func(dir string) {
		for i := range 40 {
			for j := range 300 {
				put(t, "", dir, fmt.Sprintf("d-%02d/the file with the number %d of %d", i, j, i))
			}
		}
	})
	damage(t, s, "the file with the number 123 of 25") // in a directory
	if r := s.Good(s.Control(s.Alone(), "ls web1 latest --verified /d-03")); strings.Count(r.Stdout, "\n") != 300 {
		t.Errorf("ls of another directory: got %+v", r)
	}
	for _, format := range []string{"tar", "zip"} {
		_, r := archived(t, s, s.Alone(), "cp --verified web1 latest / - --format "+format)
		if r.Code != 5 && r.Code != 9 || strings.Contains(r.Stderr, "left out") {
			t.Errorf("%s: got exit code %d, %s, want that it fails", format, r.Code, r.Stderr)
		}
	}
	if r := s.Control(s.Alone(), "cp --verified web1 latest / "+t.TempDir()); r.Code != 5 || strings.Contains(r.Stderr, "left out") || !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("a copy: got %+v, want that it fails", r)
	}
}

// request asks the control plane for something, by a connection that is closed
// with the answer's body. Headers are names and values.
func request(t *testing.T, s *clitest.Site, path string, headers ...string) *http.Response {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.Run, "control.sock"))
	}}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://control"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// confined returns the processes that parse for the control plane.
func confined(t *testing.T, pid int) (list []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
	}
	return list
}

// many fills a folder with files.
func many(t *testing.T, n int, dir string) {
	t.Helper()
	for i := range n {
		put(t, "", dir, fmt.Sprintf("many/%d/%d", i%10, i))
	}
}

func TestTheDeathOfTheReaderBreaksAnArchiveOff(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { many(t, 12_000, dir) })
	daemon := s.Daemon()
	resp := request(t, s, "/v1/vms/web1/points/latest/files/archive?path=/many")
	defer resp.Body.Close()
	got := make([]byte, 1024)
	if _, err := io.ReadFull(resp.Body, got); err != nil {
		t.Fatal(err)
	}
	children := confined(t, daemon.PID)
	if len(children) != 1 {
		t.Fatalf("confined processes: got %v, want one", children)
	}
	if err := syscall.Kill(children[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(resp.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(resp.Trailer.Get("Sendense-Files")) > 0 {
		t.Errorf("the rest: got %d bytes, %v, trailers %v, want that the transfer failed", len(rest), err, resp.Trailer)
	}
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, append(got, rest...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"tar", "bsdtar"} {
		if out, err := exec.CommandContext(t.Context(), tool, "-tf", path).CombinedOutput(); err == nil {
			t.Errorf("%s takes it for an archive of %d lines", tool, bytes.Count(out, []byte("\n")))
		}
	}
	// The next one has a new process.
	if _, r := archived(t, s, s.Via(), "cp web1 latest /many -"); r.Code != 0 || !strings.Contains(r.Stderr, "copied 12011 files") {
		t.Errorf("the next one: got %d, %s", r.Code, r.Stderr)
	}
}

// goroutines is how many the control plane has.
func goroutines(t *testing.T, s *clitest.Site) int {
	t.Helper()
	resp := request(t, s, "/metrics")
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			v, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatal("no go_goroutines in the metrics")
	return 0
}

func TestAnArchiveEndsWithWhoAskedForIt(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { many(t, 12_000, dir) })
	s.Daemon()
	s.Good(s.Control(s.Via(), "ls web1 latest /")) // the point is open from now on
	before := goroutines(t, s)
	// More than may be under way at a time: who is gone leaves room for the next.
	for range 40 {
		resp := request(t, s, "/v1/vms/web1/points/latest/files/archive")
		if _, err := io.ReadFull(resp.Body, make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	clitest.Until(t, "the work has ended", func() bool { return goroutines(t, s) <= before })
	if _, r := archived(t, s, s.Via(), "cp web1 latest /many -"); r.Code != 0 {
		t.Errorf("the next one: got %d, %s", r.Code, r.Stderr)
	}
}

func TestAnArchiveIsNotShownOnATerminal(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, "x", dir, "x") })
	terminal, name := openTerminal(t)
	defer terminal.Close()
	out, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r := callTo(t, out, append([]string{"cp", "web1", "latest", "/x", "-"}, s.Alone()...)...)
	if r.Code != 2 || !strings.Contains(r.Stderr, "terminal") || !strings.Contains(r.Stderr, "hint: Send it to a file") {
		t.Errorf("got %+v, want that it is refused", r)
	}
	for line, want := range map[string]string{
		"cp web1 latest /x - --format rar": "archive format", "cp web1 latest /x here --format zip": "--format is for archives",
		"cp web1 latest /x /x -": "end in x", "cp web1 latest /none/x -": "There is no /none/x",
	} {
		r := s.Control(s.Alone(), line)
		if r.Code != 2 && r.Code != 3 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, "hint: ") || r.Stdout != "" {
			t.Errorf("%s: got %+v, want %q", line, r, want)
		}
	}
}

// openTerminal returns the near end of a terminal, and the name of the other.
func openTerminal(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		requires.Missing(t, "terminals: "+err.Error())
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return f, fmt.Sprintf("/dev/pts/%d", n)
}
