package nbdserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver"
)

var styles = []struct {
	name string
	style
}{{"simple", simple}, {"structured", structured}, {"extended", extended}}

func TestReadsGiveTheContent(t *testing.T) {
	fd, fc := newFiled(t)
	mem, mc := memory(t, 5<<20+777)
	s := serve(t, nbdserver.Options{}, export("files", fd), export("memory", mem))
	for _, e := range []struct {
		name    string
		content []byte
	}{{"files", fc}, {"memory", mc}} {
		for _, st := range styles {
			t.Run(e.name+"/"+st.name, func(t *testing.T) {
				c := attach(t, s.addr, e.name, st.style)
				size := uint64(len(e.content))
				if c.size != size {
					t.Fatalf("size: got %d, want %d", c.size, size)
				}
				rnd := rand.New(rand.NewPCG(1, uint64(st.style)))
				for i := range 150 {
					n := 1 + rnd.Uint64N(1<<(1+rnd.UintN(22)))
					n = min(n, size)
					off := rnd.Uint64N(size - n + 1)
					var flags uint16
					if i%3 == 0 && st.style != simple {
						flags = fDF
					}
					r := c.do(cmdRead, flags, off, n, nil)
					if r.errno != 0 {
						t.Fatalf("read %d at %d: got error %d", n, off, r.errno)
					}
					if flags != 0 && len(r.chunks) != 1 {
						t.Fatalf("read %d at %d with DF: got chunks %v", n, off, r.chunks)
					}
					equal(t, fmt.Sprintf("read %d at %d", n, off), r.data, e.content[off:off+n])
				}
				r := c.do(cmdRead, 0, 0, size, nil)
				equal(t, "whole export", r.data, e.content)
			})
		}
	}
}

