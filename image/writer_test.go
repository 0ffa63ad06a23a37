package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// memDevice is a disk in memory.
type memDevice []byte

func (d memDevice) Size() int64 { return int64(len(d)) }

func (d memDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := block.CheckRange(d.Size(), off, int64(len(p))); err != nil {
		return err
	}
	copy(p, d[off:])
	return nil
}

// checkClean has qemu-img and Check agree that a file is in order.
func checkClean(t testing.TB, path string) {
	t.Helper()
	requires.Run(t, "qemu-img", "check", "-f", "qcow2", path)
	r, err := image.Check(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Clean() {
		t.Fatalf("check of %s: got %d corruptions %v and %d leaks, want none", path, r.Corruptions, r.Errors, r.Leaks)
	}
}

// content reads a whole disk through qemu-img.
func content(t testing.TB, path string) []byte {
	t.Helper()
	raw := path + ".raw"
	requires.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return b
}

// sameBytes says where two disks differ first.
func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: got %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d (%#x): got %#x, want %#x", what, i, i, got[i], want[i])
		}
	}
}

// variant is a kind of file that the tests go through.
type variant struct {
	name    string
	o       image.CreateOptions
	backing int64 // length of the backing disk; 0: none
	fill    int64 // bytes to be written first, in one go
	direct  bool  // past the page cache
}

// variants are the corners of the format. Sizes that end inside a cluster, and
// backing disks that are shorter and longer, come with it.
func variants() []variant {
	const k, m = 1 << 10, 1 << 20
	var vs []variant
	add := func(name string, backing int64, o image.CreateOptions) {
		vs = append(vs, variant{name: name, o: o, backing: backing})
	}
	add("the default", 0, image.CreateOptions{Size: 8*m + 512})
	add("version 2", 0, image.CreateOptions{Size: 3*m + 512, Version: 2, ClusterSize: 4 * k})
	add("version 2 over a longer disk", 4*m, image.CreateOptions{Size: 3*m + 512, Version: 2, ClusterSize: 16 * k})
	for order := range 7 {
		add(fmt.Sprintf("512 byte clusters, %d bit refcounts", 1<<order), 0,
			image.CreateOptions{Size: 300*k + 512, ClusterSize: 512, RefcountBits: 1 << order})
	}
	add("512 byte clusters over a shorter disk", 100*k+700, image.CreateOptions{Size: 200*k + 512, ClusterSize: 512})
	add("4 KiB clusters over a longer disk", 3*m, image.CreateOptions{Size: 2*m + 1024, ClusterSize: 4 * k, RefcountBits: 1})
	add("64 KiB clusters over a shorter disk", 3*m+700, image.CreateOptions{Size: 6 * m})
	add("2 MiB clusters over a disk of the same length", 24*m, image.CreateOptions{Size: 24 * m, ClusterSize: 2 * m})
	add("zstd", 0, image.CreateOptions{Size: 4 * m, ClusterSize: 32 * k, Compression: image.Zstd})
	add("subclusters", 0, image.CreateOptions{Size: 4*m + 512, ExtendedL2: true, ClusterSize: 16 * k})
	add("subclusters over a shorter disk", 2*m+700, image.CreateOptions{Size: 4 * m, ExtendedL2: true, ClusterSize: 64 * k})
	vs = append(vs,
		variant{name: "a refcount table that has to grow",
			o: image.CreateOptions{Size: 4 * m, ClusterSize: 512, RefcountBits: 64}, fill: 1900 * k},
		variant{name: "past the page cache", o: image.CreateOptions{Size: 8*m + 512}, fill: 3 * m, direct: true},
		variant{name: "past the page cache over a shorter disk", o: image.CreateOptions{Size: 8 * m}, backing: 3*m + 700, direct: true})
	return vs
}

// seeds returns the seeds of a random test: n of them, or as many times more as
// SENDENSE_TEST_ROUNDS says.
func seeds(t testing.TB, n uint64) uint64 {
	t.Helper()
	v := os.Getenv("SENDENSE_TEST_ROUNDS")
	if v == "" {
		return n
	}
	rounds, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		t.Fatalf("SENDENSE_TEST_ROUNDS: %v", err)
	}
	return n * rounds
}

// newRand returns a source that a failure can be repeated with.
func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

// disk is a file being written, with the model of what it must hold.
type disk struct {
	t       testing.TB
	rng     *rand.Rand
	path    string
	w       *image.Writer
	backing block.Device
	model   []byte
	cs      int64
	v2      bool
	direct  bool
}

// newDisk creates the file of a variant and opens it.
func newDisk(t testing.TB, rng *rand.Rand, v variant) *disk {
	t.Helper()
	dir := t.TempDir()
	d := &disk{t: t, rng: rng, path: filepath.Join(dir, "disk.qcow2"), cs: v.o.ClusterSize, v2: v.o.Version == 2, direct: v.direct}
	if d.cs == 0 {
		d.cs = 64 << 10
	}
	o := v.o
	d.model = make([]byte, o.Size)
	if v.backing > 0 {
		below := make(memDevice, v.backing)
		scribble(rng, below)
		o.BackingFile, o.BackingFormat = "below.raw", "raw"
		// Raw disks have whole sectors for QEMU.
		d.backing = append(below, make(memDevice, -v.backing&511)...)
		copy(d.model, below)
		writeBelow(t, d)
	}
	if err := image.Create(d.path, o); err != nil {
		t.Fatal(err)
	}
	d.open()
	t.Cleanup(func() { d.w.Close() })
	d.fill(v.fill)
	return d
}

