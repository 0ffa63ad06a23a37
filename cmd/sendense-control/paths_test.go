package main_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/internal/cli/clitest"
)

// wrongPaths are such that lead nowhere, with what they get as an answer.
var wrongPaths = []struct {
	path, says, hint string
	exit             int
	code             string
}{
	{"/etc/none/at/all", "There is no /etc/none/at/all in point", "The nearest that exists is /etc. List it with", 3, "not_found"},
	{"/none", "There is no /none in point", "The nearest that exists is /. List it with", 3, "not_found"},
	{"/etc/motd/x", "There is no /etc/motd/x in point", "The nearest that exists is /etc/motd. List it with", 3, "not_found"},
	{"/to-dir/none", "There is no /to-dir/none in point", "The nearest that exists is /etc. List it with", 3, "not_found"},
	{"/dangling/x", "There is no /dangling/x in point", "The nearest that exists is /. List it with", 3, "not_found"},
	{"/loop/x", "/loop/x leads through too many symbolic links", "The nearest that exists is /. List it with", 2, "invalid"},
	{"/a b/it's/none", "There is no /a b/it's/none in point", `The nearest that exists is /a b/it's. List it with`, 3, "not_found"},
	{"/a b/it's/none", "There is no /a b/it's/none in point", `'/a b/it'\''s'`, 3, "not_found"},
	{"/odd\x1b[31m/none", `There is no "/odd\x1b[31m/none" in point`, `The nearest that exists is "/odd\x1b[31m".`, 3, "not_found"},
	{"disk-0/fs/etc/none", "There is no disk-0/fs/etc/none in point", "The nearest that exists is disk-0/fs/etc. List it with", 3, "not_found"},
	{"disk-0/fs/etc/motd/x", "There is no disk-0/fs/etc/motd/x in point", "The nearest that exists is disk-0/fs/etc/motd. List it with", 3, "not_found"},
	{"disk-0/fs/to-dir/none", "There is no disk-0/fs/to-dir/none in point", "The nearest that exists is disk-0/fs/etc. List it with", 3, "not_found"},
	{"disk-0/p1/etc", "There is no disk-0/p1/etc in point", "The nearest that exists is disk-0. List it with", 3, "not_found"},
	{"disk-7/p1", "There is no disk-7/p1 in point", "The nearest that exists is where the disks are. List them with", 3, "not_found"},
	{"etc/motd", "There is no etc/motd in point", "The nearest that exists is where the disks are. List them with", 3, "not_found"},
	{"disk-1/fs/etc", "disk-1/fs/etc cannot be read", "The nearest that exists is disk-1. List it with", 2, "invalid"},
}

// pathsSite is a site with one point of two disks, the second of which holds nothing
// that is known.
func pathsSite(t *testing.T) *clitest.Site {
	t.Helper()
	empty := filepath.Join(t.TempDir(), "empty.img")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return siteOf(t, 32<<20, func(dir string) {
		put(t, "hello", dir, "etc/motd")
		put(t, "x", dir, "a b/it's/x")
		put(t, "x", dir, "odd\x1b[31m/x")
		for name, to := range map[string]string{"to-dir": "/etc", "dangling": "nowhere/at/all", "loop": "loop"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}, "--disk", empty+"=sdb")
}

func TestEveryCommandNamesTheNearestPath(t *testing.T) {
	s := pathsSite(t)
	dest := t.TempDir()
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		for _, x := range wrongPaths {
			for _, argv := range [][]string{{"ls", "web1", "latest", x.path}, {"ls", "-l", "web1", "latest", x.path}, {"cat", "web1", "latest", x.path},
				{"cp", "web1", "latest", x.path, dest}, {"cp", "web1", "latest", "/etc", x.path, dest}, {"cp", "web1", "latest", "/etc", x.path, "-"},
				{"find", "web1", "latest", x.path}, {"diff", "web1", "latest", "latest", x.path}, {"versions", "web1", x.path}} {
				r := clitest.Run(t, program, append(argv, flags...)...)
				clitest.Refused(t, r, x.exit, x.says)
				if !strings.Contains(r.Stderr, "\nhint: ") || !strings.Contains(r.Stderr, x.hint) {
					t.Errorf("%q: got %q, want the hint %q", argv, r.Stderr, x.hint)
				}
				if argv[0] == "versions" {
					clitest.RefusedJSON(t, clitest.Run(t, program, append(argv, append(flags, "--json")...)...), x.exit, x.code)
				}
			}
		}
		// Nothing was copied before the path that is not there was found out.
		if list, err := os.ReadDir(dest); err != nil || len(list) > 0 {
			t.Errorf("copied: got %v (%v), want nothing", list, err)
		}
	})
	for _, x := range wrongPaths {
		q := "?path=" + url.QueryEscape(x.path)
		for _, route := range []string{"points/latest/files/stat", "points/latest/files/list", "points/latest/files/find", "points/latest/files/diff" + q + "&newer=latest",
			"points/latest/files/content", "points/latest/files/archive", "points/latest/files/archive" + q + "&path=/etc", "versions"} {
			if !strings.Contains(route, "?") {
				route += q
			}
			resp := request(t, s, "/v1/vms/web1/"+route)
			var p api.Problem
			err := json.NewDecoder(resp.Body).Decode(&p)
			resp.Body.Close()
			status := map[string]int{"not_found": http.StatusNotFound, "invalid": http.StatusBadRequest}[x.code]
			if err != nil || resp.StatusCode != status || string(p.Code) != x.code || !strings.Contains(p.Detail, x.says) || !strings.Contains(p.Hint, x.hint) {
				t.Errorf("%s: got %d, %+v (%v), want %d, %q, %q", route, resp.StatusCode, p, err, status, x.says, x.hint)
			}
		}
	}
}

func TestVersionsTellOfPathsThatCameLater(t *testing.T) {
	s, _ := filesSite(t)
	for path, want := range map[string]string{"/etc/new": "not there", "/etc/old": "not there", "disk-0/fs/etc/new": "not there"} {
		if r := s.Control(s.Alone(), "versions web1 "+path); r.Code != 0 || !strings.Contains(r.Stdout, want) || !strings.Contains(r.Stdout, "file") {
			t.Errorf("versions of %s: got %+v, want that it is in one point and not in the other", path, r)
		}
	}
}
