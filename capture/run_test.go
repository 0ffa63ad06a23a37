package capture_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
)

func machine(t *testing.T, size int64) (*capturetest.Source, *capturetest.Target) {
	s := capturetest.NewSource(t, "web1")
	s.Add("vda", size)
	return s, capturetest.NewTarget(t)
}

func data(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

func run(t *testing.T, s capture.Source, target *capturetest.Target, o capture.Options) capture.Summary {
	t.Helper()
	o.VM = "web1"
	sum, err := capture.Run(context.Background(), s, target, o)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestRandomHistoriesAreCapturedByteForByte(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 5))
		s := capturetest.NewSource(t, fmt.Sprintf("vm%d", seed))
		s.Granularity = 1 << (9 + r.IntN(9))
		target := capturetest.NewTarget(t)
		target.ClusterSize = 1 << (12 + r.IntN(7))
		size := 1 + r.Int64N(3<<20)
		s.Add("vda", size)
		for step := range 12 {
			switch r.IntN(6) {
			case 0:
				s.LoseTokens()
			case 1:
				size = 1 + r.Int64N(3<<20)
				s.Resize("vda", size)
			}
			for range r.IntN(6) {
				off := r.Int64N(size)
				b := make([]byte, 1+r.Int64N(min(size-off, 200<<10)))
				if r.IntN(3) > 0 {
					copy(b, data(len(b)))
				}
				s.Write("vda", b, off)
			}
			sum, err := capture.Run(context.Background(), s, target, capture.Options{VM: fmt.Sprintf("vm%d", seed), Full: r.IntN(8) == 0, Workers: 1 + r.IntN(5)})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(target.Latest().Disks["vda"].Content(), s.Content()["vda"]) {
				t.Fatalf("seed %d, step %d: point differs from the disk (%+v)", seed, step, sum.Disks)
			}
			if a := sum.Disks[0].Audit; a != nil && a.Missed > 0 {
				t.Fatalf("seed %d, step %d: honest tracker missed %d", seed, step, a.Missed)
			}
		}
	}
}

func TestWhatADiskGrewByIsCapturedWithoutTheTracker(t *testing.T) {
	s, target := machine(t, 1<<20+512) // ends inside a cluster
	s.Granularity = 512
	s.Write("vda", data(512), 1<<20)
	run(t, s, target, capture.Options{})
	s.Resize("vda", 4<<20)
	s.Write("vda", data(512), 1<<20+8192) // in the cluster where it ended
	s.Write("vda", data(512), 3<<20)
	d := run(t, s, target, capture.Options{AuditClusters: -1}).Disks[0] // which would heal it
	if !bytes.Equal(target.Latest().Disks["vda"].Content(), s.Content()["vda"]) {
		t.Error("point differs from the disk")
	}
	if d.Mode != capture.ModeTracked || d.Sent != 2*64<<10 {
		t.Errorf("got mode %s, %d bytes sent, want tracked and two clusters", d.Mode, d.Sent)
	}
}

func TestWhatIsSent(t *testing.T) {
	s, target := machine(t, 64<<20)
	s.Write("vda", data(1<<20), 8<<20)
	d := run(t, s, target, capture.Options{}).Disks[0]
	if d.Read != 1<<20 || d.Sent != 1<<20 {
		t.Errorf("full of a sparse disk: read %d, sent %d, want 1 MiB each", d.Read, d.Sent)
	}
	s.Write("vda", data(4096), 8<<20)
	d = run(t, s, target, capture.Options{AuditClusters: -1}).Disks[0]
	if d.Read != 64<<10 || d.Sent != 64<<10 || d.Audit != nil {
		t.Errorf("tracked: read %d, sent %d, audit %v, want a cluster each and none", d.Read, d.Sent, d.Audit)
	}
	d = run(t, s, target, capture.Options{}).Disks[0]
	if d.Read != 256*(64<<10) || d.Sent != 0 || d.Audit == nil || d.Audit.Sampled != 256 || d.Audit.Unchanged != 1024 {
		t.Errorf("audit: read %d, sent %d, %+v, want 256 of 1024 clusters read", d.Read, d.Sent, d.Audit)
	}
	s.LoseTokens()
	s.Write("vda", make([]byte, 64<<10), 8<<20)
	d = run(t, s, target, capture.Options{}).Disks[0]
	if d.Read != 1<<20-64<<10 || d.Sent != 0 || target.Latest().Compact()["vda"] != 1 {
		t.Errorf("compared: read %d, sent %d, want the rest of the data and nothing", d.Read, d.Sent)
	}
}

