package capture_test

import (
	"context"
	"crypto/sha256"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/capture"
)

// BenchmarkRun captures a disk in memory into nowhere: what the loop itself costs,
// with SHA-256 where it compares.
func BenchmarkRun(b *testing.B) {
	const size = 512 << 20
	disk := blocktest.NewMemory(size)
	if err := disk.WriteAt(context.Background(), data(size), 0); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		mode   string
		parent *capture.Parent
	}{
		{capture.ModeFull, nil},
		{capture.ModeCompare, &capture.Parent{Disks: []capture.ParentDisk{{Key: "vda", Size: size}}}},
	} {
		b.Run("mode="+c.mode, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				sum, err := capture.Run(context.Background(), still{disk}, nowhere{c.parent}, capture.Options{})
				if err != nil || sum.Disks[0].Mode != c.mode || sum.Disks[0].Read != size {
					b.Fatalf("got %+v, %v", sum, err)
				}
			}
		})
	}
}

// still is a source with one disk that never changes.
type still struct{ disk block.Device }

func (s still) Resolve(context.Context, string) (capture.VM, error) { return capture.VM{}, nil }

func (s still) Begin(context.Context, capture.VM, capture.Request) (capture.Instant, error) {
	return s, nil
}
func (s still) Disks() []capture.Disk        { return []capture.Disk{{Key: "vda", Device: s.disk}} }
func (s still) Config() capture.Config       { return capture.Config{} }
func (s still) Commit(context.Context) error { return nil }
func (s still) Close() error                 { return nil }
func (s still) Err() error                   { return nil }

// nowhere is a target that keeps nothing and calls every cluster equal.
type nowhere struct{ parent *capture.Parent }

func (n nowhere) Begin(context.Context, capture.Begin) (capture.Draft, error) { return n, nil }
func (n nowhere) JobID() string                                               { return "" }
func (n nowhere) PointID() string                                             { return "" }
func (n nowhere) Parent() *capture.Parent                                     { return n.parent }
func (n nowhere) Report(context.Context, capture.Progress) error              { return nil }
func (n nowhere) Commit(context.Context, capture.Result) error                { return nil }
func (n nowhere) Abort(context.Context, error) error                          { return nil }

func (n nowhere) AddDisk(_ context.Context, s capture.DiskSpec) (capture.DraftDisk, error) {
	return nowhereDisk(s.Size), nil
}

type nowhereDisk int64 // its size

func (d nowhereDisk) Device() block.Device        { return d }
func (d nowhereDisk) ClusterSize() int64          { return 64 << 10 }
func (d nowhereDisk) Sum(c []byte) capture.Digest { return sha256.Sum256(c) }
func (d nowhereDisk) Close() error                { return nil }
func (d nowhereDisk) Size() int64                 { return int64(d) }

func (d nowhereDisk) ReadAt(context.Context, []byte, int64) error  { return nil }
func (d nowhereDisk) WriteAt(context.Context, []byte, int64) error { return nil }

func (d nowhereDisk) Differs(_ context.Context, _ int64, sums []capture.Digest) ([]bool, error) {
	return make([]bool, len(sums)), nil
}
