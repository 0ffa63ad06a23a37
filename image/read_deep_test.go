package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// raiseFiles allows the test process n more open files.
func raiseFiles(t testing.TB, n uint64) {
	t.Helper()
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if lim.Cur < n+64 {
		requires.Missing(t, fmt.Sprintf("a limit of %d open files", n+64))
	}
}

// deepChain writes a chain of depth layers over a disk of the given number of
// clusters, each of which one random layer holds, and returns the name of the
// top file. content, if not nil, gives a cluster's bytes; else they are holes.
func deepChain(t testing.TB, dir string, depth int, clusterBits uint32, clusters int, content func(i int) []byte) string {
	t.Helper()
	rnd := rand.New(rand.NewPCG(3, uint64(depth)))
	held := make([][]int, depth)
	for _, i := range rnd.Perm(clusters) {
		l := rnd.IntN(depth)
		held[l] = append(held[l], i)
	}
	name := ""
	for l, list := range held {
		b := newBuild(clusterBits, int64(clusters)<<clusterBits)
		if l > 0 {
			b.backed(name, "qcow2")
		}
		name = fmt.Sprintf("layer-%04d.qcow2", l)
		tables := make(map[int]map[int]uint64)
		for k, i := range list {
			table, at := i/int(b.perTable()), b.first+int64(k)<<clusterBits
			if tables[table] == nil {
				tables[table] = make(map[int]uint64)
			}
			tables[table][i%int(b.perTable())] = uint64(at) | 1<<63
		}
		b.first += int64(len(list)) << clusterBits
		for i, entries := range tables {
			b.table(i, entries)
		}
		b.save(t, filepath.Join(dir, name))
		if content == nil {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for k, i := range list {
			if _, err := f.WriteAt(content(i), b.first-int64(len(list)-k)<<clusterBits); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, name)
}

func TestChainOfAThousandLayers(t *testing.T) {
	const depth, clusterBits, clusters = 1000, 12, 4096
	raiseFiles(t, depth)
	var want []byte
	for i := range clusters {
		want = append(want, bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(i % 7), 1}, 1<<clusterBits/4)...)
	}
	dir := t.TempDir()
	top := deepChain(t, dir, depth, clusterBits, clusters, func(i int) []byte {
		return want[i<<clusterBits : (i+1)<<clusterBits]
	})
	c := openChain(t, top, image.ChainOptions{})
	if got := len(c.Layers()); got != depth {
		t.Errorf("layers: got %d, want %d", got, depth)
	}
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		return blocktest.Subject{Device: c, Content: want}
	})

	// With next to no memory every request makes maps again, from what is known of
	// who holds what.
	part := filepath.Join(dir, "layer-0100.qcow2")
	poor := openChain(t, part, image.ChainOptions{MapBytes: 8 << 10})
	content := readAll(t, openChain(t, part, image.ChainOptions{}))
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		return blocktest.Subject{Device: poor, Content: content}
	})

	list, err := c.Changed(context.Background(), "layer-0990", 0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	var held int64
	for _, s := range sources(t, c) {
		if s.Layer < 9 {
			held += s.Len
		}
	}
	for _, r := range list {
		held -= r.Len
	}
	if held != 0 {
		t.Errorf("changes since the tenth layer: %d bytes less than the layers above it hold", held)
	}

	t.Run("QEMU reads a part of the chain in the same way", func(t *testing.T) {
		requires.Tool(t, "qemu-img")
		at := "layer-0040.qcow2"
		part := openChain(t, filepath.Join(dir, at), image.ChainOptions{})
		compareBytes(t, at, readAll(t, part), qemuContent(t, dir, at, "qcow2"))
		compareExtents(t, part, qemuMap(t, dir, at))
	})
}

// TestMapMemoryIsBounded reads all over a chain whose merged map is many times
// larger than what it may take, from several goroutines.
func TestMapMemoryIsBounded(t *testing.T) {
	const clusterBits, clusters = 12, 64 << 10
	top := deepChain(t, t.TempDir(), 16, clusterBits, clusters, nil)
	c := openChain(t, top, image.ChainOptions{MapBytes: 64 << 10})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			p := bytes.Repeat([]byte{1}, 10000)
			for range 500 {
				if err := c.ReadAt(context.Background(), p, rnd.Int64N(c.Size()-int64(len(p)))); err != nil {
					t.Error(err)
					return
				}
				if p[0] != 0 || !bytes.Equal(p[1:], p[:len(p)-1]) {
					t.Error("holes in the layers' files do not read as zeroes")
					return
				}
			}
		})
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	// The whole map would take 800 KiB.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 400<<10 {
		t.Errorf("memory after reading everywhere: grown by %d bytes, want less than 400 KiB", grown)
	}
	runtime.KeepAlive(c)
}

