package fsys_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// memory is a Volume in memory that counts what is read of it.
type memory struct {
	data  []byte
	reads atomic.Int64
	err   atomic.Pointer[error]
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) error {
	m.reads.Add(1)
	if err := m.err.Load(); err != nil {
		return *err
	}
	copy(p, m.data[off:off+int64(len(p))])
	return nil
}

func newMemory(n int) *memory {
	m := &memory{data: make([]byte, n)}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range m.data {
		m.data[i] = byte(rng.Uint32())
	}
	return m
}

func TestACachedVolumeReadsTheSame(t *testing.T) {
	m := newMemory(1<<20 + 777)
	v := fsys.Cached(m, 256<<10)
	if v.Size() != m.Size() {
		t.Errorf("size: got %d, want %d", v.Size(), m.Size())
	}
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 3))
			for range 500 {
				p := make([]byte, rng.IntN(300<<10))
				off := rng.Int64N(m.Size() - int64(len(p)) + 1)
				if err := v.ReadAt(p, off); err != nil || !bytes.Equal(p, m.data[off:off+int64(len(p))]) {
					t.Errorf("%d bytes at %d: got %v, or other bytes", len(p), off, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestACachedVolumeReadsOnce(t *testing.T) {
	m := newMemory(1 << 20)
	v := fsys.Cached(m, 1<<20)
	p := make([]byte, 1000)
	for range 3 {
		for off := int64(0); off < m.Size()-1000; off += 1000 {
			if err := v.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := m.reads.Load(); got != 16 {
		t.Errorf("reads of a volume of 16 pages: got %d, want 16", got)
	}
}

func TestACacheForgetsWhatWasNotUsed(t *testing.T) {
	m := newMemory(1 << 20)
	v := fsys.Cached(m, 2*64<<10)
	p := make([]byte, 1)
	for _, off := range []int64{0, 64 << 10, 0, 128 << 10, 0, 64 << 10} {
		if err := v.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.reads.Load(); got != 4 {
		t.Errorf("reads: got %d, want 4: page 1 has to be read anew, page 0 stays", got)
	}
}

func TestACachedVolumeEndsWhereTheVolumeDoes(t *testing.T) {
	v := fsys.Cached(newMemory(100), 1<<20)
	for _, off := range []int64{-1, 91, 100, 1 << 60} {
		if err := v.ReadAt(make([]byte, 10), off); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("10 bytes at %d of 100: got %v, want io.ErrUnexpectedEOF", off, err)
		}
	}
}

func TestACacheKeepsNoErrors(t *testing.T) {
	m := newMemory(100)
	v := fsys.Cached(m, 1<<20)
	broken := errors.New("broken")
	m.err.Store(&broken)
	if err := v.ReadAt(make([]byte, 10), 0); !errors.Is(err, broken) {
		t.Errorf("read of a broken volume: got %v, want %v", err, broken)
	}
	m.err.Store(nil)
	if err := v.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("read after it was mended: got %v", err)
	}
}

func TestAnLRUKeepsWhatWasUsedLast(t *testing.T) {
	l := fsys.NewLRU[string, int](10, 20)
	has := func(want string) {
		t.Helper()
		got := ""
		for _, k := range []string{"a", "b", "c", "d"} {
			if _, ok := l.Get(k); ok {
				got += k
			}
		}
		if got != want {
			t.Errorf("kept: got %q, want %q", got, want)
		}
	}
	l.Put("a", 1, 5)
	l.Put("b", 2, 5)
	has("ab")
	if v, ok := l.Get("a"); v != 1 || !ok {
		t.Errorf("a: got %d, %v", v, ok)
	}
	l.Put("c", 3, 5)
	has("ac")
	l.Put("c", 4, 1)
	l.Put("d", 5, 4)
	has("acd")
	l.Put("b", 6, 21) // costs more than anything may
	has("acd")
	l.Put("b", 7, 15) // is kept alone
	has("b")
}
