package nbdserver_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/nbdserver"
)

// vast is a device that holds nothing and is as large as can be.
type vast struct{ size int64 }

func (v vast) Size() int64                                  { return v.size }
func (vast) ReadAt(context.Context, []byte, int64) error    { return nil }
func (v vast) WriteAt(context.Context, []byte, int64) error { return nil }
func (v vast) WriteZeroes(context.Context, int64, int64, block.ZeroFlags) error {
	return nil
}
func (v vast) Map(_ context.Context, off, n int64) ([]block.Extent, error) {
	return []block.Extent{{Off: off, Len: min(n, 1<<60), Kind: block.Hole}}, nil
}

// striped alternates kinds every 4 KiB and describes a few stripes at a time.
type striped struct{ vast }

func (s striped) Map(_ context.Context, off, n int64) ([]block.Extent, error) {
	var exts []block.Extent
	for end := off + min(n, 1<<20); off < end; {
		l := min(4096-off%4096, end-off)
		exts = append(exts, block.Extent{Off: off, Len: l, Kind: block.Kind(off / 4096 % 3)})
		off += l
	}
	return exts, nil
}

func TestBlockStatus(t *testing.T) {
	d := &changing{block.Wrapped{Inner: &blocktest.Filed{Locations: []block.Location{
		{Len: 300, Kind: block.InNothing}, {Len: 501<<10 - 400, Kind: block.InFile},
		{Len: 100 << 10, Kind: block.InNothing}, {Len: 423<<10 + 100, Kind: block.InNothing}}}},
		map[string][]block.Range{
			"mon": {{Off: 100, Len: 3500}, {Off: 3601, Len: 1}, {Off: 8192, Len: 4096}, {Off: 12288, Len: 4096}},
			"tue": nil,
		}}
	s := serve(t, nbdserver.Options{}, nbdserver.Export{Device: d, Since: []string{"mon", "tue", "gone"}})
	const mon, tue = "qemu:dirty-bitmap:since-mon", "qemu:dirty-bitmap:since-tue"
	tests := []struct {
		name   string
		flags  uint16
		off, n uint64
		want   map[uint32][]descriptor
	}{
		{"everything, neighbours joined", 0, 0, 1 << 20, map[uint32][]descriptor{
			1: {{501 << 10, 0}, {523 << 10, 3}},
			2: {{4096, 1}, {4096, 0}, {8192, 1}, {1<<20 - 16384, 0}},
			3: {{1 << 20, 0}}}},
		{"a sector that is data in part is data", 0, 200, 200, map[uint32][]descriptor{1: {{200, 0}}, 2: {{200, 1}}, 3: {{200, 0}}}},
		{"one extent of each", fReqOne, 4000, 10000, map[uint32][]descriptor{1: {{10000, 0}}, 2: {{4192, 0}}, 3: {{10000, 0}}}},
		{"the last byte", 0, 1<<20 - 1, 1, map[uint32][]descriptor{1: {{1, 3}}, 2: {{1, 0}}, 3: {{1, 0}}}},
	}
	for _, st := range styles[1:] {
		c := attach(t, s.addr, "", st.style, "base:allocation", mon, tue)
		for _, tt := range tests {
			t.Run(st.name+"/"+tt.name, func(t *testing.T) {
				c.t = t
				r := c.do(cmdStatus, tt.flags, tt.off, tt.n, nil)
				if fmt.Sprint(r.status) != fmt.Sprint(tt.want) || r.errno != 0 {
					t.Errorf("status: got %v and error %d, want %v", r.status, r.errno, tt.want)
				}
			})
		}
		c.t = t
		for name, q := range map[string][2]uint64{"nothing": {0, 0}, "beyond the end": {1<<20 - 10, 11}, "far out": {1 << 63, 1}} {
			if got := c.do(cmdStatus, 0, q[0], q[1], nil).errno; got != eInval {
				t.Errorf("%s: status of %s: got error %d, want %d", st.name, name, got, eInval)
			}
		}
	}
	t.Run("a state that is not known any more", func(t *testing.T) {
		c := attach(t, s.addr, "", structured, "base:allocation", "qemu:dirty-bitmap:since-gone")
		if got := c.do(cmdStatus, 0, 0, 4096, nil); got.errno != eIO {
			t.Errorf("error: got %d, want %d", got.errno, eIO)
		}
	})
}

