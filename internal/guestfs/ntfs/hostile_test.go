package ntfs

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// opened opens a volume that was made by hand.
func opened(t testing.TB, b builder) *fileSystem {
	t.Helper()
	f, err := OpenWith(b, Options{CacheBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	return f.(*fileSystem)
}

func entryOf(number int, space byte, name string) []byte {
	return indexEntry(reference(uint64(number), uint16(number)), nameKey(reference(recordRoot, 5), space, units(name)), -1)
}

func TestNamesThatPathsCannotHoldAreRefused(t *testing.T) {
	b := build()
	b.directory(recordRoot, entryOf(5, spaceBoth, "."), entryOf(20, spacePOSIX, "../../etc/passwd"), entryOf(20, spacePOSIX, ".."),
		entryOf(21, spacePOSIX, "a\x00b"), entryOf(22, spaceWin32, "long name"), entryOf(22, spaceDOS, "LONGNA~1"), indexEntry(0, nil, -1))
	f := opened(t, b)
	names, err := fstest.Names(f, f.Root())
	if want := []string{"long name"}; !slices.Equal(names, want) || !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("got %q, %v, want %q, fsys.ErrCorrupt", names, err, want)
	}
}

func TestHalvesOfSurrogatesAreNames(t *testing.T) {
	odd := []byte{'a', 0, 0x3d, 0xd8, 'b', 0, 0x00, 0xde, 0x3d, 0xd8, 0x00, 0xde}
	b := build()
	b.directory(recordRoot, indexEntry(reference(20, 20), nameKey(reference(5, 5), spacePOSIX, odd), -1), indexEntry(0, nil, -1))
	f := opened(t, b)
	names, err := fstest.Names(f, f.Root())
	if want := []string{"a\xed\xa0\xbdb\xed\xb8\x80😀"}; !slices.Equal(names, want) || err != nil {
		t.Fatalf("got %q, %v, want %q", names, err, want)
	}
	if id, err := f.Lookup(f.Root(), names[0]); err != nil || id != reference(20, 20) {
		t.Errorf("look it up: got %#x, %v", id, err)
	}
}

func TestAnIndexThatLeadsInACircleEnds(t *testing.T) {
	b := build()
	b.directory(recordRoot, entryOf(20, spacePOSIX, "a"), indexEntry(0, nil, 0))
	b.block(0, entryOf(21, spacePOSIX, "b"), indexEntry(0, nil, 1))
	b.block(1, entryOf(22, spacePOSIX, "c"), indexEntry(0, nil, 0))
	f := opened(t, b)
	names, err := fstest.Names(f, f.Root())
	if want := []string{"a", "b", "c"}; !slices.Equal(names, want) || !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("got %q, %v, want %q, fsys.ErrCorrupt", names, err, want)
	}
	if _, err := f.Lookup(f.Root(), "d"); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("look up what is behind it: got %v, want fsys.ErrCorrupt", err)
	}
}

func TestWhatFollowsADamagedBlockIsListed(t *testing.T) {
	b := build()
	b.directory(recordRoot, indexEntry(reference(20, 20), nameKey(reference(5, 5), spacePOSIX, units("m")), 0), indexEntry(0, nil, 1))
	b.block(0, entryOf(21, spacePOSIX, "a"), indexEntry(0, nil, -1))
	b.block(1, entryOf(22, spacePOSIX, "z"), indexEntry(0, nil, -1))
	f := opened(t, b)
	if names, err := fstest.Names(f, f.Root()); err != nil || !slices.Equal(names, []string{"a", "m", "z"}) {
		t.Fatalf("sound: got %q, %v", names, err)
	}
	b[builtFree*builtUnit+protected-1] ^= 1
	names, err := fstest.Names(f, f.Root())
	if want := []string{"m", "z"}; !slices.Equal(names, want) || !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("torn: got %q, %v, want %q, fsys.ErrCorrupt", names, err, want)
	}
}

// listOf makes an attribute list.
func listOf(entries ...listEntry) []byte {
	var list []byte
	for _, e := range entries {
		b := make([]byte, 0x20)
		binary.LittleEndian.PutUint32(b, e.typ)
		binary.LittleEndian.PutUint16(b[4:], 0x20)
		b[7] = 0x1a
		binary.LittleEndian.PutUint64(b[8:], uint64(e.lowest))
		binary.LittleEndian.PutUint64(b[0x10:], uint64(e.record))
		list = append(list, b...)
	}
	return resident(typeAttributeList, nil, list)
}

