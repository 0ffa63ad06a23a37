package capturetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/capture"
)

// Machine is a virtual machine at the source under test, and the levers by which
// the suite moves it. Levers that a source has no use for are nil, and so is
// what they are for left out. The machine must not change by itself.
type Machine struct {
	// Source returns the source as it is now.
	Source func() capture.Source
	// Name is what the machine resolves by.
	Name string
	// Content returns what each disk holds now, by key. At least one has 4 MiB or
	// more, and is small enough for memory.
	Content func(t testing.TB) map[string][]byte
	// Write changes a disk as the guest would. Off and length are multiples of
	// 512.
	Write func(t testing.TB, key string, p []byte, off int64)
	// Resize changes a disk's size, by a multiple of 64 KiB.
	Resize func(t testing.TB, key string, size int64)
	// NoShrink says that Resize cannot make a disk smaller.
	NoShrink bool
	// Add gives the machine another disk of zeroes, and Remove takes it away.
	Add    func(t testing.TB, key string, size int64)
	Remove func(t testing.TB, key string)
	// LoseTokens makes the source forget its change tokens; nil says that it has
	// none and tracks nothing.
	LoseTokens func(t testing.TB)
	// Disturb stops, restarts or else changes the machine so that an instant held
	// is none any more.
	Disturb func(t testing.TB)
	// Restore undoes Disturb, where a machine has to be started again.
	Restore func(t testing.TB)
	// Clean returns what an interrupted capture left behind at the source.
	Clean func(t testing.TB) error
	// Frozen says that an instant does not see later writes.
	Frozen bool
}

// Run checks that a source keeps the contract of [capture.Source]. start is
// called for each part and returns a machine nobody has captured yet; it cleans
// up through t.Cleanup.
func Run(t *testing.T, start func(t *testing.T) Machine) {
	t.Helper()
	for _, p := range []struct {
		name string
		fn   func(*testing.T, *suite)
	}{
		{"resolves a machine by name and by UUID, and no other", testResolve},
		{"instants read as the disks do", testDevices},
		{"a full holds every byte of every disk", testFull},
		{"an incremental holds what changed and no more", testIncremental},
		{"an instant does not see later writes", testFrozen},
		{"a lost token leads to a comparison that says why", testLostToken},
		{"disks come and go", testDisks},
		{"disks change their size", testResize},
		{"an instant closed without commit leaves the older token good", testUncommitted},
		{"a machine that changed makes the capture fail", testDisturb},
		{"a cancelled capture leaves the source clean", testCancel},
	} {
		t.Run(p.name, func(t *testing.T) {
			m := start(t)
			p.fn(t, &suite{Machine: m, target: NewTarget(t), rnd: rand.New(rand.NewPCG(3, 4))})
		})
	}
}

type suite struct {
	Machine
	target *Target
	rnd    *rand.Rand
}

func (s *suite) tracks() bool { return s.LoseTokens != nil }

// largest returns the key of the largest disk and its size.
func (s *suite) largest(t *testing.T) (key string, size int64) {
	t.Helper()
	for k, b := range s.Content(t) {
		if n := int64(len(b)); n > size || n == size && k < key {
			key, size = k, n
		}
	}
	if size < 4<<20 {
		t.Fatalf("largest disk has %d bytes, the suite needs 4 MiB", size)
	}
	return key, size
}

func (s *suite) random(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.NativeEndian.AppendUint64(b, s.rnd.Uint64())
	}
	return b[:n]
}

// fill writes some data, so that there is something to capture.
func (s *suite) fill(t *testing.T) (key string, size int64) {
	t.Helper()
	key, size = s.largest(t)
	s.Write(t, key, s.random(300<<10), 64<<10)
	s.Write(t, key, s.random(64<<10), size/2&^0xffff)
	s.Write(t, key, s.random(512), size-512)
	return key, size
}

