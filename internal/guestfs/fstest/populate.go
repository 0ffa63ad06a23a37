package fstest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Without says what a file system cannot hold, or Populate is to leave out.
type Without struct {
	Links    bool // hard links
	Symlinks bool
	Special  bool // devices, pipes, sockets
	Xattrs   bool
	ACLs     bool
	// LargeXattrs are more than 700 bytes of them in one file.
	LargeXattrs bool
	Owners      bool // and modes
	Sparse      bool
	// Names that DOS could not have: trailing dots, colons, other than UTF-8.
	OddNames bool
	// Entries of the large directory; default 3000.
	Large int
}

// populator fills a directory. Everything it does is told by its seed.
type populator struct {
	t   testing.TB
	dir string
	w   Without
	rng *rand.Rand
}

// Populate fills a mounted file system with what its readers tend to get wrong.
func Populate(t testing.TB, dir string, w Without) {
	t.Helper()
	if w.Large == 0 {
		w.Large = 3000
	}
	p := &populator{t, dir, w, rand.New(rand.NewPCG(1, 2))}
	p.sizes()
	p.names()
	p.deep()
	p.large()
	p.holes()
	p.fragments()
	p.links()
	p.special()
	p.attributes()
	p.times()
}

func (p *populator) path(name ...string) string {
	return filepath.Join(append([]string{p.dir}, name...)...)
}

func (p *populator) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *populator) mkdir(name ...string) { p.t.Helper(); p.must(os.MkdirAll(p.path(name...), 0o755)) }

func (p *populator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.rng.Uint32())
	}
	return b
}

func (p *populator) write(b []byte, name ...string) {
	p.t.Helper()
	p.must(os.WriteFile(p.path(name...), b, 0o644))
}

// sizes makes files around the sizes at which storage changes its form.
func (p *populator) sizes() {
	p.mkdir("sizes")
	for _, n := range []int{0, 1, 59, 60, 61, 100, 155, 156, 157, 511, 512, 513, 700, 1023, 1024, 2000, 2048, 4095, 4096, 4097, 12 << 10,
		12<<10 + 1, 48 << 10, 65535, 65536, 65537, 268 << 10, 1<<20 - 1, 1 << 20, 5<<20 + 3} {
		p.write(p.bytes(n), "sizes", fmt.Sprint(n))
	}
	p.write(bytes.Repeat([]byte("compresses well. "), 40000), "sizes", "text")
	p.write(make([]byte, 300<<10), "sizes", "zeroes")
}

func (p *populator) names() {
	p.mkdir("names")
	names := []string{"a", "UPPER", "Mixed.Case", "with space", "ünïcödé", "日本語のファイル", "emoji 😀", ".hidden", "..dots",
		strings.Repeat("x", 255), strings.Repeat("é", 120), "semi;colon", "percent%41", "quote'", "dash-", "#hash", "tilde~1", "a.b.c.d"}
	if !p.w.OddNames {
		names = append(names, "new\nline", "tab\t", "back\\slash", `dq"`, "star*", "colon:", "trailing.", "trailing ", "latin1-\xe9\xff", "pipe|", "<>?")
	}
	for i, n := range names {
		p.write([]byte(n), "names", n)
		if i%3 == 0 && len(n) < 250 {
			p.mkdir("names", n+".dir")
		}
	}
}

func (p *populator) deep() {
	at := []string{"deep"}
	for i := range 40 {
		at = append(at, fmt.Sprintf("level-%d", i))
		p.mkdir(at...)
		p.write([]byte(strings.Join(at, "/")), append(at[:len(at):len(at)], "file")...)
	}
}

// large makes a directory that needs an index, with gaps of what was deleted.
func (p *populator) large() {
	p.mkdir("large")
	for i := range p.w.Large {
		p.write(nil, "large", fmt.Sprintf("entry %d with a name of some length %x", i, p.rng.Uint64()))
	}
	entries, err := os.ReadDir(p.path("large"))
	p.must(err)
	for i, e := range entries {
		if i%7 == 0 {
			p.must(os.Remove(p.path("large", e.Name())))
		}
	}
}

// holes makes sparse files, and files with space that was never written.
func (p *populator) holes() {
	if p.w.Sparse {
		return
	}
	p.mkdir("sparse")
	f, err := os.Create(p.path("sparse", "far"))
	p.must(err)
	for _, at := range []int64{0, 100 << 10, 3 << 20, 17<<20 + 123, 40 << 20} {
		_, err := f.WriteAt(p.bytes(5000), at)
		p.must(err)
	}
	p.must(f.Truncate(41<<20 + 7))
	p.must(f.Close())

	p.must(os.WriteFile(p.path("sparse", "only hole"), nil, 0o600))
	p.must(os.Truncate(p.path("sparse", "only hole"), 2<<20+1))

	f, err = os.Create(p.path("sparse", "reserved"))
	p.must(err)
	p.allocate(f, 0, 0, 3<<20)
	_, err = f.WriteAt(p.bytes(70000), 1<<20)
	p.must(err)
	p.must(f.Close())

	p.write(p.bytes(2<<20), "sparse", "punched")
	f, err = os.OpenFile(p.path("sparse", "punched"), os.O_RDWR, 0)
	p.must(err)
	p.allocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 300<<10, 700<<10)
	p.allocate(f, unix.FALLOC_FL_KEEP_SIZE, 2<<20, 1<<20) // beyond the end
	p.must(f.Close())
}

