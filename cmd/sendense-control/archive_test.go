package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// untar and others extract an archive into the current folder, as far as they can.
var (
	untar    = []string{"tar", "--acls", "--xattrs", "--xattrs-include=*", "-xpf"}
	bsduntar = []string{"bsdtar", "-xpf"}
	pyuntar  = []string{"/usr/bin/python3", "-c", "import sys, tarfile; tarfile.open(sys.argv[1]).extractall()"}
	unzip    = []string{"unzip", "-qo", "-X"}
	pyunzip  = []string{"/usr/bin/python3", "-c", "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall()"}
)

// extract runs one of them in a new folder, where nothing on its input answers it.
func extract(t *testing.T, argv []string, path string) (dir, said string, err error) {
	t.Helper()
	requires.Tool(t, argv[0])
	dir = t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], append(argv[1:len(argv):len(argv)], path)...)
	c.Dir, c.Env = dir, append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	return dir, string(out), err
}

// archived has the program write an archive into a file.
func archived(t *testing.T, s *clitest.Site, flags []string, line string) (string, clitest.Ran) {
	t.Helper()
	r := s.Control(flags, line)
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, []byte(r.Stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, r
}

func TestArchivesHoldWhatCpCopies(t *testing.T) {
	s, states := filesSite(t)
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		copied := filepath.Join(t.TempDir(), "copy")
		s.Good(s.Control(flags, "cp --json web1 latest / "+copied))
		point := clitest.Decode[struct{ Point struct{ ID string } }](t, s.Control(flags, "info --json web1 latest")).Point.ID
		path, r := archived(t, s, flags, "cp web1 latest / -")
		// The socket is the one thing that a tar cannot have.
		if r.Code != 0 || !strings.Contains(r.Stderr, "; left out 1; see sendense-remarks.txt") {
			t.Fatalf("cp to an archive: got exit code %d, %s", r.Code, r.Stderr)
		}
		for _, argv := range [][]string{untar, bsduntar} {
			dir, said, err := extract(t, argv, path)
			if err != nil {
				t.Fatalf("%q: %v\n%s", argv, err, said)
			}
			got := filepath.Join(dir, point)
			equalTrees(t, copied, got, true)
			equalTrees(t, states[1], got, false)
			sameTrees(t, states[1], got)
			text, err := os.ReadFile(filepath.Join(dir, "sendense-remarks.txt"))
			if want := `left out: "` + point + `/special/socket": a tar cannot have it: it is of type socket` + "\n"; string(text) != want {
				t.Errorf("remarks: got %q (%v), want %q", text, err, want)
			}
		}
		path, r = archived(t, s, flags, "cp --json --format zip web1 latest / -")
		var sum appliance.ArchiveSummary
		if err := json.Unmarshal([]byte(r.Stderr), &sum); err != nil || r.Code != 0 || strings.Count(r.Stderr, "\n") != 1 {
			t.Fatalf("cp to a zip: got exit code %d, %s (%v)", r.Code, r.Stderr, err)
		}
		if sum.LeftOut != 4 || sum.Changed < 4 || sum.Remarks != "sendense-remarks.txt" || sum.Files < 1000 || sum.Bytes < 50<<20 {
			t.Errorf("summary: got %+v, want four special files left out and odd names changed", sum)
		}
		dir, said, err := extract(t, unzip, path)
		if err != nil {
			t.Fatalf("unzip: %v\n%s", err, said)
		}
		sameFiles(t, copied, filepath.Join(dir, point))
	})
}

