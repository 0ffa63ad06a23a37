package ntfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/ntfs"
)

// mounted is how ntfs-3g shows streams.
const mounted = "streams_interface=xattr"

// ignoring is what a mount by ntfs-3g shows otherwise.
var ignoring = fstest.Ignoring{
	Owners: true, DirLinks: true, DirSizes: true, Allocated: true, XattrPrefixes: []string{"system.", "trusted.", "security."},
}

// without is what NTFS or ntfs-3g cannot do.
var without = fstest.Without{Special: true, ACLs: true, Owners: true, OddNames: true}

// made makes NTFS with the options of mkntfs, and has fill change it through a
// mount with options besides those of this test.
func made(t testing.TB, size int64, options, mountOptions string, fill func(dir string)) string {
	t.Helper()
	mkfs := append([]string{"mkntfs", "-F", "-Q", "-q"}, strings.Fields(options)...)
	image := fstest.Make(t, size, mkfs...)
	dir, unmount := fstest.Mount(t, image, "ntfs-3g", strings.Trim(mounted+","+mountOptions, ","))
	fill(dir)
	unmount()
	return image
}

// opened opens an image.
func opened(t testing.TB, image string) (fsys.FileSystem, fsys.Volume) {
	t.Helper()
	v := fstest.Open(t, image)
	f, err := ntfs.Open(v)
	if err != nil {
		t.Fatal(err)
	}
	return f, v
}

// agrees compares an image with a mount of it.
func agrees(t *testing.T, image, mountOptions string) {
	t.Helper()
	dir, _ := fstest.Mount(t, image, "ntfs-3g", strings.Trim("ro,"+mounted+","+mountOptions, ","))
	f, v := opened(t, image)
	if notes := f.Info().Notes; len(notes) > 0 {
		t.Errorf("notes: got %q, want none", notes)
	}
	n := fstest.Compare(t, f, v, dir, ignoring)
	t.Logf("%d entries", n)
	allocated(t, f, f.Root(), dir)
}

// allocated compares what files take. Of what lies in the MFT, ntfs-3g counts the
// bytes.
func allocated(t *testing.T, f fsys.FileSystem, id fsys.ID, path string) {
	t.Helper()
	err := f.ReadDir(id, func(e fsys.Entry) bool {
		at := filepath.Join(path, e.Name)
		a, err := f.Stat(e.ID)
		if err != nil {
			t.Errorf("stat %s: %v", at, err)
			return true
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			t.Fatal(err)
		}
		switch a.Mode.Type() {
		case fs.ModeDir:
			allocated(t, f, e.ID, at)
		case 0:
			if a.Allocated != st.Blocks*512 && (a.Allocated != 0 || st.Blocks > 8) {
				t.Errorf("allocated bytes of %s: got %d, want %d", at, a.Allocated, st.Blocks*512)
			}
		}
		return true
	})
	if err != nil {
		t.Errorf("read directory %s: %v", path, err)
	}
}

