package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// namesIn lists what is in a folder.
func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestACopyMayBeMadeAgain(t *testing.T) {
	s := siteOf(t, 32<<20, func(dir string) {
		put(t, "file", dir, "d/file")
		put(t, "deep", dir, "d/dir/deep")
		if err := errors.Join(os.Link(filepath.Join(dir, "d/file"), filepath.Join(dir, "d/linked")), os.Symlink("file", filepath.Join(dir, "d/symlink")),
			os.Symlink("\xe9", filepath.Join(dir, "d/latin-\xe9")), os.Mkdir(filepath.Join(dir, "d/mode-\xe9"), 0o705)); err != nil {
			t.Fatal(err)
		}
	})
	dest := t.TempDir()
	for range 2 {
		s.Good(s.Control(s.Alone(), "cp web1 latest /d "+dest))
		var a, b unix.Stat_t
		if err := errors.Join(unix.Lstat(filepath.Join(dest, "d/file"), &a), unix.Lstat(filepath.Join(dest, "d/linked"), &b)); err != nil || a.Ino != b.Ino {
			t.Errorf("hard link: got %d and %d (%v)", a.Ino, b.Ino, err)
		}
		for name, want := range map[string]string{"symlink": "file", "latin-\xe9": "\xe9"} {
			if got, err := os.Readlink(filepath.Join(dest, "d", name)); got != want {
				t.Errorf("target of %q: got %q, %v, want %q", name, got, err, want)
			}
		}
		if got, want := namesIn(t, filepath.Join(dest, "d")), []string{"dir", "file", "latin-\xe9", "linked", "mode-\xe9", "symlink"}; !slices.Equal(got, want) {
			t.Errorf("names: got %q, want %q", got, want)
		}
	}
	s.Good(clitest.Run(t, program, append([]string{"cp", "web1", "latest", "/d/mode-\xe9", "/d/latin-\xe9", dest}, s.Alone()...)...))
	if got, want := namesIn(t, dest), []string{"d", "latin-\xe9", "mode-\xe9"}; !slices.Equal(got, want) {
		t.Errorf("topmost names that are not UTF-8: got %q, want %q", got, want)
	}
}

