package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// kind is a way qemu-img is told to create a layer.
type kind struct {
	name    string
	cluster int64
	options string // beyond cluster_size
	alone   bool   // cannot have or be given what others can: backing, snapshots
	v2      bool
	fixed   bool // is not resized
}

func kinds() []kind {
	var list []kind
	for bits := 9; bits <= 21; bits++ {
		list = append(list, kind{name: fmt.Sprintf("v3 cluster %d", 1<<bits), cluster: 1 << bits})
	}
	return append(list,
		kind{name: "v2 cluster 512", cluster: 512, options: "compat=0.10", v2: true, fixed: true},
		kind{name: "v2 cluster 65536", cluster: 64 << 10, options: "compat=0.10", v2: true, fixed: true},
		kind{name: "v2 cluster 2097152", cluster: 2 << 20, options: "compat=0.10", v2: true, fixed: true},
		kind{name: "zstd", cluster: 64 << 10, options: "compression_type=zstd"},
		kind{name: "zstd cluster 4096", cluster: 4 << 10, options: "compression_type=zstd"},
		kind{name: "zstd cluster 2097152", cluster: 2 << 20, options: "compression_type=zstd"},
		kind{name: "subclusters 16384", cluster: 16 << 10, options: "extended_l2=on"},
		kind{name: "subclusters 65536", cluster: 64 << 10, options: "extended_l2=on"},
		kind{name: "subclusters 131072 zstd", cluster: 128 << 10, options: "extended_l2=on,compression_type=zstd"},
		kind{name: "subclusters 2097152", cluster: 2 << 20, options: "extended_l2=on"},
		kind{name: "refcounts of 1 bit", cluster: 64 << 10, options: "refcount_bits=1", fixed: true},
		kind{name: "refcounts of 64 bits", cluster: 4 << 10, options: "refcount_bits=64"},
		kind{name: "lazy refcounts", cluster: 64 << 10, options: "lazy_refcounts=on"},
		kind{name: "preallocated metadata", cluster: 64 << 10, options: "preallocation=metadata", alone: true},
		kind{name: "data file", cluster: 64 << 10, options: "data_file=%s.data", fixed: true},
		kind{name: "data file with subclusters", cluster: 64 << 10, options: "data_file=%s.data,extended_l2=on", fixed: true},
		kind{name: "raw data file", cluster: 64 << 10, options: "data_file=%s.data,data_file_raw=on", alone: true, fixed: true},
	)
}

// scenario makes random chains with QEMU's tools.
type scenario struct {
	t    *testing.T
	dir  string
	rnd  *rand.Rand
	size int64 // about
	made int
}

func (s *scenario) run(args ...string) { s.t.Helper(); qemuImg(s.t, s.dir, args...) }

// someSize returns a virtual size near s.size that k can have.
func (s *scenario) someSize() int64 { return s.size/2 + s.rnd.Int64N(s.size)&^511 }

// layer creates an image on parent and returns its name.
func (s *scenario) layer(k kind, parent, parentFormat string) string {
	s.t.Helper()
	s.made++
	name := fmt.Sprintf("layer%d.qcow2", s.made)
	options := "cluster_size=" + strconv.FormatInt(k.cluster, 10)
	if k.options != "" {
		o := k.options
		if bytes.Contains([]byte(o), []byte("%s")) {
			o = fmt.Sprintf(o, name)
		}
		options += "," + o
	}
	args := []string{"create", "-q", "-f", "qcow2", "-o", options}
	if parent != "" {
		args = append(args, "-b", parent, "-F", parentFormat)
	}
	size := s.someSize()
	s.run(append(args, name, strconv.FormatInt(size, 10))...)
	dataFile := bytes.Contains([]byte(k.options), []byte("data_file"))
	s.write(name, k, size, dataFile)
	if !dataFile && !k.fixed && s.rnd.IntN(3) == 0 {
		s.run("snapshot", "-c", "kept", name)
		s.write(name, k, size, dataFile)
		if !k.v2 && s.rnd.IntN(2) == 0 {
			s.run("bitmap", "--add", name, "bitmap0")
		}
	} else if !k.fixed && s.rnd.IntN(2) == 0 {
		size = s.someSize()
		s.run("resize", "-q", "--shrink", name, strconv.FormatInt(size, 10))
		s.write(name, k, size, dataFile)
	}
	return name
}