func TestHolesAreNotSentAsData(t *testing.T) {
	f := tempFile(t, "f", make([]byte, 1<<20))
	d := &blocktest.Filed{Locations: []block.Location{
		{Len: 1 << 20, Kind: block.InNothing}, {Len: 1 << 20, Kind: block.InFile, File: f}, {Len: 1 << 20, Kind: block.InNothing}}}
	s := serve(t, nbdserver.Options{}, export("", d))
	c := attach(t, s.addr, "", structured)
	for _, tt := range []struct {
		name   string
		flags  uint16
		off, n uint64
		want   []int
	}{
		{"a small read of a hole is a hole", 0, 4096, 512, []int{2}},
		{"a large read of a hole is a hole", 0, 0, 1 << 20, []int{2}},
		{"hole, data and hole", 0, 512 << 10, 2 << 20, []int{2, 1, 1, 2}},
		{"one chunk of data if it must be one", fDF, 512 << 10, 2 << 20, []int{1}},
		{"a small read with DF is data", fDF, 0, 512, []int{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			if got := c.do(cmdRead, tt.flags, tt.off, tt.n, nil).chunks; !slices.Equal(got, tt.want) {
				t.Errorf("chunks: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestWritesReachTheDevice(t *testing.T) {
	for _, st := range styles {
		t.Run(st.name, func(t *testing.T) {
			size := int64(8 << 20)
			mem := blocktest.NewMemory(size)
			raw := newRawFile(t, make([]byte, size))
			s := serve(t, nbdserver.Options{}, export("memory", mem), export("file", raw))
			for _, name := range []string{"memory", "file"} {
				c := attach(t, s.addr, name, st.style)
				model := make([]byte, size)
				rnd := rand.New(rand.NewPCG(5, 6))
				for range 60 {
					n := 1 + rnd.Int64N(1<<(1+rnd.IntN(22)))
					off := rnd.Int64N(size - n + 1)
					switch rnd.IntN(4) {
					case 0:
						if r := c.do(cmdZeroes, uint16(rnd.IntN(4)), uint64(off), uint64(n), nil); r.errno != 0 {
							t.Fatalf("zeroes: got error %d", r.errno)
						}
						clear(model[off : off+n])
					default:
						p := bytes.Repeat([]byte{byte(rnd.IntN(256)), 2, 3}, int(n/3+1))[:n]
						if r := c.do(cmdWrite, uint16(rnd.IntN(2)), uint64(off), uint64(n), p); r.errno != 0 {
							t.Fatalf("write: got error %d", r.errno)
						}
						copy(model[off:], p)
					}
				}
				for cmd, n := range map[uint16]uint64{cmdFlush: 0, cmdCache: 1 << 20} {
					if r := c.do(cmd, 0, 0, n, nil); r.errno != 0 {
						t.Errorf("command %d: got error %d", cmd, r.errno)
					}
				}
				equal(t, name, c.do(cmdRead, 0, 0, uint64(size), nil).data, model)
			}
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	const size = 1<<20 + 100
	d := blocktest.NewMemory(size)
	s := serve(t, nbdserver.Options{MaxRequest: 1 << 20}, export("rw", d),
		nbdserver.Export{Name: "ro", Device: d, ReadOnly: true},
		nbdserver.Export{Name: "aligned", Device: d, MinBlock: 512})
	payload := func(n int) []byte { return make([]byte, n) }
	huge := ^uint64(0)
	tests := []struct {
		name, export string
		cmd, flags   uint16
		off, n       uint64
		payload      []byte
		want         uint32
	}{
		{"a read beyond the end", "rw", cmdRead, 0, size - 10, 11, nil, eInval},
		{"a read at the last offset there is", "rw", cmdRead, 0, huge, 1, nil, eInval},
		{"a read whose end wraps around", "rw", cmdRead, 0, huge - 10, 100, nil, eInval},
		{"a read of nothing", "rw", cmdRead, 0, 0, 0, nil, 0},
		{"a read of nothing at the end", "rw", cmdRead, 0, size, 0, nil, 0},
		{"a read up to the end", "rw", cmdRead, 0, size - 100, 100, nil, 0},
		{"a write beyond the end", "rw", cmdWrite, 0, size - 10, 11, payload(11), eNoSpc},
		{"a write far beyond the end", "rw", cmdWrite, 0, huge - 100, 4096, payload(4096), eNoSpc},
		{"a write of nothing", "rw", cmdWrite, 0, 0, 0, nil, 0},
		{"a write that is too long", "rw", cmdWrite, 0, 0, 1<<20 + 1, payload(1<<20 + 1), eInval},
		{"zeroes beyond the end", "rw", cmdZeroes, 0, size, 1, nil, eNoSpc},
		{"a trim beyond the end", "rw", cmdTrim, 0, size - 1, 2, nil, eInval},
		{"a cache beyond the end", "rw", cmdCache, 0, size, 2, nil, eInval},
		{"a trim of everything", "rw", cmdTrim, 0, 0, size, nil, 0},
		{"a flush", "rw", cmdFlush, 0, 0, 0, nil, 0},
		{"a flush with a range", "rw", cmdFlush, 0, 512, 512, nil, eInval},
		{"an unknown command", "rw", 17, 0, 0, 512, nil, eInval},
		{"an unknown flag", "rw", cmdRead, 1 << 9, 0, 512, nil, eInval},
		{"a flag of another command", "rw", cmdRead, fNoHole, 0, 512, nil, eInval},
		{"FUA where it means nothing", "rw", cmdRead, fFUA, 0, 512, nil, 0},
		{"fast zeroes of a device that can", "rw", cmdZeroes, fFastZero, 0, 512, nil, 0},
		{"block status without contexts", "rw", cmdStatus, 0, 0, 512, nil, eInval},
		{"a write to a read-only export", "ro", cmdWrite, 0, 0, 512, payload(512), ePerm},
		{"zeroes to a read-only export", "ro", cmdZeroes, 0, 0, 512, nil, ePerm},
		{"a trim of a read-only export", "ro", cmdTrim, 0, 0, 512, nil, ePerm},
		{"a flush of a read-only export", "ro", cmdFlush, 0, 0, 0, nil, 0},
		{"an unaligned offset", "aligned", cmdRead, 0, 100, 512, nil, eInval},
		{"an unaligned length", "aligned", cmdRead, 0, 0, 100, nil, eInval},
		{"an unaligned write", "aligned", cmdWrite, 0, 0, 100, payload(100), eInval},
		{"the unaligned end of an export", "aligned", cmdRead, 0, 1 << 20, 100, nil, 0},
	}
	for _, st := range styles {
		for _, tt := range tests {
			t.Run(st.name+"/"+tt.name, func(t *testing.T) {
				c := attach(t, s.addr, tt.export, st.style)
				if got := c.do(tt.cmd, tt.flags, tt.off, tt.n, tt.payload).errno; got != tt.want {
					t.Errorf("error: got %d, want %d", got, tt.want)
				}
				if got := c.do(cmdRead, 0, 0, 512, nil).errno; got != 0 {
					t.Errorf("read after it: got error %d", got)
				}
			})
		}
	}
	t.Run("a read that is too long", func(t *testing.T) {
		for st, want := range []uint32{eInval, eOverflow, eOverflow} {
			c := attach(t, s.addr, "rw", style(st))
			if got := c.do(cmdRead, 0, 0, 1<<20+1, nil).errno; got != want {
				t.Errorf("style %d: got %d, want %d", st, got, want)
			}
		}
	})
	t.Run("DF without structured replies", func(t *testing.T) {
		if got := attach(t, s.addr, "rw", simple).do(cmdRead, fDF, 0, 512, nil).errno; got != eInval {
			t.Errorf("error: got %d, want %d", got, eInval)
		}
	})
}

func TestExtendedPayloads(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("", blocktest.NewMemory(1<<20)))
	c := attach(t, s.addr, "", extended)
	send := func(cmd, flags uint16, n uint64, payload []byte) uint32 {
		b := be.AppendUint32(nil, 0x21e41c71)
		b = be.AppendUint16(b, flags)
		b = be.AppendUint16(b, cmd)
		b = be.AppendUint64(b, 5)
		b = be.AppendUint64(b, 0)
		c.write(append(be.AppendUint64(b, n), payload...))
		return c.result(cmd, 0, n).errno
	}
	if got := send(cmdWrite, 0, 512, nil); got != eInval {
		t.Errorf("write without payload: got %d, want %d", got, eInval)
	}
	for _, cmd := range []uint16{cmdRead, cmdFlush, cmdTrim, cmdStatus, 99} {
		if got := send(cmd, fPayload, 1000, make([]byte, 1000)); got != eInval {
			t.Errorf("command %d with payload: got %d, want %d", cmd, got, eInval)
		}
	}
	if got := send(cmdZeroes, 0, 1<<20, nil); got != 0 {
		t.Errorf("zeroes: got error %d", got)
	}
}

func TestMalformedRequestsEndTheConnection(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("", blocktest.NewMemory(1<<20)))
	for _, st := range styles {
		c := attach(t, s.addr, "", st.style)
		whole := c.requestBytes(cmdWrite, 0, 1, 0, 4096, make([]byte, 4096))
		for name, b := range map[string][]byte{
			"a wrong magic":                      make([]byte, 32),
			"a payload of 4 GiB":                 c.requestBytes(cmdWrite, 0, 1, 0, 0xffffffff, nil),
			"the magic of the other header size": (&client{style: extended - st.style/extended*extended}).requestBytes(cmdRead, 0, 1, 0, 512, make([]byte, 4)),
		} {
			t.Run(st.name+"/"+name, func(t *testing.T) {
				c := attach(t, s.addr, "", st.style)
				c.write(b)
				c.closed()
			})
		}
		t.Run(st.name+"/interrupted anywhere", func(t *testing.T) {
			for n := 0; n < len(whole); n += 1 + n/3 {
				c := attach(t, s.addr, "", st.style)
				c.write(whole[:n])
				c.conn.Close()
			}
			requires.Until(t, "no connections", func() bool { return s.Connections("") <= 1 })
		})
		c.conn.Close()
	}
	requires.Until(t, "no connections", func() bool { return s.Connections("") == 0 })
}

func TestDisconnectFinishesWhatIsInFlight(t *testing.T) {
	release := make(chan struct{})
	mem := blocktest.NewMemory(1 << 20)
	d := blocktest.NewFaulty(mem, func(_ context.Context, op string, _, _ int64) error {
		if op == "write" {
			<-release
		}
		return nil
	})
	s := serve(t, nbdserver.Options{}, export("", d))
	c := attach(t, s.addr, "", simple)
	c.send(cmdWrite, 0, 1, 0, 4, []byte("data"))
	c.send(cmdDisc, 0, 2, 0, 0, nil)
	close(release)
	if r := c.result(cmdWrite, 0, 4); r.errno != 0 || r.cookie != 1 {
		t.Errorf("write: got %+v", r)
	}
	c.closed()
	got := make([]byte, 4)
	if err := mem.ReadAt(t.Context(), got, 0); err != nil || string(got) != "data" {
		t.Errorf("device: got %q, %v", got, err)
	}
}

func TestDeviceErrorsBecomeProtocolErrors(t *testing.T) {
	var fail atomic.Pointer[error]
	mem := blocktest.NewMemory(1 << 20)
	d := blocktest.NewFaulty(mem, func(context.Context, string, int64, int64) error {
		if err := fail.Load(); err != nil {
			return *err
		}
		return nil
	})
	s := serve(t, nbdserver.Options{}, export("", d))
	for _, tt := range []struct {
		name string
		err  error
		cmd  uint16
		want uint32
	}{
		{"no space", fmt.Errorf("write: %w", syscall.ENOSPC), cmdWrite, eNoSpc},
		{"quota", syscall.EDQUOT, cmdWrite, eNoSpc},
		{"bad medium", syscall.EIO, cmdRead, eIO},
		{"something else", errors.New("something else"), cmdFlush, eIO},
		{"invalid", syscall.EINVAL, cmdTrim, eInval},
		{"read-only", block.ErrReadOnly, cmdWrite, ePerm},
		{"read-only file system", syscall.EROFS, cmdZeroes, ePerm},
		{"not fast", fmt.Errorf("zero: %w", block.ErrNotFast), cmdZeroes, eNotSup},
		{"not fast, from a command that cannot say so", block.ErrNotFast, cmdWrite, eIO},
		{"overflow", syscall.EOVERFLOW, cmdRead, eOverflow},
		{"out of range", block.ErrOutOfRange, cmdRead, eInval},
		{"a write out of range", block.ErrOutOfRange, cmdWrite, eNoSpc},
		{"cancelled", context.Canceled, cmdRead, eShutdown},
	} {
		for _, st := range styles {
			t.Run(tt.name+"/"+st.name, func(t *testing.T) {
				c := attach(t, s.addr, "", st.style, contextsFor(st.style)...)
				n := uint64(64 << 10)
				var payload []byte
				switch tt.cmd {
				case cmdFlush:
					n = 0
				case cmdWrite:
					payload = make([]byte, n)
				}
				fail.Store(&tt.err)
				got := c.do(tt.cmd, 0, 0, n, payload).errno
				fail.Store(nil)
				if got != tt.want {
					t.Errorf("error: got %d, want %d", got, tt.want)
				}
				if r := c.do(cmdRead, 0, 0, 4096, nil); r.errno != 0 {
					t.Errorf("read after it: got error %d", r.errno)
				}
			})
		}
	}
}

func contextsFor(s style) []string {
	if s == simple {
		return nil
	}
	return []string{"base:allocation"}
}

func TestErrorInTheMiddleOfARead(t *testing.T) {
	content := bytes.Repeat([]byte{7}, 4<<20)
	raw := newRawFile(t, content)
	bad := int64(3<<20 + 5000)
	f := blocktest.NewFaulty(raw, func(_ context.Context, op string, off, n int64) error {
		switch {
		case op == "locate":
			return nil
		case off <= bad && bad < off+n:
			return syscall.EIO
		}
		return nil
	})
	s := serve(t, nbdserver.Options{}, export("", opaque{f}))
	for _, st := range styles {
		c := attach(t, s.addr, "", st.style)
		if got := c.do(cmdRead, 0, 0, 4<<20, nil).errno; got != eIO {
			t.Errorf("%s: got error %d, want %d", st.name, got, eIO)
		}
		equal(t, st.name, c.do(cmdRead, 0, 0, 1<<20, nil).data, content[:1<<20])
	}
}

// opaque hides where the bytes of a device lie.
type opaque struct{ block.Device }

func TestDeviceThatMisbehaves(t *testing.T) {
	for name, d := range map[string]block.Device{
		"panics in locate":     &rogue{locate: func(off, n int64) []block.Location { panic("oh no") }},
		"panics in read":       &rogue{},
		"locates too little":   &rogue{locate: func(off, n int64) []block.Location { return []block.Location{{Len: n - 1, Kind: block.InNothing}} }},
		"locates too much":     &rogue{locate: func(off, n int64) []block.Location { return []block.Location{{Len: n + 1, Kind: block.InNothing}} }},
		"locates in no file":   &rogue{locate: func(off, n int64) []block.Location { return []block.Location{{Len: n, Kind: block.InFile}} }},
		"locates negative len": &rogue{locate: func(off, n int64) []block.Location { return []block.Location{{Len: -1}, {Len: n + 1}} }},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, nbdserver.Options{}, export("", d), export("good", blocktest.NewMemory(4096)))
			for _, st := range styles {
				c := attach(t, s.addr, "", st.style)
				for _, n := range []uint64{512, 512 << 10} {
					if got := c.do(cmdRead, 0, 0, n, nil).errno; got != eIO {
						t.Errorf("%s: read %d: got error %d, want %d", st.name, n, got, eIO)
					}
				}
				if got := c.do(cmdWrite, 0, 0, 3, []byte("abc")).errno; got != eIO {
					t.Errorf("%s: write: got error %d, want %d", st.name, got, eIO)
				}
			}
			attach(t, s.addr, "good", simple)
		})
	}
}

// rogue is a device that breaks its contract.
type rogue struct {
	locate func(off, n int64) []block.Location
}

func (*rogue) Size() int64                                  { return 1 << 20 }
func (*rogue) ReadAt(context.Context, []byte, int64) error  { panic("no reading") }
func (*rogue) WriteAt(context.Context, []byte, int64) error { panic("no writing") }
func (r *rogue) Locate(_ context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	if r.locate == nil {
		return append(dst, block.Location{Len: n}), nil
	}
	return append(dst, r.locate(off, n)...), nil
}

func TestErrorMessagesAreForPeople(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("", blocktest.NewMemory(4096)))
	c := attach(t, s.addr, "", structured)
	c.send(cmdRead, 0, 1, 4096, 1, nil)
	h := c.read(20)
	if p := c.read(int(be.Uint32(h[16:]))); !strings.Contains(string(p[6:]), "beyond the end") {
		t.Errorf("message: got %q", p[6:])
	}
}

func TestRequestsInOneGo(t *testing.T) {
	// Requests that arrive together, cut anywhere, are all answered.
	d, content := newFiled(t)
	s := serve(t, nbdserver.Options{}, export("", d))
	for _, st := range styles {
		c := attach(t, s.addr, "", st.style)
		rnd := rand.New(rand.NewPCG(9, 9))
		var all []byte
		want := map[uint64][2]uint64{}
		for i := range uint64(300) {
			n := 1 + rnd.Uint64N(70<<10)
			off := rnd.Uint64N(uint64(len(content)) - n)
			want[i] = [2]uint64{off, n}
			all = append(all, c.requestBytes(cmdRead, fDF*uint16(min(1, st.style)), i, off, n, nil)...)
		}
		go func() {
			for len(all) > 0 {
				n := min(len(all), 1+rnd.IntN(100))
				c.conn.Write(all[:n])
				all = all[n:]
			}
		}()
		for range 300 {
			cookie, data := c.anyRead(want)
			off, n := want[cookie][0], want[cookie][1]
			equal(t, fmt.Sprintf("%s: request %d", st.name, cookie), data, content[off:off+n])
			delete(want, cookie)
		}
	}
}

// anyRead reads the answer, of one chunk, to any one of the reads in flight.
func (c *client) anyRead(want map[uint64][2]uint64) (cookie uint64, data []byte) {
	c.t.Helper()
	switch c.style {
	case simple:
		h := c.read(16)
		cookie = be.Uint64(h[8:])
		return cookie, c.read(int(want[cookie][1]))
	case structured:
		h := c.read(28)
		return be.Uint64(h[8:]), c.read(int(be.Uint32(h[16:]) - 8))
	}
	h := c.read(40)
	return be.Uint64(h[8:]), c.read(int(be.Uint64(h[24:]) - 8))
}
