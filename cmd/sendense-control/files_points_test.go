package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestAPointThatCannotBeReadIsToldOf(t *testing.T) {
	dir := t.TempDir()
	put(t, "hello", dir, "etc/motd")
	put(t, "", dir, "etc/empty")
	if err := os.Mkdir(filepath.Join(dir, "nothing"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := clitest.NewSite(t, filepath.Dir(program))
	disk := fstest.Make(t, 32<<20, "mkfs.ext4", "-q", "-d", dir)
	s.Good(s.Backup(s.Alone(), disk, "--full"))
	files, err := filepath.Glob(filepath.Join(s.Repo, "*", "disk-0", "*.qcow2"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files of the point: got %q, %v", files, err)
	}
	s.Good(s.Backup(s.Alone(), disk, "--full"))
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	older := strings.TrimSuffix(files[0], ".qcow2")
	older = older[len(older)-len("20251002-120000"):]
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		r := s.Control(flags, "find web1 --name motd")
		if r.Code != 5 || !strings.HasSuffix(r.Stdout, "  etc/motd\n") || strings.Count(r.Stdout, "\n") != 1 || !strings.HasPrefix(r.Stderr, older+"  .: ") {
			t.Errorf("find: got %+v, want what the newer point has, and what is wrong with %s", r, older)
		}
		var found []struct{ Point, Name, Error string }
		r = s.Control(flags, "find --json web1 --name motd")
		if err := json.Unmarshal([]byte(r.Stdout), &found); err != nil || r.Code != 5 || r.Stderr != "" || len(found) != 2 || found[0].Point != older || found[0].Error == "" || found[1].Name != "etc/motd" {
			t.Errorf("find with --json: got %+v (%v), %+v", r, err, found)
		}
		for path, is := range map[string]string{"/etc/motd": "file", "/etc/none": "not there"} {
			r = s.Control(flags, "versions web1 "+path)
			if lines := strings.Split(r.Stdout, "\n"); r.Code != 5 || !strings.HasPrefix(r.Stderr, older+": ") || len(lines) != 4 || !strings.HasPrefix(lines[1], older) || !strings.Contains(lines[1], "unreadable") || !strings.Contains(lines[2], is) {
				t.Errorf("versions of %s: got %+v, want an error and %q", path, r, is)
			}
		}
		for line, want := range map[string]string{
			"find web1 latest /etc --smaller 0": "empty\n", "find web1 latest /etc --type f --smaller 0k --larger 0": "empty\n", "find web1 latest /etc --smaller 5 --larger 1": "motd\n",
			"find --json web1 latest --name none": "[]\n", "diff --json web1 latest latest": "[]\n", "ls --json web1 latest /nothing": "[]\n",
			"find --verified web1 latest /etc --name motd": "motd\n", "diff --verified web1 latest latest": "",
		} {
			if r := s.Control(flags, line); r.Code != 0 || r.Stdout != want || r.Stderr != "" {
				t.Errorf("%s: got %+v, want %q", line, r, want)
			}
		}
		clitest.Refused(t, s.Control(flags, "find web1 "+older), 5, older)
	})
	// With nothing else to search, that is how it ends.
	s.Good(s.Control(s.Via(), "delete web1 latest"))
	clitest.Refused(t, s.Control(s.Via(), "find web1 --name motd"), 5, older)
	clitest.RefusedJSON(t, s.Control(s.Via(), "find --json web1 --name motd"), 5, "corrupt")
}

func TestUnreadablePartsAreFindings(t *testing.T) {
	s := brokenSite(t)
	r := s.Control(s.Alone(), "find web1 latest /d --type d")
	if r.Code != 5 || !strings.HasPrefix(r.Stderr, "f-no-names: ") || !slices.Equal(strings.Fields(r.Stdout), []string{".", "e-no-xattrs", "f-no-names"}) {
		t.Errorf("find: got %+v", r)
	}
	if r := s.Control(s.Alone(), "diff --verified web1 latest latest /d"); r.Code != 5 || !strings.Contains(r.Stdout, "? f-no-names: ") {
		t.Errorf("diff: got %+v", r)
	}
}