// write runs a random program of writes on an image.
func (s *scenario) write(name string, k kind, size int64, dataFile bool) {
	s.t.Helper()
	var program []string
	for range 4 + s.rnd.IntN(24) {
		off := s.rnd.Int64N(size)
		n := 1 + s.rnd.Int64N(4*k.cluster)
		switch s.rnd.IntN(3) {
		case 0:
			off &^= k.cluster - 1
			n = (n + k.cluster - 1) &^ (k.cluster - 1)
		case 1:
			off, n = off&^511, (n+511)&^511
		}
		n = min(n, size-off)
		at := fmt.Sprintf("%d %d", off, n)
		pattern := 1 + s.rnd.IntN(255)
		switch c := s.rnd.IntN(12); {
		case c < 5:
			program = append(program, fmt.Sprintf("write -q -P %d %s", pattern, at))
		case c < 7:
			program = append(program, "write -q -z "+at)
		case c < 8:
			program = append(program, "write -q -z -u "+at)
		case c < 9:
			program = append(program, "discard -q "+at)
		case !dataFile:
			off &^= k.cluster - 1
			if off+k.cluster <= size {
				program = append(program, fmt.Sprintf("write -q -c -P %d %d %d", pattern, off, k.cluster))
			}
		}
	}
	qemuIO(s.t, s.dir, name, program)
}

// rawBase writes a sparse raw image of a length that is no multiple of anything.
func (s *scenario) rawBase() string {
	s.t.Helper()
	name := "base.img"
	f, err := os.Create(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	size := s.someSize() + 1 + s.rnd.Int64N(511)
	if err := f.Truncate(size); err != nil {
		s.t.Fatal(err)
	}
	for range 8 {
		off := s.rnd.Int64N(size)
		b := bytes.Repeat([]byte{byte(1 + s.rnd.IntN(255))}, int(min(size-off, 1+s.rnd.Int64N(200<<10))))
		if _, err := f.WriteAt(b, off); err != nil {
			s.t.Fatal(err)
		}
	}
	return name
}

// TestReadAgainstQEMU lets QEMU's tools make chains of every kind, and compares
// what this package reads with what they read: bytes, extents, and which layer
// each extent comes from.
func TestReadAgainstQEMU(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	rounds := 1
	if n, err := strconv.Atoi(os.Getenv("IMAGE_ROUNDS")); err == nil {
		rounds = n
	}
	all := kinds()
	for i, k := range all {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			for round := range rounds {
				s := &scenario{t: t, dir: t.TempDir(), rnd: rand.New(rand.NewPCG(uint64(i), uint64(round)))}
				s.size = min(max(64*k.cluster, 1<<20), 24<<20)
				names := []string{}
				name, format := "", ""
				if k.alone {
					name, format = s.layer(k, "", ""), "qcow2"
				} else {
					switch s.rnd.IntN(3) {
					case 0:
						name, format = s.rawBase(), "raw"
						names = append(names, name)
					case 1:
						other := all[s.rnd.IntN(len(all))]
						name, format = s.layer(other, "", ""), "qcow2"
						names = append(names, name)
					}
					for range 1 + s.rnd.IntN(3) {
						name, format = s.layer(k, name, format), "qcow2"
						names = append(names, name)
					}
					if n := len(names); n > 2 && s.rnd.IntN(2) == 0 {
						s.run("rebase", "-q", "-b", names[n-3], "-F", formatOf(names[n-3]), name)
						names = append(names[:n-2], name)
					}
				}
				if compareChain(t, s, name) {
					compareChanges(t, s, name, names)
				}
			}
		})
	}
}

func formatOf(name string) string {
	if filepath.Ext(name) == ".img" {
		return "raw"
	}
	return "qcow2"
}