func (s *suite) run(ctx context.Context, o capture.Options) (capture.Summary, error) {
	o.VM, o.Source = s.Name, "test"
	return capture.Run(ctx, s.Source(), s.target, o)
}

// capture makes a point and checks that it holds what the machine does.
func (s *suite) capture(t *testing.T) capture.Summary {
	t.Helper()
	want := s.Content(t)
	sum, err := s.run(context.Background(), capture.Options{})
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	s.check(t, want)
	for _, d := range sum.Disks {
		if d.Audit != nil && d.Audit.Missed > 0 {
			t.Errorf("disk %s: the tracker missed %d of %d clusters", d.Key, d.Audit.Missed, d.Audit.Sampled)
		}
		if d.Mode == capture.ModeCompare && d.Reason == "" {
			t.Errorf("disk %s: compared for no reason", d.Key)
		}
	}
	return sum
}

// check compares the newest point with what the disks held.
func (s *suite) check(t *testing.T, want map[string][]byte) {
	t.Helper()
	p := s.target.Latest()
	if len(p.Disks) != len(want) {
		t.Errorf("disks: got %d, want %d", len(p.Disks), len(want))
	}
	for key, content := range want {
		d := p.Disks[key]
		if d == nil {
			t.Errorf("disk %s: not in the point", key)
			continue
		}
		if got := d.Content(); !bytes.Equal(got, content) {
			i := 0
			for i < min(len(got), len(content)) && got[i] == content[i] {
				i++
			}
			t.Errorf("disk %s: point and disk differ at byte %d (%d and %d bytes)", key, i, len(got), len(content))
		}
	}
}

// mode checks how a disk was captured: as a source that tracks does, or one
// that does not.
func (s *suite) mode(t *testing.T, sum capture.Summary, key string) capture.DiskResult {
	t.Helper()
	want := capture.ModeCompare
	if s.tracks() {
		want = capture.ModeTracked
	}
	d := result(t, sum, key)
	if d.Mode != want {
		t.Errorf("disk %s: mode: got %s (%s), want %s", key, d.Mode, d.Reason, want)
	}
	return d
}

func result(t *testing.T, sum capture.Summary, key string) capture.DiskResult {
	t.Helper()
	i := slices.IndexFunc(sum.Disks, func(d capture.DiskResult) bool { return d.Key == key })
	if i < 0 {
		t.Fatalf("summary has no disk %s", key)
	}
	return sum.Disks[i]
}

func testResolve(t *testing.T, s *suite) {
	ctx := context.Background()
	vm, err := s.Source().Resolve(ctx, s.Name)
	if err != nil {
		t.Fatal(err)
	}
	var a, b, c, d, e uint64
	if n, err := fmt.Sscanf(vm.UUID, "%08x-%04x-%04x-%04x-%012x", &a, &b, &c, &d, &e); n != 5 || err != nil || len(vm.UUID) != 36 {
		t.Errorf("UUID: got %q", vm.UUID)
	}
	if again, err := s.Source().Resolve(ctx, vm.UUID); err != nil || again != vm {
		t.Errorf("by UUID: got %v, %v, want %v", again, err, vm)
	}
	for _, name := range []string{"no-such-machine", "01234567-89ab-4cde-8f01-23456789abcd", ""} {
		if _, err := s.Source().Resolve(ctx, name); !errors.Is(err, capture.ErrNoVM) {
			t.Errorf("machine %q: got %v, want ErrNoVM", name, err)
		}
	}
	if _, err := capture.Run(ctx, s.Source(), s.target, capture.Options{VM: "no-such-machine"}); !errors.Is(err, capture.ErrNoVM) {
		t.Errorf("capture: got %v, want ErrNoVM", err)
	}
}

