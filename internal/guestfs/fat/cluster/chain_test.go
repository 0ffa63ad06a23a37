package cluster_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// memory is a volume in memory that counts what is read of it.
type memory struct {
	data []byte
	read int
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) error {
	if off < 0 || off > m.Size()-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	m.read += copy(p, m.data[off:])
	return nil
}

const (
	size = 16
	end  = 0x0fffffff
)

// newTable returns a table of n clusters of 16 bytes, which hold their number, and
// how to set an entry.
func newTable(n uint32) (*cluster.Table, *memory, func(c, next uint32)) {
	heap := int64(n+2) * 4
	m := &memory{data: make([]byte, heap+int64(n)*size)}
	for c := range n {
		binary.LittleEndian.PutUint32(m.data[heap+int64(c)*size:], c+2)
	}
	t := &cluster.Table{Volume: m, Bits: 32, Mask: end, Heap: heap, Size: size, Clusters: n}
	return t, m, func(c, next uint32) { binary.LittleEndian.PutUint32(m.data[c*4:], next) }
}

func TestAChainOfAnyShapeIsFollowed(t *testing.T) {
	for _, runs := range []int{1, 2, 100, 16<<10 - 1, 16 << 10, 16<<10 + 1, 70_000} {
		const most = 200_000
		table, m, set := newTable(most)
		rng := rand.New(rand.NewPCG(7, uint64(runs)))
		// Runs lie in the volume in the order of a permutation, each of random length.
		var chain []uint32
		starts, at := make([][2]uint32, runs), uint32(2)
		for i := range starts {
			n := 1 + rng.Uint32N(min(2, uint32(most/runs/2)+1))
			starts[i] = [2]uint32{at, n}
			at += n + 1
		}
		rng.Shuffle(runs, func(i, j int) { starts[i], starts[j] = starts[j], starts[i] })
		for _, s := range starts {
			for c := range s[1] {
				chain = append(chain, s[0]+c)
			}
		}
		for i, c := range chain {
			next := uint32(end)
			if i+1 < len(chain) {
				next = chain[i+1]
			}
			set(c, next)
		}
		n := uint32(len(chain))
		for _, want := range []uint32{n, cluster.All} {
			c, err := table.Follow(chain[0], want)
			if err != nil || c.Len() != int64(n) {
				t.Fatalf("%d runs: got %d clusters, %v, want %d", runs, c.Len(), err, n)
			}
			check(t, c, m, chain)
		}
		if _, err := table.Follow(chain[0], n+1); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("%d runs, one cluster more than there are: got %v, want ErrCorrupt", runs, err)
		}
		if n > 2 {
			set(chain[n-1], chain[n/2])
			for _, want := range []uint32{n, cluster.All} {
				if _, err := table.Follow(chain[0], want); !errors.Is(err, fsys.ErrCorrupt) {
					t.Errorf("%d runs with a loop: got %v, want ErrCorrupt", runs, err)
				}
			}
		}
	}
}

// check reads a chain as a whole and in pieces.
func check(t *testing.T, c *cluster.Chain, m *memory, chain []uint32) {
	t.Helper()
	want := make([]byte, len(chain)*size)
	for i, c := range chain {
		binary.LittleEndian.PutUint32(want[i*size:], c)
	}
	got := make([]byte, len(want))
	if err := c.ReadAt(m, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("content of %d clusters: got %v, or other bytes", len(chain), err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		off := rng.IntN(len(want))
		n := rng.IntN(min(1000, len(want)-off) + 1)
		m.read = 0
		if err := c.ReadAt(m, got[:n], int64(off)); err != nil || !bytes.Equal(got[:n], want[off:off+n]) {
			t.Fatalf("%d bytes at %d: got %v, or other bytes", n, off, err)
		}
		if m.read > 1<<20 {
			t.Errorf("%d bytes at %d of %d clusters: read %d bytes of the volume", n, off, len(chain), m.read)
		}
	}
	if _, err := c.Extents(int64(len(want)), 1); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("extents behind the chain: got %v, want ErrCorrupt", err)
	}
}

func TestALoopIsFoundAfterReadsThatItsLengthExplains(t *testing.T) {
	table, m, set := newTable(100_000)
	for c := uint32(2); c < 100_001; c++ {
		set(c, c+1)
	}
	set(100_001, 2)
	if _, err := table.Follow(2, cluster.All); !errors.Is(err, fsys.ErrCorrupt) {
		t.Fatalf("got %v, want ErrCorrupt", err)
	}
	if m.read > 4*400_000 {
		t.Errorf("read %d bytes of a table of 400,000", m.read)
	}
}

func TestAdjacentClustersNeedNoTable(t *testing.T) {
	table, m, _ := newTable(10)
	c, err := table.Contiguous(4, 5)
	if err != nil {
		t.Fatal(err)
	}
	check(t, c, m, []uint32{4, 5, 6, 7, 8})
	for _, x := range [][2]uint32{{0, 1}, {1, 1}, {12, 1}, {4, 9}, {4, 1<<32 - 1}, {1<<32 - 1, 2}} {
		if _, err := table.Contiguous(x[0], x[1]); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("%d clusters from %d of 10: got %v, want ErrCorrupt", x[1], x[0], err)
		}
	}
	if _, err := table.Contiguous(2, 10); err != nil {
		t.Errorf("all clusters: got %v", err)
	}
}

func TestEntriesOf12And16Bits(t *testing.T) {
	for bits, width := range map[int]uint32{12: 0xfff, 16: 0xffff} {
		const n = 4084
		m := &memory{data: make([]byte, (n+2)*bits/8+n*size+1)}
		table := &cluster.Table{Volume: m, Bits: bits, Mask: width, Heap: int64((n+2)*bits/8 + 1), Size: size, Clusters: n}
		want := map[uint32]uint32{}
		for c := range uint32(n + 2) {
			want[c] = (c*2654435761 + 12345) >> 7 & width
			for bit := range bits {
				at := int(c)*bits + bit
				m.data[at/8] |= byte(want[c]>>bit&1) << (at % 8)
			}
		}
		for c, w := range want {
			if got, err := table.Entry(c); err != nil || got != w {
				t.Errorf("entry %d of %d bits: got %#x, %v, want %#x", c, bits, got, err, w)
			}
		}
		seen := uint32(2)
		err := table.Each(func(got uint32) {
			if got != want[seen] {
				t.Errorf("entry %d of %d bits: got %#x, want %#x", seen, bits, got, want[seen])
			}
			seen++
		})
		if err != nil || seen != n+2 {
			t.Errorf("all entries: got %d, %v", seen, err)
		}
		if _, err := table.Entry(n + 2); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("entry behind the last: got %v, want ErrCorrupt", err)
		}
	}
}
