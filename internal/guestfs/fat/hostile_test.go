package fat_test

import (
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

func TestWhatIsNotFATIsNotFound(t *testing.T) {
	for name, do := range map[string]func(im *image){
		"zeroes":                       func(im *image) { clear(im.memory) },
		"a short volume":               func(im *image) { im.memory = im.memory[:100] },
		"NTFS":                         func(im *image) { im.memory[16], im.memory[14] = 0, 0 },
		"exFAT":                        func(im *image) { clear(im.memory[11:64]) },
		"sectors of 600 bytes":         func(im *image) { le.PutUint16(im.memory[11:], 600) },
		"clusters of 3 sectors":        func(im *image) { im.memory[13] = 3 },
		"clusters of no sectors":       func(im *image) { im.memory[13] = 0 },
		"no medium":                    func(im *image) { im.memory[21] = 0 },
		"no tables":                    func(im *image) { im.memory[16] = 0 },
		"a root of half a sector":      func(im *image) { im.memory[17] = 8 },
		"tables longer than itself":    func(im *image) { le.PutUint16(im.memory[22:], 60000) },
		"no sectors":                   func(im *image) { clear(im.memory[32:36]) },
		"neither a jump nor signature": func(im *image) { im.memory[0], im.memory[511] = 0, 0 },
	} {
		im := newImage(16)
		do(im)
		if _, err := fat.Open(im); !errors.Is(err, fsys.ErrNotFound) {
			t.Errorf("open %s: got %v, want ErrNotFound", name, err)
		}
	}
	im := newImage(32)
	im.memory[43] = 1
	if _, err := fat.Open(im); !errors.Is(err, fsys.ErrUnsupported) {
		t.Errorf("open FAT32 of version 1.0: got %v, want ErrUnsupported", err)
	}
}

func TestBrokenChainsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		do    func(im *image)
		first int
	}{
		"too short":                          {func(im *image) { im.chain(10, 11, 12) }, 10},
		"free":                               {func(im *image) { im.set(10, 0) }, 10},
		"bad":                                {func(im *image) { im.chain(10, 11, 12); im.set(12, 0x0ffffff7) }, 10},
		"beyond the volume":                  {func(im *image) { im.chain(10, 11, 12); im.set(12, 0x0f00) }, 10},
		"no first cluster":                   {func(*image) {}, 0},
		"first cluster beyond the volume":    {func(*image) {}, 0x0ffffff0},
		"one cluster for ever":               {func(im *image) { im.set(10, 10) }, 10},
		"a loop":                             {func(im *image) { im.chain(10, 11, 12, 13, 14); im.set(14, 12) }, 10},
		"a loop that begins at the last one": {func(im *image) { im.chain(10, 11, 12, 13, 14, 15, 16, 17); im.set(17, 11) }, 10},
	} {
		for _, bits := range []int{12, 16, 32} {
			im := newImage(bits)
			test.do(im)
			put(im.root(), short("FILE", 0x20, test.first, 8*512), short("DIR", 0x10, test.first, 0))
			f := open(t, im, fat.Options{})
			id := fstest.Lookup(t, f, "FILE")
			if exts, err := f.Extents(id, 0, 4096); !errors.Is(err, fsys.ErrCorrupt) {
				t.Errorf("FAT%d, chain that is %s: got %+v, %v, want ErrCorrupt", bits, name, exts, err)
			}
			if _, err := f.ReadAt(id, make([]byte, 4096), 0); !errors.Is(err, fsys.ErrCorrupt) {
				t.Errorf("FAT%d, read of a chain that is %s: got %v, want ErrCorrupt", bits, name, err)
			}
		}
	}
}

func TestADamagedDirectoryIsListedAsFarAsItGoes(t *testing.T) {
	im := newImage(32)
	im.chain(10, 11)
	im.set(11, 10)
	for _, c := range []int{10, 11} {
		for i := range 16 {
			put(im.cluster(c)[i*32:], short(string(rune('A'+c))+string(rune('A'+i)), 0x20, 0, 0))
		}
	}
	put(im.root(), short("DIR", 0x10, 10, 0))
	f := open(t, im, fat.Options{})
	got, err := fstest.Names(f, fstest.Lookup(t, f, "DIR"))
	if !errors.Is(err, fsys.ErrCorrupt) || len(got) < 32 || got[31] != "LP" {
		t.Errorf("list a directory whose chain is a loop: got %q, %v, want 32 names, which may come again, and ErrCorrupt", got, err)
	}
	if a, err := f.Stat(fstest.Lookup(t, f, "DIR")); err != nil || !a.Mode.IsDir() {
		t.Errorf("stat of that directory: got %+v, %v", a, err)
	}
}

