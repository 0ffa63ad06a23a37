package fusemount_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/fusemount"
	"golang.org/x/sys/unix"
)

func TestAttributesAreShownAsTheyAre(t *testing.T) {
	early := time.Date(1931, 2, 3, 4, 5, 6, 789, time.UTC)
	late := time.Date(2446, 5, 10, 22, 38, 55, 999999999, time.UTC)
	doc := newDocument(blocktest.NewMemory(1000))
	doc.attr = fusemount.Attr{
		ID: fusemount.ID{Inode: 4711}, Mode: 0o640 | fs.ModeSetuid | fs.ModeSetgid, UID: 1234, GID: 4294967294,
		Links: 3, Size: 1000, Allocated: 3 * 512, Modified: early, Changed: late, Accessed: time.Unix(1, 2), Created: time.Unix(77, 88),
	}
	dir := newFolder()
	dir.attr.Mode = fs.ModeDir | fs.ModeSticky | 0o777
	dir.attr.Links = 7
	block := &thing{attr: fusemount.Attr{Mode: fs.ModeDevice | 0o660, DevMajor: 259, DevMinor: 70000}}
	char := &thing{attr: fusemount.Attr{Mode: fs.ModeDevice | fs.ModeCharDevice, DevMajor: 1, DevMinor: 3}}
	fifo := &thing{attr: fusemount.Attr{Mode: fs.ModeNamedPipe | 0o600, Modified: late}}
	sock := &thing{attr: fusemount.Attr{Mode: fs.ModeSocket | 0o755}}
	root := newFolder()
	for name, n := range map[string]fusemount.Node{
		"doc": doc, "dir": dir, "block": block, "char": char, "fifo": fifo, "sock": sock, "link": newLink("doc"),
	} {
		root.add(name, n)
	}
	m := show(t, root, fusemount.Options{})
	for _, list := range []bool{false, true} { // as found by name, and as listed
		if list {
			m = show(t, root, fusemount.Options{})
			if _, err := os.ReadDir(m.dir); err != nil {
				t.Fatal(err)
			}
		}
		for name, want := range map[string]unix.Stat_t{
			"doc": {
				Ino: 4711, Mode: unix.S_IFREG | 0o6640, Nlink: 3, Uid: 1234, Gid: 4294967294, Size: 1000, Blocks: 3,
				Mtim: timespec(early), Ctim: timespec(late), Atim: timespec(time.Unix(1, 2)),
			},
			"dir":   {Mode: unix.S_IFDIR | 0o1777, Nlink: 7},
			"block": {Mode: unix.S_IFBLK | 0o660, Nlink: 1, Rdev: unix.Mkdev(259, 70000)},
			"char":  {Mode: unix.S_IFCHR, Nlink: 1, Rdev: unix.Mkdev(1, 3)},
			"fifo":  {Mode: unix.S_IFIFO | 0o600, Nlink: 1, Mtim: timespec(late), Ctim: timespec(late), Atim: timespec(late)},
			"sock":  {Mode: unix.S_IFSOCK | 0o755, Nlink: 1},
			"link":  {Mode: unix.S_IFLNK | 0o777, Nlink: 1, Size: 3},
		} {
			got := lstat(t, m.dir+"/"+name)
			want.Dev, want.Blksize = got.Dev, 4096
			if want.Ino == 0 {
				want.Ino = got.Ino
			}
			if got != want {
				t.Errorf("%s (listed %v):\ngot  %+v\nwant %+v", name, list, got, want)
			}
		}
	}
	var sx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.dir+"/doc", 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &sx); err != nil {
		t.Fatal(err)
	}
	if sx.Mask&unix.STATX_BTIME == 0 || sx.Btime.Sec != 77 || sx.Btime.Nsec != 88 || sx.Mtime.Sec != early.Unix() {
		t.Errorf("time of birth: got mask %x, %+v, want 77.88", sx.Mask, sx.Btime)
	}
	if _, err := os.Open(m.dir + "/char"); !errors.Is(err, unix.EACCES) {
		t.Errorf("open a device: got %v, want EACCES", err)
	}
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