func TestAComparisonOfEqualDisksSendsNothing(t *testing.T) {
	s, target := machine(t, 32<<20+100)
	s.Write("vda", data(32<<20+100), 0)
	run(t, s, target, capture.Options{})
	s.LoseTokens()
	d := run(t, s, target, capture.Options{Workers: 1}).Disks[0]
	if d.Mode != capture.ModeCompare || d.Read != 32<<20+100 || d.Sent != 0 {
		t.Errorf("got %+v, want all read and nothing sent", d)
	}
}

func TestATrackerThatFailsLeadsToAComparison(t *testing.T) {
	s, target := machine(t, 4<<20)
	s.Write("vda", data(1<<20), 0)
	run(t, s, target, capture.Options{})
	s.Write("vda", data(4096), 2<<20)
	d := run(t, wrapped{s, func(d block.Device) block.Device {
		return blocktest.NewFaulty(d, func(_ context.Context, op string, _, _ int64) error {
			if op == "changed" {
				return errors.New("bitmap is inconsistent")
			}
			return nil
		})
	}}, target, capture.Options{}).Disks[0]
	if d.Mode != capture.ModeCompare || !strings.HasSuffix(d.Reason, "bitmap is inconsistent") {
		t.Errorf("got mode %s because %q", d.Mode, d.Reason)
	}
	if !bytes.Equal(target.Latest().Disks["vda"].Content(), s.Content()["vda"]) {
		t.Error("point differs from the disk")
	}
}

// wrapped is a source with something around its devices.
type wrapped struct {
	capture.Source
	wrap func(block.Device) block.Device
}

func (w wrapped) Begin(ctx context.Context, vm capture.VM, r capture.Request) (capture.Instant, error) {
	in, err := w.Source.Begin(ctx, vm, r)
	return wrappedInstant{in, w.wrap}, err
}

type wrappedInstant struct {
	capture.Instant
	wrap func(block.Device) block.Device
}

func (w wrappedInstant) Disks() []capture.Disk {
	disks := append([]capture.Disk(nil), w.Instant.Disks()...)
	for i := range disks {
		disks[i].Device = w.wrap(disks[i].Device)
	}
	return disks
}

func TestAFailureAnywhereAbortsTheDraftAndKeepsTheOldPoint(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name   string
		target string // call of the target that fails
		source string // request of the source's device that fails
		aborts int
	}{
		{"the target refuses the disk", "add", "", 1},
		{"a write fails", "write", "", 1},
		{"a zero fails", "zero", "", 1},
		{"the flush fails", "flush", "", 1},
		{"the digests cannot be compared", "differs", "", 1},
		{"the target cannot commit", "commit", "", 0},
		{"a read fails", "", "read", 1},
		{"the map fails", "", "map", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, target := machine(t, 8<<20)
			s.Write("vda", data(1<<20), 0)
			run(t, s, target, capture.Options{})
			s.Write("vda", data(4096), 4<<20)
			s.Write("vda", make([]byte, 64<<10), 0)
			target.Fault = func(op string) error {
				if op == c.target {
					return broken
				}
				return nil
			}
			src := wrapped{s, func(d block.Device) block.Device {
				return blocktest.NewFaulty(d, func(_ context.Context, op string, _, _ int64) error {
					if op == c.source {
						return broken
					}
					return nil
				})
			}}
			if _, err := capture.Run(context.Background(), src, target, capture.Options{VM: "web1"}); !errors.Is(err, broken) {
				t.Fatalf("error: got %v, want %v", err, broken)
			}
			if got := target.Aborts(); len(got) != c.aborts {
				t.Errorf("aborts: got %v, want %d", got, c.aborts)
			}
			if len(target.Points()) != 1 || s.Commits() != 1 {
				t.Errorf("points %d, commits at the source %d, want 1 each", len(target.Points()), s.Commits())
			}
			target.Fault = nil
			if d := run(t, s, target, capture.Options{}).Disks[0]; d.Mode != capture.ModeTracked {
				t.Errorf("next capture: mode %s (%s), want tracked", d.Mode, d.Reason)
			}
			if !bytes.Equal(target.Latest().Disks["vda"].Content(), s.Content()["vda"]) {
				t.Error("next point differs from the disk")
			}
		})
	}
}

