package fstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Ignoring says what a mount shows otherwise than the file system holds it.
type Ignoring struct {
	Owners    bool // UID, GID, permissions
	Links     bool // the number of hard links
	DirLinks  bool // that of directories
	DirSizes  bool
	Allocated bool
	Xattrs    bool
	// XattrPrefixes are of names that only one side shows.
	XattrPrefixes []string
	// Granularity of modification times; default exact.
	Granularity time.Duration
	// Since is from when on times are those of mounting, which changes inodes when it
	// replays a log.
	Since time.Time
	// MadeUp says that the mount makes up directories, to which the reader gives
	// the zero time.
	MadeUp bool
	// Names of the root directory that only the mount shows.
	Names []string
}

// comparison walks a reader and a mount side by side.
type comparison struct {
	t      testing.TB
	fsys   fsys.FileSystem
	vol    fsys.Volume
	ignore Ignoring
	rng    *rand.Rand
	inodes map[fsys.ID]uint64 // to those of the mount
	seen   int
	failed int
}

// Compare fails the test where a reader of vol and a mount of the same differ: in
// names, attributes, extended attributes, targets, content, and in where extents
// say that content lies. It returns how many entries it compared.
func Compare(t testing.TB, f fsys.FileSystem, vol fsys.Volume, dir string, ignore Ignoring) int {
	t.Helper()
	c := &comparison{t: t, fsys: f, vol: vol, ignore: ignore, rng: rand.New(rand.NewPCG(3, 4)), inodes: map[fsys.ID]uint64{}}
	c.entry(f.Root(), dir)
	return c.seen
}

func (c *comparison) errorf(format string, args ...any) {
	c.t.Helper()
	if c.failed++; c.failed > 50 {
		c.t.Fatal("too many differences")
	}
	c.t.Errorf(format, args...)
}

func (c *comparison) entry(id fsys.ID, path string) {
	c.t.Helper()
	c.seen++
	a, err := c.fsys.Stat(id)
	if err != nil {
		c.errorf("stat %s: %v", path, err)
		return
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		c.t.Fatalf("stat %s: %v", path, err)
	}
	c.attr(path, a, &st)
	if was, ok := c.inodes[id]; ok && was != st.Ino {
		c.errorf("%s: the ID of inode %d is also that of inode %d", path, st.Ino, was)
	}
	c.inodes[id] = st.Ino
	c.xattrs(id, path)
	switch a.Mode.Type() {
	case fs.ModeDir:
		c.dir(id, path)
	case fs.ModeSymlink:
		got, err := c.fsys.Readlink(id)
		want, wantErr := os.Readlink(path)
		if err != nil || wantErr != nil || got != want {
			c.errorf("target of %s: got %q, %v, want %q, %v", path, got, err, want, wantErr)
		}
	case 0:
		c.file(id, path, a.Size)
	}
}

// modeOf translates a mode of the kernel.
func modeOf(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for _, x := range []struct {
		bits uint32
		mode fs.FileMode
	}{{unix.S_IFDIR, fs.ModeDir}, {unix.S_IFLNK, fs.ModeSymlink}, {unix.S_IFIFO, fs.ModeNamedPipe}, {unix.S_IFSOCK, fs.ModeSocket},
		{unix.S_IFBLK, fs.ModeDevice}, {unix.S_IFCHR, fs.ModeDevice | fs.ModeCharDevice}} {
		if m&unix.S_IFMT == x.bits {
			mode |= x.mode
		}
	}
	for bit, x := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= x
		}
	}
	return mode
}

func (c *comparison) attr(path string, a fsys.Attr, st *unix.Stat_t) {
	c.t.Helper()
	check := func(what string, got, want any) {
		c.t.Helper()
		if got != want {
			c.errorf("%s of %s: got %v, want %v", what, path, got, want)
		}
	}
	want := modeOf(st.Mode)
	isDir := want.IsDir()
	if c.ignore.Owners {
		check("type", a.Mode.Type(), want.Type())
	} else {
		check("mode", a.Mode, want)
		check("owner", [2]uint32{a.UID, a.GID}, [2]uint32{st.Uid, st.Gid})
	}
	if !c.ignore.Links && (!isDir || !c.ignore.DirLinks) {
		check("links", uint64(a.Links), uint64(st.Nlink))
	}
	if !isDir || !c.ignore.DirSizes {
		check("size", a.Size, st.Size)
	}
	if !c.ignore.Allocated && (!isDir || !c.ignore.DirSizes) {
		check("allocated bytes", a.Allocated, st.Blocks*512)
	}
	if want.Type()&fs.ModeDevice != 0 {
		check("device", [2]uint32{a.Major, a.Minor}, [2]uint32{unix.Major(st.Rdev), unix.Minor(st.Rdev)})
	}
	m := time.Unix(st.Mtim.Unix())
	if d := a.Modified.Sub(m).Abs(); d > c.ignore.Granularity && !c.remade(m) && !(c.ignore.MadeUp && a.Modified.IsZero()) {
		c.errorf("modification time of %s: got %v, want %v", path, a.Modified.UTC(), m.UTC())
	}
	changed := time.Unix(st.Ctim.Unix())
	if !a.Changed.IsZero() && c.ignore.Granularity == 0 && !c.remade(changed) {
		check("change time", a.Changed.UnixNano(), changed.UnixNano())
	}
}

// remade says whether a time is that of mounting.
func (c *comparison) remade(t time.Time) bool {
	return !c.ignore.Since.IsZero() && t.After(c.ignore.Since)
}