// odd makes names and files that only NTFS and POSIX can have.
func odd(t testing.TB, dir string) {
	t.Helper()
	dir = filepath.Join(dir, "odd")
	must(t, os.Mkdir(dir, 0o755))
	for _, name := range []string{
		"new\nline", "tab\t", `back\slash`, `dq"`, "star*", "trailing.", "trailing ", "pipe|", "<>?", "case", "CASE", "cAse",
		"ſ", "S", "ß", "ẞ", "K", "k", "İ", "i", "ı", "\u0345", "ÿ", "\ue000", "\uffff", "😀", "$MFT", "CON", "a:b",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReaderAgreesWithMount(t *testing.T) {
	for _, c := range []struct {
		name, options string
		large         int
	}{
		{"clusters of 4 KiB", "", 3000},
		{"clusters of 512 bytes", "-c 512", 3000},
		{"clusters of 64 KiB", "-c 65536", 500},
		{"clusters of 2 MiB", "-c 2097152", 500},
		{"records of 2 KiB", "-s 2048", 500},
		{"records of 4 KiB", "-s 4096", 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := made(t, 512<<20, c.options, "", func(dir string) {
				odd(t, dir)
				w := without
				w.Large = c.large
				fstest.Populate(t, dir, w)
			})
			agrees(t, image, "")
		})
	}
}

func TestAttributesThatTakeSeveralRecords(t *testing.T) {
	image := made(t, 256<<20, "", "", func(dir string) {
		b := make([]byte, 4096)
		f, err := os.Create(filepath.Join(dir, "pieces"))
		must(t, err)
		for i := range int64(5000) {
			copy(b, fmt.Sprintf("piece %d", i))
			_, err := f.WriteAt(b, 2*i*4096)
			must(t, err)
		}
		must(t, f.Close())
		one := filepath.Join(dir, "one name of many")
		must(t, os.WriteFile(one, []byte("of many names"), 0o644))
		for i := range 100 {
			must(t, os.Link(one, filepath.Join(dir, fmt.Sprintf("%s %d", strings.Repeat("n", 100), i))))
			must(t, unix.Setxattr(one, fmt.Sprintf("user.stream %d", i), []byte(strings.Repeat("s", 10*i)), 0))
		}
		must(t, unix.Setxattr(dir, "user.of the root", []byte("x"), 0))
	})
	agrees(t, image, "")
}

func TestAFragmentedMFTIsRead(t *testing.T) {
	image := made(t, 12<<20, "-c 512 -z 1", "", func(dir string) {
		// Every other cluster is taken, and then the records take what is left.
		n := fillUp(t, dir, "wall-%05d", 1500, 30000)
		for i := 0; i < n; i += 2 {
			must(t, os.Remove(filepath.Join(dir, fmt.Sprintf("wall-%05d", i))))
		}
		fillUp(t, dir, "small-%05d", 300, 10000)
	})
	if out := fstest.Run(t, "ntfsinfo", "-f", "-i", "0", image); strings.Count(out, "Dumping attribute $DATA") < 2 {
		t.Fatalf("the MFT is not fragmented:\n%s", out)
	}
	agrees(t, image, "")
}

// fillUp makes files of n bytes until there is no room, or as many as limit.
func fillUp(t testing.TB, dir, format string, n, limit int) int {
	t.Helper()
	b := []byte(strings.Repeat("x", n))
	for i := range limit {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprintf(format, i)), b, 0o644)
		if errors.Is(err, unix.ENOSPC) {
			return i
		}
		must(t, err)
	}
	return limit
}

