package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/archive"
	"github.com/sendense/sendense/internal/requires"
)

// content is zeroes of some size, but for what stands at some offsets.
type content struct {
	size  int64
	parts map[int64]string
	limit int64 // bytes that can be read; 0: all
}

func text(s string) *content { return &content{size: int64(len(s)), parts: map[int64]string{0: s}} }

var errBroken = errors.New("broken")

func (c *content) ReadAt(_ context.Context, p []byte, off int64) error {
	if c.limit > 0 && off+int64(len(p)) > c.limit {
		return errBroken
	}
	clear(p)
	for at, s := range c.parts {
		if at < off+int64(len(p)) && off < at+int64(len(s)) {
			copy(p[max(at-off, 0):], s[max(off-at, 0):])
		}
	}
	return nil
}

func (c *content) Data(_ context.Context, off int64) (from, to int64, err error) {
	from, to = c.size, c.size
	for at, s := range c.parts {
		if end := at + int64(len(s)); off < end && max(at, off) < from {
			from, to = max(at, off), end
		}
	}
	return from, to, nil
}

// file is an entry with its content.
type file struct {
	archive.Entry
	c archive.Content
}

func regular(name, s string) file {
	return file{archive.Entry{Name: name, Mode: 0o640, Size: int64(len(s)), Modified: time.Unix(1_000_000_000, 0)}, text(s)}
}

func dir(name string) file { return file{Entry: archive.Entry{Name: name, Mode: fs.ModeDir | 0o755}} }

func link(name, target string) file {
	return file{Entry: archive.Entry{Name: name, Mode: fs.ModeSymlink | 0o777, Target: target}}
}

