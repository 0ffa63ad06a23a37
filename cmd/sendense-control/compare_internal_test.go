package main

import (
	"context"
	"errors"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
)

func TestCompareDevices(t *testing.T) {
	const size = 9<<20 + 100
	ctx := context.Background()
	a, b := blocktest.NewMemory(size), blocktest.NewMemory(size+1)
	compare := func() int64 {
		t.Helper()
		last := int64(0)
		at, err := compareDevices(ctx, a, b, func(done, total int64) {
			if done < last || done > total || total != size {
				t.Errorf("progress: got %d of %d after %d, want it to ascend to %d", done, total, last, size)
			}
			last = done
		})
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	if at := compare(); at != -1 {
		t.Errorf("empty disks: got a difference at %d, want none", at)
	}
	for _, off := range []int64{size - 1, 8 << 20, 3<<20 - 1, 3<<20 - 2, 0} {
		if err := block.Write(ctx, a, []byte{1}, off); err != nil {
			t.Fatal(err)
		}
		if at := compare(); at != off {
			t.Errorf("first difference: got %d, want %d", at, off)
		}
	}
}

func TestCompareTellsWhatItCannotRead(t *testing.T) {
	ctx := context.Background()
	bad := errors.New("bad sector")
	a := blocktest.NewMemory(4 << 20)
	b := blocktest.NewFaulty(a, func(_ context.Context, op string, off, _ int64) error {
		if off == 2<<20 {
			return bad
		}
		return nil
	})
	if err := block.Write(ctx, a, make([]byte, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := compareDevices(ctx, a, b, func(_, _ int64) {}); !errors.Is(err, bad) {
		t.Errorf("error: got %v, want %v", err, bad)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := compareDevices(ended, a, a, func(_, _ int64) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("error of an ended context: got %v, want %v", err, context.Canceled)
	}
}