func TestPiecesOfOtherFilesAreRefused(t *testing.T) {
	id := reference(20, 20)
	second := reference(21, 21)
	secondPiece := runsAttr(typeData, 0, 0x11, 2, builtFree+6)
	binary.LittleEndian.PutUint64(secondPiece[0x10:], 2)
	binary.LittleEndian.PutUint64(secondPiece[0x18:], 3)
	first := runsAttr(typeData, 4*builtUnit, 0x11, 2, builtFree+4)
	binary.LittleEndian.PutUint64(first[0x18:], 1)
	for _, x := range []struct {
		name string
		base fsys.ID // of the second record
		list []listEntry
		want error
	}{
		{"its own", id, []listEntry{{typ: typeStandardInformation, record: id}, {typ: typeData, record: id}, {typ: typeData, lowest: 2, record: second}}, nil},
		{"of another", reference(22, 22), []listEntry{{typ: typeStandardInformation, record: id}, {typ: typeData, record: id}, {typ: typeData, lowest: 2, record: second}}, fsys.ErrCorrupt},
		{"in another use", id, []listEntry{{typ: typeStandardInformation, record: id}, {typ: typeData, record: id}, {typ: typeData, lowest: 2, record: reference(21, 3)}}, fsys.ErrCorrupt},
		{"out of order", id, []listEntry{{typ: typeStandardInformation, record: id}, {typ: typeData, lowest: 2, record: second}, {typ: typeData, record: id}}, fsys.ErrCorrupt},
		{"with a gap", id, []listEntry{{typ: typeStandardInformation, record: id}, {typ: typeData, record: id}, {typ: typeData, lowest: 3, record: second}}, fsys.ErrCorrupt},
		{"without the second", id, []listEntry{{typ: typeStandardInformation, record: id}, {typ: typeData, record: id}}, fsys.ErrCorrupt},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := build()
			for i := range 4 {
				b[(builtFree+4+i)*builtUnit] = byte('0' + i)
			}
			b.record(20, 20, 0, info(0), listOf(x.list...), first)
			r := b.record(21, 21, 0, secondPiece)
			binary.LittleEndian.PutUint64(r[0x20:], uint64(x.base))
			f := opened(t, b)
			p := make([]byte, 4*builtUnit)
			_, err := f.ReadAt(id, p, 0)
			if x.want == nil && (err != nil || p[0] != '0' || p[3*builtUnit] != '3') || !errors.Is(err, x.want) {
				t.Errorf("got %v, %q and %q, want %v", err, p[0], p[3*builtUnit], x.want)
			}
			if _, err := f.Stat(second); !errors.Is(err, fsys.ErrCorrupt) {
				t.Errorf("stat of an extension: got %v, want fsys.ErrCorrupt", err)
			}
		})
	}
}

func TestWhatWasNotInitializedIsZero(t *testing.T) {
	b := build()
	for i := range 4 * builtUnit {
		b[(builtFree+4)*builtUnit+i] = 'x'
	}
	a := runsAttr(typeData, 4*builtUnit-100, 0x11, 4, builtFree+4)
	binary.LittleEndian.PutUint64(a[0x38:], 1500)
	b.record(20, 20, 0, info(0), a)
	f := opened(t, b)
	p := make([]byte, 4*builtUnit)
	n, err := f.ReadAt(reference(20, 20), p, 0)
	want := strings.Repeat("x", 1500) + strings.Repeat("\x00", 4*builtUnit-1600)
	if !errors.Is(err, io.EOF) || string(p[:n]) != want {
		t.Errorf("got %d bytes, %v, with %d x", n, err, strings.Count(string(p), "x"))
	}
	list, err := f.Extents(reference(20, 20), 1000, 1<<40)
	if err != nil || !slices.Equal(list, []fsys.Extent{
		{Kind: fsys.Data, Off: 1000, Len: 500, At: (builtFree+4)*builtUnit + 1000}, {Kind: fsys.Hole, Off: 1500, Len: 4*builtUnit - 1600},
	}) {
		t.Errorf("extents: got %v, %v", list, err)
	}
}

func TestDirectoriesInACircleHaveNoDepth(t *testing.T) {
	b := build()
	link := append([]byte{0, 0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0}, units(`\x`)...)
	data := append([]byte{0x0c, 0, 0, 0xa0, byte(len(link)), 0, 0, 0}, link...)
	name := func(parent uint64) []byte {
		return resident(typeFileName, nil, nameKey(reference(parent, uint16(parent)), spacePOSIX, units("x")))
	}
	b.record(20, 20, 0, info(attributeReparse), name(21), resident(typeReparsePoint, nil, data))
	b.record(21, 21, recordDirectory, info(0), name(22))
	b.record(22, 22, recordDirectory, info(0), name(21))
	f := opened(t, b)
	if _, err := f.Readlink(reference(20, 20)); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("got %v, want fsys.ErrCorrupt", err)
	}
}