func TestBlockStatusPayloadChoosesContexts(t *testing.T) {
	d := &changing{block.Wrapped{Inner: blocktest.NewMemory(1 << 20)}, map[string][]block.Range{"mon": nil}}
	s := serve(t, nbdserver.Options{}, nbdserver.Export{Device: d, Since: []string{"mon"}})
	c := attach(t, s.addr, "", extended, "base:allocation", "qemu:dirty-bitmap:since-mon")
	payload := func(n uint64, ids ...uint32) []byte {
		b := be.AppendUint64(nil, n)
		for _, id := range ids {
			b = be.AppendUint32(b, id)
		}
		return b
	}
	for _, tt := range []struct {
		name    string
		payload []byte
		errno   uint32
		ids     []uint32
	}{
		{"the first", payload(4096, 1), 0, []uint32{1}},
		{"the second", payload(4096, 2), 0, []uint32{2}},
		{"both", payload(1<<20, 2, 1), 0, []uint32{1, 2}},
		{"one that does not exist", payload(4096, 3), eInval, nil},
		{"one twice", payload(4096, 1, 1), eInval, nil},
		{"none", payload(4096), eInval, nil},
		{"too many", payload(4096, 1, 2, 3, 4), eInval, nil},
		{"beyond the end", payload(1<<20+1, 1), eInval, nil},
		{"far beyond the end", payload(1<<63, 1), eInval, nil},
		{"of no length", payload(0, 1), eInval, nil},
		{"cut short", payload(4096, 1)[:10], eInval, nil},
		{"not even a length", payload(4096, 1)[:4], eInval, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			r := c.do(cmdStatus, fPayload, 0, uint64(len(tt.payload)), tt.payload)
			var ids []uint32
			for id := range r.status {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			if r.errno != tt.errno || !slices.Equal(ids, tt.ids) {
				t.Errorf("status: got error %d for contexts %v, want %d for %v", r.errno, ids, tt.errno, tt.ids)
			}
		})
	}
}

func TestBlockStatusOfVastDevices(t *testing.T) {
	const size = 1<<63 - 1
	s := serve(t, nbdserver.Options{}, export("vast", vast{size}), export("striped", striped{vast{size}}))
	t.Run("64 bits in one extent", func(t *testing.T) {
		c := attach(t, s.addr, "vast", extended, "base:allocation")
		r := c.do(cmdStatus, 0, 0, size, nil)
		if got := r.status[1]; len(got) != 1 || got[0].n != size {
			t.Errorf("status: got %v, want all of it in one extent", got)
		}
		if got := c.do(cmdStatus, fReqOne, 1<<62, size-1<<62, nil).status[1]; got[0].n != size-1<<62 {
			t.Errorf("status: got %v, want the rest in one extent", got)
		}
		if got := c.do(cmdZeroes, 0, 0, size, nil).errno; got != 0 {
			t.Errorf("zeroes: got error %d", got)
		}
		if got := c.do(cmdStatus, 0, 1, size, nil).errno; got != eInval {
			t.Errorf("status beyond the end: got error %d, want %d", got, eInval)
		}
	})
	t.Run("the longest compact request", func(t *testing.T) {
		c := attach(t, s.addr, "vast", structured, "base:allocation")
		if got := c.do(cmdStatus, 0, 1<<62, 1<<32-1, nil).status[1]; len(got) != 1 || got[0].n != 1<<32-1 {
			t.Errorf("status: got %v, want one extent of the length asked for", got)
		}
	})
	for _, st := range styles[1:] {
		t.Run("as many extents as are sent at a time/"+st.name, func(t *testing.T) {
			c := attach(t, s.addr, "striped", st.style, "base:allocation")
			got := c.do(cmdStatus, 0, 4096, 1<<32-1, nil).status[1]
			if len(got) < 1000 || len(got) > 1<<20 {
				t.Fatalf("extents: got %d", len(got))
			}
			for i, d := range got {
				if want := []uint64{0, 2, 3}[(i+1)%3]; d.n != 4096 || d.state != want {
					t.Fatalf("extent %d: got %v, want 4096 bytes of state %d", i, d, want)
				}
			}
		})
	}
}
