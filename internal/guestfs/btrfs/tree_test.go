package btrfs

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// sorted returns the keys of a model in order.
func sorted(model map[key][]byte) []key {
	return slices.SortedFunc(maps.Keys(model), key.compare)
}

func TestATreeShowsItsItemsAndTheirChangesInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	random := func() key { return key{rng.Uint64N(4), uint8(rng.IntN(4)), rng.Uint64N(8)} }
	for range 200 {
		model := map[key][]byte{}
		var items []item
		for range rng.IntN(60) {
			k := random()
			if model[k] == nil {
				model[k] = []byte{byte(rng.Uint32())}
				items = append(items, item{k, model[k]})
			}
		}
		image := newTiny()
		image.put(tinyFiles, 7, items...)
		f, err := image.open(Options{})
		if err != nil {
			t.Fatal(err)
		}
		tr, _, err := f.store.tree(topLevelID)
		if err != nil {
			t.Fatal(err)
		}
		if rng.IntN(4) > 0 {
			tr.delta = &delta{}
			for range rng.IntN(60) {
				k := random()
				model[k] = []byte{byte(rng.Uint32())}
				if rng.IntN(2) == 0 {
					delete(model, k)
				}
				tr.delta.set(k, model[k])
			}
		}
		sameItems(t, tr, model, random)
	}
}

func sameItems(t *testing.T, tr *tree, model map[key][]byte, random func() key) {
	t.Helper()
	keys := sorted(model)
	for range 20 {
		from, to := random(), random()
		var got, want []key
		if err := tr.scan(from, to, func(k key, b []byte) bool {
			got = append(got, k)
			return bytes.Equal(b, model[k])
		}); err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if k.compare(from) >= 0 && k.compare(to) <= 0 {
				want = append(want, k)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("scan from %s to %s: got %v, want %v", from, to, got, want)
		}
		at, b, err := tr.floor(from)
		i, exact := slices.BinarySearchFunc(keys, from, key.compare)
		if !exact {
			i--
		}
		if i < 0 {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("floor of %s: got %s, %v, want none", from, at, err)
			}
		} else if err != nil || at != keys[i] || !bytes.Equal(b, model[at]) {
			t.Fatalf("floor of %s: got %s, %v, want %s", from, at, err, keys[i])
		}
		b, err = tr.get(from)
		if !bytes.Equal(b, model[from]) || (err != nil) != (model[from] == nil) {
			t.Fatalf("get %s: got %v, %v, want %v", from, b, err, model[from])
		}
	}
}

func TestManyChangesStayInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	var d delta
	model := map[key][]byte{}
	for range 20000 {
		k := key{rng.Uint64N(50), 1, rng.Uint64N(200)}
		model[k] = []byte{byte(rng.Uint32())}
		d.set(k, model[k])
	}
	keys := sorted(model)
	i := 0
	for p := d.seek(key{}); p.valid(); p = p.next() {
		if i >= len(keys) || p.key() != keys[i] || !bytes.Equal(p.data(), model[keys[i]]) {
			t.Fatalf("change %d: got %s", i, p.key())
		}
		i++
	}
	if i != len(keys) {
		t.Fatalf("got %d changes, want %d", i, len(keys))
	}
	for p := d.floor(key{99, 0, 0}); p.valid(); p = p.prev() {
		if i--; p.key() != keys[i] {
			t.Fatalf("change %d backwards: got %s, want %s", i, p.key(), keys[i])
		}
	}
	if i != 0 {
		t.Errorf("%d changes were not found backwards", i)
	}
}

// corrupt changes a leaf behind its checksum.
func TestABlockWithAWrongChecksumIsDamaged(t *testing.T) {
	image := newTiny()
	image.put(tinyFiles, 7, tinyFileSystem()...)
	f, err := image.open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := visit(f); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{tinyChunks, tinyRoots, tinyFiles} {
		image.b[at+4000]++
		f, err := image.open(Options{})
		if err == nil {
			err = visit(f)
		}
		if !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("block at %d: got %v, want ErrCorrupt", at, err)
		}
		image.b[at+4000]--
	}
}

func TestWhatCannotBeReadIsRefusedByName(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(extent []byte)
		want   error
	}{
		{"compression that is not known", func(b []byte) { b[16] = 4 }, fsys.ErrUnsupported},
		{"encryption", func(b []byte) { b[17] = 1 }, fsys.ErrUnsupported},
		{"another encoding", func(b []byte) { b[18] = 1 }, fsys.ErrUnsupported},
		{"an unknown type", func(b []byte) { b[20] = 3 }, fsys.ErrCorrupt},
		{"an address in no chunk", func(b []byte) { b[26] = 1 }, fsys.ErrCorrupt},
		{"an odd address", func(b []byte) { b[21] = 1 }, fsys.ErrCorrupt},
		{"more bytes than there are", func(b []byte) { b[47] = 1 }, fsys.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newTiny()
			items := tinyFileSystem()
			for _, it := range items {
				if it.k == (key{258, extentData, 0}) {
					c.change(it.data)
				}
			}
			image.put(tinyFiles, 7, items...)
			f, err := image.open(Options{})
			if err != nil {
				t.Fatal(err)
			}
			id, err := f.Lookup(f.Root(), "extents")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(id, make([]byte, 10), 0); !errors.Is(err, c.want) {
				t.Errorf("read: got %v, want %v", err, c.want)
			}
			if _, err := f.Extents(id, 0, 100); !errors.Is(err, c.want) {
				t.Errorf("extents: got %v, want %v", err, c.want)
			}
		})
	}
}