func TestAnArchiveOfSeveralPlaces(t *testing.T) {
	s := siteOf(t, 32<<20, func(dir string) {
		put(t, "one", dir, "a/one")
		put(t, "two", dir, "b/two")
		if err := os.Link(filepath.Join(dir, "a/one"), filepath.Join(dir, "b/also one")); err != nil {
			t.Fatal(err)
		}
	})
	for line, want := range map[string]string{
		"/a /b/two": "a/\na/one\ntwo\n", "/b/two": "two\n", "disk-0/fs/a": "a/\na/one\n", "/a /b": "a/\na/one\nb/\nb/also one\nb/two\n",
		"disk-0/fs": "fs/\nfs/a/\nfs/a/one\nfs/b/\nfs/b/also one\nfs/b/two\nfs/lost+found/\n",
	} {
		for _, format := range []string{"tar", "zip"} {
			path, r := archived(t, s, s.Alone(), "cp --format "+format+" web1 latest "+line+" -")
			if got := clitest.Tool(t, "bsdtar", "-tf", path); r.Code != 0 || got != want {
				t.Errorf("%s as %s: got %q (%+v), want %q", line, format, got, r.Stderr, want)
			}
		}
	}
	path, _ := archived(t, s, s.Alone(), "cp web1 latest /b /a -")
	dir, said, err := extract(t, untar, path)
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, said)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "b/also one"), &st); err != nil || st.Nlink != 2 {
		t.Errorf("a file with names in two places: got %d (%v), want 2", st.Nlink, err)
	}
}

func TestAnArchiveTellsOfDisksThatCannotBeRead(t *testing.T) {
	s := pathsSite(t)
	for _, x := range []struct{ path, want string }{
		{".", "left out: \"disk-1/fs\": "}, {"disk-1", "left out: \"disk-1/fs\": "}, {"disk-0", ""}, {"/", ""},
	} {
		path, r := archived(t, s, s.Alone(), "cp web1 latest "+x.path+" -")
		dir, said, err := extract(t, untar, path)
		text, readErr := os.ReadFile(filepath.Join(dir, "sendense-remarks.txt"))
		code := 0
		if x.want != "" {
			code = 5
		}
		if r.Code != code || err != nil || (readErr == nil) != (x.want != "") || !strings.HasPrefix(string(text), x.want) {
			t.Errorf("%s: got %s%s (%v), remarks %q (%v), want %q", x.path, r.Stderr, said, err, text, readErr, x.want)
		}
	}
}

func TestRemarksMayBeMoreThanFitIntoOneFile(t *testing.T) {
	long := strings.Repeat("long", 50)
	const files = 4000
	s := siteOf(t, 64<<20, func(dir string) {
		for i := range files {
			put(t, "x", dir, "d", fmt.Sprintf(`%s\%d`, long, i))
		}
		put(t, "taken", dir, "sendense-remarks-2.txt")
	})
	path, r := archived(t, s, s.Alone(), "cp --json --format zip web1 latest /d /sendense-remarks-2.txt -")
	var sum appliance.ArchiveSummary
	if err := json.Unmarshal([]byte(r.Stderr), &sum); err != nil || sum.Changed != files || sum.Files != files+2 || sum.LeftOut != 0 {
		t.Fatalf("summary: got %+v (%v), %s, want %d changed", sum, err, r.Stderr, files)
	}
	dir, said, err := extract(t, unzip, path)
	if err != nil {
		t.Fatalf("unzip: %v\n%s", err, said)
	}
	lists, err := filepath.Glob(filepath.Join(dir, "sendense-remarks*.txt"))
	if err != nil || len(lists) < 3 {
		t.Fatalf("remarks: got %q (%v), want several", lists, err)
	}
	lines := 0
	for _, name := range lists {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(b), "changed: ")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "sendense-remarks-2.txt")); string(b) != "taken" || lines != files {
		t.Errorf("got %d remarks, want %d; the guest's own is %q (%v)", lines, files, b, err)
	}
	if list, err := os.ReadDir(filepath.Join(dir, "d")); len(list) != files {
		t.Errorf("files: got %d (%v), want %d", len(list), err, files)
	}
}