// write makes an archive of files, in a file that it returns the path of.
func write(t testing.TB, f archive.Format, files ...file) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive."+string(f))
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := archive.New(out, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range files {
		if err := w.Add(t.Context(), &x.Entry, x.c); err != nil {
			t.Fatalf("add %q: %v", x.Name, err)
		}
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// extractors are programs that extract an archive into the current folder.
var extractors = []struct {
	name   string
	format archive.Format
	argv   []string
	exact  bool // owners, extended attributes, nanoseconds
	links  bool // makes symbolic links, and sets times
}{
	{"GNU tar", archive.Tar, []string{"tar", "--acls", "--xattrs", "--xattrs-include=*", "-xpf"}, true, true},
	{"bsdtar", archive.Tar, []string{"bsdtar", "-xpf"}, true, true},
	{"Python's tarfile", archive.Tar, []string{"/usr/bin/python3", "-c", "import sys, tarfile; tarfile.open(sys.argv[1]).extractall()"}, false, true},
	{"unzip", archive.Zip, []string{"unzip", "-q", "-X"}, false, true},
	{"bsdtar of a zip", archive.Zip, []string{"bsdtar", "-xpf"}, false, true},
	{"Python's zipfile", archive.Zip, []string{"/usr/bin/python3", "-c", "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall()"}, false, false},
}

// run runs a program in a folder.
func run(t testing.TB, in string, argv ...string) (string, error) {
	t.Helper()
	requires.Tool(t, argv[0])
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Dir, c.Env = in, append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	return string(out), err
}

// good is run of a program that has to succeed.
func good(t testing.TB, in string, argv ...string) string {
	t.Helper()
	out, err := run(t, in, argv...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return out
}

func TestToolsExtractWhatWentIn(t *testing.T) {
	requires.Root(t)
	at := time.Unix(1_600_000_000, 123456789)
	long := strings.Repeat("long", 60)
	common := []file{
		{Entry: archive.Entry{Name: "top", Mode: fs.ModeDir | fs.ModeSticky | 0o751, UID: 3_000_000, GID: 7, Modified: at}},
		{archive.Entry{Name: "top/Müller\t", Mode: 0o4755 & 0o777, UID: 5, GID: 4_000_000_000, Size: 5, Modified: at}, text("hello")},
		dir("top/" + long), regular("top/"+long+"/"+long, "deep"),
		{archive.Entry{Name: "top/old", Size: 1, Mode: 0o600, Modified: time.Date(1985, 1, 1, 0, 0, 0, 0, time.UTC)}, text("x")},
		{archive.Entry{Name: "top/sparse", Size: 3 << 20, Mode: 0o600, Modified: at}, &content{3 << 20, map[int64]string{1 << 20: "one", 2<<20 + 7: "two"}, 0}},
		link("top/to", "../"+long), regular("two", strings.Repeat("compresses ", 100_000)),
	}
	common[1].Mode |= fs.ModeSetuid
	acl := string([]byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
		16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255})
	full := append(common[:len(common):len(common)],
		dir("x"),
		file{archive.Entry{Name: "x/attributes", Size: 1, Mode: 0o644, Modified: at, Xattrs: []archive.Xattr{{Name: "user.a", Value: []byte("b\x00=\nc")}, {Name: "trusted.b"},
			{Name: aclAccess, Value: []byte(acl)}}}, text("x")},
		file{Entry: archive.Entry{Name: "x/disk", Mode: fs.ModeDevice | 0o600, Major: 259, Minor: 70000}},
		regular("x/latin-\xe9\xff\nline", "hello"),
		file{Entry: archive.Entry{Name: "x/linked", Mode: 0o640, Link: "x/latin-\xe9\xff\nline", Modified: time.Unix(1_000_000_000, 0)}},
		file{Entry: archive.Entry{Name: "x/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3}},
		file{Entry: archive.Entry{Name: "x/pipe", Mode: fs.ModeNamedPipe | 0o640}},
		link("x/to", "latin-\xe9"),
	)
	for _, x := range extractors {
		t.Run(x.name, func(t *testing.T) {
			files := common
			if x.format == archive.Tar {
				files = full
			}
			in := t.TempDir()
			if out := good(t, in, append(x.argv, write(t, x.format, files...))...); out != "" && !strings.Contains(out, "hdrcharset") {
				t.Errorf("it says: %s", out)
			}
			for _, f := range files {
				if name := strings.ReplaceAll(f.Name, "\t", "\uf009"); x.format == archive.Zip {
					f.Name = name
				}
				extracted(t, in, f, x.exact, x.links)
			}
			if x.exact {
				for name, want := range map[string]string{"user.a": "b\x00=\nc", "trusted.b": "", aclAccess: acl} {
					got := make([]byte, 100)
					n, err := unix.Getxattr(filepath.Join(in, "x/attributes"), name, got)
					if err != nil || string(got[:n]) != want {
						t.Errorf("%s: got %q (%v), want %q", name, got[:max(n, 0)], err, want)
					}
				}
			}
		})
	}
}

const aclAccess = "system.posix_acl_access"

// extracted compares an entry with what became of it.
func extracted(t *testing.T, in string, f file, exact, links bool) {
	t.Helper()
	var st, other unix.Stat_t
	path := filepath.Join(in, f.Name)
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("%q: %v", f.Name, err)
		return
	}
	if f.Link != "" {
		if err := unix.Lstat(filepath.Join(in, f.Link), &other); err != nil || other.Ino != st.Ino {
			t.Errorf("%q is no link of %q (%v)", f.Name, f.Link, err)
		}
		return
	}
	if f.Mode.Type() == fs.ModeSymlink {
		if !links {
			return
		}
		if got, err := os.Readlink(path); got != f.Target {
			t.Errorf("target of %q: got %q (%v), want %q", f.Name, got, err, f.Target)
		}
		return
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != f.Mode.Type() || exact && fi.Mode() != f.Mode {
		t.Errorf("%q: got %v (%v), want %v", f.Name, fi.Mode(), err, f.Mode)
	}
	if exact && (st.Uid != f.UID || st.Gid != f.GID || st.Rdev != unix.Mkdev(f.Major, f.Minor)) {
		t.Errorf("%q: got owners %d, %d and device %x, want %+v", f.Name, st.Uid, st.Gid, st.Rdev, f.Entry)
	}
	if got := time.Unix(st.Mtim.Unix()); !f.Modified.IsZero() && links && (got.Unix() != f.Modified.Unix() || exact && !got.Equal(f.Modified)) {
		t.Errorf("time of %q: got %v, want %v", f.Name, got, f.Modified)
	}
	if !f.Mode.IsRegular() {
		return
	}
	want := make([]byte, f.Size)
	err := f.c.ReadAt(t.Context(), want, 0)
	got, readErr := os.ReadFile(path)
	if err := errors.Join(err, readErr); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content of %q differs (%v)", f.Name, err)
	}
	if strings.HasSuffix(f.Name, "sparse") && exact && st.Blocks > 64 {
		t.Errorf("%q takes %d blocks: its holes were filled", f.Name, st.Blocks)
	}
}

func TestNothingOfAnArchiveIsBesideItsTree(t *testing.T) {
	for name, want := range map[string]error{
		"": archive.ErrName, "/etc": archive.ErrName, "..": archive.ErrName, "a/..": archive.ErrName, "a/../b": archive.ErrName, "./a": archive.ErrName,
		"a//b": archive.ErrName, "a/": archive.ErrName, "a\x00b": archive.ErrName, "a": archive.ErrOrder, "a/link/passwd": archive.ErrParent,
		"a/file/x": archive.ErrParent, "b/x": archive.ErrParent, "a/a": archive.ErrOrder, "a/link": archive.ErrOrder, "a/d/y": archive.ErrParent,
		"a/zz": nil, "c": nil, "a/zz\\..\\..\\x": nil,
	} {
		for _, f := range []archive.Format{archive.Tar, archive.Zip} {
			w, err := archive.New(io.Discard, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range []file{dir("a"), dir("a/d"), regular("a/d/x", "x"), regular("a/file", "x"), link("a/link", "/etc")} {
				if err := w.Add(t.Context(), &x.Entry, x.c); err != nil {
					t.Fatal(err)
				}
			}
			x := regular(name, "x")
			err = w.Add(t.Context(), &x.Entry, x.c)
			var refused *archive.RefusedError
			if !errors.Is(err, want) || errors.As(err, &refused) != (want != nil) {
				t.Errorf("%s, %q: got %v, want %v", f, name, err, want)
			}
			if err := w.Close(); err != nil {
				t.Errorf("%s: end after %q: %v", f, name, err)
			}
		}
	}
}

func TestWhatIsBelowALeftOutDirectoryIsLeftOut(t *testing.T) {
	w, err := archive.New(io.Discard, archive.Tar)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		file
		want error
	}{{dir("a"), nil}, {dir("a/b"), nil}, {regular("a/b/a", ""), nil}, {dir("a/b"), archive.ErrOrder}, {regular("a/b/z", ""), archive.ErrParent},
		{dir("a/b/zz"), archive.ErrParent}, {regular("a/b/zz/x", ""), archive.ErrParent}, {regular("a/b2", ""), nil}, {regular("d", ""), nil}} {
		if err := w.Add(t.Context(), &x.Entry, x.c); !errors.Is(err, x.want) {
			t.Errorf("%s: got %v, want %v", x.Name, err, x.want)
		}
	}
}

func TestNothingLeadsOutsideWhereLettersHaveNoCase(t *testing.T) {
	entries := []struct {
		file
		refused error
	}{
		{dir("d"), nil}, {link("d/HEAD", "elsewhere"), nil}, {link("d/Mail", "elsewhere"), nil}, {link("d/PLAIN", "/x"), nil}, {regular("d/head", "x"), nil},
		{link("d/mail", "elsewhere"), nil}, {dir("d/mAIL"), archive.ErrOrder}, {dir("d/plain"), archive.ErrAlias}, {regular("d/plain/owned", "x"), archive.ErrParent},
		{dir("d/q"), nil}, {dir("d/q/PLAIN"), nil}, {dir("d/q/Plain"), nil}, {link("d/q/plain", "/x"), archive.ErrAlias}, {dir("d/q/x"), nil},
		{link("d/stra\u00dfe", "/x"), nil}, {dir("d/strasse"), archive.ErrOrder}, {dir("d/stra\u1e9ee"), archive.ErrAlias},
		{dir("d/v\u00e9"), nil}, {link("d/w\u0301", "/x"), nil}, {dir("d/\u1e83"), archive.ErrAlias},
		{dir("d/\u212a"), nil}, {link("d/\xe9", "/x"), nil}, {dir("d/\xea"), nil},
		{link("top", "/x"), nil}, {dir("Top"), archive.ErrAlias}, {regular("Top/owned", "x"), archive.ErrParent}, {dir("other"), nil}, {link("Other", "/x"), archive.ErrAlias},
		{dir("v"), nil}, {link("v/\u200ba", "/x"), nil}, {dir("v/\u200da"), archive.ErrAlias},
	}
	for _, f := range []archive.Format{archive.Tar, archive.Zip} {
		w, err := archive.New(io.Discard, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			one := e.Entry
			if err := w.Add(t.Context(), &one, e.c); !errors.Is(err, e.refused) {
				t.Errorf("%s: %q: got %v, want %v", f, e.Name, err, e.refused)
			}
		}
	}
}

func TestLinksAmongTooManyNamesAreLeftOut(t *testing.T) {
	w, err := archive.New(io.Discard, archive.Tar)
	if err != nil {
		t.Fatal(err)
	}
	add := func(f file) error { return w.Add(t.Context(), &f.Entry, f.c) }
	if err := add(dir("d")); err != nil {
		t.Fatal(err)
	}
	for i := range 1 << 20 {
		if err := add(dir(fmt.Sprintf("d/%07d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(link("d/link", "/x")); !errors.Is(err, archive.ErrAliases) {
		t.Errorf("a link beside them: got %v, want %v", err, archive.ErrAliases)
	}
	for _, f := range []file{dir("d/more"), dir("f"), link("f/link", "/x")} {
		if err := add(f); err != nil {
			t.Errorf("%s: got %v", f.Name, err)
		}
	}
}

func TestAFileThatCannotBeReadIsLeftOut(t *testing.T) {
	for _, f := range []archive.Format{archive.Tar, archive.Zip} {
		var b bytes.Buffer
		w, err := archive.New(&b, f)
		if err != nil {
			t.Fatal(err)
		}
		bad := file{archive.Entry{Name: "a", Size: 10}, &content{10, map[int64]string{0: "0123456789"}, 5}}
		var refused *archive.RefusedError
		if err := w.Add(t.Context(), &bad.Entry, bad.c); !errors.As(err, &refused) || !errors.Is(err, errBroken) || b.Len() > 0 {
			t.Errorf("%s: got %v and %d bytes, want that it is refused, and nothing", f, err, b.Len())
		}
		if err := w.Close(); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestAFileThatBreaksOffEndsTheArchive(t *testing.T) {
	for f, test := range map[archive.Format][]string{archive.Tar: {"tar", "-tf"}, archive.Zip: {"unzip", "-tq"}} {
		path := filepath.Join(t.TempDir(), "broken")
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := archive.New(out, f)
		if err != nil {
			t.Fatal(err)
		}
		bad := file{archive.Entry{Name: "a", Size: 3 << 20}, &content{3 << 20, map[int64]string{0: strings.Repeat("x", 3<<20)}, 2 << 20}}
		for _, x := range []file{bad, regular("b", "x")} {
			if err := w.Add(t.Context(), &x.Entry, x.c); !errors.Is(err, errBroken) {
				t.Errorf("%s, %s: got %v, want %v", f, x.Name, err, errBroken)
			}
		}
		if err := w.Close(); !errors.Is(err, errBroken) {
			t.Errorf("%s: close: got %v, want %v", f, err, errBroken)
		}
		out.Close()
		if out, err := run(t, t.TempDir(), append(test, path)...); err == nil {
			t.Errorf("%s takes it for an archive: %s", test[0], out)
		}
	}
}
