package iso9660_test

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/iso9660"
)

func open(t *testing.T, v fsys.Volume) fsys.FileSystem {
	t.Helper()
	f, err := iso9660.Open(v)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNamesOfEachKind(t *testing.T) {
	long := strings.Repeat("n", 120)
	plain := [][]byte{file{name: "README.TXT;1"}.record(), file{name: "NODOT.;1"}.record(), file{name: "OLD.TXT;2"}.record(), file{name: "B\xc4D/.;1"}.record(),
		file{name: "DIR", dir: true, at: dirAt}.record()}
	rock := [][]byte{file{name: "A.;1", use: nm("Rock ridge")}.record(), file{name: "NONE.;1"}.record(),
		file{name: "C.;1", use: susp("NM", 2)}.record(), file{name: "L.;1", use: join(nm(long), ce(areaAt, 100, 140))}.record(),
		file{name: "NO.;1", flags: 4}.record(), file{name: "R", dir: true, at: dirAt, use: susp("RE")}.record()}
	joliet := [][]byte{file{name: ucs2("Über 😀.txt;1")}.record(), file{name: ucs2("dots...;1")}.record()}
	withArea := func(im *image) *image {
		copy(im.sector(areaAt)[100:], join(nm(strings.Repeat("m", 135))))
		return im
	}
	for name, test := range map[string]struct {
		im   *image
		want []string
	}{
		"plain":                       {plainImage(plain...), []string{"readme.txt", "nodot", "old.txt.2", "b\xc4d.", "dir"}},
		"of Rock Ridge":               {withArea(newImage(rock...)), []string{"Rock ridge", "none", "c", long + strings.Repeat("m", 135)}},
		"of Joliet":                   {plainImage(plain...).withJoliet(joliet...), []string{"Über 😀.txt", "dots"}},
		"of both":                     {withArea(newImage(rock...)).withJoliet(joliet...), []string{"Rock ridge", "none", "c", long + strings.Repeat("m", 135)}},
		"of an empty tree and Joliet": {newImage().withJoliet(joliet...), []string{"Über 😀.txt", "dots"}},
	} {
		f := open(t, test.im)
		if got, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("names %s: got %q, %v, want %q", name, got, err, test.want)
		}
		for _, want := range test.want {
			fstest.Lookup(t, f, want)
		}
	}
}

func TestOnlyJolietFoldsCase(t *testing.T) {
	f := open(t, plainImage().withJoliet(file{name: ucs2("Ünd")}.record(), file{name: ucs2("ünd")}.record()))
	exact, folded := fstest.Lookup(t, f, "ünd"), fstest.Lookup(t, f, "ÜND")
	if exact == folded || folded != fstest.Lookup(t, f, "Ünd") || !f.Info().FoldsCase {
		t.Errorf("look up of ünd and ÜND: got %d and %d, want the second and the first", exact, folded)
	}
	f = open(t, newImage(file{name: "A.;1", use: nm("Name")}.record()))
	if id, err := f.Lookup(f.Root(), "name"); !errors.Is(err, fs.ErrNotExist) || f.Info().FoldsCase {
		t.Errorf("look up in Rock Ridge with another case: got %d, %v, want fs.ErrNotExist", id, err)
	}
}

func TestAttributesOfRockRidge(t *testing.T) {
	tf := susp("TF", append([]byte{0x80 | 0x01 | 0x02 | 0x08}, "2020022912345678\x042105010203040500\xfc0000000000000000\x00"...)...)
	f := open(t, newImage(
		file{name: "F.;1", at: dataAt, size: 3, flags: 1, use: join(px(0o104755, 3), nm("file"), tf)}.record(),
		file{name: "D.;1", use: join(px(0o60660, 1), nm("disk"), pn(0, 0x11110370))}.record(),
		file{name: "E.;1", use: join(px(0o20660, 1), nm("char"), pn(4, 300))}.record(),
		file{name: "P.;1", use: join(px(0o10600, 1), nm("pipe"))}.record(),
	))
	a, err := f.Stat(fstest.Lookup(t, f, "file"))
	if err != nil || a.Mode != fs.ModeSetuid|0o755 || a.Links != 3 || a.UID != 1000 || a.GID != 100 || a.Size != 3 || a.Allocated != sector ||
		!slices.Equal(a.Flags, []string{"hidden"}) {
		t.Errorf("attributes: got %+v, %v", a, err)
	}
	if want := time.Date(2020, 2, 29, 11, 34, 56, 780e6, time.UTC); !a.Created.Equal(want) {
		t.Errorf("creation: got %v, want %v", a.Created, want)
	}
	if want := time.Date(2105, 1, 2, 4, 4, 5, 0, time.UTC); !a.Modified.Equal(want) || !a.Changed.IsZero() || !a.Accessed.IsZero() {
		t.Errorf("modification, change, access: got %v, %v, %v, want %v and none", a.Modified, a.Changed, a.Accessed, want)
	}
	for name, want := range map[string]fsys.Attr{
		"disk": {Mode: fs.ModeDevice | 0o660, Major: 259, Minor: 70000}, "char": {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o660, Major: 4, Minor: 300},
		"pipe": {Mode: fs.ModeNamedPipe | 0o600},
	} {
		a, err := f.Stat(fstest.Lookup(t, f, name))
		if err != nil || a.Mode != want.Mode || a.Major != want.Major || a.Minor != want.Minor || a.Size != 0 {
			t.Errorf("%s: got %+v, %v, want %+v", name, a, err, want)
		}
	}
}