func TestNamesAreLookedUpAsWindowsDoes(t *testing.T) {
	image := made(t, 64<<20, "", "", func(dir string) {
		for _, name := range []string{"Program Files", "ÄÖÜ.txt", "abc", "ABC", "Abc", "aBc", "abC", "ABc", "AbC", "aBC"} {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		}
		must(t, unix.Setxattr(filepath.Join(dir, "Program Files"), "system.ntfs_dos_name", []byte("PROGRA~1"), 0))
	})
	f, _ := opened(t, image)
	ids := map[string]fsys.ID{}
	must(t, f.ReadDir(f.Root(), func(e fsys.Entry) bool { ids[e.Name] = e.ID; return true }))
	if len(ids) != 10 {
		t.Errorf("the root directory: got %v, want 10 names: no short ones, none of the system's", ids)
	}
	for name, want := range map[string]string{
		"Program Files": "Program Files", "PROGRAM FILES": "Program Files", "progra~1": "Program Files", "äöü.TXT": "ÄÖÜ.txt",
		"abc": "abc", "ABC": "ABC", "Abc": "Abc", "aBc": "aBc", "abC": "abC", "ABc": "ABc", "AbC": "AbC", "aBC": "aBC",
	} {
		if id, err := f.Lookup(f.Root(), name); err != nil || id != ids[want] {
			t.Errorf("look up %q: got %d, %v, want %d, which is %q", name, id, err, ids[want], want)
		}
	}
	for _, name := range []string{"", ".", "$MFT", "$Extend", "Program", "abc ", "\xff", strings.Repeat("x", 256)} {
		if id, err := f.Lookup(f.Root(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("look up %q: got %d, %v, want fs.ErrNotExist", name, id, err)
		}
	}
	if a, err := f.Stat(ids["Program Files"]); err != nil || a.Links != 1 {
		t.Errorf("links of a file with a short name: got %d, %v, want 1", a.Links, err)
	}
}

func TestStreamsAreAttributesOrTold(t *testing.T) {
	image := made(t, 64<<20, "", "streams_interface=windows", func(dir string) {
		name := filepath.Join(dir, "file")
		must(t, os.WriteFile(name, []byte("content"), 0o644))
		must(t, os.WriteFile(name+":Zone.Identifier", []byte("[ZoneTransfer]\r\nZoneId=3\r\n"), 0o644))
		must(t, os.WriteFile(name+":most", make([]byte, 64<<10), 0o644))
		must(t, os.WriteFile(name+":more", make([]byte, 64<<10+1), 0o644))
	})
	f, _ := opened(t, image)
	id, err := f.Lookup(f.Root(), "file")
	must(t, err)
	list, err := f.Xattrs(id)
	must(t, err)
	got := map[string]int{}
	for _, x := range list {
		got[x.Name] = len(x.Value)
	}
	if len(got) != 3 || got["user.Zone.Identifier"] != 26 || got["user.most"] != 64<<10 || got["system.ntfs_attrib"] != 4 {
		t.Errorf("extended attributes: got %v", got)
	}
	a, err := f.Stat(id)
	if want := "stream more of 65537 bytes"; err != nil || !slices.Contains(a.Flags, want) {
		t.Errorf("flags: got %q, %v, want %q among them", a.Flags, err, want)
	}
}

func TestAttributesOfWindowsAreTheMounts(t *testing.T) {
	files := []struct {
		name       string
		attributes byte
		mode       fs.FileMode
		xattrs     int
	}{{"readonly", 0x1, 0o444, 2}, {"hidden", 0x2, 0o666, 1}, {"all", 0x27, 0o444, 1}, {"none", 0, 0o666, 1}, {"dir", 0x3, fs.ModeDir | 0o555, 1}}
	image := made(t, 64<<20, "", "", func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o755))
		for _, x := range files {
			name := filepath.Join(dir, x.name)
			if x.name != "dir" {
				must(t, os.WriteFile(name, nil, 0o644))
			}
			must(t, unix.Setxattr(name, "system.ntfs_attrib", []byte{x.attributes, 0, 0, 0}, 0))
		}
		ea := []byte("\x10\x00\x00\x00\x00\x02\x03\x00ab\x00xyz\x00\x00")
		must(t, unix.Setxattr(filepath.Join(dir, "readonly"), "system.ntfs_ea", ea, 0))
	})
	f, _ := opened(t, image)
	dir, _ := fstest.Mount(t, image, "ntfs-3g", "ro")
	xattr := func(file, name string) string {
		value := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(dir, file), name, value)
		must(t, err)
		return string(value[:n])
	}
	for _, x := range files {
		id, err := f.Lookup(f.Root(), x.name)
		must(t, err)
		a, err := f.Stat(id)
		if err != nil || a.Mode != x.mode {
			t.Errorf("mode of %s: got %v, %v, want %v", x.name, a.Mode, err, x.mode)
		}
		times := xattr(x.name, "system.ntfs_times")
		for i, got := range []time.Time{a.Created, a.Modified, a.Accessed, a.Changed} {
			if want := ntfs.TimeOf([]byte(times[8*i:])); !got.Equal(want) {
				t.Errorf("time %d of %s: got %v, want %v", i, x.name, got, want)
			}
		}
		list, err := f.Xattrs(id)
		if err != nil || len(list) != x.xattrs {
			t.Errorf("extended attributes of %s: got %q, %v, want %d", x.name, list, err, x.xattrs)
		}
		for _, g := range list {
			if want := xattr(x.name, g.Name); string(g.Value) != want {
				t.Errorf("%s of %s: got %x, want %x", g.Name, x.name, g.Value, want)
			}
		}
	}
}

// opener opens NTFS without a cache, so that what is read is what is needed.
func opener(v fsys.Volume) (fsys.FileSystem, error) {
	return ntfs.OpenWith(v, ntfs.Options{CacheBytes: -1})
}

func TestMain(m *testing.M) { fstest.Main(m) }
