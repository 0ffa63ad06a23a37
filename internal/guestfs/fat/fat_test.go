package fat_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

func open(t *testing.T, v fsys.Volume, o fat.Options) fsys.FileSystem {
	t.Helper()
	f, err := fat.OpenWith(v, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNames(t *testing.T) {
	lower := func(e []byte, bits byte) []byte {
		e[12] = bits
		return e
	}
	plain := short("NAME    TXT", 0x20, 0, 0)
	broken := long("a name of several entries", short("ANAMEO~1", 0x20, 0, 0))
	wrongSum := long("of another file", short("OFANOT~1", 0x20, 0, 0))
	wrongSum[13]++
	for _, test := range []struct {
		name  string
		page  int
		entry []byte
		want  string
	}{
		{"a short name has no spaces at the end", 0, plain, "NAME.TXT"},
		{"a short name may have no extension", 0, short("A B", 0, 0, 0), "A B"},
		{"the base can be lower", 0, lower(short("NAME    TXT", 0, 0, 0), 8), "name.TXT"},
		{"the extension can be lower", 0, lower(short("NAME    TXT", 0, 0, 0), 16), "NAME.txt"},
		{"both can be lower", 0, lower(short("\x80NAME   TXT", 0, 0, 0), 24), "çname.txt"},
		{"letters without a lower case in the code page stay", 0, lower(short("\xe2\xea\xe4     TXT", 0, 0, 0), 24), "ΓΩσ.txt"},
		{"code page 437 is the default", 0, short("\x9b\xe1", 0, 0, 0), "¢ß"},
		{"code page 850 can be asked for", 850, short("\x9b\xe1\xd2", 0, 0, 0), "øßÊ"},
		{"5 stands for the byte that would mean deleted", 0, short("\x05BC", 0, 0, 0), "σBC"},
		{"a long name hides the short one", 0, long("Long name.text", plain), "Long name.text"},
		{"a long name may end where an entry does", 0, long("thirteen char", plain), "thirteen char"},
		{"a long name has surrogates", 0, long("😀 日本", plain), "😀 日本"},
		{"half a surrogate is replaced", 0, longUnits([]uint16{'a', 0xd83d, 'b'}, plain), "a\ufffdb"},
		{"a long name of 255 units", 0, long(strings.Repeat("ü", 255), plain), strings.Repeat("ü", 255)},
		{"a long name of 260 units is none", 0, long(strings.Repeat("ü", 260), plain), "NAME.TXT"},
		{"a long name of another short one is none", 0, wrongSum, "OFANOT~1"},
		{"a long name without its first entry is none", 0, broken[32:], "ANAMEO~1"},
		{"a long name without its last entry is none", 0, slices.Concat(broken[:32], broken[64:]), "ANAMEO~1"},
		{"a long name with something between is none", 0, slices.Concat(broken[:64], short("\xe5AME", 0, 0, 0), broken[64:]), "ANAMEO~1"},
	} {
		im := newImage(32)
		im.chain(2, 3)
		put(im.memory[im.heap:], test.entry)
		f := open(t, im, fat.Options{CodePage: test.page})
		if got, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(got, []string{test.want}) {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
	}
	if _, err := fat.OpenWith(newImage(12), fat.Options{CodePage: 1252}); err == nil {
		t.Error("open with a code page that is not known: got no error")
	}
}

func TestEntriesThatAreNotFilesAreLeftOut(t *testing.T) {
	im := newImage(16)
	put(im.root(), short(".", 0x10, 0, 0), short("..         ", 0x10, 0, 0), short("LABEL      ", 0x08, 0, 0),
		short("\xe5ELETED", 0x20, 0, 0), short("FILE       ", 0x20, 0, 0), make([]byte, 32), short("BEHIND     ", 0x20, 0, 0))
	f := open(t, im, fat.Options{})
	if got, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(got, []string{"FILE"}) {
		t.Errorf("names: got %q, %v, want FILE", got, err)
	}
	if got := f.Info(); got.Label != "LABEL" || got.UUID != "1234-ABCD" || got.Type != "vfat" {
		t.Errorf("info: got %+v, want the label LABEL and the UUID 1234-ABCD", got)
	}
}

func TestNamesNoSystemCouldMakeAreLeftOutAndTold(t *testing.T) {
	for _, name := range []string{"a/b", ".", "..", "../../etc/passwd"} {
		im := newImage(16)
		put(im.root(), long(name, short("EVIL", 0x20, 0, 0)), short("GOOD       ", 0x20, 0, 0))
		f := open(t, im, fat.Options{})
		got, err := fstest.Names(f, f.Root())
		if !errors.Is(err, fsys.ErrCorrupt) || !slices.Equal(got, []string{"GOOD"}) {
			t.Errorf("names beside %q: got %q, %v, want GOOD and ErrCorrupt", name, got, err)
		}
	}
}

func TestLookupFoldsCase(t *testing.T) {
	im := newImage(16)
	a, b := short("AFILEW~1TXT", 0x20, 0, 1), short("AFILEW~2TXT", 0x20, 0, 2)
	put(im.root(), long("A file with a Näme.txt", a), long("a FILE with a näme.txt", b), short("SHORT   TXT", 0x20, 0, 0))
	f := open(t, im, fat.Options{})
	for name, want := range map[string]string{
		"A file with a Näme.txt": "A file with a Näme.txt", "a FILE with a näme.txt": "a FILE with a näme.txt",
		"A FILE WITH A NÄME.TXT": "A file with a Näme.txt", "afilew~2.txt": "a FILE with a näme.txt",
		"short.TXT": "SHORT.TXT", "SHORT.TXT..": "SHORT.TXT",
	} {
		id := fstest.Lookup(t, f, name)
		err := f.ReadDir(f.Root(), func(e fsys.Entry) bool {
			if e.ID == id && e.Name != want {
				t.Errorf("look up %q: got %q, want %q", name, e.Name, want)
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "...", "short", "SHORT .TXT"} {
		if id, err := f.Lookup(f.Root(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("look up %q: got %d, %v, want fs.ErrNotExist", name, id, err)
		}
	}
	if _, err := f.Lookup(fstest.Lookup(t, f, "SHORT.TXT"), "x"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("look up in a file: got %v, want fs.ErrInvalid", err)
	}
}

func TestContentIsReadByExtents(t *testing.T) {
	for _, bits := range []int{12, 16, 32} {
		im := newImage(bits)
		im.chain(20, 21, 22, 10, 11, 13)
		var want []byte
		for i, c := range []int{20, 21, 22, 10, 11, 13} {
			copy(im.cluster(c), bytes.Repeat([]byte{byte('a' + i)}, 512))
			want = append(want, im.cluster(c)...)
		}
		e := short("FILE", 0x21, 20, 3000)
		if bits != 32 {
			le.PutUint16(e[20:], 7) // of an OS/2 attribute there
		}
		put(im.root(), e)
		f := open(t, im, fat.Options{})
		id := fstest.Lookup(t, f, "FILE")
		got := make([]byte, 3001)
		if n, err := f.ReadAt(id, got, 0); n != 3000 || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want[:n]) {
			t.Errorf("FAT%d: content: got %d, %v, or other bytes", bits, n, err)
		}
		exts, err := f.Extents(id, 100, 9999)
		at := func(c int) int64 { return int64(im.heap + (c-2)*512) }
		wantExts := []fsys.Extent{{Kind: fsys.Data, Off: 100, Len: 1436, At: at(20) + 100}, {Kind: fsys.Data, Off: 1536, Len: 1024, At: at(10)},
			{Kind: fsys.Data, Off: 2560, Len: 440, At: at(13)}}
		if err != nil || !slices.Equal(exts, wantExts) {
			t.Errorf("FAT%d: extents: got %+v, %v, want %+v", bits, exts, err, wantExts)
		}
		a, err := f.Stat(id)
		if err != nil || a.Mode != 0o555 || a.Size != 3000 || a.Allocated != 3072 || !slices.Equal(a.Flags, []string{"read-only", "archive"}) {
			t.Errorf("FAT%d: stat: got %+v, %v", bits, a, err)
		}
		off, n, err := f.(fsys.Inodes).Inode(id)
		if err != nil || n != 32 || !bytes.Equal(im.memory[off:off+n], e) {
			t.Errorf("FAT%d: record: got %d bytes at %d, %v, want the entry", bits, n, off, err)
		}
	}
}

func TestTimesHaveTwoSecondsAndDatesOnly(t *testing.T) {
	im := newImage(16)
	e := short("FILE", 0x20, 0, 0)
	e[13] = 199
	le.PutUint16(e[14:], 23<<11|59<<5|29)
	le.PutUint16(e[16:], 127<<9|12<<5|31)
	le.PutUint16(e[18:], 40<<9|2<<5|29)
	le.PutUint16(e[22:], 1<<11|2<<5|2)
	le.PutUint16(e[24:], 1<<9)
	put(im.root(), e, short("NONE", 0, 0, 0)[:24:24], make([]byte, 8))
	f := open(t, im, fat.Options{})
	a, err := f.Stat(fstest.Lookup(t, f, "FILE"))
	for what, x := range map[string][2]time.Time{
		"created":  {a.Created, time.Date(2107, 12, 31, 23, 59, 59, 990e6, time.UTC)},
		"accessed": {a.Accessed, time.Date(2020, 2, 29, 0, 0, 0, 0, time.UTC)},
		"modified": {a.Modified, time.Date(1981, 1, 1, 1, 2, 4, 0, time.UTC)},
	} {
		if !x[0].Equal(x[1]) {
			t.Errorf("%s: got %v, %v, want %v", what, x[0], err, x[1])
		}
	}
	if a, err := f.Stat(fstest.Lookup(t, f, "NONE")); err != nil || !a.Created.IsZero() || !a.Modified.IsZero() || !a.Accessed.IsZero() {
		t.Errorf("times of an entry without: got %+v, %v, want the zero time", a, err)
	}
}

func TestNotesTellTheState(t *testing.T) {
	for _, test := range []struct {
		name string
		bits int
		do   func(im *image)
		want []string
	}{
		{"in order", 32, func(*image) {}, nil},
		{"Linux had it mounted", 32, func(im *image) { im.memory[65] = 1 }, []string{"not unmounted"}},
		{"Linux had it mounted, FAT16", 16, func(im *image) { im.memory[37] = 1 }, []string{"not unmounted"}},
		{"Windows had it mounted", 32, func(im *image) { im.set(1, 0x07ffffff) }, []string{"not unmounted"}},
		{"Windows had it mounted, FAT16", 16, func(im *image) { im.set(1, 0x7fff) }, []string{"not unmounted"}},
		{"Windows saw errors", 32, func(im *image) { im.set(1, 0x0bffffff) }, []string{"errors"}},
		{"Windows saw errors, FAT16", 16, func(im *image) { im.set(1, 0xbfff) }, []string{"errors"}},
		{"both", 12, func(im *image) { im.memory[37] = 3 }, []string{"not unmounted", "errors"}},
		{"cut off", 16, func(im *image) { im.memory = im.memory[:len(im.memory)-1000] }, []string{"ends 1000 bytes before"}},
	} {
		im := newImage(test.bits)
		test.do(im)
		got := open(t, im, fat.Options{}).Info().Notes
		if !slices.EqualFunc(got, test.want, strings.Contains) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestFreeIsWhatIsRecorded(t *testing.T) {
	im := newImage(12)
	im.chain(5, 6, 7)
	if got := open(t, im, fat.Options{}).Info(); got.Free != got.Size-3*512 {
		t.Errorf("free of FAT12: got %d of %d, want 3 clusters less", got.Free, got.Size)
	}
	im = newImage(32)
	if got := open(t, im, fat.Options{}).Info().Free; got != -1 {
		t.Errorf("free of FAT32 without FSInfo: got %d, want -1", got)
	}
	le.PutUint16(im.memory[48:], 1)
	info := im.memory[512:]
	le.PutUint32(info, 0x41615252)
	le.PutUint32(info[484:], 0x61417272)
	for count, want := range map[uint32]int64{77: 77 * 512, 0xffffffff: -1, 6000: -1} {
		le.PutUint32(info[488:], count)
		if got := open(t, im, fat.Options{}).Info().Free; got != want {
			t.Errorf("free with FSInfo of %d: got %d, want %d", count, got, want)
		}
	}
}

func TestTheTableInUseIsRead(t *testing.T) {
	im := newImage(32)
	put(im.root(), short("FILE", 0x20, 5, 1024))
	im.chain(5, 6)
	im.memory[16] = 2 // tables, the second in the first clusters
	le.PutUint32(im.memory[36:], le.Uint32(im.memory[36:])/2)
	le.PutUint16(im.memory[40:], 0x81)
	f := open(t, im, fat.Options{})
	if exts, err := f.Extents(fstest.Lookup(t, f, "FILE"), 0, 1024); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("extents by the second table, which is empty: got %+v, %v, want ErrCorrupt", exts, err)
	}
	le.PutUint16(im.memory[40:], 0x01) // mirrored
	f = open(t, im, fat.Options{})
	if exts, err := f.Extents(fstest.Lookup(t, f, "FILE"), 0, 1024); err != nil || len(exts) != 1 {
		t.Errorf("extents by the first table: got %+v, %v, want one", exts, err)
	}
	le.PutUint16(im.memory[40:], 0x83)
	if _, err := fat.Open(im); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("open with table 3 of 2 in use: got %v, want ErrCorrupt", err)
	}
}