func TestACopyTakesWhatIsThereForWhatItIs(t *testing.T) {
	s := siteOf(t, 32<<20, func(dir string) {
		for _, name := range []string{"a-file", "b-pipe", "c-dir/x", "d-pipe/x", "e-dir", "f-link/x", "z"} {
			put(t, name, dir, "d", name)
		}
	})
	dest := t.TempDir()
	d := filepath.Join(dest, "d")
	put(t, "mine", d, "c-dir")
	for _, err := range []error{unix.Mkfifo(filepath.Join(d, "b-pipe"), 0o600), unix.Mkfifo(filepath.Join(d, "d-pipe"), 0o600), os.Mkdir(filepath.Join(d, "e-dir"), 0o711),
		os.Mkdir(filepath.Join(dest, "elsewhere"), 0o700), os.Symlink("../elsewhere", filepath.Join(d, "f-link")), os.Symlink("../elsewhere/through", filepath.Join(d, "z")),
		os.Chmod(filepath.Join(d, "c-dir"), 0o604)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := s.Control(s.Alone(), "cp --json web1 latest /d "+dest)
	var sum struct {
		Files   int      `json:"files"`
		LeftOut int      `json:"left_out_files"`
		Reasons []string `json:"left_out"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &sum); err != nil || r.Code != 5 || sum.LeftOut != 7 || len(sum.Reasons) != 7 || sum.Files != 4 {
		t.Errorf("got exit code %d, %+v (%v), %s, want 5, 7 left out and 4 copied", r.Code, sum, err, r.Stderr)
	}
	for name, want := range map[string]string{"a-file": "a-file", "b-pipe": "b-pipe", "c-dir": "mine", "z": "z"} {
		st, err := os.Lstat(filepath.Join(d, name))
		if err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s: got %v, %v, want a file", name, st, err)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(d, name)); string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{"c-dir": "-rw----r--", "d-pipe": "prw-------", "e-dir": "drwx--x--x"} {
		if st, err := os.Lstat(filepath.Join(d, name)); err != nil || st.Mode().String() != want {
			t.Errorf("%s: got %v, %v, want %s", name, st.Mode(), err, want)
		}
	}
	if got := namesIn(t, filepath.Join(dest, "elsewhere")); len(got) > 0 {
		t.Errorf("behind a link that was there: got %q", got)
	}
	put(t, "mine", dest, "taken/d")
	clitest.Refused(t, s.Control(s.Alone(), "cp web1 latest /d "+dest+"/taken"), 2, "to d: something else than a directory")
}

func TestACopyThatFailsLeavesWhatWasThere(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, marked(8<<20, "the mark"), dir, "large") })
	damage(t, s, "the mark")
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		dest := t.TempDir()
		put(t, "mine", dest, "large")
		clitest.Refused(t, s.Control(flags, "cp --verified web1 latest /large "+dest), 5, "cannot be read behind byte 7", "digest")
		if got, err := os.ReadFile(filepath.Join(dest, "large")); string(got) != "mine" {
			t.Errorf("what was there: got %d bytes, %v", len(got), err)
		}
		if got := namesIn(t, dest); len(got) != 1 {
			t.Errorf("parts are left: %q", got)
		}
		// And what is shown on the way ends in the same.
		if r := s.Control(flags, "cat --verified web1 latest /large"); r.Code != 5 || !strings.Contains(r.Stderr, "digest") || len(r.Stdout) < 1<<20 {
			t.Errorf("cat: got exit code %d, %d bytes, %s", r.Code, len(r.Stdout), r.Stderr)
		}
	})
}

func TestACopyThatIsCancelledLeavesWhatWasThere(t *testing.T) {
	dir, err := os.MkdirTemp("", "sd-") // a socket's path is at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	const file = `"name":"large","path":"/large","type":"file","mode":"0644","size":1000000`
	plane := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch filepath.Base(r.URL.Path) {
		case "health":
			fmt.Fprintln(w, `{"status":"ok"}`)
		case "stat":
			fmt.Fprintln(w, "{"+file+"}")
		case "find":
			fmt.Fprintln(w, `{"file":{`+strings.Replace(file, `"large"`, `"."`, 1)+`}}`)
			fmt.Fprintln(w, `{"done":true}`)
		case "content":
			w.Header().Set("Content-Length", "1000000")
			w.Write(make([]byte, 500_000))
			http.NewResponseController(w).Flush()
			<-r.Context().Done() // the rest never comes
		}
	})}
	served := make(chan error, 1)
	go func() { served <- plane.Serve(l) }()
	defer func() { plane.Close(); <-served }()
	dest := filepath.Join(dir, "dest")
	put(t, "mine", dest, "large")
	p := clitest.Start(t, program, "cp", "web1", "latest", "/large", dest, "--control", "unix:"+l.Addr().String())
	clitest.Until(t, "the copy has begun", func() bool { return p.Ended() || len(namesIn(t, dest)) == 2 })
	clitest.Refused(t, p.Signal(syscall.SIGINT), 130, "signal received")
	if got, err := os.ReadFile(filepath.Join(dest, "large")); string(got) != "mine" || len(namesIn(t, dest)) != 1 {
		t.Errorf("what was there: got %q (%v) among %q", got, err, namesIn(t, dest))
	}
}

func TestContentThatFailsAtOnceSaysWhy(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, marked(100_000, "the mark"), dir, "small") })
	damage(t, s, "the mark")
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		clitest.Refused(t, s.Control(flags, "cat --verified web1 latest /small"), 5, "digest")
	})
}

// brokenSite is a site with one point of a disk whose file system does not yield all
// that it has.
func brokenSite(t *testing.T) *clitest.Site {
	t.Helper()
	requires.Tool(t, "debugfs")
	dir := t.TempDir()
	for _, name := range []string{"a-good", "b-no-content", "c-no-large-content", "d-no-xattrs", "e-no-xattrs/x", "f-no-names/x", "z-good"} {
		put(t, strings.Repeat(name, 200_000), dir, "d", name)
	}
	put(t, "small", dir, "d", "b-no-content")
	disk := fstest.Make(t, 64<<20, "mkfs.ext4", "-q", "-O", "^metadata_csum,^has_journal", "-d", dir)
	for _, change := range []string{"b-no-content block[0] 0xdead", "c-no-large-content block[0] 0xdead", "d-no-xattrs file_acl 99999999",
		"e-no-xattrs file_acl 99999999", "f-no-names block[0] 0xdead"} {
		clitest.Tool(t, "debugfs", "-w", "-R", "set_inode_field /d/"+change, disk)
	}
	s := clitest.NewSite(t, filepath.Dir(program))
	s.Good(s.Backup(s.Alone(), disk))
	return s
}

func TestWhatAGuestDoesNotYieldIsLeftOut(t *testing.T) {
	s := brokenSite(t)
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		dest := t.TempDir()
		r := s.Control(flags, "cp web1 latest /d "+dest)
		for _, want := range []string{"d/b-no-content is left out: ", "d/c-no-large-content is left out: ", "d/d-no-xattrs lacks its extended attributes: ",
			"d/e-no-xattrs lacks its extended attributes: ", "some or all of what is in d/f-no-names is left out: "} {
			if r.Code != 5 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stdout, "; left out 3; changed 2\n") {
				t.Errorf("got %+v, want exit code 5 and %q", r, want)
			}
		}
		if got, want := namesIn(t, filepath.Join(dest, "d")), []string{"a-good", "d-no-xattrs", "e-no-xattrs", "f-no-names", "z-good"}; !slices.Equal(got, want) {
			t.Errorf("copied: got %q, want %q", got, want)
		}
		if st, err := os.Stat(filepath.Join(dest, "d/e-no-xattrs/x")); err != nil || st.Size() == 0 {
			t.Errorf("in a directory without attributes: %v", err)
		}
		if _, r := archived(t, s, flags, "cp --json web1 latest /d -"); r.Code != 5 || !strings.Contains(r.Stderr, `"left_out_files":3`) || strings.Contains(r.Stderr, "error") {
			t.Errorf("an archive: got exit code %d, %s", r.Code, r.Stderr)
		}
	})
}

func TestContentIsSentInRanges(t *testing.T) {
	s := siteOf(t, 32<<20, func(dir string) {
		put(t, "0123456789", dir, "ten")
		put(t, "", dir, "none")
	})
	s.Daemon()
	for _, x := range []struct {
		path, asked  string
		status       int
		body, ranged string
	}{
		{"/ten", "", 200, "0123456789", ""}, {"/ten", "bytes=3-", 206, "3456789", "bytes 3-9/10"}, {"/ten", "bytes=-2", 206, "89", "bytes 8-9/10"},
		{"/ten", "bytes=1-2,4-5", 200, "0123456789", ""}, {"/ten", "bytes=10-", 416, `"code":"invalid"`, "bytes */10"}, {"/none", "", 200, "", ""},
		{"/no", "bytes=1-", 404, `"code":"not_found"`, ""},
	} {
		resp := request(t, s, "/v1/vms/web1/points/latest/files/content?path="+x.path, "Range", x.asked)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		kind := "application/octet-stream"
		if x.status >= 400 {
			kind = "application/problem+json"
		}
		if err != nil || resp.StatusCode != x.status || !strings.Contains(string(body), x.body) || resp.Header.Get("Content-Range") != x.ranged || resp.Header.Get("Content-Type") != kind {
			t.Errorf("%s %q: got %s, %q, %v (%v), want %d, %q, %q", x.path, x.asked, resp.Status, body, resp.Header, err, x.status, x.body, x.ranged)
		}
	}
}

func TestWhereLettersHaveNoCase(t *testing.T) {
	s := siteOf(t, 32<<20, func(dir string) {
		for _, name := range []string{"d/A", "d/a", "d/B/x", "d/b/x", "other/E/x", "other/e/x"} {
			put(t, name, dir, name)
		}
	})
	requires.Tool(t, "lowntfs-3g")
	requires.Root(t)
	dest := t.TempDir()
	clitest.Tool(t, "lowntfs-3g", "-o", "ignore_case,permissions", fstest.Make(t, 16<<20, "mkfs.ntfs", "-q", "-F", "-s", "512"), dest)
	fstest.Unmounting(t, dest)
	r := s.Control(s.Alone(), "cp web1 latest /d "+dest)
	if r.Code != 5 || !strings.Contains(r.Stdout, "left out 3") {
		t.Errorf("got %+v, want a and b left out, and what is in it", r)
	}
	for _, name := range []string{"d/A", "d/B/x"} {
		if got, err := os.ReadFile(filepath.Join(dest, name)); string(got) != name {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	r = s.Control(s.Alone(), "cp web1 latest /other/E /other/e "+dest)
	clitest.Refused(t, r, 2, "to e: what was copied from another name")
}
