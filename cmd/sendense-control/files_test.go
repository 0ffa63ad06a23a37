package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// filesSite is a site with two points of a disk that holds an ext4. It returns
// mounts of what each held.
func filesSite(t *testing.T) (s *clitest.Site, states [2]string) {
	t.Helper()
	s = clitest.NewSite(t, filepath.Dir(program))
	disk := fstest.Filled(t, 256<<20, "ext4", func(dir string) {
		fstest.Populate(t, dir, fstest.Without{Large: 1500})
		put(t, "one", dir, "etc/motd")
		put(t, "gone", dir, "etc/old")
		for name, to := range map[string]string{"escape": "../../../../../../../../etc", "absolute": "/etc/passwd", "motd": "etc/motd"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}, "mkfs.ext4", "-q", "-b", "4096")
	for i := range states {
		if i == 1 {
			dir, unmount := fstest.Mount(t, disk, "ext4", "")
			put(t, "two, and longer", dir, "etc/motd")
			put(t, "new", dir, "etc/new")
			if err := os.Remove(filepath.Join(dir, "etc/old")); err != nil {
				t.Fatal(err)
			}
			unmount()
		}
		if r := s.Backup(s.Alone(), disk); r.Code != 0 {
			t.Fatalf("backup: %+v", r)
		}
		held := filepath.Join(t.TempDir(), "held.img")
		fstest.Run(t, "cp", "--sparse=always", disk, held)
		states[i], _ = fstest.Mount(t, held, "ext4", "ro")
	}
	return s, states
}

func put(t *testing.T, content string, name ...string) {
	t.Helper()
	p := filepath.Join(name...)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o640)); err != nil {
		t.Fatal(err)
	}
}

func TestFilesInsideOfPoints(t *testing.T) {
	s, states := filesSite(t)
	for _, mode := range []string{"alone", "with a control plane"} {
		flags := s.Alone()
		if mode != "alone" {
			s.Daemon()
			flags = s.Via()
		}
		t.Run(mode, func(t *testing.T) {
			s := *s
			s.T = t
			for line, want := range map[string]string{
				"cat web1 latest /etc/motd": "two, and longer", "cat web1 latest~1 /etc/motd": "one", "cat web1 latest disk-0/fs/motd": "two, and longer",
				"cat web1 latest --verified /motd": "two, and longer",
				"ls web1 latest~1 /etc":            "motd\nold\n", "ls web1 latest /etc/": "motd\nnew\n",
				"find web1 latest /etc --name n*":               "new\n",
				"find web1 latest / --larger 5M":                "sizes/5242883\nsparse/far\n",
				"diff web1 latest~1 latest /etc":                "C motd\nA new\nR old\n",
				"diff web1 latest~1 latest":                     "C etc/motd\nA etc/new\nR etc/old\n",
				"diff web1 latest~1 latest disk-0/fs":           "C etc/motd\nA etc/new\nR etc/old\n",
				"find web1 latest /names --type d -i --name A*": "a.dir\n",
			} {
				if r := s.Control(flags, line); r.Code != 0 || r.Stdout != want || r.Stderr != "" {
					t.Errorf("%s: got %+v, want %q", line, r, want)
				}
			}
			if r := s.Control(flags, "find web1 --name motd"); r.Code != 0 || strings.Count(r.Stdout, "  etc/motd\n") != 2 || strings.Count(r.Stdout, "\n") != 4 {
				t.Errorf("find in all points: got %+v", r)
			}
			if r := s.Control(flags, "ls web1 latest"); r.Code != 0 || !strings.Contains(r.Stdout, "disk-0/fs") || !strings.Contains(r.Stdout, "ext4") {
				t.Errorf("ls without a path: got %+v", r)
			}
			if r := s.Control(flags, "ls -l web1 latest /names"); r.Code != 0 || !strings.Contains(r.Stdout, `"new\nline"`) || strings.Contains(r.Stdout, "new\nline") {
				t.Errorf("a name with a newline is not quoted: %+v", r)
			}
			versions(t, &s, flags)
			copies(t, &s, flags, states)
		})
	}
}

