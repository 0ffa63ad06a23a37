package hive_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/hive"
	"github.com/sendense/sendense/internal/guestfs/hive/hivetest"
)

func open(t *testing.T, m memory, logs ...fsys.Volume) *hive.Hive {
	t.Helper()
	h, err := hive.Open(m, logs...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// some makes a hive with some of everything.
func some(kind string) memory {
	b := hivetest.New()
	long := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	values := []uint32{b.Value("", 1, hivetest.Text("default")), b.Value("Number", 4, []byte{1, 2, 3, 4}), b.Value("Text", 1, hivetest.Text("Größe 😀")),
		b.Value("List", 7, append(append(hivetest.Text("one"), hivetest.Text("two")...), 0, 0)), b.Value("Long", 3, long), b.Value("Q", 11, make([]byte, 8)),
		b.Value("none", 0, nil)}
	var keys []uint32
	for i := range 9 {
		keys = append(keys, b.Key(fmt.Sprint("Key ", i), kind, nil, values))
	}
	return b.Hive(b.Key("ROOT", kind, []uint32{b.Key("Software", kind, keys, values[:1]), b.Key("L\xe4nge", kind, nil, nil)}, nil))
}

func TestKeysAndValues(t *testing.T) {
	for _, kind := range []string{"lf", "lh", "li", "ri"} {
		h := open(t, some(kind))
		k, err := h.Key(`SOFTWARE\key 8`)
		if err != nil || k.Name() != "Key 8" {
			t.Fatalf("%s: got %v, %v", kind, k, err)
		}
		for name, want := range map[string]string{"": "default", "text": "Größe 😀", "NUMBER": "", "List": "one"} {
			if v, err := k.Value(name); err != nil || v.String() != want {
				t.Errorf("%s: value %q: got %q, %v, want %q", kind, name, v.String(), err, want)
			}
		}
		v, err := k.Value("number")
		if n, ok := v.Uint(); err != nil || !ok || n != 0x04030201 {
			t.Errorf("number: got %#x, %v", n, err)
		}
		if v, err := k.Value("Long"); err != nil || !bytes.Equal(v.Data, bytes.Repeat([]byte("0123456789abcdef"), 4000)) {
			t.Errorf("value in several cells: got %d bytes, %v", len(v.Data), err)
		}
		if v, err := k.Value("none"); err != nil || len(v.Data) != 0 {
			t.Errorf("empty value: got %v, %v", v, err)
		}
		if _, err := h.Key("länge"); err != nil {
			t.Errorf("name of Latin-1: %v", err)
		}
		for _, path := range []string{`Software\Key 9`, `none\Key 1`, `Software\Key 1\x`} {
			if _, err := h.Key(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: got %v, want fs.ErrNotExist", path, err)
			}
		}
		if _, err := k.Value("x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("value that is not there: got %v, want fs.ErrNotExist", err)
		}
		n := 0
		software, err := h.Key("Software")
		if err = errors.Join(err, software.Keys(func(*hive.Key) bool { n++; return true })); err != nil || n != 9 || h.Notes() != nil {
			t.Errorf("keys: got %d, %v, notes %q", n, err, h.Notes())
		}
	}
}

func TestHivesThatAreNoneAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(m memory) memory
		want error
	}{
		"empty":              {func(memory) memory { return nil }, fsys.ErrNotFound},
		"text":               {func(memory) memory { return bytes.Repeat([]byte("text"), 2000) }, fsys.ErrNotFound},
		"of another version": {func(m memory) memory { le.PutUint32(m[20:], 2); hivetest.Seal(m); return m }, fsys.ErrUnsupported},
		"without a checksum": {func(m memory) memory { m[508]++; return m }, fsys.ErrCorrupt},
		"without a root":     {func(m memory) memory { le.PutUint32(m[36:], 1<<31); hivetest.Seal(m); return m }, fsys.ErrCorrupt},
		"cut off":            {func(m memory) memory { return m[:5000] }, nil},
	} {
		if _, err := hive.Open(test.do(some("lf"))); err == nil || !errors.Is(err, test.want) && test.want != nil {
			t.Errorf("open one that is %s: got %v, want %v", name, err, test.want)
		}
	}
}

// walk visits everything, and counts.
func walk(h *hive.Hive, limit int) (n int, err error) {
	var visit func(k *hive.Key, depth int) error
	visit = func(k *hive.Key, depth int) error {
		if n++; n > limit || depth > 100 {
			return nil
		}
		bad := k.Values(func(v hive.Value) bool {
			n++
			_, _ = v.Uint()
			_ = v.String()
			return n < limit
		})
		return errors.Join(bad, k.Keys(func(x *hive.Key) bool {
			bad = errors.Join(bad, visit(x, depth+1))
			return n < limit
		}), bad)
	}
	root, err := h.Key("")
	if err != nil {
		return 0, err
	}
	return n, visit(root, 0)
}