func TestAMachineThatChangedFailsTheCaptureForThatReason(t *testing.T) {
	s, target := machine(t, 4<<20)
	s.Write("vda", data(1<<20), 0)
	target.Fault = func(op string) error {
		if op == "flush" {
			s.Disturb()
		}
		return nil
	}
	if _, err := capture.Run(context.Background(), s, target, capture.Options{VM: "web1"}); !errors.Is(err, capture.ErrVMChanged) {
		t.Errorf("error: got %v, want ErrVMChanged", err)
	}
	if a := target.Aborts(); len(a) != 1 || !errors.Is(a[0], capture.ErrVMChanged) {
		t.Errorf("aborts: got %v", a)
	}
}

func TestACaptureCancelledAtTheTargetEndsWithTheReason(t *testing.T) {
	s, target := machine(t, 4<<20)
	s.Write("vda", data(1<<20), 0)
	target.Fault = func(op string) error {
		if op == "report" {
			return fmt.Errorf("%w by admin", capture.ErrCancelled)
		}
		return nil
	}
	src := wrapped{s, func(d block.Device) block.Device {
		return blocktest.NewFaulty(d, func(ctx context.Context, op string, _, _ int64) error {
			if op == "read" {
				<-ctx.Done() // a read that takes for ever
				return ctx.Err()
			}
			return nil
		})
	}}
	_, err := capture.Run(context.Background(), src, target, capture.Options{VM: "web1", ReportEvery: time.Millisecond})
	if !errors.Is(err, capture.ErrCancelled) || !strings.Contains(err.Error(), "by admin") {
		t.Errorf("error: got %v, want ErrCancelled by admin", err)
	}
}

func TestReportsThatFailAreIgnored(t *testing.T) {
	s, target := machine(t, 4<<20)
	s.Write("vda", data(1<<20), 0)
	target.Fault = func(op string) error {
		if op == "report" {
			return errors.New("connection reset")
		}
		return nil
	}
	run(t, s, target, capture.Options{ReportEvery: time.Microsecond})
}

// uncommitting is a source that cannot commit its instants.
type uncommitting struct{ capture.Source }

func (u uncommitting) Begin(ctx context.Context, vm capture.VM, r capture.Request) (capture.Instant, error) {
	in, err := u.Source.Begin(ctx, vm, r)
	return uncommittingInstant{in}, err
}

type uncommittingInstant struct{ capture.Instant }

func (uncommittingInstant) Commit(context.Context) error { return errors.New("libvirtd went away") }

func TestASourceThatCannotCommitIsAWarning(t *testing.T) {
	s, target := machine(t, 4<<20)
	sum := run(t, uncommitting{s}, target, capture.Options{})
	if len(sum.Warnings) != 1 || !strings.Contains(sum.Warnings[0], "libvirtd went away") {
		t.Errorf("warnings: got %q", sum.Warnings)
	}
	if len(target.Points()) != 1 {
		t.Errorf("points: got %d, want 1", len(target.Points()))
	}
	if d := run(t, s, target, capture.Options{}).Disks[0]; d.Mode != capture.ModeCompare {
		t.Errorf("next: mode %s, want compare", d.Mode)
	}
}

func TestProgressEndsAtItsTotal(t *testing.T) {
	s, target := machine(t, 4<<20+100)
	s.Add("vdb", 1<<20)
	s.Write("vda", data(1<<20), 3<<20)
	for range 2 {
		var last capture.Progress
		var busy atomic.Bool
		run(t, s, target, capture.Options{ReportEvery: time.Millisecond, Progress: func(p capture.Progress) {
			if busy.Swap(true) {
				t.Error("called concurrently")
			}
			last = p
			busy.Store(false)
		}})
		if last.Phase != "commit" || last.Done != last.Total {
			t.Errorf("last: got %+v, want all of it done", last)
		}
		s.Write("vda", data(1), 4<<20+99)
	}
}

func TestALimitSlowsReadingDown(t *testing.T) {
	s, target := machine(t, 4<<20)
	s.Write("vda", data(2<<20), 0)
	start := time.Unix(1000, 0)
	var asked atomic.Int64
	limit := block.NewLimit(1<<30, func() time.Time { asked.Add(1); return start })
	run(t, s, target, capture.Options{Limit: limit})
	if asked.Load() != 2 { // reads of 1 MiB
		t.Errorf("limit: asked %d times, want 2", asked.Load())
	}
}
