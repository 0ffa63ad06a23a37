package hive_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/hive"
	"github.com/sendense/sendense/internal/guestfs/hive/hivetest"
)

// writing has hivex fill the hive argv[1], from a seed argv[2].
const writing = `
import hivex, random, struct, sys
random.seed(sys.argv[2])
h = hivex.Hivex(sys.argv[1], write=True)
def text(s): return {"t": 1, "value": (s + "\0").encode("utf-16-le")}
def value(i):
    names = ["", "Name %d" % i, "Größe %d" % i, "日本 %d" % i, "x" * 200]
    kinds = [(1, ("text %d ünï 😀\0" % i).encode("utf-16-le")), (3, random.randbytes(random.choice([0, 1, 4, 5, 100, 16344, 20000, 70000]))),
             (4, struct.pack("<I", random.getrandbits(32))), (7, "a\0b\0\0".encode("utf-16-le")), (11, struct.pack("<Q", random.getrandbits(64)))]
    kind, data = random.choice(kinds)
    return {"key": names[i % len(names)], "t": kind, "value": data}
def fill(node, depth):
    for i in range(random.choice([0, 1, 5, 30]) if depth else 10):
        name = random.choice(["Key %d", "schlüssel %d", "鍵 %d", "k" * 120 + "%d"]) % i + (" of " + sys.argv[2] if depth == 0 else "")
        child = h.node_add_child(node, name)
        if random.random() < 0.8:
            h.node_set_values(child, [value(j) for j in range(random.randrange(6))])
        if depth < 2:
            fill(child, depth + 1)
        if random.random() < 0.1:
            h.node_delete_child(child)
fill(h.root(), 0)
h.commit(None)
`

// reading has hivex print everything in the hive argv[1], as JSON.
const reading = `
import hivex, json, sys
h = hivex.Hivex(sys.argv[1])
out = {}
def walk(node, path):
    out[path] = {(h.value_key(v) or ""): [h.value_value(v)[0], h.value_value(v)[1].hex()] for v in h.node_values(node)}
    for c in h.node_children(node):
        walk(c, path + "\\" + h.node_name(c))
walk(h.root(), "")
json.dump(out, sys.stdout)
`

// written makes a hive that hivex filled.
func written(t testing.TB, seed string) memory {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hive")
	b := hivetest.New()
	save(t, path, b.Hive(b.Key("$$$PROTO.HIV", "lf", nil, nil)))
	hivetest.Python(t, writing, path, seed)
	m, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// content is everything in a hive: types and data by name by path.
type content map[string]map[string][2]any

// compare fails the test where a hive differs from what hivex reads in a file.
func compare(t *testing.T, h *hive.Hive, file memory) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hive")
	save(t, path, file)
	var want, got content
	if err := json.Unmarshal(hivetest.Python(t, reading, path), &want); err != nil {
		t.Fatal(err)
	}
	got = contentOf(t, h)
	for path, values := range want {
		if !maps.Equal(got[path], values) {
			t.Errorf("values of %q: got %.200v, want %.200v", path, fmt.Sprint(got[path]), fmt.Sprint(values))
		}
	}
	if len(got) != len(want) || len(want) < 2 {
		t.Errorf("keys: got %d, want %d", len(got), len(want))
	}
}

func contentOf(t *testing.T, h *hive.Hive) content {
	t.Helper()
	all := content{}
	var visit func(k *hive.Key, path string)
	visit = func(k *hive.Key, path string) {
		values := map[string][2]any{}
		all[path] = values
		if err := k.Values(func(v hive.Value) bool {
			values[v.Name] = [2]any{float64(v.Type), hex.EncodeToString(v.Data)}
			return true
		}); err != nil {
			t.Errorf("values of %q: %v", path, err)
		}
		if err := k.Keys(func(x *hive.Key) bool {
			visit(x, path+`\`+x.Name())
			return true
		}); err != nil {
			t.Errorf("keys below %q: %v", path, err)
		}
	}
	root, err := h.Key("")
	if err != nil {
		t.Fatal(err)
	}
	visit(root, "")
	return all
}

func TestAgreesWithHivex(t *testing.T) {
	for _, seed := range []string{"1", "2", "3"} {
		m := written(t, seed)
		compare(t, open(t, m), m)
	}
	for _, kind := range []string{"lf", "lh", "li", "ri"} {
		m := some(kind)
		compare(t, open(t, m), m)
	}
}
