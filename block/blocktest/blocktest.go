// Package blocktest holds what tests of block devices share: the conformance
// suite that every implementation of [block.Device] passes, devices in memory and
// in files, and a wrapper that injects faults.
package blocktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/sendense/sendense/block"
)

// Subject is a device under test.
type Subject struct {
	Device block.Device
	// Content is what the device reads as; nil if it reads as zeroes.
	Content []byte
	// Reopen, if not nil, closes the device after a Flush and opens it again, so
	// that the suite can see that flushed writes stay.
	Reopen func() (block.Device, error)
}

// Run checks that what open returns keeps the contract of [block.Device] and of
// each capability it has; a part about a capability that the device lacks has
// nothing to check. open is called once for each part of the suite and closes
// through t.Cleanup what it opened.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	t.Helper()
	parts := []struct {
		name string
		fn   func(*testing.T, *subject)
	}{
		{"reads give the content at any offset and length", testReads},
		{"requests outside the device are refused", testRange},
		{"map covers the device and calls no data zero", testMap},
		{"locations cover the request and hold its bytes", testLocate},
		{"writes, zeroes and trims agree with a model", testWrites},
		{"a device that is not writable refuses changes", testReadOnly},
		{"requests run concurrently", testConcurrent},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			s := open(t)
			content := s.Content
			if content == nil {
				content = make([]byte, s.Device.Size())
			}
			if got, want := s.Device.Size(), int64(len(content)); got != want {
				t.Fatalf("size: got %d, want %d", got, want)
			}
			p.fn(t, &subject{Subject: s, model: bytes.Clone(content), rnd: rand.New(rand.NewPCG(1, 2))})
		})
	}
}

type subject struct {
	Subject
	model []byte // what the device must read as
	rnd   *rand.Rand
}

// request returns a random range of up to limit bytes inside the device, with
// boundaries that are round as often as not.
func (s *subject) request(limit int64) (off, n int64) {
	size := int64(len(s.model))
	off, n = s.rnd.Int64N(size), 1+s.rnd.Int64N(min(limit, size))
	if s.rnd.IntN(2) == 0 {
		off, n = off&^4095, (n+4095)&^4095
	}
	return off, min(n, size-off)
}

func (s *subject) compare(t *testing.T, off, n int64) {
	t.Helper()
	got := bytes.Repeat([]byte{0xa5}, int(n))
	if err := s.Device.ReadAt(context.Background(), got, off); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	if want := s.model[off : off+n]; !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("read %d bytes at %d: byte %d: got %#x, want %#x", n, off, off+int64(i), got[i], want[i])
	}
}

func (s *subject) compareAll(t *testing.T) {
	t.Helper()
	for off, size := int64(0), int64(len(s.model)); off < size; off += 1 << 20 {
		s.compare(t, off, min(1<<20, size-off))
	}
}

func testReads(t *testing.T, s *subject) {
	s.compareAll(t)
	for range 200 {
		off, n := s.request(300 << 10)
		s.compare(t, off, n)
	}
	if err := s.Device.ReadAt(context.Background(), nil, int64(len(s.model))); err != nil {
		t.Errorf("read of nothing at the end: %v", err)
	}
}

func testRange(t *testing.T, s *subject) {
	ctx, size := context.Background(), int64(len(s.model))
	for _, r := range []struct{ off, n int64 }{
		{-1, 1}, {size, 1}, {size - 1, 2}, {size + 1, 0}, {math.MaxInt64, 1}, {math.MaxInt64 - 1, 4096}, {math.MinInt64, 16},
	} {
		if err := s.Device.ReadAt(ctx, make([]byte, r.n), r.off); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("read %d at %d: got %v, want ErrOutOfRange", r.n, r.off, err)
		}
		if _, err := block.Map(ctx, s.Device, r.off, r.n); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("map %d at %d: got %v, want ErrOutOfRange", r.n, r.off, err)
		}
		if _, err := block.Locate(ctx, s.Device, nil, r.off, r.n); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("locate %d at %d: got %v, want ErrOutOfRange", r.n, r.off, err)
		}
		if !block.Writable(s.Device) {
			continue
		}
		if err := block.Write(ctx, s.Device, make([]byte, r.n), r.off); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("write %d at %d: got %v, want ErrOutOfRange", r.n, r.off, err)
		}
		if err := block.WriteZeroes(ctx, s.Device, r.off, r.n, 0); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("zero %d at %d: got %v, want ErrOutOfRange", r.n, r.off, err)
		}
		if err := block.Trim(ctx, s.Device, r.off, r.n); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("trim %d at %d: got %v, want ErrOutOfRange", r.n, r.off, err)
		}
	}
	s.compareAll(t)
}

func testMap(t *testing.T, s *subject) {
	size := int64(len(s.model))
	check := func(off, n int64) {
		next := off
		err := block.MapAll(context.Background(), s.Device, off, n, func(e block.Extent) error {
			if e.Off != next {
				t.Fatalf("map %d at %d: extent at %d, want %d", n, off, e.Off, next)
			}
			next = e.End()
			if e.Kind != block.Data && !isZero(s.model[e.Off:e.End()]) {
				t.Fatalf("map %d at %d: extent %d+%d is called %v and holds data", n, off, e.Off, e.Len, e.Kind)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("map %d at %d: %v", n, off, err)
		}
		if next != off+n {
			t.Fatalf("map %d at %d: covered up to %d", n, off, next)
		}
	}
	check(0, size)
	for range 100 {
		check(s.request(size))
	}
}

func testLocate(t *testing.T, s *subject) {
	ctx := context.Background()
	for range 200 {
		off, n := s.request(1 << 20)
		locs, err := block.Locate(ctx, s.Device, nil, off, n)
		if err != nil {
			t.Fatalf("locate %d at %d: %v", n, off, err)
		}
		next := off
		for _, l := range locs {
			if l.Len <= 0 || l.Len > off+n-next {
				t.Fatalf("locate %d at %d: location of %d bytes at %d", n, off, l.Len, next)
			}
			want := s.model[next : next+l.Len]
			switch l.Kind {
			case block.InNothing:
				if !isZero(want) {
					t.Fatalf("locate %d at %d: data at %d said to be nowhere", n, off, next)
				}
			case block.InFile:
				got, err := io.ReadAll(io.NewSectionReader(l.File, l.Off, l.Len))
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("locate %d at %d: %s+%d does not hold the bytes at %d (%v)", n, off, l.File.Name(), l.Off, next, err)
				}
			}
			next += l.Len
		}
		if next != off+n {
			t.Fatalf("locate %d at %d: covered up to %d", n, off, next)
		}
	}
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
