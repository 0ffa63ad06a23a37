package exfat_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/guestfs/exfat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

func open(t *testing.T, v fsys.Volume) fsys.FileSystem {
	t.Helper()
	f, err := exfat.Open(v)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestInfoComesFromTheRootDirectory(t *testing.T) {
	got := open(t, newImage()).Info()
	if got.Label != "Läbel 😀" || got.UUID != "1234-ABCD" || got.Free != (clusters-6)*512 || got.Size != clusters*512 || got.Notes != nil {
		t.Errorf("info: got %+v", got)
	}
}

func TestNames(t *testing.T) {
	for _, test := range []struct {
		name string
		file file
		want string
	}{
		{"a short one", file{name: "a"}, "a"},
		{"one that fills an entry", file{name: "fifteen letters"}, "fifteen letters"},
		{"one with surrogates", file{name: "😀 日本"}, "😀 日本"},
		{"one with half a surrogate", file{units: []uint16{'a', 0xd83d, 'b'}}, "a\ufffdb"},
		{"one of 255 units", file{name: strings.Repeat("ü", 255)}, strings.Repeat("ü", 255)},
		{"one with a vendor's entry behind", file{name: "x", more: [][]byte{append([]byte{0xe0}, make([]byte, 31)...)}}, "x"},
	} {
		f := open(t, newImage(test.file.entries()))
		if got, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(got, []string{test.want}) {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}

func TestDamagedEntriesAreLeftOutAndTold(t *testing.T) {
	entry := func(kind byte) []byte { return append([]byte{kind}, make([]byte, 31)...) }
	wrong := file{name: "wrong"}.entries()
	wrong[2]++
	for _, test := range []struct {
		name  string
		entry []byte
		want  error
	}{
		{"a checksum is wrong", wrong, fsys.ErrCorrupt},
		{"a name has a slash", file{name: "a/b"}.entries(), fsys.ErrCorrupt},
		{"a name is ..", file{name: ".."}.entries(), fsys.ErrCorrupt},
		{"a name is empty", file{name: "", more: [][]byte{entry(0xc1)}}.entries(), fsys.ErrCorrupt},
		{"a name has no entries", file{name: "x", do: func(b []byte) { b[35] = 16 }}.entries(), fsys.ErrCorrupt},
		{"a file has too few entries", file{name: "", do: func(b []byte) { b[1] = 1 }}.entries(), fsys.ErrCorrupt},
		{"a file has too many entries", file{name: "x", do: func(b []byte) { b[1] = 19 }}.entries(), fsys.ErrCorrupt},
		{"a file ends before its entries", file{name: "x", do: func(b []byte) { b[1] = 3 }}.entries(), fsys.ErrCorrupt},
		{"there is no stream", file{name: "x", do: func(b []byte) { b[32] = 0xc1 }}.entries(), fsys.ErrCorrupt},
		{"more is valid than there is", file{name: "x", size: 1, valid: 2, first: 10}.entries(), fsys.ErrCorrupt},
		{"an entry must be understood", entry(0x84), fsys.ErrUnsupported},
		{"an entry of a file must be understood", file{name: "x", more: [][]byte{entry(0xc2)}}.entries(), fsys.ErrUnsupported},
	} {
		f := open(t, newImage(file{name: "before"}.entries(), test.entry, file{name: "behind"}.entries()))
		got, err := fstest.Names(f, f.Root())
		if !errors.Is(err, test.want) || !slices.Equal(got, []string{"before", "behind"}) {
			t.Errorf("names where %s: got %q, %v, want the others and %v", test.name, got, err, test.want)
		}
	}
	ignored := newImage(entry(0x05), entry(0xa0), entry(0x41), entry(0xc1), file{name: "x"}.entries(), make([]byte, 32), file{name: "y"}.entries())
	f := open(t, ignored)
	if got, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(got, []string{"x"}) {
		t.Errorf("names beside entries that need not be understood: got %q, %v, want x", got, err)
	}
}

func TestLookupFoldsCaseByTheTable(t *testing.T) {
	f := open(t, newImage(file{name: "A Näme"}.entries(), file{name: "a näme"}.entries(), file{name: "É"}.entries()))
	for name, want := range map[string]string{"A Näme": "A Näme", "a näme": "a näme", "A NÄME": "A Näme", "É": "É", "É.": "É"} {
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
	for _, name := range []string{"", ".", "..", "é", "A Nam"} { // é is not in the table
		if id, err := f.Lookup(f.Root(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("look up %q: got %d, %v, want fs.ErrNotExist", name, id, err)
		}
	}
}

func TestWithoutAnUpCaseTableLettersFoldAsTheyDo(t *testing.T) {
	for name, do := range map[string]func(im *image){
		"damaged": func(im *image) { im.cluster(3)[3]++ }, "missing": func(im *image) { im.root()[64] = 0x02 },
		"too long": func(im *image) { le.PutUint64(im.root()[64+24:], 1<<40) },
	} {
		im := newImage(file{name: "Éıß"}.entries())
		do(im)
		f := open(t, im)
		if notes := f.Info().Notes; len(notes) != 1 || !strings.Contains(notes[0], "up-case table") {
			t.Errorf("notes where the table is %s: got %q", name, notes)
		}
		fstest.Lookup(t, f, "éıß")
		if _, err := f.Lookup(f.Root(), "ÉIß"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("look up with another i: got %v, want fs.ErrNotExist", err)
		}
	}
}

func TestWhatWasNeverWrittenReadsAsZeroes(t *testing.T) {
	for _, contiguous := range []bool{false, true} {
		im := newImage(file{name: "f", first: 20, contiguous: contiguous, size: 2500, valid: 1200, attr: 0x21}.entries(),
			file{name: "none", first: 20, contiguous: contiguous, size: 2500}.entries())
		at := []int{20, 21, 22, 23, 24}
		if !contiguous {
			at = []int{20, 21, 30, 31, 40}
			im.chain(at...)
		}
		want := make([]byte, 2500)
		for i, c := range at {
			copy(im.cluster(c), bytes.Repeat([]byte{byte('a' + i)}, 512))
			if i < 3 {
				copy(want[i*512:1200], im.cluster(c))
			}
		}
		f := open(t, im)
		id := fstest.Lookup(t, f, "f")
		got := bytes.Repeat([]byte("x"), 2501)
		if n, err := f.ReadAt(id, got, 0); n != 2500 || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
			t.Errorf("content: got %d, %v, or other bytes", n, err)
		}
		exts, err := f.Extents(id, 0, 1<<40)
		wantExts := []fsys.Extent{{Kind: fsys.Data, Len: 1200, At: heapAt + 18*512}, {Off: 1200, Len: 1300}}
		if !contiguous {
			wantExts = []fsys.Extent{{Kind: fsys.Data, Len: 1024, At: heapAt + 18*512},
				{Kind: fsys.Data, Off: 1024, Len: 176, At: heapAt + 28*512}, {Off: 1200, Len: 1300}}
		}
		if err != nil || !slices.Equal(exts, wantExts) {
			t.Errorf("extents: got %+v, %v, want %+v", exts, err, wantExts)
		}
		if exts, err := f.Extents(id, 1200, 10); err != nil || !slices.Equal(exts, []fsys.Extent{{Off: 1200, Len: 10}}) {
			t.Errorf("extents behind what was written: got %+v, %v", exts, err)
		}
		if exts, err := f.Extents(fstest.Lookup(t, f, "none"), 0, 2500); err != nil || !slices.Equal(exts, []fsys.Extent{{Len: 2500}}) {
			t.Errorf("extents where nothing was written: got %+v, %v", exts, err)
		}
		a, err := f.Stat(id)
		if err != nil || a.Mode != 0o555 || a.Size != 2500 || a.Allocated != 5*512 || !slices.Equal(a.Flags, []string{"read-only", "archive"}) {
			t.Errorf("stat: got %+v, %v", a, err)
		}
	}
}

func TestTimesHaveOffsets(t *testing.T) {
	stamp := uint32(44<<25 | 2<<21 | 29<<16 | 12<<11 | 30<<5 | 4) // 2024-02-29 12:30:08
	for zone, want := range map[byte]time.Time{
		0:    time.Date(2024, 2, 29, 12, 30, 9, 230e6, time.UTC), // not valid
		0x80: time.Date(2024, 2, 29, 12, 30, 9, 230e6, time.UTC),
		0x88: time.Date(2024, 2, 29, 10, 30, 9, 230e6, time.UTC),
		0xfc: time.Date(2024, 2, 29, 13, 30, 9, 230e6, time.UTC),
		0xd0: time.Date(2024, 3, 1, 0, 30, 9, 230e6, time.UTC), // UTC-12
	} {
		f := open(t, newImage(file{name: "f", do: func(b []byte) {
			le.PutUint32(b[12:], stamp)
			b[21], b[23] = 123, zone
		}}.entries()))
		a, err := f.Stat(fstest.Lookup(t, f, "f"))
		if err != nil || !a.Modified.Equal(want) || !a.Created.IsZero() {
			t.Errorf("modified with offset %#x: got %v, %v, want %v", zone, a.Modified.UTC(), err, want)
		}
	}
}

func TestEntriesCrossClusters(t *testing.T) {
	long := file{name: strings.Repeat("a long name ", 20), size: 5, valid: 5, first: 90}.entries() // more than a cluster
	for _, contiguous := range []bool{false, true} {
		im := newImage(file{name: "d", attr: 0x10, first: 50, size: 4 * 512, valid: 4 * 512, contiguous: contiguous}.entries())
		im.chain(90)
		at := []int{50, 51, 52, 53}
		if !contiguous {
			at = []int{50, 60, 55, 54}
			im.chain(at...)
		}
		content := make([]byte, 4*512)
		put(content, slices.Repeat([]byte{1}, 480), long, file{name: "next"}.entries())
		for i, c := range at {
			copy(im.cluster(c), content[i*512:])
		}
		f := open(t, im)
		got, err := fstest.Names(f, fstest.Lookup(t, f, "d"))
		if err != nil || len(got) != 2 || len(got[0]) != 240 || got[1] != "next" {
			t.Fatalf("names: got %q, %v", got, err)
		}
		id, err := f.Lookup(fstest.Lookup(t, f, "d"), got[0])
		if err != nil {
			t.Fatal(err)
		}
		again := open(t, im) // which has not seen the directory
		if a, err := again.Stat(id); err != nil || a.Size != 5 {
			t.Errorf("stat: got %+v, %v, want 5 bytes", a, err)
		}
		if _, _, err := again.(fsys.Inodes).Inode(id); !errors.Is(err, fsys.ErrUnsupported) {
			t.Errorf("record in several pieces: got %v, want ErrUnsupported", err)
		}
		next, err := again.Lookup(fstest.Lookup(t, f, "d"), "next")
		if err != nil {
			t.Fatal(err)
		}
		off, n, err := again.(fsys.Inodes).Inode(next)
		if err != nil || !bytes.Equal(im.memory[off:off+n], file{name: "next"}.entries()) {
			t.Errorf("record: got %d bytes at %d, %v", n, off, err)
		}
	}
}
