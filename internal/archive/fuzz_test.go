package archive_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sendense/sendense/internal/archive"
)

// FuzzNames writes entries with any names in any order, and reads what came of it
// with Go's own readers: a tree of names, each once, below directories only.
func FuzzNames(f *testing.F) {
	f.Add([]byte("da\xfefa/b\xfela/c\xfefa/c/passwd\xfeda/c\xfefa/c/x\xfel..\xfef../x\xfef/etc/passwd\xfefC:\\x\xfef\\\\x\xfeda/\\..\\.."))
	f.Add([]byte("da\xfeha/x\xfeda/a\xfefa/a/a\xfela/b\xfeda/b\xfefa/b/c\xfef\xff\xfefa\x00b\xfef\uf05c\xfef\\\xfefC:\xfefC\uf03a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, format := range []archive.Format{archive.Tar, archive.Zip} {
			var out bytes.Buffer
			w, err := archive.New(&out, format)
			if err != nil {
				t.Fatal(err)
			}
			written := map[string]bool{}
			for one := range bytes.SplitSeq(b, []byte{0xfe}) {
				if len(one) == 0 {
					continue
				}
				e := archive.Entry{Name: string(one[1:])}
				var c archive.Content
				switch one[0] {
				case 'd':
					e.Mode = fs.ModeDir
				case 'l':
					e.Mode, e.Target = fs.ModeSymlink, "../../../etc"
				case 'h':
					e.Link = "a"
				default:
					e.Size, c = int64(len(e.Name)), text(e.Name)
				}
				var refused *archive.RefusedError
				switch err := w.Add(t.Context(), &e, c); {
				case err == nil:
					written[e.Name] = true
				case !errors.As(err, &refused):
					t.Fatalf("add %q: %v", e.Name, err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			var got map[string]bool
			if format == archive.Tar {
				got = readTar(t, &out)
			} else {
				got = readZip(t, out.Bytes())
			}
			if len(got) != len(written) {
				t.Errorf("%s: got %v, want %v", format, got, written)
			}
		}
	})
}

func readTar(t *testing.T, r io.Reader) map[string]bool {
	names := map[string]bool{}
	for x := tar.NewReader(r); ; {
		h, err := x.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		below(t, names, h.Name, h.Typeflag == tar.TypeDir)
		if b, err := io.ReadAll(x); err != nil || h.Typeflag == tar.TypeReg && string(b) != h.Name {
			t.Errorf("content of %q: got %q, %v", h.Name, b, err)
		}
	}
}

var drive = regexp.MustCompile(`(^|/)[a-zA-Z]:`)

func readZip(t *testing.T, b []byte) map[string]bool {
	names := map[string]bool{}
	if len(b) == 22 { // an empty one
		return names
	}
	r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		below(t, names, f.Name, f.Mode().IsDir())
		if !utf8.ValidString(f.Name) || strings.ContainsAny(f.Name, "\\\x00\n\x1b") || drive.MatchString(f.Name) {
			t.Errorf("name %q means something else somewhere", f.Name)
		}
		c, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("content of %q: %v", f.Name, err)
		}
	}
	return names
}

// below checks that a name is below directories that are there, and new.
func below(t *testing.T, names map[string]bool, name string, isDir bool) {
	t.Helper()
	name = strings.TrimSuffix(name, "/")
	if _, twice := names[name]; twice || !filepath.IsLocal(name) || path.Clean(name) != name {
		t.Errorf("name %q (there before: %v)", name, twice)
	}
	for up := path.Dir(name); up != "."; up = path.Dir(up) {
		if !names[up] {
			t.Errorf("%q is below %q, which is no directory", name, up)
		}
	}
	names[name] = isDir
}

func FuzzACLs(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 32, 0, 4, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		text, ok := archive.ACLText(b)
		if !ok {
			return
		}
		entries := strings.Split(text, ",")
		for _, e := range entries {
			if parts := strings.Split(e, ":"); len(b) > 4 && (len(parts) != 3 || len(parts[2]) != 3) {
				t.Errorf("entry %q of %x", e, b)
			}
		}
		if n := (len(b) - 4) / 8; n > 0 && len(entries) != n {
			t.Errorf("%q: got %d entries, want %d", text, len(entries), n)
		}
	})
}
