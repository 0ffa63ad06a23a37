package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// moment is the state of the model after so many operations on the file.
type moment struct {
	ops     int
	model   []byte
	flushed bool // all of it is durable
}

// history is a program that ran on a memFile, moment by moment.
type history struct {
	start   []byte // the file before
	log     []op
	moments []moment
	backing block.Device
}

// crashVariants are small: every operation is a place to crash.
func crashVariants() []variant {
	const k = 1 << 10
	return []variant{
		{name: "a refcount table that has to grow", o: image.CreateOptions{Size: 3072 * k, ClusterSize: 512, RefcountBits: 64}, fill: 1977 * k},
		{name: "512 byte clusters", o: image.CreateOptions{Size: 128*k + 512, ClusterSize: 512, RefcountBits: 64}},
		{name: "4 KiB clusters over a shorter disk", o: image.CreateOptions{Size: 512 * k, ClusterSize: 4 * k}, backing: 300*k + 512},
		{name: "1 bit refcounts and zstd", o: image.CreateOptions{Size: 512 * k, ClusterSize: 4 * k, RefcountBits: 1, Compression: image.Zstd}},
		{name: "version 2", o: image.CreateOptions{Size: 256*k + 512, ClusterSize: 1 * k, Version: 2}, backing: 100 * k},
		{name: "subclusters", o: image.CreateOptions{Size: 512*k + 512, ClusterSize: 16 * k, ExtendedL2: true}, backing: 300 * k},
		{name: "internal snapshots", o: image.CreateOptions{ClusterSize: 4 * k}},
	}
}

// placeFor returns a path for files of the variant where QEMU finds what backs
// them.
func placeFor(t testing.TB, v variant) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "below.raw"), make([]byte, v.backing), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "left.qcow2")
}

// begin makes the file of a variant in memory and opens it.
func begin(t testing.TB, rng *rand.Rand, v variant) (*disk, *memFile) {
	t.Helper()
	f := &memFile{}
	d := &disk{t: t, rng: rng, cs: v.o.ClusterSize}
	if v.o.Size == 0 {
		path := bigImage(t)
		d.model = content(t, path)
		var err error
		if f.data, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	} else {
		d.model = make([]byte, v.o.Size)
		o := v.o
		if v.backing > 0 {
			below := make(memDevice, v.backing)
			scribble(rng, below)
			copy(d.model, below)
			d.backing = below
			o.BackingFile = "below.raw"
		}
		if err := image.FormatOn(f, o); err != nil {
			t.Fatal(err)
		}
	}
	d.reopen(f)
	d.fill(v.fill)
	d.must(d.w.Close())
	f.log = nil
	d.reopen(f)
	return d, f
}

// reopen opens the file in memory.
func (d *disk) reopen(f *memFile) {
	d.t.Helper()
	w, err := image.NewWriterOn(f, image.WriterOptions{Backing: d.backing, CacheBytes: 1})
	if err != nil {
		d.t.Fatal(err)
	}
	d.w = w
}

// record runs a random program and notes its history.
func record(t testing.TB, rng *rand.Rand, v variant, steps int) history {
	t.Helper()
	d, f := begin(t, rng, v)
	h := history{start: bytes.Clone(f.data), backing: d.backing}
	note := func(flushed bool) {
		h.moments = append(h.moments, moment{len(f.log), bytes.Clone(d.model), flushed})
	}
	note(true)
	ctx := context.Background()
	for range steps {
		switch d.rng.IntN(8) {
		case 0:
			d.must(d.w.Flush(ctx))
			note(true)
		case 1:
			if d.rng.IntN(4) == 0 && d.v2 == false {
				grow := int64(1+d.rng.IntN(100)) << 9
				d.must(d.w.Resize(ctx, int64(len(d.model))+grow))
				d.model = append(d.model, make([]byte, grow)...)
				note(true)
			}
		default:
			d.stepInMemory()
			note(false)
		}
	}
	d.must(d.w.Close())
	note(true)
	h.log = f.log
	return h
}

// stepInMemory is step without what needs a file with a name.
func (d *disk) stepInMemory() {
	d.path = ""
	d.step()
}

// after returns the moments that a crash after n operations may leave sectors of:
// that of the last flush that had ended, and those since.
func (h *history) after(n int) []moment {
	first, last := 0, 0
	for i, m := range h.moments {
		if m.flushed && m.ops <= n {
			first = i
		}
		last = i
		if m.ops > n {
			break
		}
	}
	return h.moments[first : last+1]
}

// survives checks what a crash after n operations left.
func (h *history) survives(t testing.TB, left []byte, n int, what string) {
	t.Helper()
	ctx := context.Background()
	f := &memFile{data: left}
	r, err := image.CheckOn(ctx, f, 1<<20)
	if err != nil || r.Corruptions > 0 {
		t.Fatalf("%s after %d operations: check: %v, %+v", what, n, err, r)
	}
	w, err := image.NewWriterOn(f, image.WriterOptions{Backing: h.backing})
	if err != nil {
		t.Fatalf("%s after %d operations: open: %v", what, n, err)
	}
	got := make([]byte, w.Size())
	if err := w.ReadAt(ctx, got, 0); err != nil {
		t.Fatalf("%s after %d operations: read: %v", what, n, err)
	}
	candidates := h.after(n)
	if len(got) < len(candidates[0].model) {
		t.Fatalf("%s after %d operations: size: got %d, want %d", what, n, len(got), len(candidates[0].model))
	}
sectors:
	for off := 0; off < len(got); off += 512 {
		s := got[off : off+512]
		for _, m := range candidates {
			if off < len(m.model) && bytes.Equal(s, m.model[off:off+512]) || off >= len(m.model) && bytes.Equal(s, make([]byte, 512)) {
				continue sectors
			}
		}
		t.Fatalf("%s after %d operations: sector at %#x holds neither what was flushed nor anything written since", what, n, off)
	}
}

