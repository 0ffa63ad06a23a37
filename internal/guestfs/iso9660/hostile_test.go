package iso9660_test

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/iso9660"
)

func TestWhatIsNotReadIsRefusedByName(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(im *image)
		want error
		says string
	}{
		"zeroes":                 {func(im *image) { clear(im.memory) }, fsys.ErrNotFound, ""},
		"a short volume":         {func(im *image) { im.memory = im.memory[:20000] }, fsys.ErrNotFound, ""},
		"High Sierra":            {func(im *image) { clear(im.sector(16)); copy(im.sector(16)[8:], "\x01CDROM\x01") }, fsys.ErrUnsupported, "High Sierra"},
		"UDF":                    {func(im *image) { copy(im.sector(16), "\x00BEA01\x01"); copy(im.sector(17), "\x00NSR02\x01") }, fsys.ErrUnsupported, "UDF"},
		"blocks of 3000 bytes":   {func(im *image) { both16(im.sector(16)[128:], 3000) }, fsys.ErrCorrupt, "3000"},
		"no root record":         {func(im *image) { clear(im.sector(16)[156:190]) }, fsys.ErrCorrupt, ""},
		"a root past the end":    {func(im *image) { both32(im.sector(16)[158:], 1<<31) }, fs.ErrNotExist, ""},
		"a root that is nothing": {func(im *image) { both32(im.sector(16)[158:], dataAt) }, fs.ErrNotExist, ""},
	} {
		im := newImage()
		test.do(im)
		if _, err := iso9660.Open(im); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("open %s: got %v, want %v that says %q", name, err, test.want, test.says)
		}
	}
}

