package ntfs_test

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// point makes a reparse point.
func point(tag uint32, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, tag)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(data)))
	return append(append(b, 0, 0), data...)
}

// link makes the data of a symbolic link or a junction, with another name for
// people.
func link(target string, flags ...byte) []byte {
	var names []byte
	for _, u := range utf16.Encode([]rune("shown" + target)) {
		names = binary.LittleEndian.AppendUint16(names, u)
	}
	b := binary.LittleEndian.AppendUint16(nil, 10)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(names)-10))
	b = append(b, 0, 0, 10, 0)
	for _, f := range flags {
		b = append(b, f, 0, 0, 0)
	}
	return append(b, names...)
}

const symlink, junction = 0xa000000c, 0xa0000003

func TestLinksOfWindowsLeadWhereTheyDo(t *testing.T) {
	links := []struct {
		at     string // in what is made below
		dir    bool
		data   []byte
		target string
	}{
		{"relative", false, point(symlink, link(`Users\me\file`, 1)), "Users/me/file"},
		{"Users/up", false, point(symlink, link(`..\Program Files`, 1)), "../Program Files"},
		{"Users/me/rooted", false, point(symlink, link(`\Program Files\x`, 1)), "../../Program Files/x"},
		{"rooted", false, point(symlink, link(`\Users`, 1)), "Users"},
		{"Users/me/drive", false, point(symlink, link(`\??\C:\Users\me\file`, 0)), "../../Users/me/file"},
		{"Users/me/other case", false, point(symlink, link(`\??\c:\USERS\ME`, 0)), "../../USERS/ME"},
		{"drive itself", true, point(junction, link(`\??\C:\`)), "."},
		{"Users/All Users", true, point(junction, link(`\??\C:\Program Files`)), "../Program Files"},
		{"Documents and Settings", true, point(junction, link(`\??\C:\Users\`)), "Users"},
		{"through", true, point(junction, link(`\??\C:\Documents and Settings\me`)), "Documents and Settings/me"},
		{"elsewhere", true, point(junction, link(`\??\D:\Backups\of this`)), "/D:/Backups/of this"},
		{"bare", false, point(symlink, link(`E:\x`, 0)), "/E:/x"},
		{"volume", true, point(junction, link(`\??\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\`)), "/Volume{26a21bda-a627-11d7-9931-806e6f6e6963}/"},
		{"share", false, point(symlink, link(`\??\UNC\server\share\x`, 0)), "//server/share/x"},
		{"of Linux", false, point(0xa000001d, []byte("\x02\x00\x00\x00../ünix/path")), "../ünix/path"},
	}
	image := made(t, 64<<20, "", "", func(dir string) {
		for _, sub := range []string{"Users/me", "Program Files"} {
			must(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
		}
		must(t, os.WriteFile(filepath.Join(dir, "Users/me/file"), nil, 0o644))
		for _, l := range links {
			at := filepath.Join(dir, l.at)
			if l.dir {
				must(t, os.Mkdir(at, 0o755))
			} else {
				must(t, os.WriteFile(at, nil, 0o644))
			}
			if err := unix.Lsetxattr(at, "system.ntfs_reparse_data", l.data, 0); err != nil {
				t.Fatalf("%s: %v", l.at, err)
			}
		}
	})
	f, _ := opened(t, image)
	for _, l := range links {
		id := walkTo(t, f, l.at)
		got, err := f.Readlink(id)
		if err != nil || got != l.target {
			t.Errorf("target of %s: got %q, %v, want %q", l.at, got, err, l.target)
		}
		if a, err := f.Stat(id); err != nil || a.Mode != fs.ModeSymlink|0o777 || a.Size != int64(len(l.target)) {
			t.Errorf("%s: got %v of %d bytes, %v, want a link of %d", l.at, a.Mode, a.Size, err, len(l.target))
		}
		list, err := f.Xattrs(id)
		if err != nil || len(list) != 2 || list[1].Name != "system.ntfs_reparse_data" || string(list[1].Value) != string(l.data) {
			t.Errorf("extended attributes of %s: got %q, %v, want the reparse point among them", l.at, list, err)
		}
		if kind := entryType(t, f, l.at); kind != fs.ModeSymlink {
			t.Errorf("type of %s in its directory: got %v, want a link", l.at, kind)
		}
	}
}

// walkTo looks up a path of directories.
func walkTo(t testing.TB, f fsys.FileSystem, path string) fsys.ID {
	t.Helper()
	id := f.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if id, err = f.Lookup(id, name); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

func entryType(t *testing.T, f fsys.FileSystem, path string) fs.FileMode {
	t.Helper()
	dir := f.Root()
	if d := filepath.Dir(path); d != "." {
		dir = walkTo(t, f, d)
	}
	kind := fs.FileMode(1)
	must(t, f.ReadDir(dir, func(e fsys.Entry) bool {
		if e.Name == filepath.Base(path) {
			kind = e.Type
		}
		return true
	}))
	return kind
}

func TestFilesOfUNIXAgreeWithMount(t *testing.T) {
	for _, how := range []string{"wsl", "interix"} {
		t.Run(how, func(t *testing.T) {
			options := "special_files=" + how
			image := made(t, 128<<20, "", options, func(dir string) {
				must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
				must(t, unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
				must(t, os.Symlink("somewhere/ünter/😀", filepath.Join(dir, "link")))
				must(t, os.Symlink(fmt.Sprintf("%0*d", 1000, 1), filepath.Join(dir, "long link")))
				if how == "wsl" {
					w := without
					w.Special, w.Large = false, 10
					fstest.Populate(t, dir, w)
				}
			})
			agrees(t, image, options)
		})
	}
}

func TestOwnersThatLinuxUnderWindowsKeepsAreShown(t *testing.T) {
	ea := func(name string, value uint32) []byte {
		b := append([]byte{20, 0, 0, 0, 0, byte(len(name)), 4, 0}, name...)
		b = append(b, 0)
		b = binary.LittleEndian.AppendUint32(b, value)
		return append(b, make([]byte, 20-len(b))...)
	}
	image := made(t, 64<<20, "", "", func(dir string) {
		name := filepath.Join(dir, "file")
		must(t, os.WriteFile(name, nil, 0o644))
		list := append(append(ea("$LXUID", 1000), ea("$LXGID", 1234567)...), ea("$LXMOD", 0o104751)...)
		must(t, unix.Setxattr(name, "system.ntfs_ea", list, 0))
	})
	f, _ := opened(t, image)
	a, err := f.Stat(walkTo(t, f, "file"))
	if err != nil || a.UID != 1000 || a.GID != 1234567 || a.Mode != fs.ModeSetuid|0o751 {
		t.Errorf("got owner %d:%d, mode %v, %v, want 1000:1234567, %v", a.UID, a.GID, a.Mode, err, fs.ModeSetuid|0o751)
	}
}

func TestWhatAFilterHasToReadIsRefused(t *testing.T) {
	points := map[string]struct {
		tag        uint32
		attributes byte // the second
		reason     string
	}{
		"deduplicated": {0x80000013, 0, "deduplicated"}, "projected": {0x9000001c, 0, "0x9000001c"}, "unknown": {0x80001234, 0, "0x80001234"},
		"in the cloud": {0x9000601a, 0x10, "cloud"},
	}
	image := made(t, 64<<20, "", "", func(dir string) {
		for name, p := range points {
			at := filepath.Join(dir, name)
			must(t, os.WriteFile(at, []byte("a placeholder"), 0o644))
			must(t, unix.Setxattr(at, "system.ntfs_attrib", []byte{0x20, p.attributes, 0, 0}, 0))
			must(t, unix.Setxattr(at, "system.ntfs_reparse_data", point(p.tag, []byte("data")), 0))
		}
		at := filepath.Join(dir, "synced")
		must(t, os.WriteFile(at, []byte("content"), 0o644))
		must(t, unix.Setxattr(at, "system.ntfs_reparse_data", point(0x9000601a, []byte("data")), 0))
	})
	f, _ := opened(t, image)
	for name, p := range points {
		refuses(t, f, name, p.reason)
	}
	reads(t, f, "synced", []byte("content"))
}