func TestExtendedAttributes(t *testing.T) {
	doc := newDocument(blocktest.NewMemory(10))
	large := []byte(strings.Repeat("0123456789abcdef", 4096)) // 64 KiB, the kernel's limit
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
	doc.xattrs = []fusemount.Xattr{
		{"user.comment", []byte("hello")},
		{"user.empty", nil},
		{"user.large", large},
		{"user.\xff\xfe", []byte{0, 1, 255}},
		{"security.selinux", []byte("system_u:object_r:etc_t:s0\x00")},
		{"trusted.overlay.opaque", []byte("y")},
		{"system.posix_acl_access", acl},
		{"user." + strings.Repeat("n", 300), nil}, // not listed
		{"", nil},
	}
	root := newFolder()
	root.add("doc", doc)
	root.add("plain", newFolder())
	m := show(t, root, fusemount.Options{})
	buf := make([]byte, 1<<17)
	n, err := unix.Llistxattr(m.dir+"/doc", buf)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	want := []string{"user.comment", "user.empty", "user.large", "user.\xff\xfe", "security.selinux", "trusted.overlay.opaque", "system.posix_acl_access"}
	if !slices.Equal(got, want) {
		t.Errorf("names: got %q, want %q", got, want)
	}
	for _, x := range doc.xattrs[:7] {
		size, err := unix.Lgetxattr(m.dir+"/doc", x.Name, nil)
		if err != nil || size != len(x.Value) {
			t.Errorf("size of %q: got %d, %v, want %d", x.Name, size, err, len(x.Value))
		}
		n, err := unix.Lgetxattr(m.dir+"/doc", x.Name, buf)
		if err != nil || string(buf[:n]) != string(x.Value) {
			t.Errorf("%q: got %d bytes, %v, want %d", x.Name, n, err, len(x.Value))
		}
	}
	if _, err := unix.Lgetxattr(m.dir+"/doc", "user.comment", buf[:2]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("a short buffer: got %v, want ERANGE", err)
	}
	for _, name := range []string{"doc", "plain"} {
		if _, err := unix.Lgetxattr(m.dir+"/"+name, "user.none", buf); !errors.Is(err, unix.ENODATA) {
			t.Errorf("no such attribute of %s: got %v, want ENODATA", name, err)
		}
	}
	if n, err := unix.Llistxattr(m.dir+"/plain", buf); n != 0 || err != nil {
		t.Errorf("list of none: got %d, %v", n, err)
	}
	off := show(t, root, fusemount.Options{NoXattrs: true})
	if _, err := unix.Lgetxattr(off.dir+"/doc", "user.comment", buf); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("without extended attributes: got %v, want EOPNOTSUPP", err)
	}
}

func TestLinksAreShownAndNeverFollowed(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, sub := newFolder(), newFolder()
	doc := newDocument(blocktest.NewMemory(10))
	root.add("sub", sub)
	root.add("doc", doc)
	targets := []string{
		secret, "/", "..", "../../../../../../../../.." + secret, "doc", "../doc", "./loop", "sub/../doc",
		"\xff\xfe", strings.Repeat("x", 4000), "not\nthere",
	}
	for i, target := range targets {
		sub.add(fmt.Sprint("link", i), newLink(target))
	}
	m := show(t, root, fusemount.Options{})
	for i, target := range targets {
		got, err := os.Readlink(fmt.Sprintf("%s/sub/link%d", m.dir, i))
		if err != nil || got != target {
			t.Errorf("link %d: got %q, %v, want %q", i, got, err, target)
		}
	}
	if _, looked := sub.counts(); looked != len(targets) {
		t.Errorf("lookups in the folder of links: got %d, want one for each", looked)
	}
	if _, looked := root.counts(); looked != 1 {
		t.Errorf("lookups in the root: got %d, want 1, for the folder", looked)
	}
	if doc.opened.Load() != 0 {
		t.Error("a file was opened that only links led to")
	}
	// Who follows is the reader's kernel, to what the reader may see.
	if b, err := os.ReadFile(m.dir + "/sub/link0"); err != nil || string(b) != "of the host" {
		t.Errorf("following: got %q, %v", b, err)
	}
	if b, err := os.ReadFile(m.dir + "/sub/link5"); err != nil || len(b) != 10 {
		t.Errorf("following inside: got %q, %v", b, err)
	}
}