// crashes calls fn for a crash at each operation: a kill, and power failures.
func (h *history) crashes(rng *rand.Rand, fn func(left []byte, n int, what string)) {
	durable, synced := h.start, 0
	killed := bytes.Clone(h.start)
	for n, o := range h.log {
		left := bytes.Clone(killed)
		for _, p := range o.prefix(rng) {
			left = p.apply(left)
		}
		fn(left, n, "kill")
		for range 2 {
			left := bytes.Clone(durable)
			for _, o := range h.log[synced : n+1] {
				for _, p := range o.tear(rng) {
					left = p.apply(left)
				}
			}
			fn(left, n, "power failure")
		}
		killed = o.apply(killed)
		if o.sync {
			durable, synced = bytes.Clone(killed), n+1
		}
	}
}

func TestNothingFlushedIsLostInACrash(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	for _, v := range crashVariants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			path := placeFor(t, v)
			for seed := range seeds(t, 3) {
				rng := newRand(seed)
				if v.fill > 0 && seed > 0 {
					break // it is large
				}
				h := record(t, rng, v, 80)
				count := 0
				h.crashes(rng, func(left []byte, n int, what string) {
					h.survives(t, bytes.Clone(left), n, what)
					if count++; count%150 != 0 {
						return
					}
					if err := os.WriteFile(path, left, 0o600); err != nil {
						t.Fatal(err)
					}
					if v, out := qemuVerdict(t, path); v != 0 && v != 3 {
						t.Fatalf("%s after %d operations: qemu-img check: %s", what, n, out)
					}
				})
				if count == 0 {
					t.Fatal("nothing was written")
				}
			}
		})
	}
}

func TestTheWriterGoesOnAfterAFullDisk(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	for _, v := range crashVariants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			path := placeFor(t, v)
			for k := 0; k < 200; k += 3 + int(v.fill>>16) {
				d, f := begin(t, newRand(uint64(k)), v)
				f.n, f.fault = 0, func(n int, o op) error {
					if !o.sync && (n == k || n == k+1) {
						return syscall.ENOSPC
					}
					return nil
				}
				for range 60 {
					d.stepOrFull()
				}
				for range 3 { // the full disk may strike here
					if err := d.w.Flush(context.Background()); err == nil {
						break
					}
				}
				f.fault = nil
				d.must(d.w.Close())
				r, err := image.CheckOn(context.Background(), f, 1<<20)
				if err != nil || !r.Clean() && v.o.Size != 0 || r.Corruptions > 0 {
					t.Fatalf("full at operation %d: check: %v %+v", k, err, r)
				}
				d.reopen(f)
				got := make([]byte, len(d.model))
				d.must(d.w.ReadAt(context.Background(), got, 0))
				sameBytes(t, fmt.Sprintf("content after a full disk at operation %d", k), got, d.model)
				if k%60 != 0 {
					continue
				}
				if err := os.WriteFile(path, f.data, 0o600); err != nil {
					t.Fatal(err)
				}
				if v, out := qemuVerdict(t, path); v != 0 && v != 3 {
					t.Fatalf("full at operation %d: qemu-img check: %s", k, out)
				}
			}
		})
	}
}

// stepOrFull does one thing at random. If that fails because the disk is full,
// each sector may hold the old or the new.
func (d *disk) stepOrFull() {
	d.t.Helper()
	ctx := context.Background()
	off, n := d.pick()
	off &^= 511
	n = min((n+511)&^511, int64(len(d.model))-off)
	next := make([]byte, n)
	var err error
	switch d.rng.IntN(6) {
	default:
		scribble(d.rng, next)
		err = d.w.WriteAt(ctx, next, off)
	case 3:
		err = d.w.WriteZeroes(ctx, off, n, block.ZeroFlags(d.rng.IntN(2)))
	case 4:
		off &^= d.cs - 1
		n = min(d.cs, int64(len(d.model))-off)
		next = make([]byte, n)
		scribble(d.rng, next)
		_, err = d.w.WriteCompressed(ctx, next, off)
	case 5:
		if err := d.w.Flush(ctx); err != nil && !errors.Is(err, syscall.ENOSPC) {
			d.t.Fatal(err)
		}
		return
	}
	switch {
	case err == nil:
		copy(d.model[off:], next)
	case errors.Is(err, syscall.ENOSPC):
		got := make([]byte, n)
		d.must(d.w.ReadAt(ctx, got, off))
		for s := int64(0); s < n; s += 512 {
			if !bytes.Equal(got[s:s+512], next[s:s+512]) && !bytes.Equal(got[s:s+512], d.model[off+s:off+s+512]) {
				d.t.Fatalf("sector at %#x holds neither the old nor the new after a full disk", off+s)
			}
		}
		copy(d.model[off:], got)
	default:
		d.t.Fatal(err)
	}
}

func TestAFailedSyncEndsTheWriter(t *testing.T) {
	d, f := begin(t, newRand(1), crashVariants()[0])
	ctx := context.Background()
	d.must(d.w.WriteAt(ctx, d.model[:4096], 0))
	f.fault = func(_ int, o op) error {
		if o.sync {
			return syscall.EIO
		}
		return nil
	}
	if err := d.w.Flush(ctx); !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: got %v, want EIO", err)
	}
	f.fault = nil
	if err := d.w.Flush(ctx); !errors.Is(err, syscall.EIO) {
		t.Errorf("second flush: got %v, want EIO again", err)
	}
	if err := d.w.WriteAt(ctx, d.model[:1], 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: got %v, want EIO again", err)
	}
	if err := d.w.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: got %v, want EIO again", err)
	}
}
