package hivetest

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/sendense/sendense/internal/requires"
)

// Python runs a script that may use hivex, which is of Debian's own Python only, and
// returns what it printed.
func Python(t testing.TB, script string, args ...string) []byte {
	t.Helper()
	const program = "/usr/bin/python3"
	if exec.Command(program, "-c", "import hivex").Run() != nil {
		requires.Missing(t, "python3-hivex (install it with: make deps)")
	}
	out, err := exec.Command(program, append([]string{"-c", script}, args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	return out
}

// Value is a value of a key.
type Value struct {
	Type uint32
	Data []byte
}

// String makes a value of text.
func String(s string) Value { return Value{1, Text(s)} }

// Number makes one of a number.
func Number(n uint32) Value { return Value{4, le.AppendUint32(nil, n)} }

// storing has hivex write the JSON of argv[2] into the hive argv[1].
const storing = `
import hivex, json, sys
h = hivex.Hivex(sys.argv[1], write=True)
for path, values in json.loads(sys.argv[2]).items():
    node = h.root()
    for name in path.split("\\"):
        node = h.node_get_child(node, name) or h.node_add_child(node, name)
    h.node_set_values(node, [{"key": k, "t": v[0], "value": bytes.fromhex(v[1])} for k, v in values.items()])
h.commit(None)
`

// Write has hivex write a hive to a file: values by name by the path of their key.
func Write(t testing.TB, path string, keys map[string]map[string]Value) {
	t.Helper()
	b := New()
	if err := os.WriteFile(path, b.Hive(b.Key("ROOT", "lf", nil, nil)), 0o644); err != nil {
		t.Fatal(err)
	}
	stored := map[string]map[string][2]any{}
	for key, values := range keys {
		stored[key] = map[string][2]any{}
		for name, v := range values {
			stored[key][name] = [2]any{v.Type, hex.EncodeToString(v.Data)}
		}
	}
	text, err := json.Marshal(stored)
	if err != nil {
		t.Fatal(err)
	}
	Python(t, storing, path, string(text))
}