// compareChain reports whether there was something to compare.
func compareChain(t *testing.T, s *scenario, name string) bool {
	t.Helper()
	want := qemuContent(t, s.dir, name, "qcow2")
	c := openChain(t, filepath.Join(s.dir, name), image.ChainOptions{})
	if want == nil {
		if err := c.ReadAt(context.Background(), make([]byte, c.Size()), 0); !errors.Is(err, image.ErrCorrupt) {
			t.Fatalf("read what QEMU finds damaged: got %v, want ErrCorrupt", err)
		}
		return false
	}
	if got, want := c.Size(), int64(len(want)); got != want {
		t.Fatalf("size: got %d, want %d", got, want)
	}
	compareBytes(t, "whole image", readAll(t, c), want)
	for range 50 {
		off := s.rnd.Int64N(int64(len(want)))
		got := make([]byte, min(int64(len(want))-off, 1+s.rnd.Int64N(100<<10)))
		if err := c.ReadAt(context.Background(), got, off); err != nil {
			t.Fatal(err)
		}
		compareBytes(t, fmt.Sprintf("%d bytes at %d", len(got), off), got, want[off:off+int64(len(got))])
	}
	compareExtents(t, c, qemuMap(t, s.dir, name))
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		return blocktest.Subject{Device: c, Content: want}
	})
	compareRuns(t, filepath.Join(s.dir, name), c)
	return true
}

func compareBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d: got %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// compareExtents checks the extents at each place where one of either side
// begins or ends.
func compareExtents(t *testing.T, c *image.Chain, want []qemuExtent) {
	t.Helper()
	got := sources(t, c)
	for i, j, off := 0, 0, int64(0); i < len(got) && j < len(want); {
		g, w := got[i], want[j]
		data := g.Content == image.Stored || g.Content == image.Compressed
		if data != w.Data || data && g.Layer != w.Depth || !w.Present && g.Content != image.Absent {
			t.Fatalf("at %d: got %+v, want %+v", off, g, w)
		}
		off = min(g.End(), w.Start+w.Length)
		if off == g.End() {
			i++
		}
		if off == w.Start+w.Length {
			j++
		}
	}
	err := block.MapAll(context.Background(), c, 0, c.Size(), func(e block.Extent) error {
		for _, g := range got {
			if g.Off < e.End() && e.Off < g.End() &&
				(e.Kind == block.Data) != (g.Content == image.Stored || g.Content == image.Compressed) {
				t.Fatalf("map: %+v overlaps source %+v", e, g)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// compareRuns checks that what the top file alone says agrees with what the
// chain takes from it.
func compareRuns(t *testing.T, path string, c *image.Chain) {
	t.Helper()
	f, err := image.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var want []image.Source
	for _, s := range sources(t, c) {
		if s.Layer == 0 {
			want = append(want, s)
		}
	}
	i := 0
	err = f.Runs(context.Background(), 0, f.Size(), func(r image.Run) error {
		if i >= len(want) || want[i].Off != r.Off || want[i].Len != r.Len || want[i].Content != r.Content {
			t.Fatalf("run %d of the top file: got %+v, want one of %+v", i, r, want[i:])
		}
		got, all := make([]byte, r.Len), make([]byte, r.Len)
		if err := f.ReadAt(context.Background(), got, r.Off); err != nil {
			return err
		}
		if err := c.ReadAt(context.Background(), all, r.Off); err != nil {
			return err
		}
		compareBytes(t, fmt.Sprintf("run %+v of the top file", r), got, all)
		i++
		return nil
	})
	if err != nil || i != len(want) {
		t.Fatalf("runs of the top file: got %d and %v, want %d", i, err, len(want))
	}
}

// compareChanges checks that whatever differs from an older layer is in the list
// of changes since it.
func compareChanges(t *testing.T, s *scenario, name string, names []string) {
	t.Helper()
	c := openChain(t, filepath.Join(s.dir, name), image.ChainOptions{LayerName: filepath.Base})
	now := readAll(t, c)
	for _, old := range names {
		before := qemuContent(t, s.dir, old, formatOf(old))
		if before == nil {
			continue
		}
		off := s.rnd.Int64N(int64(len(now)))
		n := s.rnd.Int64N(int64(len(now)) - off + 1)
		list, err := c.Changed(context.Background(), old, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if old == name && len(list) > 0 {
			t.Errorf("changes since the image itself: got %v, want none", list)
		}
		at := off
		check := func(end int64) {
			for ; at < end; at++ {
				if at >= int64(len(before)) || now[at] != before[at] {
					t.Fatalf("changes since %s: byte %d differs and is not in %v", old, at, list)
				}
			}
		}
		for _, r := range list {
			if r.Off < at || r.Len <= 0 || r.End() > off+n {
				t.Fatalf("changes since %s in %d+%d: got %v", old, off, n, list)
			}
			check(r.Off)
			at = r.End()
		}
		check(off + n)
	}
}
