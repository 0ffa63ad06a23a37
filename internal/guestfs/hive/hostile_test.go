package hive_test

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/hive"
	"github.com/sendense/sendense/internal/guestfs/hive/hivetest"
)

// limit is how much a walk of a small hive may visit: what a hive of its size has
// several times over.
const limit = 20_000

// counted ends a read of a hive that has no end.
type counted struct {
	memory
	reads int
}

func (c *counted) ReadAt(p []byte, off int64) error {
	if c.reads++; c.reads > 50*limit {
		panic("reads without end")
	}
	return c.memory.ReadAt(p, off)
}

func survives(m memory, logs ...memory) {
	list := make([]fsys.Volume, len(logs))
	for i, l := range logs {
		list[i] = &counted{memory: l}
	}
	h, err := hive.Open(&counted{memory: m}, list...)
	if err == nil {
		_, _ = walk(h, limit)
	}
}

func TestSurvivesDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s := states(t)
	log := join(logBase(s[0], 6), transaction(8, s[0], s[1]), transaction(9, s[1], s[2]))
	old := memory(hivetest.OldLog(s[0], s[1]))
	flip := func(m memory, upTo int) memory {
		m = slices.Clone(m)
		for range 1 + rng.IntN(8) {
			m[rng.IntN(min(upTo, len(m)))] = byte(rng.Uint32())
		}
		return m
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		m := flip(some([]string{"ri", "lf", "li"}[rng.IntN(3)]), 8000)
		hivetest.Seal(m)
		survives(m)
		survives(dirtied(s[0], s[1]), flip(log, 3000))
		survives(dirtied(s[0], s[1]), flip(old, 3000))
	}
	runtime.ReadMemStats(&after)
	if after.HeapSys > before.HeapSys+256<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before.HeapSys>>20, after.HeapSys>>20)
	}
}

func TestListsOfThemselves(t *testing.T) {
	b := hivetest.New()
	leaf := b.List("li", []uint32{b.Key("x", "li", nil, nil)})
	list := b.Cell(append(hivetest.Head("ri", 3), hivetest.Offsets(leaf, leaf, leaf)...))
	root := b.Key("ROOT", "li", []uint32{b.Key("y", "li", nil, nil)}, nil)
	le.PutUint32(b.Bin[root+4+28:], list)
	le.PutUint32(b.Bin[root+4+20:], 1<<20)
	le.PutUint32(b.Bin[list+4+8:], list) // the second of the lists is the list itself
	h := open(t, b.Hive(root))
	if _, err := h.Key("z"); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("a list that has itself in it: got %v, want ErrCorrupt", err)
	}
	b = hivetest.New()
	root = b.Key("ROOT", "li", []uint32{b.Key("y", "li", nil, nil)}, nil)
	child := le.Uint32(b.Bin[root+4+28:])
	le.PutUint32(b.Bin[child+4+4:], root) // the key below the root is the root
	if _, err := walk(open(t, b.Hive(root)), limit); err != nil {
		t.Errorf("a key below itself: got %v: its walk is bounded by who walks", err)
	}
}

func TestVastNumbersTakeNoMemory(t *testing.T) {
	for name, do := range map[string]func(m memory, key int){
		"keys":   func(m memory, key int) { le.PutUint32(m[key+20:], 1<<31) },
		"values": func(m memory, key int) { le.PutUint32(m[key+36:], 1<<31) },
		"name":   func(m memory, key int) { le.PutUint16(m[key+72:], 0xffff) },
	} {
		m := some("lf")
		key := 4096 + int(le.Uint32(m[36:])) + 4
		do(m, key)
		h, err := hive.Open(m)
		if err == nil {
			_, err = walk(h, limit)
		}
		if !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("vast number of %s: got %v, want ErrCorrupt", name, err)
		}
	}
	b := hivetest.New()
	v := b.Value("v", 3, make([]byte, 100))
	le.PutUint32(b.Bin[v+4+4:], 1<<30)
	h := open(t, b.Hive(b.Key("ROOT", "lf", nil, []uint32{v})))
	if _, err := walk(h, limit); !errors.Is(err, fsys.ErrUnsupported) {
		t.Errorf("a value of 1 GiB: got %v, want ErrUnsupported", err)
	}
}

// tiny makes a hive of one page of cells.
func tiny(kind string) memory {
	b := hivetest.New()
	values := []uint32{b.Value("Number", 4, []byte{1, 2, 3, 4}), b.Value("Text", 1, hivetest.Text("some text"))}
	keys := []uint32{b.Key("One", kind, nil, values), b.Key("Two", kind, nil, nil), b.Key("Three", kind, nil, values[:1])}
	return b.Hive(b.Key("ROOT", kind, keys, values))
}

func FuzzHive(f *testing.F) {
	for _, kind := range []string{"ri", "lf"} {
		f.Add(uint16(0), []byte(tiny(kind)[4096:5000]))
	}
	sound := tiny("ri")
	f.Fuzz(func(_ *testing.T, at uint16, patch []byte) {
		m := slices.Clone(sound)
		if 4096+int(at) < len(m) {
			copy(m[4096+int(at):], patch)
		}
		survives(m)
	})
}

func FuzzLog(f *testing.F) {
	from, to := tiny("lf"), tiny("ri")
	f.Add([]byte(join(logBase(from, 6), transaction(8, from, to))))
	f.Add(hivetest.OldLog(from, to))
	f.Fuzz(func(_ *testing.T, log []byte) {
		log = slices.Clone(log)
		if len(log) >= 552 && string(log[512:516]) == "HvLE" {
			// Without the right hashes, nothing behind them would be reached.
			if n := int(le.Uint32(log[516:])); n >= 40 && n <= len(log)-512 {
				le.PutUint64(log[512+24:], hive.Marvin(log[512+40:512+n]))
				le.PutUint64(log[512+32:], hive.Marvin(log[512:512+32]))
			}
		}
		if len(log) >= 512 {
			hivetest.Seal(log)
		}
		m := dirtied(from, from)
		survives(m, log)
	})
}
