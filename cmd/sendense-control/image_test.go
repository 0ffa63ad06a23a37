package main_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// newChain makes a chain of three files with QEMU's tools and returns their paths,
// the base first.
func newChain(t testing.TB) []string {
	t.Helper()
	requires.Tool(t, "qemu-img", "qemu-io")
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "full.qcow2"), filepath.Join(dir, "incr-1.qcow2"), filepath.Join(dir, "incr-2.qcow2")}
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", paths[0], "64M")
	clitest.Tool(t, "qemu-io", "-c", "write -P 17 0 1M", "-c", "write -P 18 8M 64k", "-c", "write -c -P 19 16M 64k", paths[0])
	for i := range 2 {
		clitest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Base(paths[i]), paths[i+1])
	}
	clitest.Tool(t, "qemu-io", "-c", "write -P 33 512k 1M", "-c", "write -z 8M 64k", paths[1])
	clitest.Tool(t, "qemu-io", "-c", "write -P 65 2M 192k", paths[2])
	return paths
}

func TestVersionAndHelpGoToStdout(t *testing.T) {
	if r := call(t, "--version"); r.Code != 0 || r.Stdout != "sendense-control v9-test\n" || r.Stderr != "" {
		t.Errorf("--version: got %+v, want the version", r)
	}
	for _, args := range [][]string{{}, {"--help"}, {"image"}, {"nbd", "serve", "--help"}} {
		if r := call(t, args...); r.Code != 0 || !strings.Contains(r.Stdout, "Usage:") || r.Stderr != "" {
			t.Errorf("%q: got %+v, want help on stdout", args, r)
		}
	}
}

func TestInfoAgreesWithQemuImg(t *testing.T) {
	chain := newChain(t)
	type theirs struct {
		Virtual int64  `json:"virtual-size"`
		Cluster int64  `json:"cluster-size"`
		Backing string `json:"backing-filename"`
	}
	type ours struct {
		Path    string `json:"path"`
		Format  string `json:"format"`
		Virtual int64  `json:"virtual_bytes"`
		QCOW2   struct {
			Cluster int64  `json:"cluster_bytes"`
			Backing string `json:"backing_file"`
		} `json:"qcow2"`
	}
	got := clitest.Decode[[]ours](t, call(t, "image", "info", "--json", "--backing-chain", chain[2]))
	var want []theirs
	if err := json.Unmarshal([]byte(clitest.Tool(t, "qemu-img", "info", "--output=json", "--backing-chain", chain[2])), &want); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || len(want) != 3 {
		t.Fatalf("files of the chain: got %d, want %d", len(got), len(want))
	}
	for i, g := range got {
		w := want[i]
		if g.Format != "qcow2" || g.Virtual != w.Virtual || g.QCOW2.Cluster != w.Cluster || g.QCOW2.Backing != w.Backing {
			t.Errorf("file %d: got %+v, want %+v", i, g, w)
		}
	}
	text := call(t, "image", "info", chain[1])
	for _, want := range []string{"virtual size:", "64 MiB (67108864 bytes)", "backing file:", "full.qcow2"} {
		if !strings.Contains(text.Stdout, want) {
			t.Errorf("text: got %q, want %q in it", text.Stdout, want)
		}
	}
}

func TestMapAgreesWithQemuImg(t *testing.T) {
	chain := newChain(t)
	type extent struct {
		Start, Length, Depth int64
		Offset               *int64
		Kind                 string
		Data, Zero           bool
	}
	got := clitest.Decode[[]extent](t, call(t, "image", "map", "--json", chain[2]))
	var want []extent
	if err := json.Unmarshal([]byte(clitest.Tool(t, "qemu-img", "map", "--output=json", chain[2])), &want); err != nil {
		t.Fatal(err)
	}
	// In units of clusters, since the two divide ranges differently.
	cells := func(all []extent, data func(extent) bool) []string {
		cell := make([]string, 64<<20>>16)
		for _, e := range all {
			for off := e.Start; off < e.Start+e.Length; off += 64 << 10 {
				if data(e) {
					cell[off>>16] = fmt.Sprintf("layer %d", e.Depth)
					if e.Offset != nil {
						cell[off>>16] += fmt.Sprintf(" at %d", *e.Offset+off-e.Start)
					}
				}
			}
		}
		return cell
	}
	g := cells(got, func(e extent) bool { return e.Kind == "stored" || e.Kind == "compressed" })
	w := cells(want, func(e extent) bool { return e.Data })
	for i := range w {
		if g[i] != w[i] {
			t.Errorf("cluster %d: got %q, want %q", i, g[i], w[i])
		}
	}
	if text := call(t, "image", "map", chain[2]); text.Code != 0 || !strings.Contains(text.Stdout, "compressed") {
		t.Errorf("text: got %+v, want the compressed cluster in it", text)
	}
}