func TestNamesAreBytes(t *testing.T) {
	good := []string{
		"a", " ", "\n", "\xff\xfe\xfd", "caf\xe9", "日本語", "e\u0301", "\\134", "..a", "...", strings.Repeat("n", 255),
		strings.Repeat("ü", 150), strings.Repeat("z", 1024), "-rf", "con:stream", "\x01",
	}
	bad := []string{"", ".", "..", "a/b", "/", "x\x00y", strings.Repeat("n", 1025)}
	root := newFolder()
	for i, name := range append(slices.Clone(good), bad...) {
		d := newDocument(blocktest.NewMemory(int64(i + 1)))
		root.add(name, d)
	}
	var j journal
	m := show(t, root, fusemount.Options{Log: j.log()})
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(good))
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for i, name := range good {
		var st unix.Stat_t
		if err := unix.Lstat(m.dir+"/"+name, &st); err != nil || st.Size != int64(i+1) {
			t.Errorf("%q: got %d bytes, %v, want %d", name, st.Size, err, i+1)
		}
	}
	if n := strings.Count(j.String(), "cannot be shown"); n != len(bad) {
		t.Errorf("names that cannot be shown: %d were logged, want %d:\n%s", n, len(bad), &j)
	}
}

func TestTwoNamesOfOneFileAreOneInode(t *testing.T) {
	doc := newDocument(blocktest.NewMemory(100))
	doc.attr.ID, doc.attr.Links = fusemount.ID{Volume: 9, Inode: 12}, 2
	other := newDocument(blocktest.NewMemory(100))
	other.attr.ID = fusemount.ID{Volume: 10, Inode: 12}
	root, sub := newFolder(), newFolder()
	root.add("one", doc)
	root.add("sub", sub)
	sub.add("two", doc)
	sub.add("other", other)
	var numbers []uint64
	for range 2 {
		m := show(t, root, fusemount.Options{})
		one, two, three := lstat(t, m.dir+"/one"), lstat(t, m.dir+"/sub/two"), lstat(t, m.dir+"/sub/other")
		if one.Ino != two.Ino || one.Nlink != 2 {
			t.Errorf("got inodes %d and %d with %d links, want one with 2", one.Ino, two.Ino, one.Nlink)
		}
		if one.Ino == three.Ino {
			t.Error("inodes of two volumes have the same number")
		}
		numbers = append(numbers, one.Ino, three.Ino, lstat(t, m.dir+"/sub").Ino)
	}
	if !slices.Equal(numbers[:3], numbers[3:]) {
		t.Errorf("numbers in another mount: got %v, want %v", numbers[3:], numbers[:3])
	}
}

func TestNodesThatAreNotWhatTheySayAreErrors(t *testing.T) {
	root := newFolder()
	root.add("dir", &thing{attr: fusemount.Attr{Mode: fs.ModeDir}})
	root.add("file", &thing{attr: fusemount.Attr{}})
	root.add("link", &thing{attr: fusemount.Attr{Mode: fs.ModeSymlink}})
	root.add("odd", &thing{attr: fusemount.Attr{Mode: fs.ModeIrregular}})
	root.add("size", &document{thing: thing{attr: fusemount.Attr{Size: -1}}})
	root.add("good", newFolder())
	var j journal
	m := show(t, root, fusemount.Options{Log: j.log()})
	names, err := readNames(m.dir)
	if err != nil || len(names) != 6 {
		t.Errorf("list: got %q, %v, want all names", names, err)
	}
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Lstat(m.dir+"/"+name, &st)
		if want := map[bool]error{true: nil, false: unix.EIO}[name == "good"]; !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
		if name != "good" && !strings.Contains(j.String(), "/"+name) {
			t.Errorf("%s is not in the log:\n%s", name, &j)
		}
	}
	if _, err := fusemount.Mount(t.TempDir(), badRoot{}, fusemount.Options{}); err == nil {
		t.Error("a root that is no directory was mounted")
	}
}

type badRoot struct{ fusemount.Dir }

func (badRoot) Attr(context.Context) (fusemount.Attr, error) {
	return fusemount.Attr{Mode: 0o644}, nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func TestRoomIsToldToDf(t *testing.T) {
	root := newFolder()
	root.capacity = 1 << 40
	m := show(t, root, fusemount.Options{})
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil {
		t.Fatal(err)
	}
	if total, free := int64(st.Blocks)*st.Frsize, int64(st.Bavail)*st.Frsize; total != 1<<40 || free != 1<<38 {
		t.Errorf("got %d with %d free, want 1 TiB with a quarter", total, free)
	}
}
