package block_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
)

const testSize = 1<<20 + 4096 + 17

// bare has the core of a device and no capability.
type bare struct{ inner block.Device }

func (b bare) Size() int64 { return b.inner.Size() }
func (b bare) ReadAt(ctx context.Context, p []byte, off int64) error {
	return b.inner.ReadAt(ctx, p, off)
}

// writeOnly adds writing to bare, so that zeroes have to be written out.
type writeOnly struct{ bare }

func (w writeOnly) WriteAt(ctx context.Context, p []byte, off int64) error {
	return block.Write(ctx, w.inner, p, off)
}

func TestConformance(t *testing.T) {
	for name, wrap := range map[string]func(block.Device) block.Device{
		"memory":                func(d block.Device) block.Device { return d },
		"core only":             func(d block.Device) block.Device { return bare{d} },
		"writer without zeroer": func(d block.Device) block.Device { return writeOnly{bare{d}} },
		"wrapped":               func(d block.Device) block.Device { return block.Wrapped{Inner: d} },
		"wrapped core only":     func(d block.Device) block.Device { return block.Wrapped{Inner: bare{d}} },
		"read-only":             block.ReadOnly,
		"counted":               func(d block.Device) block.Device { return block.Counted(d, new(block.Counts)) },
		"throttled": func(d block.Device) block.Device {
			return block.Throttle(d, block.NewLimit(1<<40, nil))
		},
		"faulty without faults": func(d block.Device) block.Device { return blocktest.NewFaulty(d, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, func(*testing.T) blocktest.Subject {
				return blocktest.Subject{Device: wrap(blocktest.NewMemory(testSize))}
			})
		})
	}
}

func TestCheckRange(t *testing.T) {
	for _, c := range []struct {
		name         string
		size, off, n int64
		ok           bool
	}{
		{"all of it", 10, 0, 10, true},
		{"nothing at the end", 10, 10, 0, true},
		{"one byte behind the end", 10, 10, 1, false},
		{"a sum that overflows", math.MaxInt64, math.MaxInt64, 1, false},
		{"a negative offset", 10, -1, 1, false},
		{"a negative length", 10, 5, -1, false},
	} {
		if err := block.CheckRange(c.size, c.off, c.n); (err == nil) != c.ok {
			t.Errorf("%s: got %v, want ok %v", c.name, err, c.ok)
		}
	}
}

func TestDefaultsAreSafe(t *testing.T) {
	ctx, d := context.Background(), bare{blocktest.NewMemory(testSize)}
	if exts, err := block.Map(ctx, d, 100, 200); err != nil || len(exts) != 1 || exts[0] != (block.Extent{Off: 100, Len: 200}) {
		t.Errorf("map: got %v, %v, want one extent of data", exts, err)
	}
	if r, err := block.Changed(ctx, d, "x", 100, 200); err != nil || len(r) != 1 || r[0] != (block.Range{Off: 100, Len: 200}) {
		t.Errorf("changed: got %v, %v, want all", r, err)
	}
	if err := block.WriteZeroes(ctx, writeOnly{d}, 0, 4096, block.FastOnly); !errors.Is(err, block.ErrNotFast) {
		t.Errorf("fast zeroes on a plain writer: got %v, want ErrNotFast", err)
	}
}

// fileBacked says that its bytes lie in a file, to see which wrappers let that
// through.
type fileBacked struct {
	bare
	f *os.File
}

func (d fileBacked) Locate(_ context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	return append(dst, block.Location{Len: n, Kind: block.InFile, File: d.f, Off: off}), nil
}

func TestLocateThroughWrappers(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, d := context.Background(), fileBacked{bare{blocktest.NewMemory(8192)}, f}
	var counts block.Counts
	if l, _ := block.Locate(ctx, block.Counted(d, &counts), nil, 0, 8192); len(l) != 1 || l[0].Kind != block.InFile {
		t.Errorf("counted: got %v, want the file", l)
	}
	if got := counts.ReadBytes.Load(); got != 8192 {
		t.Errorf("counted bytes: got %d, want 8192", got)
	}
	if l, _ := block.Locate(ctx, block.Throttle(d, block.NewLimit(1, nil)), nil, 0, 8192); len(l) != 1 || l[0].Kind != block.Opaque {
		t.Errorf("throttled: got %v, want opaque, or the limit is passed by", l)
	}
}

func TestMapAllRefusesABrokenMap(t *testing.T) {
	d := brokenMap{bare{blocktest.NewMemory(8192)}}
	err := block.MapAll(context.Background(), d, 0, 8192, func(block.Extent) error { return nil })
	if err == nil {
		t.Error("a map that makes no progress was accepted")
	}
}

type brokenMap struct{ bare }

func (brokenMap) Map(context.Context, int64, int64) ([]block.Extent, error) { return nil, nil }

func TestLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	l := block.NewLimit(1000, func() time.Time { return now })
	ctx, cancel := context.WithCancel(context.Background())
	if err := l.Wait(ctx, 50); err != nil {
		t.Errorf("within the burst: got %v, want nil", err)
	}
	cancel()
	if err := l.Wait(ctx, 1<<40); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v, want context.Canceled", err)
	}
	if err := l.Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("behind a long queue: got %v, want to wait and be cancelled", err)
	}
}

func TestFaultsReachTheCaller(t *testing.T) {
	ctx, boom := context.Background(), errors.New("boom")
	d := blocktest.NewFaulty(blocktest.NewMemory(4096), func(_ context.Context, op string, _, _ int64) error {
		if op == "read" || op == "flush" {
			return boom
		}
		return nil
	})
	var counts block.Counts
	c := block.Counted(d, &counts)
	if err := c.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, boom) {
		t.Errorf("read: got %v, want boom", err)
	}
	if err := block.Flush(ctx, c); !errors.Is(err, boom) {
		t.Errorf("flush: got %v, want boom", err)
	}
	if err := block.Write(ctx, c, make([]byte, 512), 0); err != nil {
		t.Errorf("write: %v", err)
	}
	if r, w := counts.ReadBytes.Load(), counts.WrittenBytes.Load(); r != 0 || w != 512 {
		t.Errorf("counts: got %d read and %d written, want 0 and 512", r, w)
	}
}
