package blocktest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/sendense/sendense/block"
)

// testWrites runs a random program of changes against the device and a model,
// comparing after each step and, where the device can be reopened, after that.
func testWrites(t *testing.T, s *subject) {
	if !block.Writable(s.Device) {
		return
	}
	ctx := context.Background()
	for step := range 300 {
		off, n := s.request(200 << 10)
		s.change(t, ctx, off, n)
		s.compare(t, max(0, off-512), min(n+1024, int64(len(s.model))-max(0, off-512)))
		if s.Reopen != nil && step%60 == 59 {
			if err := block.Flush(ctx, s.Device); err != nil {
				t.Fatalf("flush: %v", err)
			}
			d, err := s.Reopen()
			if err != nil {
				t.Fatalf("reopen: %v", err)
			}
			s.Device = d
			s.compareAll(t)
		}
	}
	s.compareAll(t)
	testMap(t, s)
	testLocate(t, s)
}

// change applies one random change to [off, off+n) of device and model.
func (s *subject) change(t *testing.T, ctx context.Context, off, n int64) {
	t.Helper()
	switch op := s.rnd.IntN(10); {
	case op < 5:
		p := s.bytes(n)
		if err := block.Write(ctx, s.Device, p, off); err != nil {
			t.Fatalf("write %d at %d: %v", n, off, err)
		}
		copy(s.model[off:], p)
	case op < 8:
		flags := block.ZeroFlags(s.rnd.IntN(4))
		err := block.WriteZeroes(ctx, s.Device, off, n, flags)
		if errors.Is(err, block.ErrNotFast) && flags&block.FastOnly != 0 {
			return
		}
		if err != nil {
			t.Fatalf("zero %d at %d (flags %d): %v", n, off, flags, err)
		}
		clear(s.model[off : off+n])
	case op < 9:
		s.trim(t, ctx, off, n)
	default:
		if err := block.Flush(ctx, s.Device); err != nil {
			t.Fatalf("flush: %v", err)
		}
	}
}

// trim trims a range, whose bytes must then be what they were or zeroes.
func (s *subject) trim(t *testing.T, ctx context.Context, off, n int64) {
	t.Helper()
	if err := block.Trim(ctx, s.Device, off, n); err != nil {
		t.Fatalf("trim %d at %d: %v", n, off, err)
	}
	got := make([]byte, n)
	if err := s.Device.ReadAt(ctx, got, off); err != nil {
		t.Fatalf("read %d at %d after trim: %v", n, off, err)
	}
	for i, b := range got {
		if b != 0 && b != s.model[off+int64(i)] {
			t.Fatalf("trim %d at %d: byte %d: got %#x, want %#x or 0", n, off, off+int64(i), b, s.model[off+int64(i)])
		}
	}
	copy(s.model[off:], got)
}

// bytes returns n random bytes with stretches of zeroes among them.
func (s *subject) bytes(n int64) []byte {
	p := make([]byte, n)
	fill(s.rnd, p)
	if s.rnd.IntN(3) == 0 && n > 2 {
		a := s.rnd.Int64N(n)
		clear(p[a : a+s.rnd.Int64N(n-a)])
	}
	return p
}

func fill(rnd *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
}

func testReadOnly(t *testing.T, s *subject) {
	if block.Writable(s.Device) {
		return
	}
	ctx := context.Background()
	for name, err := range map[string]error{
		"write": block.Write(ctx, s.Device, make([]byte, 1), 0),
		"zero":  block.WriteZeroes(ctx, s.Device, 0, 1, 0),
		"trim":  block.Trim(ctx, s.Device, 0, 1),
	} {
		if !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("%s: got %v, want ErrReadOnly", name, err)
		}
	}
	if err := block.Flush(ctx, s.Device); err != nil {
		t.Errorf("flush: %v", err)
	}
}

// testConcurrent has several goroutines read, and write where they can, each in
// its own stripe, so that the result is known.
func testConcurrent(t *testing.T, s *subject) {
	const workers = 4
	stripe := int64(len(s.model)) / workers
	if stripe == 0 {
		return
	}
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Go(func() { s.work(t, w, w*stripe, stripe) })
	}
	wg.Wait()
	if !t.Failed() {
		s.compareAll(t)
	}
}

// work makes random requests inside [base, base+n). It must not end the test,
// since it runs in a goroutine of its own.
func (s *subject) work(t *testing.T, seed, base, n int64) {
	ctx, rnd := context.Background(), rand.New(rand.NewPCG(uint64(seed), 7))
	buf := make([]byte, min(n, 96<<10))
	for range 60 {
		l := 1 + rnd.Int64N(int64(len(buf)))
		off := base + rnd.Int64N(n-l+1)
		var err error
		switch op := rnd.IntN(4); {
		case op == 0 && block.Writable(s.Device):
			fill(rnd, buf[:l])
			if err = block.Write(ctx, s.Device, buf[:l], off); err == nil {
				copy(s.model[off:], buf[:l])
			}
		case op == 1:
			_, err = block.Map(ctx, s.Device, off, l)
		default:
			if err = s.Device.ReadAt(ctx, buf[:l], off); err == nil && string(buf[:l]) != string(s.model[off:off+l]) {
				t.Errorf("concurrent read %d at %d: content differs", l, off)
			}
		}
		if err != nil {
			t.Errorf("concurrent request %d at %d: %v", l, off, err)
			return
		}
	}
}