func TestContentThatIsNotRead(t *testing.T) {
	for name, test := range map[string]struct {
		file file
		want error
	}{
		"interleaved":             {file{at: dataAt, size: 5, do: func(b []byte) { b[26], b[27] = 1, 1 }}, fsys.ErrUnsupported},
		"on another disc":         {file{at: dataAt, size: 5, do: func(b []byte) { both16(b[28:], 2) }}, fsys.ErrUnsupported},
		"sparse":                  {file{at: dataAt, size: 5, use: susp("SF", numbers(0, 0)...)}, fsys.ErrUnsupported},
		"past the end":            {file{at: sectors - 1, size: 5000}, fsys.ErrCorrupt},
		"far past the end":        {file{at: 1<<31 - 1, size: 1<<32 - 1}, fsys.ErrCorrupt},
		"compressed in a new way": {file{at: dataAt, size: 50, use: susp("ZF", 'P', 'Z', 6, 15, 1, 0, 0, 0, 0, 0, 0, 0)}, fsys.ErrUnsupported},
		"in vast blocks":          {file{at: dataAt, size: 50, use: susp("ZF", 'p', 'z', 4, 31, 1, 0, 0, 0, 0, 0, 0, 0)}, fsys.ErrUnsupported},
		"too much for its blocks": {file{at: dataAt, size: 50, use: susp("ZF", append([]byte{'p', 'z', 4, 15}, numbers(1<<31)...)...)}, fsys.ErrCorrupt},
	} {
		test.file.name = "F.;1"
		f := open(t, newImage(test.file.record(), file{name: "next"}.record()))
		id := fstest.Lookup(t, f, "f")
		if a, err := f.Stat(id); err != nil || !a.Mode.IsRegular() {
			t.Errorf("stat of a file that is %s: got %+v, %v", name, a, err)
		}
		if exts, err := f.Extents(id, 0, 1<<40); !errors.Is(err, test.want) {
			t.Errorf("extents of a file that is %s: got %+v, %v, want %v", name, exts, err, test.want)
		}
		if _, err := f.ReadAt(id, make([]byte, 10), 0); !errors.Is(err, test.want) {
			t.Errorf("read of a file that is %s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestDamagedCompressionIsTold(t *testing.T) {
	for name, do := range map[string]func(b []byte){
		"another magic":         func(b []byte) { b[0]++ },
		"another size":          func(b []byte) { b[8]++ },
		"another block size":    func(b []byte) { b[13]++ },
		"a pointer back":        func(b []byte) { le.PutUint32(b[20:], 1) },
		"a pointer far ahead":   func(b []byte) { le.PutUint32(b[20:], 1<<31) },
		"a pointer past it":     func(b []byte) { le.PutUint32(b[16:], 60000); le.PutUint32(b[20:], 60100) },
		"a flipped bit":         func(b []byte) { b[60] ^= 4 },
		"a flipped last bit":    func(b []byte) { b[le.Uint32(b[20:])-1] ^= 1 },
		"more behind the block": func(b []byte) { le.PutUint32(b[20:], le.Uint32(b[20:])-1) },
	} {
		im := compressed(bytes.Repeat([]byte("compresses well. "), 3000))
		do(im.memory[dataAt*sector:])
		f := open(t, im)
		if _, err := f.ReadAt(fstest.Lookup(t, f, "f"), make([]byte, 100), 0); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("read with %s: got %v, want ErrCorrupt", name, err)
		}
	}
}

func TestDamagedRecordsAreLeftOutAndTold(t *testing.T) {
	loop := newImage(file{name: "L.;1", use: join(nm("loop"), ce(areaAt, 0, 28))}.record(), file{name: "SOUND"}.record())
	copy(loop.sector(areaAt), ce(areaAt, 0, 28))
	for name, im := range map[string]*image{
		"a continuation of itself":  loop,
		"a continuation far away":   newImage(file{name: "L.;1", use: ce(1<<31, 0, 28)}.record(), file{name: "SOUND"}.record()),
		"a vast continuation":       newImage(file{name: "L.;1", use: ce(areaAt, 0, 1<<31)}.record(), file{name: "SOUND"}.record()),
		"a name without end":        newImage(file{name: "L.;1", use: join(nm(strings.Repeat("x", 150)), ce(areaAt, 0, 0))}.record(), file{name: "SOUND"}.record()),
		"a record across sectors":   newImage(file{name: "SOUND"}.record()),
		"a name that is not inside": newImage(file{name: "SOUND"}.record()),
		"a record that is short":    newImage(file{name: "SOUND"}.record()),
	} {
		end := im.sector(rootAt + 1) // behind what is sound
		switch name {
		case "a name without end":
			area := join(nm(strings.Repeat("x", 150)))
			copy(im.sector(areaAt), area)
			b := im.sector(rootAt)
			both32(b[bytes.Index(b, []byte("CE\x1c"))+20:], uint32(len(area)))
		case "a record across sectors":
			long := file{name: strings.Repeat("A", 160)}.record()
			for at := 0; at < sector; at += len(long) {
				copy(end[at:], long)
			}
		case "a name that is not inside":
			copy(end, file{name: "BAD", do: func(b []byte) { b[32] = 200 }}.record())
		case "a record that is short":
			copy(end, file{name: "BAD", do: func(b []byte) { b[0] = 20 }}.record())
		}
		f := open(t, im)
		got, err := fstest.Names(f, f.Root())
		if !errors.Is(err, fsys.ErrCorrupt) && name != "a continuation far away" || err == nil || !slices.Contains(got, "sound") {
			t.Errorf("names with %s: got %q, %v, want the sound one, and an error", name, got, err)
		}
	}
}

func TestDirectoriesThatAreNone(t *testing.T) {
	elsewhere := func(to int) []byte {
		return file{name: "D.;1", use: join(nm("d"), susp("CL", numbers(uint32(to))...))}.record()
	}
	for name, record := range map[string][]byte{
		"in the middle of nothing":    file{name: "D", dir: true, at: dataAt, use: nm("d")}.record(),
		"past the end":                file{name: "D", dir: true, at: 1 << 30, use: nm("d")}.record(),
		"elsewhere in nothing":        elsewhere(dataAt),
		"elsewhere in no beginning":   elsewhere(dirAt + 1),
		"larger than the volume":      file{name: "D", dir: true, at: dirAt, use: nm("d")}.record(),
		"a file by its mode":          file{name: "D", dir: true, at: dirAt + 2, use: nm("d")}.record(),
		"one of the volume's headers": elsewhere(0),
	} {
		im := newImage(record)
		im.dir(dirAt, sector, nil)
		both32(im.sector(dirAt)[10:], 1<<31)
		copy(im.sector(dirAt+1), file{name: "x", dir: true, at: dirAt + 1, size: sector}.record())
		im.dir(dirAt+2, sector, px(0o100644, 1))
		f := open(t, im)
		id, err := f.Lookup(f.Root(), "d")
		if err == nil {
			_, err = f.Stat(id)
		}
		if err == nil {
			t.Errorf("a directory that is %s: got no error", name)
		}
	}
	f := open(t, newImage(file{name: "F.;1", at: dataAt, size: 1}.record()))
	id := fstest.Lookup(t, f, "f")
	if err := f.ReadDir(id, func(fsys.Entry) bool { return true }); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("list a file: got %v, want fs.ErrInvalid", err)
	}
	if _, err := f.Extents(f.Root(), 0, 1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("extents of a directory: got %v, want fs.ErrInvalid", err)
	}
	if _, err := f.Readlink(id); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("target of a file: got %v, want fs.ErrInvalid", err)
	}
	for _, id := range []fsys.ID{0, 1, sectors*sector - 1, sectors * sector, 1 << 63, 1<<64 - 1} {
		if _, err := f.Stat(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of %d: got %v, want fs.ErrNotExist", id, err)
		}
	}
}