func testDevices(t *testing.T, s *suite) {
	key, _ := s.fill(t)
	want := s.Content(t)
	ctx := context.Background()
	vm, err := s.Source().Resolve(ctx, s.Name)
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Source().Begin(ctx, vm, capture.Request{Token: "20251001-120000-aaaaaa"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := in.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if c := in.Config(); c.Source == "" || c.Consistency == "" {
		t.Errorf("config: got %+v, want a source and a consistency", c)
	}
	if len(in.Disks()) != len(want) {
		t.Errorf("disks: got %d, want %d", len(in.Disks()), len(want))
	}
	for _, d := range in.Disks() {
		if s.tracks() != (d.Token != "") || d.Tracked {
			t.Errorf("disk %s: token %q, tracked %v", d.Key, d.Token, d.Tracked)
		}
		if d.Key != key {
			continue
		}
		blocktest.Run(t, func(*testing.T) blocktest.Subject {
			return blocktest.Subject{Device: block.ReadOnly(d.Device), Content: want[d.Key]}
		})
	}
	if err := in.Err(); err != nil {
		t.Errorf("instant: %v", err)
	}
}

func testFull(t *testing.T, s *suite) {
	s.fill(t)
	for _, d := range s.capture(t).Disks {
		if d.Mode != capture.ModeFull || d.Reason != "" {
			t.Errorf("disk %s: mode: got %s (%s), want full", d.Key, d.Mode, d.Reason)
		}
	}
	if s.Clean != nil {
		if err := s.Clean(t); err != nil {
			t.Errorf("source is not clean: %v", err)
		}
	}
}

func testIncremental(t *testing.T, s *suite) {
	key, size := s.fill(t)
	s.capture(t)
	grain := s.target.ClusterSize
	for _, step := range []struct {
		name     string
		write    func()
		clusters int // that a perfect point would hold
	}{
		{"nothing", func() {}, 0},
		{"a sector and a cluster", func() {
			s.Write(t, key, s.random(512), 1<<20)
			s.Write(t, key, s.random(int(grain)), 2<<20)
		}, 2},
		{"data to zeroes", func() { s.Write(t, key, make([]byte, 128<<10), 128<<10) }, 2},
		{"the end", func() { s.Write(t, key, s.random(1024), size-1024) }, 1},
	} {
		step.write()
		d := s.mode(t, s.capture(t), key)
		// A tracker may name a little more than what changed.
		if limit := 2*int64(step.clusters)*grain + 2*grain; d.Sent > limit {
			t.Errorf("%s: sent %d bytes, want at most %d", step.name, d.Sent, limit)
		}
		if got := s.target.Latest().Compact()[key]; got != step.clusters {
			t.Errorf("%s: clusters that differ from the parent: got %d, want %d", step.name, got, step.clusters)
		}
	}
}

func testFrozen(t *testing.T, s *suite) {
	if !s.Frozen {
		return
	}
	key, _ := s.fill(t)
	want := s.Content(t)
	var once atomic.Bool
	s.target.Fault = func(op string) error {
		if op == "add" && !once.Swap(true) {
			s.Write(t, key, s.random(128<<10), 64<<10)
			s.Write(t, key, s.random(128<<10), 2<<20)
		}
		return nil
	}
	if _, err := s.run(context.Background(), capture.Options{}); err != nil {
		t.Fatal(err)
	}
	s.check(t, want)
	s.mode(t, s.capture(t), key) // which has what was written meanwhile
}

func testLostToken(t *testing.T, s *suite) {
	if !s.tracks() {
		return
	}
	key, _ := s.fill(t)
	s.capture(t)
	s.Write(t, key, s.random(4096), 1<<20)
	s.LoseTokens(t)
	d := result(t, s.capture(t), key)
	if d.Mode != capture.ModeCompare || d.Sent > 2*s.target.ClusterSize {
		t.Errorf("after the loss: got mode %s, %d bytes sent, want compare and a cluster", d.Mode, d.Sent)
	}
	s.Write(t, key, s.random(4096), 1<<20)
	s.mode(t, s.capture(t), key)
}

func testDisks(t *testing.T, s *suite) {
	if s.Add == nil {
		return
	}
	key, _ := s.fill(t)
	s.capture(t)
	s.Add(t, "vdz", 4<<20)
	s.Write(t, "vdz", s.random(100<<10), 1<<20)
	sum := s.capture(t)
	s.mode(t, sum, key)
	if d := result(t, sum, "vdz"); d.Mode != capture.ModeFull {
		t.Errorf("new disk: mode: got %s, want full", d.Mode)
	}
	s.Write(t, "vdz", s.random(512), 3<<20)
	s.mode(t, s.capture(t), "vdz")
	s.Remove(t, "vdz")
	s.mode(t, s.capture(t), key)
}

func testResize(t *testing.T, s *suite) {
	if s.Resize == nil {
		return
	}
	key, size := s.fill(t)
	s.capture(t)
	for _, step := range []int64{size + 1<<20 + 64<<10, size + 5<<20, size - 1<<20} {
		if step < size && s.NoShrink {
			continue
		}
		s.Resize(t, key, step)
		s.Write(t, key, s.random(4096), step-4096)
		s.Write(t, key, s.random(4096), 1<<20)
		d := result(t, s.capture(t), key)
		if d.Size != step || d.Mode == capture.ModeFull || step < size && d.Mode != capture.ModeCompare {
			t.Errorf("resized to %d: got %d bytes, mode %s", step, d.Size, d.Mode)
		}
		s.mode(t, s.capture(t), key)
	}
}

func testUncommitted(t *testing.T, s *suite) {
	key, _ := s.fill(t)
	s.capture(t)
	s.Write(t, key, s.random(4096), 1<<20)
	broken := errors.New("disk is full")
	s.target.Fault = func(op string) error {
		if op == "flush" {
			return broken
		}
		return nil
	}
	if _, err := s.run(context.Background(), capture.Options{}); !errors.Is(err, broken) {
		t.Fatalf("capture: got %v, want %v", err, broken)
	}
	if a := s.target.Aborts(); len(a) != 1 || !errors.Is(a[0], broken) {
		t.Errorf("aborts: got %v, want one with %v", a, broken)
	}
	s.target.Fault = nil
	s.Write(t, key, s.random(4096), 2<<20)
	s.mode(t, s.capture(t), key)
	if got := s.target.Latest().Compact()[key]; got != 2 {
		t.Errorf("clusters that changed since the last good point: got %d, want 2", got)
	}
}

func testDisturb(t *testing.T, s *suite) {
	if s.Disturb == nil {
		return
	}
	s.fill(t)
	s.capture(t)
	ctx := context.Background()
	vm, err := s.Source().Resolve(ctx, s.Name)
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Source().Begin(ctx, vm, capture.Request{Token: "20251001-120001-aaaaaa"})
	if err != nil {
		t.Fatal(err)
	}
	s.Disturb(t)
	for wait := 0; in.Err() == nil && wait < 1000; wait++ {
		time.Sleep(10 * time.Millisecond)
	}
	if err := in.Err(); !errors.Is(err, capture.ErrVMChanged) {
		t.Errorf("instant: got %v, want ErrVMChanged", err)
	}
	if err := in.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if s.Restore != nil {
		s.Restore(t)
	}
	s.capture(t)
}

func testCancel(t *testing.T, s *suite) {
	key, _ := s.fill(t)
	s.capture(t)
	s.Write(t, key, s.random(1<<20), 1<<20)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.target.Fault = func(op string) error {
		if op == "write" {
			cancel()
		}
		return nil
	}
	if _, err := s.run(ctx, capture.Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("capture: got %v, want Canceled", err)
	}
	if a := s.target.Aborts(); len(a) != 1 {
		t.Errorf("aborts: got %v, want one", a)
	}
	if s.Clean != nil {
		if err := s.Clean(t); err != nil {
			t.Errorf("source is not clean: %v", err)
		}
	}
	s.target.Fault = nil
	s.mode(t, s.capture(t), key)
}
