package exfat_test

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/exfat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

func TestBootRegionIsVerified(t *testing.T) {
	seal := func(do func(b memory)) func(im *image) {
		return func(im *image) {
			do(im.memory)
			im.seal()
		}
	}
	for name, test := range map[string]struct {
		do   func(im *image)
		want error
	}{
		"zeroes":                        {func(im *image) { clear(im.memory) }, fsys.ErrNotFound},
		"a short volume":                {func(im *image) { im.memory = im.memory[:300] }, fsys.ErrNotFound},
		"NTFS":                          {func(im *image) { copy(im.memory[3:], "NTFS    ") }, fsys.ErrNotFound},
		"a region that is cut off":      {func(im *image) { im.memory = im.memory[:5000] }, nil},
		"two damaged regions":           {func(im *image) { im.memory[500]++; im.memory[12*512+500]++ }, fsys.ErrCorrupt},
		"TexFAT":                        {seal(func(b memory) { b[110] = 2 }), fsys.ErrUnsupported},
		"another version":               {seal(func(b memory) { b[105] = 2 }), fsys.ErrUnsupported},
		"no tables":                     {seal(func(b memory) { b[110] = 0 }), fsys.ErrCorrupt},
		"sectors of 256 bytes":          {seal(func(b memory) { b[108] = 8 }), fsys.ErrCorrupt},
		"clusters of 64 MiB":            {seal(func(b memory) { b[109] = 17 }), fsys.ErrCorrupt},
		"a table in the boot region":    {seal(func(b memory) { le.PutUint32(b[80:], 20) }), fsys.ErrCorrupt},
		"a table that is too short":     {seal(func(b memory) { le.PutUint32(b[84:], 3) }), fsys.ErrCorrupt},
		"a table in the heap":           {seal(func(b memory) { le.PutUint32(b[84:], 1<<32-1) }), fsys.ErrCorrupt},
		"no clusters":                   {seal(func(b memory) { le.PutUint32(b[92:], 0) }), fsys.ErrCorrupt},
		"more clusters than the volume": {seal(func(b memory) { le.PutUint32(b[92:], 1000) }), fsys.ErrCorrupt},
		"a volume without end":          {seal(func(b memory) { le.PutUint64(b[72:], 1<<63) }), fsys.ErrCorrupt},
	} {
		im := newImage()
		test.do(im)
		_, err := exfat.Open(im)
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("open %s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestNotesTellTheState(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(im *image)
		want []string
	}{
		"in order":          {func(*image) {}, nil},
		"mounted":           {func(im *image) { im.memory[106] = 2 }, []string{"not unmounted"}},
		"errors":            {func(im *image) { im.memory[106] = 4 }, []string{"errors"}},
		"damaged boot code": {func(im *image) { im.memory[300]++ }, []string{"backup of the boot region"}},
		"damaged shift":     {func(im *image) { im.memory[108] = 12 }, []string{"backup of the boot region"}},
		"no bitmap":         {func(im *image) { im.root()[32] = 0x01 }, []string{"allocation bitmap"}},
		"a short bitmap":    {func(im *image) { im.root()[32+24]-- }, []string{"allocation bitmap"}},
		"cut off":           {func(im *image) { im.memory = im.memory[:len(im.memory)-1000] }, []string{"ends 1000 bytes before"}},
		"no root directory": {func(im *image) { im.set(4, 4); clear(im.root()); im.root()[0] = 1 }, []string{"up-case", "bitmap"}},
	} {
		im := newImage()
		test.do(im)
		if got := open(t, im).Info().Notes; !slices.EqualFunc(got, test.want, strings.Contains) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestBrokenContentIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		file file
		do   func(im *image)
	}{
		"too short":                 {file{first: 10, size: 2000}, func(im *image) { im.chain(10, 11) }},
		"a loop":                    {file{first: 10, size: 4000}, func(im *image) { im.chain(10, 11, 12); im.set(12, 11) }},
		"bad":                       {file{first: 10, size: 2000}, func(im *image) { im.set(10, 0xfffffff7) }},
		"free":                      {file{first: 10, size: 2000}, func(*image) {}},
		"no first cluster":          {file{first: 0, size: 1}, func(*image) {}},
		"no allocation":             {file{first: 10, size: 1, do: func(b []byte) { b[33] = 0 }}, func(*image) {}},
		"adjacent beyond the end":   {file{first: clusters, size: 2000, contiguous: true}, func(*image) {}},
		"larger than the volume":    {file{first: 10, size: 1 << 40, contiguous: true}, func(*image) {}},
		"larger than anything":      {file{first: 10, size: 1<<63 - 1}, func(*image) {}},
		"in what has been cut away": {file{first: 390, size: 2000, contiguous: true}, func(im *image) { im.memory = im.memory[:heapAt+390*512] }},
	} {
		test.file.name, test.file.valid = "f", test.file.size
		im := newImage(test.file.entries())
		test.do(im)
		f := open(t, im)
		id := fstest.Lookup(t, f, "f")
		if exts, err := f.Extents(id, 0, 4000); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("extents of content that is %s: got %+v, %v, want ErrCorrupt", name, exts, err)
		}
		if _, err := f.ReadAt(id, make([]byte, 4000), 0); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("read of content that is %s: got %v, want ErrCorrupt", name, err)
		}
	}
}