func TestCheckFindsDamage(t *testing.T) {
	chain := newChain(t)
	if r := call(t, append([]string{"image", "check"}, chain...)...); r.Code != 0 || strings.Count(r.Stdout, "no errors") != 3 {
		t.Errorf("good files: got %+v, want no errors", r)
	}
	for off := int64(2 << 16); off < 2<<16+8; off++ { // refcounts of the first clusters
		setByte(t, chain[0], off, 0)
	}
	type report struct{ Corruptions int64 }
	r := call(t, "image", "check", "--json", chain[0])
	if got := decode[[]report](t, r); r.Code != 5 || len(got) != 1 || got[0].Corruptions == 0 || r.Stderr != "" {
		t.Errorf("damaged file: got %+v, want corruptions and exit code 5", r)
	}
}

func TestCompare(t *testing.T) {
	chain := newChain(t)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	clitest.Tool(t, "qemu-img", "convert", "-O", "raw", chain[2], raw)
	if r := call(t, "image", "compare", chain[2], raw); r.Code != 0 || !strings.Contains(r.Stdout, "equal") {
		t.Errorf("the same disk: got %+v, want equal", r)
	}
	type result struct {
		Equal bool
		First *int64 `json:"first_difference"`
		Sizes []int64
	}
	for _, off := range []int64{50 << 20, 2<<20 + 777, 2<<20 + 5} {
		setByte(t, raw, off, 1)
		r := call(t, "image", "compare", "--json", chain[2], raw, "--other-format", "raw")
		if got := decode[result](t, r); r.Code != 5 || got.Equal || got.First == nil || *got.First != off {
			t.Errorf("a byte changed at %d: got %+v, want that", off, r)
		}
	}
	longer := filepath.Join(t.TempDir(), "longer.qcow2")
	clitest.Tool(t, "qemu-img", "convert", "-O", "qcow2", chain[2], longer)
	clitest.Tool(t, "qemu-img", "resize", "-q", longer, "65M")
	r := call(t, "image", "compare", "--json", chain[2], longer)
	if got := decode[result](t, r); r.Code != 5 || got.Equal || got.First != nil || got.Sizes[1] != 65<<20 {
		t.Errorf("another size: got %+v, want that", r)
	}
}

func TestSeveralFilesAtOnce(t *testing.T) {
	chain := newChain(t)
	a, b, gone := chain[0], chain[2], filepath.Join(t.TempDir(), "gone.qcow2")
	for _, command := range []string{"info", "check", "map"} {
		t.Run(command, func(t *testing.T) {
			one, other := call(t, "image", command, a), call(t, "image", command, b)
			both := call(t, "image", command, a, b)
			if both.Code != 0 || !strings.Contains(both.Stdout, one.Stdout) || !strings.Contains(both.Stdout, other.Stdout) ||
				strings.Index(both.Stdout, a) > strings.Index(both.Stdout, one.Stdout)+len(a)+10 {
				t.Errorf("text: got %+v, want that of each, under its name", both)
			}
			// What cannot be read hides nothing else.
			some := call(t, "image", command, gone, a, gone+"2", b)
			if some.Code != 3 || some.Stdout != both.Stdout || strings.Count(some.Stderr, "sendense-control: ") != 1 || !strings.Contains(some.Stderr, "gone.qcow2: ") || !strings.Contains(some.Stderr, "gone.qcow22.") {
				t.Errorf("text with files that are missing: got %+v, want that of the others, and an error", some)
			}
			array := clitest.Decode[[]map[string]any](t, call(t, "image", command, "--json", a, b))
			if len(array) != 2 || array[0]["path"] != a || array[1]["path"] != b {
				t.Errorf("JSON: got %v, want an object for each", array)
			}
			some = call(t, "image", command, "--json", a, gone, b)
			if got := decode[[]map[string]any](t, some); len(got) != 2 || some.Code != 3 || !strings.Contains(some.Stderr, `"not_found"`) {
				t.Errorf("JSON with a file that is missing: got %+v, want that of the others, and an error", some)
			}
		})
	}
	type ranges []struct{ Start, Length int64 }
	one := clitest.Decode[ranges](t, call(t, "image", "map", "--json", a))
	several := clitest.Decode[[]struct{ Ranges ranges }](t, call(t, "image", "map", "--json", b, a))
	if len(one) == 0 || !slices.Equal(several[1].Ranges, one) || len(several[0].Ranges) == 0 {
		t.Errorf("ranges: got %v, want those of each file", several)
	}
}

func TestDamageIsToldBesideFilesThatAreMissing(t *testing.T) {
	chain := newChain(t)
	for off := int64(2 << 16); off < 2<<16+8; off++ { // refcounts of the first clusters
		setByte(t, chain[0], off, 0)
	}
	r := call(t, "image", "check", chain[0], filepath.Join(t.TempDir(), "gone.qcow2"), chain[1])
	if r.Code != 5 || !strings.Contains(r.Stdout, "corruptions") || !strings.Contains(r.Stdout, "no errors") || !strings.Contains(r.Stderr, "gone.qcow2") {
		t.Errorf("got %+v, want the damage, what is good, what is missing, and exit code 5", r)
	}
}