func TestTargetsOfLinks(t *testing.T) {
	for _, test := range []struct {
		use  []byte
		want string
		err  error
	}{
		{sl(0, "\x00a", "\x00b"), "a/b", nil},
		{sl(0, "\x08", "\x00etc", "\x00x"), "/etc/x", nil},
		{sl(0, "\x04", "\x04", "\x02", "\x00x"), "../.././x", nil},
		{join(sl(1, "\x01split "), sl(1, "\x00here", "\x00x"), sl(0, "\x00y")), "split here/x/y", nil},
		{sl(0, "\x00a", "\x00"), "a/", nil},
		{join(sl(1, "\x08"), sl(0, "\x00x")), "/x", nil},
		{sl(0, "\x10"), "", fsys.ErrUnsupported},
		{susp("SL", 0, 0, 20, 'x'), "", fsys.ErrCorrupt},
	} {
		f := open(t, newImage(file{name: "L.;1", use: join(px(0o120777, 1), test.use)}.record()))
		id := fstest.Lookup(t, f, "l")
		got, err := f.Readlink(id)
		if !errors.Is(err, test.err) || err == nil && got != test.want {
			t.Errorf("target: got %q, %v, want %q, %v", got, err, test.want, test.err)
		}
		if a, err := f.Stat(id); err != nil || test.err == nil && a.Size != int64(len(test.want)) {
			t.Errorf("size of the link to %q: got %d, %v", test.want, a.Size, err)
		}
	}
}

func TestDirectoriesThatLieElsewhere(t *testing.T) {
	im := newImage(file{name: "DEEP.;1", use: join(nm("deep"), susp("CL", numbers(dirAt)...))}.record(),
		file{name: "MOVED", dir: true, at: dirAt + 1, size: sector}.record())
	im.dir(dirAt+1, sector, nil, file{name: "DEEP", dir: true, at: dirAt, size: sector, use: susp("RE")}.record())
	im.dir(dirAt, sector, px(0o40700, 7), file{name: "X.;1", use: nm("inside")}.record())
	f := open(t, im)
	id := fstest.Lookup(t, f, "deep")
	a, err := f.Stat(id)
	if err != nil || a.Mode != fs.ModeDir|0o700 || a.Links != 7 {
		t.Errorf("attributes: got %+v, %v, want those of the directory itself", a, err)
	}
	if got, err := fstest.Names(f, id); err != nil || !slices.Equal(got, []string{"inside"}) {
		t.Errorf("names: got %q, %v, want inside", got, err)
	}
	if got, err := fstest.Names(f, fstest.Lookup(t, f, "moved")); err != nil || got != nil {
		t.Errorf("names where it lies: got %q, %v, want none", got, err)
	}
}

func TestFilesOfSeveralExtents(t *testing.T) {
	part := func(flags byte, at int, size uint32) []byte {
		return file{name: "BIG.;1", flags: flags, at: at, size: size, use: join(nm("big"), px(0o100644, 1))}.record()
	}
	var fill [][]byte
	for range 17 { // so that the file's records lie in two sectors
		fill = append(fill, file{name: "X.;1", use: nm(strings.Repeat("x", 60))}.record())
	}
	im := newImage(append(fill, part(0x80, dataAt, 2*sector), part(0x80, dataAt+7, sector), part(0, dataAt+4, 100), file{name: "Z.;1", use: nm("z")}.record())...)
	var want []byte
	for i, at := range []int{dataAt, dataAt + 1, dataAt + 7, dataAt + 4} {
		copy(im.sector(at), bytes.Repeat([]byte{byte('a' + i)}, sector))
		want = append(want, im.sector(at)...)
	}
	want = want[:3*sector+100]
	f := open(t, im)
	id := fstest.Lookup(t, f, "big")
	if got, err := fstest.Names(f, f.Root()); err != nil || len(got) != 17+2 || got[18] != "z" {
		t.Errorf("names: got %q, %v", got, err)
	}
	got := make([]byte, len(want)+1)
	if n, err := f.ReadAt(id, got, 0); n != len(want) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("content: got %d bytes, %v, or other bytes", n, err)
	}
	exts, err := f.Extents(id, 1000, 1<<40)
	wantExts := []fsys.Extent{{Kind: fsys.Data, Off: 1000, Len: 2*sector - 1000, At: dataAt*sector + 1000},
		{Kind: fsys.Data, Off: 2 * sector, Len: sector, At: (dataAt + 7) * sector}, {Kind: fsys.Data, Off: 3 * sector, Len: 100, At: (dataAt + 4) * sector}}
	if err != nil || !slices.Equal(exts, wantExts) {
		t.Errorf("extents: got %+v, %v, want %+v", exts, err, wantExts)
	}
}