func (c *comparison) xattrs(id fsys.ID, path string) {
	c.t.Helper()
	if c.ignore.Xattrs {
		return
	}
	list, err := c.fsys.Xattrs(id)
	if err != nil {
		c.errorf("extended attributes of %s: %v", path, err)
		return
	}
	got, want := map[string]string{}, c.kernelXattrs(path)
	for _, x := range list {
		if !c.ignored(x.Name) {
			got[x.Name] = string(x.Value)
		}
	}
	if !maps.Equal(got, want) {
		c.errorf("extended attributes of %s: got %q, want %q", path, got, want)
	}
}

func (c *comparison) ignored(xattr string) bool {
	return slices.ContainsFunc(c.ignore.XattrPrefixes, func(p string) bool { return len(xattr) >= len(p) && xattr[:len(p)] == p })
}

func (c *comparison) kernelXattrs(path string) map[string]string {
	c.t.Helper()
	names, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		c.t.Fatalf("list extended attributes of %s: %v", path, err)
	}
	found := map[string]string{}
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		if len(name) == 0 || c.ignored(string(name)) {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			c.t.Fatalf("get extended attribute %s of %s: %v", name, path, err)
		}
		found[string(name)] = string(value[:n])
	}
	return found
}

func (c *comparison) dir(id fsys.ID, path string) {
	c.t.Helper()
	got := map[string]fsys.Entry{}
	err := c.fsys.ReadDir(id, func(e fsys.Entry) bool {
		if _, twice := got[e.Name]; twice {
			c.errorf("%s has %q twice", path, e.Name)
		}
		got[e.Name] = e
		return true
	})
	if err != nil {
		c.errorf("read directory %s: %v", path, err)
	}
	want, err := os.ReadDir(path)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range want {
		if c.seen > 1 || !slices.Contains(c.ignore.Names, e.Name()) {
			c.named(id, path, e, got)
		}
		delete(got, e.Name())
	}
	for name := range got {
		c.errorf("%s: got an entry %q that the mount does not show", path, name)
	}
	if id, err := c.fsys.Lookup(id, "no such name"); !errors.Is(err, fs.ErrNotExist) {
		c.errorf("look up a name that is not in %s: got %d, %v, want fs.ErrNotExist", path, id, err)
	}
}

// named compares an entry of a directory, and what it stands for.
func (c *comparison) named(dir fsys.ID, path string, e os.DirEntry, got map[string]fsys.Entry) {
	c.t.Helper()
	at := filepath.Join(path, e.Name())
	g, ok := got[e.Name()]
	if !ok {
		c.errorf("%s is missing", at)
		return
	}
	if g.Type != fs.ModeIrregular && g.Type != e.Type() {
		c.errorf("type of entry %s: got %v, want %v", at, g.Type, e.Type())
	}
	// Looking up each of thousands of names one by one is enough of a test for some.
	if len(got) < 500 || c.rng.IntN(20) == 0 {
		if id, err := c.fsys.Lookup(dir, e.Name()); err != nil || id != g.ID {
			c.errorf("look up %s: got %d, %v, want %d", at, id, err, g.ID)
		}
	}
	c.entry(g.ID, at)
}

// file compares content: as a whole, in pieces, and by where extents say it is.
func (c *comparison) file(id fsys.ID, path string, size int64) {
	c.t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		c.errorf("the mount cannot read %s: %v", path, err)
		return
	}
	got := make([]byte, size+10)
	n, err := c.fsys.ReadAt(id, got, 0)
	if !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		c.errorf("content of %s: got %d bytes, %v, first difference at %d of %d", path, n, err, difference(got[:n], want), len(want))
		return
	}
	for range min(10, size) {
		off := c.rng.Int64N(size)
		p := got[:1+c.rng.Int64N(size-off)]
		if n, err := c.fsys.ReadAt(id, p, off); n != len(p) || err != nil || !bytes.Equal(p, want[off:off+int64(n)]) {
			c.errorf("content of %s, %d bytes at %d: got %d, %v, or other bytes", path, len(p), off, n, err)
			return
		}
	}
	if n, err := c.fsys.ReadAt(id, got[:1], size); n != 0 || !errors.Is(err, io.EOF) {
		c.errorf("read at the end of %s: got %d, %v, want 0, EOF", path, n, err)
	}
	c.extents(id, path, want)
}

func (c *comparison) extents(id fsys.ID, path string, want []byte) {
	c.t.Helper()
	for off := int64(0); off < int64(len(want)); {
		exts, err := c.fsys.Extents(id, off, int64(len(want))-off)
		if err != nil || len(exts) == 0 {
			c.errorf("extents of %s at %d: got %d, %v", path, off, len(exts), err)
			return
		}
		for _, e := range exts {
			if e.Off != off || e.Len <= 0 || e.Len > int64(len(want))-off {
				c.errorf("extents of %s: got %+v at %d of %d", path, e, off, len(want))
				return
			}
			if err := c.extent(e, want[off:off+e.Len]); err != nil {
				c.errorf("extent %+v of %s: %v", e, path, err)
				return
			}
			off += e.Len
		}
	}
}

func (c *comparison) extent(e fsys.Extent, want []byte) error {
	got := make([]byte, e.Len)
	switch e.Kind {
	case fsys.Opaque:
		return nil
	case fsys.Data:
		if err := c.vol.ReadAt(got, e.At); err != nil {
			return err
		}
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the volume holds something else there, first at %d", difference(got, want))
	}
	return nil
}

func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// Sync writes out what is mounted at dir.
func Sync(t testing.TB, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}