func TestExtentsWithoutEndAreRefused(t *testing.T) {
	part := file{name: "F.;1", flags: 0x80, at: dataAt, size: sector, use: nm("f")}.record()
	for name, im := range map[string]*image{
		"cut off":         newImage(part, part),
		"of another file": newImage(part, file{name: "G.;1", flags: 0x80, at: dataAt, size: sector}.record()),
	} {
		f := open(t, im)
		if _, err := f.Stat(fstest.Lookup(t, f, "f")); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("stat of a file whose extents are %s: got %v, want ErrCorrupt", name, err)
		}
	}
}

func TestNotesTellWhatIsMissing(t *testing.T) {
	im := newImage()
	im.memory = im.memory[:len(im.memory)-1000]
	copy(im.sector(18), "\x00BEA01\x01")
	copy(im.sector(19), "\x00NSR03\x01")
	notes := open(t, im).Info().Notes
	if len(notes) != 2 || !strings.Contains(notes[0], "ends 1000 bytes before") || !strings.Contains(notes[1], "UDF") {
		t.Errorf("notes: got %q", notes)
	}
}

// filled returns a small disc with some of everything.
func filled() *image { return &image{slices.Clone(everything())} }

var everything = sync.OnceValue(func() memory {
	content := bytes.Repeat([]byte("some content "), 8000)
	stored, zf := compress(content)
	im := newImage(
		file{name: "DIR", dir: true, at: dirAt, size: 2 * sector, use: join(nm("directory"), px(0o40755, 2))}.record(),
		file{name: "DEEP.;1", use: join(nm("deep"), susp("CL", numbers(dirAt+2)...))}.record(),
		file{name: "F.;1", at: dataAt, size: 5000, use: join(nm("file"), px(0o100644, 2), susp("TF", append([]byte{14}, "\x78\x02\x1d\x0c\x22\x38\x00\x78\x02\x1d\x0c\x22\x38\x00\x78\x02\x1d\x0c\x22\x38\x00"...)...))}.record(),
		file{name: "L.;1", use: join(px(0o120777, 1), sl(1, "\x08", "\x00etc"), ce(areaAt, 0, 90))}.record(),
		file{name: "B.;1", flags: 0x80, at: dataAt, size: sector, use: nm("big")}.record(),
		file{name: "B.;1", at: dataAt + 2, size: 1000, use: nm("big")}.record(),
		file{name: "D.;1", use: join(px(0o60600, 1), pn(8, 1), nm("device"))}.record(),
		file{name: "Z.;1", at: dataAt + 5, size: uint32(len(stored)), use: join(nm("zisofs"), zf)}.record())
	area := join(sl(0, "\x04", "\x00target"), nm("link"), ce(areaAt, 200, 20))
	copy(im.sector(areaAt), area)
	both32(im.sector(rootAt)[bytes.Index(im.sector(rootAt), []byte("CE\x1c\x01"))+20:], uint32(len(area)))
	copy(im.sector(areaAt)[200:], nm(" of some length"))
	copy(im.memory[(dataAt+5)*sector:], stored)
	im.dir(dirAt, 2*sector, nil, bytes.Split(bytes.Repeat(append(file{name: "X.;1", use: nm("many")}.record(), "---"...), 20), []byte("---"))...)
	im.dir(dirAt+2, sector, nil, file{name: "R", dir: true, at: dirAt + 3, size: sector, use: nm("below")}.record())
	im.dir(dirAt+3, sector, nil)
	im.withJoliet(file{name: ucs2("Jöliet"), at: dataAt, size: 10}.record(), file{name: ucs2("dir"), dir: true, at: dirAt, size: 2 * sector}.record())
	return im.memory
})

// uncached lets no pages be read that hold nothing but what is next to structures.
func uncached(v fsys.Volume) (fsys.FileSystem, error) {
	return iso9660.OpenWith(v, iso9660.Options{CacheBytes: -1})
}

func TestSurvivesDamage(t *testing.T) {
	fstest.Damage(t, filled(), uncached, 3000)
}

func FuzzOpen(f *testing.F) {
	im := filled()
	for _, at := range []int{16, 17, rootAt, jolietAt, dirAt, areaAt, dataAt + 5} {
		f.Add(uint16(at*sector/16), []byte(im.sector(at)[:1024]))
	}
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		im := filled()
		if n := int(at) * 16; n < len(im.memory) {
			copy(im.memory[n:], patch)
		}
		fstest.Survives(t, im, uncached)
	})
}

func FuzzRecords(f *testing.F) {
	root := filled().sector(rootAt)
	f.Add([]byte(root[int(root[0])+34:]), []byte(filled().sector(areaAt)[:256]))
	f.Add(file{name: "L.;1", use: join(px(0o120777, 1), sl(1, "\x08", "\x00etc"), ce(areaAt, 0, 90))}.record(), sl(0, "\x04"))
	f.Fuzz(func(t *testing.T, records, area []byte) {
		im := newImage()
		b := im.memory[rootAt*sector:][:2*sector]
		copy(b[int(b[0])+34:], records)
		copy(im.sector(areaAt), area)
		fstest.Survives(t, im, uncached)
	})
}
