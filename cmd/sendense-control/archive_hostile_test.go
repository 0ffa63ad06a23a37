package main_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// hostile fills a folder with names and links that lead to outside, a folder that
// nobody is to touch, if they are taken for something else than they are. Those
// ending in @ and a digit are changed in the image afterwards.
func hostile(t *testing.T, dir, outside string) {
	t.Helper()
	up := strings.Repeat("../", 30) + strings.TrimPrefix(outside, "/")
	for _, name := range []string{
		`h/..\..\owned`, `h/C:`, `h/C:\owned`, `h/\\server\owned`, "h/new\nline", "h/escape\x1b[2Jscreen", "h/latin-\xe9", "h/-rf", "h/--to-command=touch owned",
		"h/same", "h/same\x01", "h/.\x01./.\x01./.\x01./owned", "h/back\\slash", "h/back\uf05cslash", `h/\..\..\..\..\owned`, "h/sendense-remarks.txt",
		"h/under@1/..@owned", "h/under@1/good", "h/behind@2/owned", "h/before@1/owned", "h/aaa@2/owned", "h/a-side@2/owned", "h/zzz", "h/link-to-dir.d/file", "h/C:.d/file",
	} {
		put(t, strings.ReplaceAll(name, "@", "#"), dir, name)
	}
	for name, to := range map[string]string{
		"h/absolute": outside + "/owned", "h/relative": up + "/owned", "h/behind@1": outside, "h/before@2": outside, "h/aaa@1": up, "h/a-side@1": "../beside", "h/link-to-dir": "link-to-dir.d",
		"h/same\x02": outside, "h/dots": "../../..", "h/itself": "itself", "h/home": "~/../" + up, "h/C:\\link": outside,
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	// Another name of a link that leads outside, and of a file whose first one is left
	// out.
	for name, of := range map[string]string{"h/absolute-too": "h/absolute", "h/zlink": "h/behind@2/owned"} {
		if err := os.Link(filepath.Join(dir, of), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "h/pipe"), 0o666); err != nil {
		t.Fatal(err)
	}
}

// patch changes names in a new image of a file system without checksums.
func patch(t *testing.T, image string) {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"behind@1": "behind@@", "behind@2": "behind@@", "before@1": "before@@", "before@2": "before@@",
		"aaa@1": "aaa@@", "aaa@2": "aaa@@", "a-side@1": "a-side@@", "a-side@2": "a-side@@", "..@owned": "../owned"} {
		if n := bytes.Count(b, []byte(from)); n != 1 {
			t.Fatalf("%q is in the image %d times, want once", from, n)
		}
		b = bytes.Replace(b, []byte(from), []byte(to), 1)
	}
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// hostileSite is a site with a point of such a disk. What is copied or extracted is
// to lie some directories below a folder that is watched.
func hostileSite(t *testing.T) (s *clitest.Site, watched string) {
	t.Helper()
	requires.Root(t) // whom tools stop least
	watched = t.TempDir()
	outside := filepath.Join(watched, "outside")
	put(t, "untouched", outside, "untouched")
	dir := t.TempDir()
	hostile(t, dir, outside)
	s = clitest.NewSite(t, filepath.Dir(program))
	disk := fstest.Make(t, 64<<20, "mkfs.ext4", "-q", "-O", "^metadata_csum,^dir_index,^has_journal", "-d", dir)
	patch(t, disk)
	s.Good(s.Backup(s.Alone(), disk))
	return s, watched
}

func TestNothingInAPointMakesACopyLeadOutside(t *testing.T) {
	s, watched := hostileSite(t)
	in := filepath.Join(watched, "a", "b", "c")
	put(t, "untouched", in, "beside", "untouched")
	if err := os.Mkdir(filepath.Join(in, "h"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := listed(t, watched, filepath.Join(in, "h"))
	r := s.Control(s.Alone(), "cp web1 latest /h "+in)
	if after := listed(t, watched, filepath.Join(in, "h")); !slices.Equal(before, after) {
		t.Errorf("beside the copy: got %q, want %q\n%s", after, before, r.Stderr)
	}
	// What is harmless is there.
	for name, want := range map[string]string{"link-to-dir.d/file": "h/link-to-dir.d/file", "zzz": "h/zzz", "before@@/owned": "h/before#1/owned", "zlink": "h/behind#2/owned"} {
		if got, err := os.ReadFile(filepath.Join(in, "h", name)); string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	for _, want := range []string{`behind@@ is left out: something else`, `behind@@/owned is left out: the directory`, `a-side@@ is left out: something else`,
		`before@@ is left out: something else`, `some or all of what is in h/under@1 is left out: `, `pipe is left out: it is of type pipe`} {
		if r.Code != 5 || !strings.Contains(r.Stderr, want) {
			t.Errorf("got exit code %d, %s, want 5 and %q", r.Code, r.Stderr, want)
		}
	}
}

func TestNothingInAPointMakesAnArchiveLeadOutside(t *testing.T) {
	s, watched := hostileSite(t)
	for _, x := range []struct {
		format  string
		argv    []string
		givesUp bool // at the first link that leads outside
	}{
		{"tar", untar, false}, {"tar", bsduntar, false}, {"tar", pyuntar, false}, {"zip", unzip, false}, {"zip", pyunzip, false}, {"zip", bsduntar, false},
		// And with what keeps them from the worst switched off.
		{"tar", []string{"tar", "-xPf"}, false}, {"tar", []string{"bsdtar", "-xPpf"}, false}, {"zip", []string{"unzip", "-:", "-qo"}, false},
		{"zip", []string{"bsdtar", "-xPpf"}, false},
		{"tar", []string{"/usr/bin/python3", "-c", "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(filter='data')"}, true},
	} {
		t.Run(x.format+" with "+strings.Join(x.argv, " "), func(t *testing.T) {
			requires.Tool(t, x.argv[0])
			path, r := archived(t, s, s.Alone(), "cp --format "+x.format+" web1 latest /h -")
			if r.Code != 5 {
				t.Fatalf("cp: got exit code %d, want 5 for what is left out: %s", r.Code, r.Stderr)
			}
			in := filepath.Join(watched, "a", "b", "c")
			if err := os.MkdirAll(in, 0o700); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(filepath.Join(watched, "a"))
			before := listed(t, watched, in)
			said := extractIn(t, in, x.argv, path)
			if after := listed(t, watched, in); !slices.Equal(before, after) {
				t.Errorf("beside the archive: got %q, want %q\n%s", after, before, said)
			}
			if x.givesUp {
				return
			}
			// What is harmless is there.
			for name, want := range map[string]string{"h/link-to-dir.d/file": "h/link-to-dir.d/file", "h/zzz": "h/zzz", "h/before@@/owned": "h/before#1/owned",
				"h/zlink": "h/behind#2/owned"} {
				if got, err := os.ReadFile(filepath.Join(in, name)); string(got) != want {
					t.Errorf("%s: got %q, %v", name, got, err)
				}
			}
			if st, err := os.Lstat(filepath.Join(in, "h/behind@@")); err != nil || st.IsDir() {
				t.Errorf("of two entries with one name the first was a link: got %v, %v", st, err)
			}
			text, err := os.ReadFile(filepath.Join(in, "sendense-remarks.txt"))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{`left out: "h/behind@@": something else`, `left out: "h/behind@@/owned": the directory`, `left out: "h/aaa@@/owned"`,
				`left out: "h/before@@": something else`, `left out: some or all of what is in "h/under@1": `} {
				if !strings.Contains(string(text), want) {
					t.Errorf("remarks: got %s, want %q", text, want)
				}
			}
		})
	}
	// Topmost names are chosen by the guest, too.
	for _, x := range []struct {
		path, format, want string
	}{{`/h/C:`, "zip", "C\uf03a"}, {`/h/C:.d`, "zip", "C\uf03a.d/"}, {`/h/..\..\owned`, "zip", "..\uf05c..\uf05cowned"}, {`/h/sendense-remarks.txt`, "tar", "sendense-remarks.txt"}} {
		path, r := archived(t, s, s.Alone(), "cp --format "+x.format+" web1 latest "+x.path+" -")
		if out := clitest.Tool(t, "bsdtar", "-tf", path); r.Code != 0 || !strings.HasPrefix(out, x.want+"\n") {
			t.Errorf("%s: got %q, %+v", x.path, out, r.Stderr)
		}
	}
}

// extractIn runs a program in a folder; whether it succeeds is its own affair.
func extractIn(t *testing.T, in string, argv []string, path string) string {
	t.Helper()
	c := clitest.Start(t, "sh", append([]string{"-c", `cd "$0" && exec "$@" </dev/null`, in}, append(argv[:len(argv):len(argv)], path)...)...).Wait()
	return c.Stdout + c.Stderr
}

// listed tells what is below a folder but not in another one: names, types, owners,
// times and content.
func listed(t *testing.T, dir, but string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == but {
			return fs.SkipDir
		}
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		line := p + " " + st.Mode().String() + " " + st.ModTime().String()
		if st.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