func versions(t *testing.T, s *clitest.Site, flags []string) {
	t.Helper()
	for path, want := range map[string][]int64{"/etc/motd": {3, 15}, "/etc/new": {-1, 3}, "/etc/old": {4, -1}, "/sizes/100": {100}} {
		r := s.Control(flags, "versions --json web1 "+path)
		var list []appliance.FileVersion
		if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil || r.Code != 0 {
			t.Fatalf("versions: %v, %+v", err, r)
		}
		var got []int64
		for _, v := range list {
			size := int64(-1)
			if v.File != nil {
				size = v.File.Size
			}
			got = append(got, size)
		}
		if !equalInts(got, want) {
			t.Errorf("sizes of the versions of %s: got %v, want %v", path, got, want)
		}
	}
}

func equalInts(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// copies copies both points out and compares them with what the disk held.
func copies(t *testing.T, s *clitest.Site, flags []string, states [2]string) {
	t.Helper()
	for i, point := range []string{"latest~1", "latest"} {
		out := t.TempDir()
		r := s.Control(flags, "cp --json web1 "+point+" / "+out+"/copy")
		if r.Code != 0 {
			t.Fatalf("cp: %+v", r)
		}
		sameTrees(t, states[i], filepath.Join(out, "copy"))
	}
	out := t.TempDir()
	if r := s.Control(flags, "cp web1 latest /etc /sizes/4097 "+out); r.Code != 0 {
		t.Errorf("cp of several: %+v", r)
	}
	for _, name := range []string{"etc/motd", "4097"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
}

// sameTrees compares what the kernel shows of two trees, but for special files,
// which the copy has not.
func sameTrees(t *testing.T, want, got string) {
	t.Helper()
	n, inodes := 0, map[uint64]uint64{}
	err := filepath.WalkDir(want, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == want { // the topmost has to be somewhere else
			return err
		}
		rel, _ := filepath.Rel(want, p)
		var a, b unix.Stat_t
		if err := unix.Lstat(p, &a); err != nil {
			return err
		}
		if err := unix.Lstat(filepath.Join(got, rel), &b); err != nil {
			if a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Mode&unix.S_IFMT != unix.S_IFREG && a.Mode&unix.S_IFMT != unix.S_IFLNK {
				return nil
			}
			t.Errorf("%q: %v", rel, err)
			return nil
		}
		n++
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mode&unix.S_IFMT != unix.S_IFDIR && (a.Size != b.Size || a.Nlink != b.Nlink) {
			t.Errorf("%q: got %+v, want %+v", rel, b, a)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFLNK && a.Mtim != b.Mtim {
			t.Errorf("time of %q: got %v, want %v", rel, b.Mtim, a.Mtim)
		}
		if other, ok := inodes[a.Ino]; ok && other != b.Ino {
			t.Errorf("%q is no hard link any more", rel)
		}
		inodes[a.Ino] = b.Ino
		return sameContent(t, p, filepath.Join(got, rel), &a, &b)
	})
	if err != nil || n < 30 {
		t.Errorf("compared %d files, %v", n, err)
	}
}

func sameContent(t *testing.T, want, got string, a, b *unix.Stat_t) error {
	t.Helper()
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		x, xErr := os.Readlink(want)
		y, yErr := os.Readlink(got)
		if x != y {
			t.Errorf("target of %q: got %q, want %q", got, y, x)
		}
		return errors.Join(xErr, yErr)
	case unix.S_IFREG:
		x, xErr := os.ReadFile(want)
		y, yErr := os.ReadFile(got)
		if !bytes.Equal(x, y) {
			t.Errorf("content of %q differs", got)
		}
		if b.Blocks > a.Blocks+64 {
			t.Errorf("%q takes %d blocks, not %d: holes were filled", got, b.Blocks, a.Blocks)
		}
		return errors.Join(xErr, yErr)
	}
	return nil
}

func TestFilesOfAnyAgeAreThere(t *testing.T) {
	s := clitest.NewSite(t, filepath.Dir(program))
	disk := fstest.Filled(t, 256<<20, "btrfs", func(dir string) {
		for name, at := range map[string]int64{"first": math.MinInt64, "old": -70_000_000_000, "now": 1_700_000_000, "later": 300_000_000_000, "last": math.MaxInt64} {
			put(t, name, dir, name)
			ts := unix.Timespec{Sec: at}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), []unix.Timespec{ts, ts}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}, "mkfs.btrfs", "-q", "-f")
	s.Good(s.Backup(s.Alone(), disk))
	dest := t.TempDir()
	for line, want := range map[string]string{"ls web1 latest /": "first\nlast\nlater\nnow\nold\n", "find web1 latest / --type f": "first\nlast\nlater\nnow\nold\n",
		"diff web1 latest latest /": "", "cp web1 latest / " + dest: "copied 6 files, 20 B\n"} {
		if r := s.Control(s.Alone(), line); r.Code != 0 || r.Stdout != want {
			t.Errorf("%s: got %+v, want %q", line, r, want)
		}
	}
	for _, format := range []string{"tar", "zip"} {
		path, r := archived(t, s, s.Alone(), "cp web1 latest / - --format "+format)
		if n := strings.Count(clitest.Tool(t, "bsdtar", "-tf", path), "\n"); r.Code != 0 || n != 6 {
			t.Errorf("%s: got %d entries, %s, want 6", format, n, r.Stderr)
		}
	}
}

func TestMountShowsPoints(t *testing.T) {
	s, states := filesSite(t)
	for _, mode := range []string{"alone", "with a control plane"} {
		flags := s.Alone()
		if mode != "alone" {
			s.Daemon()
			flags = s.Via()
		}
		t.Run(mode, func(t *testing.T) {
			s := *s
			s.T = t
			dir := t.TempDir()
			if r := s.Control(flags, "mount "+dir); r.Code != 0 {
				t.Fatalf("mount: %+v", r)
			}
			t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
			points, err := os.ReadDir(filepath.Join(dir, "web1"))
			if err != nil || len(points) != 2 {
				t.Fatalf("points: got %v, %v", points, err)
			}
			for i, p := range points {
				files := filepath.Join(dir, "web1", p.Name(), "files")
				sameTrees(t, states[i], files)
				sameTrees(t, filepath.Join(states[i], "names"), filepath.Join(dir, "web1", p.Name(), "disk-0/fs/names"))
			}
			if r := s.Control(flags, "mount "+dir); r.Code == 0 {
				t.Errorf("a second mount at the same place: %+v", r)
			}
			if r := s.Control(flags, "unmount "+dir); r.Code != 0 {
				t.Errorf("unmount: %+v", r)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
				t.Errorf("after unmount: got %v, %v", list, err)
			}
			if r := s.Control(flags, "unmount "+dir); r.Code != 3 || !strings.Contains(r.Stderr, "hint: ") {
				t.Errorf("unmount of nothing: %+v", r)
			}
		})
	}
}

func TestWrongPathsNameTheNearest(t *testing.T) {
	s, _ := filesSite(t)
	for line, says := range map[string]string{
		"ls web1 latest /etc/none/at/all": "The nearest that exists is /etc.", "cat web1 latest /etc": "of type dir", "ls web1 latest disk-7": "There is no disk-7",
		"cat web1 latest /etc/motd/x": "The nearest that exists is /etc/motd.", "find web1 latest / --name [": "no pattern", "diff web1 latest latest~9": "none is latest~9",
		"find web1 latest / --after yesterday": "--after", "cp web1 latest /etc /sizes " + filepath.Join(s.Dir, "none"): "is no directory",
	} {
		if r := s.Control(s.Alone(), line); r.Code == 0 || !strings.Contains(r.Stderr, says) || !strings.Contains(r.Stderr, "hint: ") {
			t.Errorf("%s: got %+v, want it to say %q", line, r, says)
		}
	}
}
