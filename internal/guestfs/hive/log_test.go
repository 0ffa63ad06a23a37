package hive_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/hive"
	"github.com/sendense/sendense/internal/guestfs/hive/hivetest"
)

// states returns three states of one hive, each of which hivex made of the one before,
// with the sequence numbers 7, 8 and 9.
func states(t *testing.T) (list [3]memory) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hive")
	list[0] = written(t, "11")
	for i := range list {
		if i > 0 {
			save(t, path, list[i-1])
			hivetest.Python(t, writing, path, string(rune('a'+i)))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			list[i] = b
		}
		le.PutUint32(list[i][4:], uint32(7+i))
		le.PutUint32(list[i][8:], uint32(7+i))
		hivetest.Seal(list[i])
	}
	return list
}

// dirtied is a hive whose base block says that it is being written: what follows that
// is half of the one state and half of another.
func dirtied(old, next memory) memory {
	m := slices.Clone(old)
	for at := 4096; at+8192 <= min(len(old), len(next)); at += 8192 {
		copy(m[at:at+4096], next[at:])
	}
	le.PutUint32(m[4:], le.Uint32(m[8:])+1)
	hivetest.Seal(m)
	return m
}

// logBase is the copy of a base block that begins a log.
func logBase(m memory, kind uint32) []byte {
	b := slices.Clone(m[:512])
	le.PutUint32(b[28:], kind)
	hivetest.Seal(b)
	return b
}

// transaction makes an entry of a log that leads from one state to another.
func transaction(sequence uint32, from, to memory) []byte {
	var refs, pages []byte
	for at := 4096; at < len(to); at += 4096 {
		if at >= len(from) || !bytes.Equal(from[at:at+4096], to[at:at+4096]) {
			refs = le.AppendUint32(le.AppendUint32(refs, uint32(at-4096)), 4096)
			pages = append(pages, to[at:at+4096]...)
		}
	}
	b := append(append(make([]byte, 40), refs...), pages...)
	b = append(b, make([]byte, (512-len(b)%512)%512)...)
	copy(b, "HvLE")
	le.PutUint32(b[4:], uint32(len(b)))
	le.PutUint32(b[12:], sequence)
	le.PutUint32(b[16:], uint32(len(to)-4096))
	le.PutUint32(b[20:], uint32(len(refs)/8))
	le.PutUint64(b[24:], hive.Marvin(b[40:]))
	le.PutUint64(b[32:], hive.Marvin(b[:32]))
	return b
}

func join(list ...[]byte) memory { return bytes.Join(list, nil) }

func TestLogsAreReplayed(t *testing.T) {
	s := states(t)
	first, second := transaction(8, s[0], s[1]), transaction(9, s[1], s[2])
	head := logBase(s[0], 6)
	bad := slices.Clone(second)
	bad[len(bad)-1000] ^= 1
	badHead := slices.Clone(second)
	badHead[20]++
	broken := dirtied(s[0], s[1])
	broken[508]++
	latest := slices.Clone(s[0])
	le.PutUint32(latest[4:], 8)
	le.PutUint32(latest[40:], le.Uint32(s[2][40:]))
	for name, test := range map[string]struct {
		file memory
		logs []fsys.Volume
		want memory
		note string
	}{
		"one log":                          {dirtied(s[0], s[1]), []fsys.Volume{join(head, first, second)}, s[2], ""},
		"two logs":                         {dirtied(s[0], s[1]), []fsys.Volume{join(head, first), join(head, second)}, s[2], ""},
		"two logs, the second first":       {dirtied(s[0], s[1]), []fsys.Volume{join(head, second), join(head, first)}, s[2], ""},
		"a log that was cut off":           {dirtied(s[0], s[1]), []fsys.Volume{join(head, first, second[:len(second)-512])}, s[1], ""},
		"a wrong hash":                     {dirtied(s[0], s[1]), []fsys.Volume{join(head, first, bad)}, s[1], ""},
		"a wrong hash of the head":         {dirtied(s[0], s[1]), []fsys.Volume{join(head, first, badHead)}, s[1], ""},
		"what is left of an earlier round": {dirtied(s[0], s[1]), []fsys.Volume{join(head, first, second, transaction(5, s[2], s[0]))}, s[2], ""},
		"entries that the hive has":        {dirtied(s[0], s[1]), []fsys.Volume{join(head, transaction(7, s[2], s[0]), first, second)}, s[2], ""},
		"a gap":                            {dirtied(s[0], s[1]), []fsys.Volume{join(head, first), join(head, transaction(10, s[1], s[2]))}, s[1], "gap"},
		"a clean hive":                     {s[0], []fsys.Volume{join(head, first)}, s[0], ""},
		"no base block":                    {broken, []fsys.Volume{join(logBase(latest, 6), first, second)}, s[2], ""},
		"an empty log, and another":        {dirtied(s[0], s[1]), []fsys.Volume{memory{}, join(head, first, second)}, s[2], ""},
		"no log":                           {dirtied(s[0], s[0]), nil, s[0], "no log that applies"},
		"a log of zeroes":                  {dirtied(s[0], s[0]), []fsys.Volume{make(memory, 4096)}, s[0], "no log that applies"},
		"entries before":                   {dirtied(s[0], s[0]), []fsys.Volume{join(head, transaction(6, s[0], s[2]))}, s[0], "no log that applies"},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := hive.Open(test.file, test.logs...)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := contentOf(t, h), contentOf(t, open(t, test.want)); !reflect.DeepEqual(got, want) {
				t.Errorf("got another state than wanted: %d keys, want %d", len(got), len(want))
			}
			if notes := strings.Join(h.Notes(), " "); (test.note == "") != (notes == "") || !strings.Contains(notes, test.note) {
				t.Errorf("notes: got %q, want %q", notes, test.note)
			}
		})
	}
	if _, err := hive.Open(broken); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("no base block and no log: got %v, want ErrCorrupt", err)
	}
	compare(t, open(t, dirtied(s[0], s[1]), join(head, first, second)), s[2])
}