func TestTheWrongKindIsRefused(t *testing.T) {
	b := build()
	b.record(20, 20, 0, info(0), resident(typeData, nil, []byte("x")))
	f := opened(t, b)
	file := reference(20, 20)
	for what, do := range map[string]func() error{
		"list a file":            func() error { _, err := fstest.Names(f, file); return err },
		"look up in a file":      func() error { _, err := f.Lookup(file, "x"); return err },
		"read a directory":       func() error { _, err := f.ReadAt(f.Root(), make([]byte, 1), 0); return err },
		"find a directory":       func() error { _, err := f.Extents(f.Root(), 0, 1); return err },
		"read a file as a link":  func() error { _, err := f.Readlink(file); return err },
		"read before the start":  func() error { _, err := f.ReadAt(file, make([]byte, 1), -1); return err },
		"find before the start":  func() error { _, err := f.Extents(file, -1, 1); return err },
		"find less than nothing": func() error { _, err := f.Extents(file, 0, -1); return err },
	} {
		if err := do(); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: got %v, want fs.ErrInvalid", what, err)
		}
	}
}

func TestUnitsInSeveralRunsAreToldForWhatTheyAre(t *testing.T) {
	b := build()
	at := func(i int) []byte { return b[(builtFree+i)*builtUnit : (builtFree+i+1)*builtUnit] }
	for i := range 4 {
		copy(at(4+i), strings.Repeat(string(rune('a'+i)), builtUnit))
	}
	copy(at(8), "\x03\xb0\x02x\xfc\x07\x00\x00") // an x, and copies of it
	// Of two clusters each: not compressed in two places and in one, compressed, a hole.
	a := runsAttr(typeData, 8*builtUnit, 0x11, 1, builtFree+5, 0x11, 1, 0xff, 0x11, 2, 2, 0x11, 1, 2, 0x01, 3)
	a[0x0c], a[0x22] = 1, 1
	b.record(20, 20, 0, info(attributeCompressed), a)
	f := opened(t, b)
	p := make([]byte, 8*builtUnit)
	if _, err := f.ReadAt(reference(20, 20), p, 0); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("b", builtUnit) + strings.Repeat("a", builtUnit) + strings.Repeat("c", builtUnit) + strings.Repeat("d", builtUnit) +
		strings.Repeat("x", 2*builtUnit) + strings.Repeat("\x00", 2*builtUnit)
	for i := range p {
		if p[i] != want[i] {
			t.Fatalf("at %d: got %q, want %q", i, p[i], want[i])
		}
	}
	list, err := f.Extents(reference(20, 20), 0, 1<<40)
	if err != nil || !slices.Equal(list, []fsys.Extent{
		{Kind: fsys.Data, Off: 0, Len: builtUnit, At: (builtFree + 5) * builtUnit},
		{Kind: fsys.Data, Off: builtUnit, Len: builtUnit, At: (builtFree + 4) * builtUnit},
		{Kind: fsys.Data, Off: 2 * builtUnit, Len: 2 * builtUnit, At: (builtFree + 6) * builtUnit},
		{Kind: fsys.Opaque, Off: 4 * builtUnit, Len: 2 * builtUnit}, {Kind: fsys.Hole, Off: 6 * builtUnit, Len: 2 * builtUnit},
	}) {
		t.Errorf("extents: got %v, %v", list, err)
	}
}

func TestWhatIsOnlineOnlyIsRefused(t *testing.T) {
	for _, attributes := range []uint32{attributeRecall, attributeRecallOnOpen} {
		b := build()
		b.record(20, 20, 0, info(attributes), resident(typeData, nil, []byte("what is shown until it is fetched")))
		f := opened(t, b)
		if n, err := f.ReadAt(reference(20, 20), make([]byte, 10), 0); n != 0 || !errors.Is(err, fsys.ErrUnsupported) {
			t.Errorf("attributes %#x: got %d, %v, want fsys.ErrUnsupported", attributes, n, err)
		}
	}
}

func TestRawBlocksOfLZX(t *testing.T) {
	// The kind, 3, in 3 bits, that a size follows in one, the size in 16, and zeroes
	// up to a word; what the last distances were; the bytes, of an even number.
	block := func(content string) []byte {
		bits := uint32(3<<29) | uint32(len(content))<<12
		b := binary.LittleEndian.AppendUint16(nil, uint16(bits>>16))
		b = binary.LittleEndian.AppendUint16(b, uint16(bits))
		b = append(append(b, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0), content...)
		return append(b, make([]byte, len(content)%2)...)
	}
	src := slices.Concat(block("seven b"), block("and eight"), block("!"))
	dst := make([]byte, 17)
	if err := decompressLZX(dst, src); err != nil || string(dst) != "seven band eight!" {
		t.Errorf("got %q, %v", dst, err)
	}
	for n := range src[:len(src)-1] {
		if err := decompressLZX(dst, src[:n]); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("cut at %d: got %v, want fsys.ErrCorrupt", n, err)
		}
	}
}