// writeBelow stores what backs a disk where QEMU looks for it.
func writeBelow(t testing.TB, d *disk) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(d.path), "below.raw"), d.backing.(memDevice), 0o600); err != nil {
		t.Fatal(err)
	}
}

// fill writes the first n bytes.
func (d *disk) fill(n int64) {
	d.t.Helper()
	scribble(d.rng, d.model[:n])
	d.must(d.w.WriteAt(context.Background(), d.model[:n], 0))
}

// scribble fills p with bytes that compress, in part.
func scribble(rng *rand.Rand, p []byte) {
	for len(p) > 0 {
		n := min(len(p), 1+rng.IntN(3000))
		switch rng.IntN(4) {
		case 0:
			for i := range n {
				p[i] = byte(rng.Uint32())
			}
		case 1:
		default:
			b := byte(1 + rng.IntN(255))
			for i := range n {
				p[i] = b
			}
		}
		p = p[n:]
	}
}

func (d *disk) open() {
	d.t.Helper()
	w, err := image.OpenWriter(d.path, image.WriterOptions{Backing: d.backing, CacheBytes: 1, Direct: d.direct})
	if err != nil {
		d.t.Fatal(err)
	}
	d.w = w
}

func (d *disk) close() {
	d.t.Helper()
	if err := d.w.Close(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// pick chooses a range of the disk; often with clusters' bounds.
func (d *disk) pick() (off, n int64) {
	size := int64(len(d.model))
	n = 1 + d.rng.Int64N(min(size, []int64{600, d.cs, 4 * d.cs, 20 * d.cs}[d.rng.IntN(4)]))
	off = d.rng.Int64N(size - n + 1)
	if d.rng.IntN(2) == 0 {
		off &^= d.cs - 1
	}
	if d.rng.IntN(2) == 0 {
		n = min((n+d.cs-1)&^(d.cs-1), size-off)
	}
	if d.rng.IntN(16) == 0 {
		off = size - n
	}
	return off, n
}

// step does one thing at random to the file and to the model.
func (d *disk) step() {
	d.t.Helper()
	ctx := context.Background()
	off, n := d.pick()
	switch d.rng.IntN(12) {
	default:
		scribble(d.rng, d.model[off:off+n])
		d.must(d.w.WriteAt(ctx, d.model[off:off+n], off))
	case 5, 6:
		clear(d.model[off : off+n])
		d.must(d.w.WriteZeroes(ctx, off, n, block.ZeroFlags(d.rng.IntN(2))))
	case 7:
		d.must(d.w.Trim(ctx, off, n))
		d.must(d.w.ReadAt(ctx, d.model[off:off+n], off))
	case 8:
		c := off / d.cs
		p := d.model[c*d.cs : min((c+1)*d.cs, int64(len(d.model)))]
		scribble(d.rng, p)
		_, err := d.w.WriteCompressed(ctx, p, c*d.cs)
		d.must(err)
	case 9:
		got := make([]byte, n)
		d.must(d.w.ReadAt(ctx, got, off))
		sameBytes(d.t, fmt.Sprintf("read of %d at %d", n, off), got, d.model[off:off+n])
	case 10:
		d.must(d.w.Flush(ctx))
	case 11:
		if d.path == "" || d.rng.IntN(4) != 0 {
			return
		}
		d.close()
		checkClean(d.t, d.path)
		d.open()
	}
}

func TestWriterAndQEMUAgree(t *testing.T) {
	requires.Tool(t, "qemu-img")
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			for seed := range seeds(t, 3) {
				d := newDisk(t, newRand(seed), v)
				for range 150 {
					d.step()
				}
				d.close()
				checkClean(t, d.path)
				sameBytes(t, "content", content(t, d.path), d.model)
				d.open()
				d.compareMap()
				d.resize()
				d.close()
			}
		})
	}
}

// resize makes the disk larger, writes a little and looks at all of it.
func (d *disk) resize() {
	d.t.Helper()
	grow := int64(1+d.rng.IntN(2000)) << 9
	d.model = append(d.model, make([]byte, grow)...)
	d.must(d.w.Resize(context.Background(), int64(len(d.model))))
	for range 10 {
		d.step()
	}
	d.must(d.w.Flush(context.Background()))
	sameBytes(d.t, "content after resize", content(d.t, d.path), d.model)
	d.close()
	checkClean(d.t, d.path)
	sameBytes(d.t, "content after resize", content(d.t, d.path), d.model)
	d.open()
}

// compareMap has qemu-img and the Writer agree on what is data.
func (d *disk) compareMap() {
	d.t.Helper()
	var theirs []struct {
		Start, Length int64
		Zero, Data    bool
	}
	out := requires.Run(d.t, "qemu-img", "map", "--output=json", "-f", "qcow2", d.path)
	if err := json.Unmarshal([]byte(out), &theirs); err != nil {
		d.t.Fatal(err)
	}
	zero := make([]bool, len(d.model)/512+1)
	for _, e := range theirs {
		for s := e.Start / 512; s < (e.Start+e.Length)/512; s++ {
			zero[s] = e.Zero && !e.Data // QEMU also finds holes in the file itself
		}
	}
	err := block.MapAll(context.Background(), d.w, 0, d.w.Size(), func(e block.Extent) error {
		for s := e.Off / 512; s < e.End()/512; s++ {
			// QEMU knows holes in the raw file below.
			if ours := e.Kind != block.Data; ours != zero[s] && (ours || d.backing == nil) {
				return fmt.Errorf("sector %d is zero for us: %v, for qemu-img: %v", s, ours, zero[s])
			}
		}
		return nil
	})
	d.must(err)
}