func TestOldLogsAreReplayed(t *testing.T) {
	s := states(t)
	torn := dirtied(s[0], s[1])
	log := memory(hivetest.OldLog(s[0], s[1]))
	if got, want := contentOf(t, open(t, torn, log)), contentOf(t, open(t, s[1])); !reflect.DeepEqual(got, want) {
		t.Errorf("got another state: %d keys, want %d", len(got), len(want))
	}
	for name, do := range map[string]func(m memory) memory{
		"of another time":    func(m memory) memory { m[12]++; hivetest.Seal(m); return m },
		"being written":      func(m memory) memory { m[4]++; hivetest.Seal(m); return m },
		"without pages":      func(m memory) memory { return m[:1024] },
		"without a vector":   func(m memory) memory { return m[:512] },
		"without its magic":  func(m memory) memory { m[512]++; return m },
		"of a vast hive":     func(m memory) memory { le.PutUint32(m[40:], 0xfffff000); hivetest.Seal(m); return m },
		"with a wrong sum":   func(m memory) memory { m[508]++; return m },
		"of some other kind": func(m memory) memory { m[28] = 3; hivetest.Seal(m); return m },
	} {
		h, err := hive.Open(dirtied(s[0], s[0]), do(slices.Clone(log)))
		if err != nil || len(h.Notes()) != 1 || !reflect.DeepEqual(contentOf(t, h), contentOf(t, open(t, s[0]))) {
			t.Errorf("a log %s: got %v, or another state, want a note", name, err)
		}
	}
	broken := slices.Clone(torn)
	broken[508]++
	if got, want := contentOf(t, open(t, broken, log)), contentOf(t, open(t, s[1])); !reflect.DeepEqual(got, want) {
		t.Errorf("without a base block: got %d keys, want %d", len(got), len(want))
	}
}

// TestMarvin has the vectors of .NET's tests of the hash.
func TestMarvin(t *testing.T) {
	for text, want := range map[string]uint64{
		"": 0x30ed35c100cd3c7d, "\xaf": 0x48e73fc77d75ddc1, "\xe7\x0f": 0xb5f6e1fc485dbff8, "\x37\xf4\x95": 0xf0b07c789b8cf7e8,
		"\x86\x42\xdc\x59": 0x7008f2e87e9cf556, "\x15\x3f\xb7\x98\x26": 0xe6c08c6da2afa997, "\x09\x32\xe6\x24\x6c\x47": 0x6f04bf1a5ea24060,
		"\xab\x42\x7e\xa8\xd1\x0f\xc7": 0xe11847e4f0678c41,
	} {
		for cut := range len(text) + 1 {
			if got := hive.MarvinOf(0x004fb61a001bdbcc, []byte(text[:cut]), []byte(text[cut:])); got != want {
				t.Errorf("hash of %x, cut at %d: got %#x, want %#x", text, cut, got, want)
			}
		}
	}
}