func TestADirectoryInItselfHasTheSameInodes(t *testing.T) {
	im := newImage(32)
	put(im.root(), short("SELF", 0x10, 2, 0))
	f := open(t, im, fat.Options{})
	id := fstest.Lookup(t, f, "SELF")
	if again, err := f.Lookup(id, "SELF"); err != nil || again != id {
		t.Errorf("look up a directory in itself: got %d, %v, want %d", again, err, id)
	}
}

func TestNumbersThatAreNoInodesDoNotExist(t *testing.T) {
	im := newImage(16)
	put(im.root(), long("long name", short("FILE", 0x20, 0, 0)), short("\xe5GONE", 0x20, 0, 0), short("LABEL", 0x08, 0, 0))
	f := open(t, im, fat.Options{})
	entry := fstest.Lookup(t, f, "long name")
	for _, id := range []fsys.ID{0, 2, fsys.ID(im.table / 32), entry - 1, entry + 1, entry + 2, entry + 3, 1 << 20, 1 << 63, 1<<64 - 1} {
		if _, err := f.Stat(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of %d: got %v, want fs.ErrNotExist", id, err)
		}
	}
	if _, err := f.Extents(f.Root(), 0, 1); err == nil {
		t.Error("extents of the root directory: got no error")
	}
}

func TestAVolumeThatIsCutOffIsAnError(t *testing.T) {
	im := newImage(16)
	put(im.root(), short("FILE", 0x20, 4999, 1024))
	im.chain(4999, 5000)
	im.memory = im.memory[:im.heap+4997*512+100]
	f := open(t, im, fat.Options{})
	if exts, err := f.Extents(fstest.Lookup(t, f, "FILE"), 0, 1024); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("extents beyond the volume: got %+v, %v, want ErrCorrupt", exts, err)
	}
}

func TestADirectoryEndsAtItsLargestSize(t *testing.T) {
	im := newImage(32)
	clusters := []int{10}
	for c := 11; c < 4200; c++ {
		clusters = append(clusters, c)
	}
	im.chain(clusters...)
	for _, c := range clusters {
		copy(im.cluster(c), slices.Repeat(short("\xe5", 0, 0, 0), 16))
	}
	put(im.root(), short("DIR", 0x10, 10, 0))
	f := open(t, im, fat.Options{})
	if _, err := fstest.Names(f, fstest.Lookup(t, f, "DIR")); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("list a directory of more than 2 MiB: got %v, want ErrCorrupt", err)
	}
}

// filled returns a small file system with some of everything.
func filled(bits int) *image {
	im := newImage(bits)
	im.chain(10, 12, 14)
	im.chain(11, 13)
	im.chain(30, 31, 32, 40, 41, 35)
	put(im.root(), short("LABEL", 0x08, 0, 0), long("A directory with a long name", short("ADIREC~1", 0x10, 10, 0)),
		short("FILE", 0x20, 30, 3000), short("DIR", 0x10, 11, 0))
	put(im.cluster(10), short(".", 0x10, 10, 0), short("..", 0x10, 0, 0), long("ünïcödé 😀.text", short("UNICO~1TXT", 0x20, 0, 0)))
	put(im.cluster(11), short(".", 0x10, 11, 0), short("..", 0x10, 0, 0), short("INNER", 0x21, 20, 100))
	im.chain(20)
	return im
}

// uncached lets no pages be read that hold nothing but what is next to structures.
func uncached(v fsys.Volume) (fsys.FileSystem, error) {
	return fat.OpenWith(v, fat.Options{CacheBytes: -1})
}

func TestSurvivesDamage(t *testing.T) {
	for _, bits := range []int{12, 16, 32} {
		fstest.Damage(t, filled(bits), uncached, 500)
	}
}

func FuzzOpen(f *testing.F) {
	for _, bits := range []int{12, 16, 32} {
		im := filled(bits)
		f.Add(uint16(0), []byte(im.memory[:128]), uint8(bits))
		f.Add(uint16(im.table/16), []byte(im.memory[im.table:im.table+128]), uint8(bits))
		f.Add(uint16(im.heap/16), []byte(im.memory[im.heap:im.heap+128]), uint8(bits))
	}
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, bits uint8) {
		im := filled([]int{12, 16, 32}[bits%3])
		if n := int(at) * 16; n < len(im.memory) {
			copy(im.memory[n:], patch)
		}
		fstest.Survives(t, im, uncached)
	})
}