func TestReadsDoNotAllocate(t *testing.T) {
	top := deepChain(t, t.TempDir(), 8, 16, 512, nil)
	c := openChain(t, top, image.ChainOptions{})
	ctx, p, locs := context.Background(), make([]byte, 200<<10), make([]block.Location, 0, 16)
	off := int64(0)
	got := testing.AllocsPerRun(200, func() {
		off = (off + 1<<20 + 4096) % (c.Size() - int64(len(p)))
		if err := c.ReadAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Locate(ctx, locs, off, int64(len(p))); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 && !raceEnabled() {
		t.Errorf("allocations for a read of what is mapped: got %v, want 0", got)
	}
}

// raceEnabled reports whether the race detector, which allocates, is on.
func raceEnabled() bool {
	var p sync.Pool
	for range 64 {
		p.Put(new(int)) // the detector makes pools drop things at random
		if p.Get() == nil {
			return true
		}
	}
	return false
}

// TestHugeEmptyDiskIsMappedAtOnce: the map of a disk of 128 PiB takes a few
// steps where no table describes it.
func TestHugeEmptyDiskIsMappedAtOnce(t *testing.T) {
	dir := t.TempDir()
	const size = 1 << 57
	low := newBuild(21, size)
	low.table(int(low.h.L1Size)/2, map[int]uint64{7: 1})
	low.save(t, filepath.Join(dir, "low.qcow2"))
	newBuild(21, size).backed("low.qcow2", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
	c := openChain(t, filepath.Join(dir, "top.qcow2"), image.ChainOptions{})
	calls, at := 0, int64(0)
	for ; at < c.Size() && calls < 100; calls++ {
		exts, err := c.Map(context.Background(), at, c.Size()-at)
		if err != nil {
			t.Fatal(err)
		}
		at = exts[len(exts)-1].End()
	}
	if at != size {
		t.Errorf("mapped in %d calls: got %d of %d bytes", calls, at, int64(size))
	}
	list, err := c.Changed(context.Background(), "low", 0, size)
	if err != nil || len(list) > 0 {
		t.Errorf("changes: got %v and %v, want none", list, err)
	}
}

// TestDeepChainOverATebibyte opens the chain that a year of daily backups leaves
// and serves a first read without having looked at more than it takes.
func TestDeepChainOverATebibyte(t *testing.T) {
	const depth = 365
	raiseFiles(t, depth)
	dir := t.TempDir()
	top := tebibyte(t, dir, depth, 8)
	c := openChain(t, top, image.ChainOptions{})
	p := bytes.Repeat([]byte{1}, 4096)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		if err := c.ReadAt(context.Background(), p, rnd.Int64N(c.Size()/4096)*4096); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, make([]byte, 4096)) {
			t.Fatal("a hole reads as something else than zeroes")
		}
	}
}

// tebibyte writes layers of a disk of 1 TiB that each hold a number of clusters
// at random places, sparsely.
func tebibyte(t testing.TB, dir string, depth, clusters int) string {
	t.Helper()
	name := ""
	rnd := rand.New(rand.NewPCG(5, 6))
	for l := range depth {
		b := newBuild(16, 1<<40)
		if l > 0 {
			b.backed(name, "qcow2")
		}
		name = fmt.Sprintf("vm-%03d.qcow2", l)
		host := b.first + int64(clusters)<<16
		for range clusters {
			b.l1[rnd.IntN(len(b.l1))] = uint64(host) | 1<<63
			host += 1 << 16
		}
		head, err := b.bytes()
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(head)
		for i, e := range b.l1 {
			if table := int64(e &^ (1 << 63)); table != 0 {
				var entry [8]byte
				binary.BigEndian.PutUint64(entry[:], uint64(b.first+int64(i%clusters)<<16)|1<<63)
				_, werr := f.WriteAt(entry[:], table+rnd.Int64N(8192)*8)
				err = errors.Join(err, werr)
			}
		}
		if err := errors.Join(err, f.Truncate(host), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, name)
}

func BenchmarkChainRead(b *testing.B) {
	for _, depth := range []int{1, 128, 1000} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			raiseFiles(b, uint64(depth))
			c := openChain(b, deepChain(b, b.TempDir(), depth, 16, 4096, nil), image.ChainOptions{})
			for _, bs := range []int{4 << 10, 64 << 10, 1 << 20} {
				for _, order := range []string{"random", "sequential"} {
					b.Run(fmt.Sprintf("bs=%dk/%s", bs>>10, order), func(b *testing.B) {
						benchRead(b, c, bs, order == "random")
					})
				}
			}
		})
	}
}

func benchRead(b *testing.B, c *image.Chain, bs int, random bool) {
	p := make([]byte, bs)
	n := c.Size() / int64(bs)
	rnd := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(int64(bs))
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if i++; random {
			i = rnd.Int64()
		}
		if err := c.ReadAt(context.Background(), p, i%n*int64(bs)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChainOpen opens a chain over 1 TiB and reads the first 4 KiB.
func BenchmarkChainOpen(b *testing.B) {
	for _, depth := range []int{1, 365} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			raiseFiles(b, uint64(depth))
			top := tebibyte(b, b.TempDir(), depth, 64)
			p := make([]byte, 4096)
			for b.Loop() {
				c, err := image.OpenChain(top, image.ChainOptions{})
				if err != nil {
					b.Fatal(err)
				}
				if err := errors.Join(c.ReadAt(context.Background(), p, 1<<39), c.Close()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkChainLocate is what a server does for each request before sendfile.
func BenchmarkChainLocate(b *testing.B) {
	c := openChain(b, deepChain(b, b.TempDir(), 128, 16, 4096, nil), image.ChainOptions{})
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
		var locs []block.Location
		for pb.Next() {
			var err error
			if locs, err = c.Locate(context.Background(), locs[:0], rnd.Int64N(c.Size()-4096), 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestTooManyOpenFilesSaysWhatToDo(t *testing.T) {
	top := deepChain(t, t.TempDir(), 40, 12, 64, nil)
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	low := lim
	low.Cur = 30
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	c, err := image.OpenChain(top, image.ChainOptions{})
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.EMFILE) || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("open with too few descriptors: got %v, want EMFILE and what to do", err)
	}
}