func TestExtendedAttributeRecordsArePassedOver(t *testing.T) {
	im := plainImage(file{name: "F.;1", at: dataAt, size: 5, do: func(b []byte) { b[1] = 2 }}.record())
	copy(im.sector(dataAt+2), "right")
	f := open(t, im)
	p := make([]byte, 5)
	if _, err := f.ReadAt(fstest.Lookup(t, f, "f"), p, 0); err != nil || string(p) != "right" {
		t.Errorf("content: got %q, %v, want right", p, err)
	}
}

func TestSmallerBlocks(t *testing.T) {
	im := plainImage()
	b := im.sector(16)
	both16(b[128:], 512)
	both32(b[80:], sectors*4)
	at := rootAt*4 + 1
	both32(b[156+2:], uint32(at))
	dir := im.memory[at*512:]
	clear(dir[:2*sector])
	n := copy(dir, join(file{name: "\x00", dir: true, at: at, size: 1024}.record(), file{name: "\x01", dir: true, at: at, size: 1024}.record()))
	copy(dir[n:], file{name: "A.;1", at: dataAt*4 + 3, size: 2}.record())
	copy(dir[512:], file{name: "B.;1"}.record()) // behind the padding of a block
	copy(im.memory[(dataAt*4+3)*512:], "ok")
	f := open(t, im)
	if got, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("names: got %q, %v, want a, b", got, err)
	}
	p := make([]byte, 2)
	if _, err := f.ReadAt(fstest.Lookup(t, f, "a"), p, 0); err != nil || string(p) != "ok" {
		t.Errorf("content: got %q, %v, want ok", p, err)
	}
}

// compress makes the content of a file of zisofs, with blocks of 32 KiB, and its
// entry.
func compress(content []byte) (stored, zf []byte) {
	const block = 32 << 10
	blocks := (len(content) + block - 1) / block
	stored = make([]byte, 16+4*(blocks+1))
	copy(stored, "\x37\xe4\x53\x96\xc9\xdb\xd6\x07")
	le.PutUint32(stored[8:], uint32(len(content)))
	stored[12], stored[13] = 4, 15
	for i := range blocks {
		le.PutUint32(stored[16+4*i:], uint32(len(stored)))
		b := content[i*block : min((i+1)*block, len(content))]
		if !bytes.Equal(b, make([]byte, len(b))) {
			var out bytes.Buffer
			w := zlib.NewWriter(&out)
			w.Write(b)
			w.Close()
			stored = append(stored, out.Bytes()...)
		}
		le.PutUint32(stored[16+4*(i+1):], uint32(len(stored)))
	}
	return stored, susp("ZF", append([]byte{'p', 'z', 4, 15}, numbers(uint32(len(content)))...)...)
}

// compressed returns a disc with a file that zisofs compressed.
func compressed(content []byte) *image {
	stored, zf := compress(content)
	im := newImage(file{name: "F.;1", at: dataAt, size: uint32(len(stored)), use: join(nm("f"), px(0o100644, 1), zf)}.record())
	copy(im.memory[dataAt*sector:], stored)
	return im
}

func TestCompressedFiles(t *testing.T) {
	content := join(bytes.Repeat([]byte("compresses well. "), 3000), make([]byte, 100<<10), []byte("end"))
	f := open(t, compressed(content))
	id := fstest.Lookup(t, f, "f")
	a, err := f.Stat(id)
	if err != nil || a.Size != int64(len(content)) || a.Allocated != sector || !slices.Equal(a.Flags, []string{"compressed"}) {
		t.Errorf("attributes: got %+v, %v", a, err)
	}
	for _, r := range [][2]int{{0, len(content)}, {32 << 10, 10}, {40000, 30000}, {len(content) - 2, 2}} {
		got := make([]byte, r[1])
		if n, err := f.ReadAt(id, got, int64(r[0])); n != r[1] || err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
			t.Errorf("%d bytes at %d: got %d, %v, or other bytes", r[1], r[0], n, err)
		}
	}
	if exts, err := f.Extents(id, 5, 100); err != nil || !slices.Equal(exts, []fsys.Extent{{Kind: fsys.Opaque, Off: 5, Len: 100}}) {
		t.Errorf("extents: got %+v, %v, want opaque ones", exts, err)
	}
}
