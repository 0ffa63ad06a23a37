package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/image"
)

// qemuImg runs qemu-img in dir and returns its output.
func qemuImg(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s%s", args, err, stderr.Bytes(), out)
	}
	return out
}

// qemuIO gives the commands to one qemu-io. A compressed write may fail: QEMU
// refuses it where something is allocated already.
func qemuIO(t testing.TB, dir, name string, commands []string) {
	t.Helper()
	cmd := exec.Command("qemu-io", "-f", "qcow2", "--discard=unmap", name)
	cmd.Dir = dir
	mayFail := 0
	for _, c := range commands {
		if strings.HasPrefix(c, "write -q -c") {
			mayFail++
		}
	}
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	refused := strings.Count(string(out), "write failed: Input/output error")
	if err != nil && refused == 0 || refused > mayFail || strings.Count(string(out), "failed") > refused {
		t.Fatalf("qemu-io %s: %v\n%s\ncommands: %q", name, err, out, commands)
	}
}

// qemuExtent is an element of qemu-img map --output=json.
type qemuExtent struct {
	Start   int64
	Length  int64
	Depth   int
	Present bool
	Data    bool
	Zero    bool
}

func qemuMap(t testing.TB, dir, name string) []qemuExtent {
	t.Helper()
	var list []qemuExtent
	if err := json.Unmarshal(qemuImg(t, dir, "map", "--output=json", name), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// qemuContent returns what qemu-img reads from the image, nil if it finds the
// image damaged: QEMU's own compressed writes leave such ones now and then.
func qemuContent(t testing.TB, dir, name, format string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "content.raw")
	cmd := exec.Command("qemu-img", "convert", "-f", format, "-O", "raw", name, raw)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil && bytes.Contains(out, []byte("error while reading at byte")) {
		return nil
	}
	if err != nil {
		t.Fatalf("qemu-img convert %s: %v\n%s", name, err, out)
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return b
}

func openChain(t testing.TB, path string, o image.ChainOptions) *image.Chain {
	t.Helper()
	c, err := image.OpenChain(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func readAll(t testing.TB, c *image.Chain) []byte {
	t.Helper()
	b := make([]byte, c.Size())
	if err := c.ReadAt(context.Background(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// sources collects all of c.Sources, neighbours joined.
func sources(t testing.TB, c *image.Chain) []image.Source {
	t.Helper()
	var all []image.Source
	for off := int64(0); off < c.Size(); {
		list, err := c.Sources(context.Background(), off, c.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			t.Fatalf("sources at %d: none", off)
		}
		for _, s := range list {
			if s.Off != off || s.Len <= 0 {
				t.Fatalf("sources: got %+v where %d was next", s, off)
			}
			off = s.End()
			if n := len(all) - 1; n >= 0 && all[n].Layer == s.Layer && all[n].Content == s.Content {
				all[n].Len += s.Len
				continue
			}
			all = append(all, s)
		}
	}
	return all
}

// build is a small encoder of QCOW2 files for tests: cluster 0 is the header,
// then come a refcount table that counts nothing, the L1 table, and whatever is
// added.
type build struct {
	h     image.Header
	l1    []uint64
	tail  []byte // from cluster 2 plus the L1 table's clusters on
	first int64  // host offset of tail
}

func newBuild(clusterBits uint32, size int64) *build {
	b := &build{h: image.Header{
		Version: 3, ClusterBits: clusterBits, Size: size, RefcountOrder: 4,
		RefcountTableOffset: 1 << clusterBits, RefcountTableClusters: 1,
		L1Offset: 2 << clusterBits,
	}}
	cover := b.perTable() << clusterBits
	n := (size + cover - 1) / cover
	b.h.L1Size = uint32(n)
	b.l1 = make([]uint64, n)
	cs := b.h.ClusterSize()
	b.first = 2*cs + (n*8+cs-1)/cs*cs
	return b
}

func (b *build) perTable() int64 { return b.h.ClusterSize() / 8 }

// cluster appends p at a cluster boundary and returns its host offset.
func (b *build) cluster(p []byte) int64 {
	cs := int(b.h.ClusterSize())
	b.tail = append(b.tail, make([]byte, -len(b.tail)&(cs-1))...)
	at := b.first + int64(len(b.tail))
	b.tail = append(b.tail, p...)
	return at
}

// table appends an L2 table of the entries and hooks it into the L1 table.
func (b *build) table(i int, entries map[int]uint64) int64 {
	p := make([]byte, b.h.ClusterSize())
	for k, e := range entries {
		binary.BigEndian.PutUint64(p[k*8:], e)
	}
	at := b.cluster(p)
	b.l1[i] = uint64(at) | 1<<63
	return at
}

// write stores data, whole clusters by guest cluster number.
func (b *build) write(data map[int64][]byte) *build {
	tables := make(map[int]map[int]uint64)
	for g, p := range data {
		i := int(g / b.perTable())
		if tables[i] == nil {
			tables[i] = make(map[int]uint64)
		}
		tables[i][int(g%b.perTable())] = uint64(b.cluster(p)) | 1<<63
	}
	for i, entries := range tables {
		b.table(i, entries)
	}
	return b
}

func (b *build) bytes() ([]byte, error) {
	out := make([]byte, b.first, b.first+int64(len(b.tail)))
	head, err := b.h.Encode()
	if err != nil {
		return nil, err
	}
	copy(out, head)
	for i, e := range b.l1 {
		binary.BigEndian.PutUint64(out[b.h.L1Offset+int64(i)*8:], e)
	}
	return append(out, b.tail...), nil
}

func (b *build) save(t testing.TB, path string) {
	t.Helper()
	out, err := b.bytes()
	if err == nil {
		err = os.WriteFile(path, out, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// backed names the backing file.
func (b *build) backed(name, format string) *build {
	b.h.BackingFile = name
	b.h.Extensions = append(b.h.Extensions, image.Extension{Type: 0xe2792aca, Data: []byte(format)})
	return b
}