// allocate is fallocate(2), where the file system knows it.
func (p *populator) allocate(f *os.File, mode uint32, off, n int64) {
	p.t.Helper()
	err := unix.Fallocate(int(f.Fd()), mode, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		p.must(err)
	}
}

// fragments makes two files whose blocks alternate, so that each takes many
// extents.
func (p *populator) fragments() {
	a, err := os.Create(p.path("fragments-a"))
	p.must(err)
	b, err := os.Create(p.path("fragments-b"))
	p.must(err)
	for i := range int64(300) {
		for _, f := range []*os.File{a, b} {
			_, err := f.WriteAt(p.bytes(4096), i*4096)
			p.must(err)
			p.must(f.Sync())
		}
		if i%5 == 0 && !p.w.Sparse {
			p.allocate(a, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, i*4096, 4096)
		}
	}
	p.must(errors.Join(a.Close(), b.Close()))
}

func (p *populator) links() {
	p.mkdir("links")
	p.write([]byte("linked"), "links", "one")
	if !p.w.Links {
		p.must(os.Link(p.path("links", "one"), p.path("links", "two")))
		p.must(os.Link(p.path("links", "one"), p.path("third link")))
	}
	if p.w.Symlinks {
		return
	}
	for i, target := range []string{"one", "/etc/passwd", "../../../../../../etc/shadow", strings.Repeat("t", 59), strings.Repeat("t", 60),
		strings.Repeat("long/", 150), strings.Repeat("x", 1023), "nowhere", "ünïcödé", "."} {
		p.must(os.Symlink(target, p.path("links", fmt.Sprintf("symbolic-%d", i))))
	}
}

func (p *populator) special() {
	if p.w.Special {
		return
	}
	p.mkdir("special")
	p.must(unix.Mknod(p.path("special", "pipe"), unix.S_IFIFO|0o640, 0))
	p.must(unix.Mknod(p.path("special", "socket"), unix.S_IFSOCK|0o600, 0))
	p.must(unix.Mknod(p.path("special", "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	p.must(unix.Mknod(p.path("special", "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
}

func (p *populator) attributes() {
	p.mkdir("attributes")
	for i := range 6 {
		p.write(p.bytes(100), "attributes", fmt.Sprint(i))
	}
	if !p.w.Owners {
		for i, mode := range []uint32{0o4755, 0o2711, 0o1777, 0, 0o644, 0o600} {
			name := p.path("attributes", fmt.Sprint(i))
			p.must(os.Lchown(name, 1000+i*70000, 65534*i))
			p.must(syscall.Chmod(name, mode))
		}
		p.must(syscall.Chmod(p.path("attributes"), 0o3775))
	}
	if p.w.Xattrs {
		return
	}
	small, several := p.path("attributes", "0"), p.path("attributes", "1")
	p.must(unix.Setxattr(small, "user.comment", []byte("short"), 0))
	for i := range 20 {
		if p.w.LargeXattrs && i == 8 {
			break
		}
		p.must(unix.Setxattr(several, fmt.Sprintf("user.name-%d", i), p.bytes(i*9), 0))
	}
	p.must(unix.Setxattr(p.path("attributes"), "user.on a directory", []byte{0, 1, 2, 0}, 0))
	p.must(unix.Setxattr(several, "trusted.secret", []byte("x"), 0))
	p.must(unix.Setxattr(p.path("attributes", "2"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	if !p.w.LargeXattrs {
		p.must(unix.Setxattr(p.path("attributes", "3"), "user.large", p.bytes(2500), 0))
	}
	if !p.w.ACLs {
		acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
			16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
		p.must(unix.Setxattr(p.path("attributes", "4"), "system.posix_acl_access", acl, 0))
		p.must(unix.Setxattr(p.path("attributes"), "system.posix_acl_default", acl, 0))
	}
}

// times makes files of other ages than the test's; last, for everything else
// changes them.
func (p *populator) times() {
	p.mkdir("times")
	for i, at := range []time.Time{
		time.Date(1980, 1, 2, 3, 4, 6, 0, time.UTC), time.Date(2001, 9, 9, 1, 46, 40, 123456789, time.UTC),
		time.Date(2038, 1, 19, 3, 14, 8, 987654321, time.UTC), time.Date(2105, 6, 7, 8, 9, 10, 0, time.UTC),
		time.Date(2020, 2, 29, 23, 59, 58, 999999999, time.UTC),
	} {
		name := fmt.Sprint("at-", i)
		p.write(nil, "times", name)
		p.must(os.Chtimes(p.path("times", name), at.Add(time.Hour), at))
	}
}