// bothHosts runs a test without and with a control plane.
func bothHosts(t *testing.T, s *clitest.Site, test func(t *testing.T, s *clitest.Site, flags []string)) {
	t.Helper()
	for _, mode := range []string{"alone", "with a control plane"} {
		flags := s.Alone()
		if mode != "alone" {
			s.Daemon()
			flags = s.Via()
		}
		t.Run(mode, func(t *testing.T) {
			one := *s
			one.T = t
			test(t, &one, flags)
		})
	}
}

// equalTrees compares all that the kernel shows of two trees but content: special
// files, owners, modes, times of links, and extended attributes of any kind. What
// cp leaves out or does not set, a copy by it need not have.
func equalTrees(t *testing.T, want, got string, byCp bool) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(want, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(want, p)
		var a, b unix.Stat_t
		if err := unix.Lstat(p, &a); err != nil {
			return err
		}
		kind := a.Mode & unix.S_IFMT
		err = unix.Lstat(filepath.Join(got, rel), &b)
		if kind == unix.S_IFSOCK {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("socket %q: got %v", rel, err)
			}
			return nil
		}
		if err != nil {
			t.Errorf("%q: %v", rel, err)
			return nil
		}
		n++
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || kind != unix.S_IFDIR && (a.Size != b.Size || a.Nlink != b.Nlink) {
			t.Errorf("%q: got %+v, want %+v", rel, b, a)
		}
		if (kind != unix.S_IFLNK || !byCp) && (rel != "." || byCp) && a.Mtim != b.Mtim {
			t.Errorf("time of %q: got %v, want %v", rel, b.Mtim, a.Mtim)
		}
		x, y := xattrs(t, p), xattrs(t, filepath.Join(got, rel))
		if !maps.Equal(x, y) {
			t.Errorf("extended attributes of %q: got %v, want %v", rel, slices.Collect(maps.Keys(y)), slices.Collect(maps.Keys(x)))
		}
		return nil
	})
	if err != nil || n < 1000 {
		t.Errorf("compared %d files, %v", n, err)
	}
}

func xattrs(t *testing.T, path string) map[string]string {
	t.Helper()
	m := map[string]string{}
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, name := range strings.Split(string(b[:n]), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			t.Fatalf("%s of %s: %v", name, path, err)
		}
		m[name] = string(v[:n])
	}
	return m
}

// sameFiles compares what a zip has of a tree.
func sameFiles(t *testing.T, want, got string) {
	t.Helper()
	err := filepath.WalkDir(want, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(want, p)
		if strings.ContainsAny(rel, "\\\n\t") || strings.Contains(rel, "\xe9\xff") {
			return nil // it has another name
		}
		a, err := os.Lstat(p)
		if err != nil {
			return err
		}
		b, err := os.Lstat(filepath.Join(got, rel))
		if err != nil {
			t.Error(err)
			return nil
		}
		// Unzip does not give away what makes programs run as others, and knows no
		// time behind 2038.
		if a.Mode().Type() != b.Mode().Type() || a.Mode().IsRegular() && (a.Mode().Perm() != b.Mode().Perm() || a.Size() != b.Size() ||
			a.ModTime().Unix() != b.ModTime().Unix() && a.ModTime().Unix() <= math.MaxInt32) {
			t.Errorf("%q: got %v %v %v, want %v %v %v", rel, b.Mode(), b.Size(), b.ModTime(), a.Mode(), a.Size(), a.ModTime())
		}
		if a.Mode().IsRegular() {
			x, xErr := os.ReadFile(p)
			y, yErr := os.ReadFile(filepath.Join(got, rel))
			if err := errors.Join(xErr, yErr); err != nil || !bytes.Equal(x, y) {
				t.Errorf("content of %q differs (%v)", rel, err)
			}
		}
		if a.Mode().Type() == fs.ModeSymlink {
			x, _ := os.Readlink(p)
			y, _ := os.Readlink(filepath.Join(got, rel))
			if x != y {
				t.Errorf("target of %q: got %q, want %q", rel, y, x)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