func TestNumbersThatAreNoInodesDoNotExist(t *testing.T) {
	im := newImage(file{name: "f"}.entries())
	f := open(t, im)
	id := fstest.Lookup(t, f, "f")
	for _, id := range []fsys.ID{0, 2, 3, tableAt / 16, id - 2, id + 2, id + 4, 1 << 20, 1 << 63, 1<<64 - 1} {
		if _, err := f.Stat(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of %d: got %v, want fs.ErrNotExist", id, err)
		}
	}
	if _, err := f.Extents(f.Root(), 0, 1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("extents of the root directory: got %v, want fs.ErrInvalid", err)
	}
	if err := f.ReadDir(id, func(fsys.Entry) bool { return true }); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("list a file: got %v, want fs.ErrInvalid", err)
	}
}

// filled returns a small file system with some of everything.
func filled() *image {
	im := newImage(
		file{name: "directory", attr: 0x10, first: 50, size: 1024, valid: 1024}.entries(),
		file{name: "adjacent directory", attr: 0x10, first: 70, size: 1024, valid: 1024, contiguous: true}.entries(),
		file{name: "file ünïcödé 😀", first: 20, size: 2500, valid: 1200}.entries(),
		file{name: "adjacent file", first: 30, size: 2500, valid: 2500, contiguous: true}.entries())
	im.chain(20, 22, 24, 25, 29)
	im.chain(50, 60)
	long := file{name: strings.Repeat("long name ", 16), size: 5, valid: 5, first: 90}.entries()
	im.chain(90)
	content := make([]byte, 1024)
	put(content, file{name: "x"}.entries(), file{name: "y", attr: 0x10, first: 80, size: 512, valid: 512}.entries(), long, long)
	copy(im.cluster(50), content)
	copy(im.cluster(60), content[512:])
	copy(im.memory[heapAt+68*512:], content)
	im.chain(80)
	put(im.cluster(80), file{name: "z"}.entries())
	return im
}

// uncached lets no pages be read that hold nothing but what is next to structures.
func uncached(v fsys.Volume) (fsys.FileSystem, error) {
	return exfat.OpenWith(v, exfat.Options{CacheBytes: -1})
}

func TestSurvivesDamage(t *testing.T) {
	fstest.Damage(t, filled(), uncached, 1000)
}

func FuzzOpen(f *testing.F) {
	im := filled()
	for _, at := range []int{0, tableAt, heapAt, heapAt + 2*512, heapAt + 48*512} {
		f.Add(uint16(at/16), []byte(im.memory[at:at+512]))
	}
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		im := filled()
		if n := int(at) * 16; n < len(im.memory) {
			copy(im.memory[n:], patch)
		}
		if at < 12*512/16 {
			im.seal()
		}
		fstest.Survives(t, im, uncached)
	})
}

func FuzzEntries(f *testing.F) {
	f.Add(file{name: "a file"}.entries())
	f.Add(file{name: "directory", attr: 0x10, first: 50, size: 1024, valid: 1024}.entries())
	f.Add(file{name: strings.Repeat("long name ", 16), first: 20, size: 1024, valid: 1024}.entries())
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b)&^31, 512)]
		// Without the right checksum, nothing behind it would be reached.
		for at := 0; at < len(b); at += 32 {
			n := 32 * (1 + int(b[at+1]))
			if b[at] != 0x85 || at+n > len(b) {
				continue
			}
			var sum uint16
			for i, c := range b[at : at+n] {
				if i != 2 && i != 3 {
					sum = (sum>>1 | sum<<15) + uint16(c)
				}
			}
			le.PutUint16(b[at+2:], sum)
		}
		im := filled()
		copy(im.root()[96:], b)
		fstest.Survives(t, im, uncached)
	})
}
