package nbdserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver"
)

// gated is a device whose requests of one kind wait to be let through.
type gated struct {
	*blocktest.Faulty
	entered chan struct{}
	release chan struct{}
}

func newGated(d block.Device, op string) *gated {
	g := &gated{entered: make(chan struct{}, 1000), release: make(chan struct{})}
	g.Faulty = blocktest.NewFaulty(d, func(ctx context.Context, what string, _, _ int64) error {
		if what != op {
			return nil
		}
		g.entered <- struct{}{}
		select {
		case <-g.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g
}

func TestShutdownFinishesWhatIsInFlight(t *testing.T) {
	for _, st := range styles {
		t.Run(st.name, func(t *testing.T) {
			g := newGated(blocktest.NewMemory(1<<20), "write")
			s := serve(t, nbdserver.Options{Grace: time.Minute}, export("", g))
			c := attach(t, s.addr, "", st.style)
			c.send(cmdWrite, 0, 1, 0, 4096, make([]byte, 4096))
			<-g.entered
			stopped := make(chan error, 1)
			go func() { stopped <- s.stop() }()
			// A request that comes too late is told so, or finds nobody.
			requires.Until(t, "listener closed", func() bool { return tryDial(s) != nil })
			close(g.release)
			if r := c.result(cmdWrite, 0, 4096); r.errno != 0 || r.cookie != 1 {
				t.Errorf("write in flight: got %+v", r)
			}
			c.closed()
			if err := <-stopped; err != nil {
				t.Errorf("serve: got %v", err)
			}
		})
	}
}

func tryDial(s *served) error {
	conn, err := netDial(s.addr)
	if err == nil {
		conn.Close()
	}
	return err
}

func TestShutdownAnswersWhatItWillNotDo(t *testing.T) {
	g := newGated(blocktest.NewMemory(1<<20), "write")
	s := serve(t, nbdserver.Options{Grace: time.Minute}, export("", g))
	c := attach(t, s.addr, "", structured)
	c.send(cmdWrite, 0, 1, 0, 4, []byte("data"))
	<-g.entered
	removed := make(chan error, 1)
	go func() { removed <- s.Remove(t.Context(), "") }()
	requires.Until(t, "export gone", func() bool { return s.Connections("") == 0 })
	late := make(chan uint32, 1)
	go func() {
		// Until the connection is asked to stop, requests are served.
		for {
			c.send(cmdCache, 0, 2, 0, 4096, nil)
			if r := c.result(cmdCache, 0, 4096); r.errno != 0 {
				late <- r.errno
				return
			}
		}
	}()
	if got := <-late; got != eShutdown {
		t.Errorf("late request: got error %d, want %d", got, eShutdown)
	}
	close(g.release)
	if r := c.result(cmdWrite, 0, 4); r.errno != 0 {
		t.Errorf("write in flight: got error %d", r.errno)
	}
	c.closed()
	if err := <-removed; err != nil {
		t.Errorf("remove: got %v", err)
	}
}

func TestShutdownIsBoundedByTheGracePeriod(t *testing.T) {
	g := newGated(blocktest.NewMemory(1<<20), "write")
	s := serve(t, nbdserver.Options{Grace: 50 * time.Millisecond}, export("", g))
	c := attach(t, s.addr, "", simple)
	c.send(cmdWrite, 0, 1, 0, 4, []byte("data"))
	<-g.entered
	if err := s.stop(); err != nil {
		t.Errorf("serve: got %v", err)
	}
	// The write may be answered with an error before the connection ends, and with
	// nothing else.
	rest, err := io.ReadAll(c.conn)
	if isTimeout(err) {
		t.Errorf("connection: got %v, want it closed", err)
	}
	if len(rest) != 0 && (len(rest) != 16 || binary.BigEndian.Uint32(rest[4:]) == 0) {
		t.Errorf("answer to a write that was given up: got %x, want none or an error", rest)
	}
}

func TestShutdownDuringTheHandshake(t *testing.T) {
	s := serve(t, nbdserver.Options{})
	c := connect(t, s.addr)
	if err := s.stop(); err != nil {
		t.Errorf("serve: got %v", err)
	}
	c.closed()
}

func TestShutdownOfIdleConnections(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("", blocktest.NewMemory(1<<20)))
	var cs []*client
	for range 5 {
		cs = append(cs, attach(t, s.addr, "", simple))
	}
	if err := s.stop(); err != nil {
		t.Errorf("serve: got %v", err)
	}
	for _, c := range cs {
		c.closed()
	}
}

func TestRemove(t *testing.T) {
	d := blocktest.NewMemory(1 << 20)
	s := serve(t, nbdserver.Options{}, export("a", d), export("b", d))
	a, b := attach(t, s.addr, "a", simple), attach(t, s.addr, "b", simple)
	if got := s.Connections("a"); got != 1 {
		t.Errorf("connections: got %d, want 1", got)
	}
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Errorf("remove: %v", err)
	}
	a.closed()
	if r := b.do(cmdRead, 0, 0, 512, nil); r.errno != 0 {
		t.Errorf("read of the other export: got error %d", r.errno)
	}
	if got := connect(t, s.addr).option(optGo, infoData("a"))[0].kind; got != repUnknown {
		t.Errorf("go: got %#x, want %#x", got, uint32(repUnknown))
	}
	if err := s.Remove(t.Context(), "a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove again: got %v, want %v", err, os.ErrNotExist)
	}
	if err := s.Add(export("a", d)); err != nil {
		t.Errorf("add again: %v", err)
	}
	attach(t, s.addr, "a", simple)
}

func TestRemoveGivesUpWhenItsContextEnds(t *testing.T) {
	stuck := make(chan struct{})
	var entered atomic.Bool
	d := blocktest.NewFaulty(blocktest.NewMemory(1<<20), func(_ context.Context, op string, _, _ int64) error {
		if op == "write" {
			entered.Store(true)
			<-stuck
		}
		return nil
	})
	s := serve(t, nbdserver.Options{}, export("", d))
	c := attach(t, s.addr, "", simple)
	c.send(cmdWrite, 0, 1, 0, 4, []byte("data"))
	requires.Until(t, "write begun", entered.Load)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Remove(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("remove: got %v, want %v", err, context.DeadlineExceeded)
	}
	close(stuck)
}

func TestSlowRequestsHoldUpNobody(t *testing.T) {
	for _, st := range styles {
		t.Run(st.name, func(t *testing.T) {
			g := newGated(blocktest.NewMemory(1<<20), "write")
			s := serve(t, nbdserver.Options{}, export("", g))
			c := attach(t, s.addr, "", st.style)
			for i := range uint64(10) {
				c.send(cmdWrite, 0, i, 0, 4, []byte("data"))
			}
			for range 10 {
				<-g.entered // all are under way at the same time
			}
			for range 20 {
				if r := c.do(cmdRead, 0, 0, 4096, nil); r.errno != 0 {
					t.Fatalf("read: got error %d", r.errno)
				}
			}
			close(g.release)
			for range 10 {
				c.result(cmdWrite, 0, 4)
			}
		})
	}
}

func TestFlushCoversWhatWasAnsweredBefore(t *testing.T) {
	var mu sync.Mutex
	var log []string
	d := blocktest.NewFaulty(blocktest.NewMemory(1<<20), func(_ context.Context, op string, _, _ int64) error {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, op)
		return nil
	})
	s := serve(t, nbdserver.Options{}, export("", d))
	c := attach(t, s.addr, "", structured)
	for _, tt := range []struct {
		name       string
		cmd, flags uint16
		want       string
	}{
		{"a write", cmdWrite, 0, "write"},
		{"a write with FUA", cmdWrite, fFUA, "flush"},
		{"zeroes with FUA", cmdZeroes, fFUA, "flush"},
		{"a trim with FUA", cmdTrim, fFUA, "flush"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p []byte
			if tt.cmd == cmdWrite {
				p = make([]byte, 4096)
			}
			c.do(tt.cmd, tt.flags, 0, 4096, p)
			mu.Lock()
			defer mu.Unlock()
			if got := log[len(log)-1]; got != tt.want {
				t.Errorf("last thing asked of the device: got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestConnectionLimits(t *testing.T) {
	s := serve(t, nbdserver.Options{MaxConns: 2}, export("", blocktest.NewMemory(1<<20)))
	a, b := attach(t, s.addr, "", simple), attach(t, s.addr, "", simple)
	for _, c := range []*client{a, b} {
		// Who is served has left the handshake for certain.
		if r := c.do(cmdRead, 0, 0, 512, nil); r.errno != 0 {
			t.Fatalf("read: got error %d", r.errno)
		}
	}
	c := connect(t, s.addr)
	if got := c.option(optGo, infoData(""))[0]; got.kind != repPolicy {
		t.Errorf("third client: got %#x, want %#x", got.kind, uint32(repPolicy))
	}
	connect(t, s.addr)
	// Two are in the handshake now, which is all there may be.
	dial(t, s.addr).closed()
	a.conn.Close()
	requires.Until(t, "a place", func() bool { return c.option(optGo, infoData(""))[0].kind == repInfo })
}

func TestClientThatNeverReads(t *testing.T) {
	d, _ := newFiled(t)
	mem := blocktest.NewMemory(1 << 20)
	s := serve(t, nbdserver.Options{MaxRequest: 4 << 20}, export("files", d), export("memory", mem))
	for _, name := range []string{"files", "memory"} {
		for _, st := range styles {
			t.Run(name+"/"+st.name, func(t *testing.T) {
				c := attach(t, s.addr, name, st.style)
				req := bytes.Repeat(c.requestBytes(cmdRead, 0, 1, 0, 256<<10, nil), 1000)
				c.conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				sent := 0
				for {
					n, err := c.conn.Write(req)
					sent += n
					if err != nil {
						break
					}
				}
				if held := memoryInUse(); held > 100<<20 {
					t.Errorf("memory in use with %d bytes of requests sent: got %d MiB", sent, held>>20)
				}
				// Others are served meanwhile, and the server can stop.
				other := attach(t, s.addr, name, st.style)
				if r := other.do(cmdRead, 0, 0, 64<<10, nil); r.errno != 0 {
					t.Errorf("read by another client: got error %d", r.errno)
				}
				other.conn.Close()
				c.conn.Close()
				requires.Until(t, "connection gone", func() bool { return s.Connections(name) == 0 })
			})
		}
	}
}

func memoryInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func TestClientThatSendsEverythingBeforeItReads(t *testing.T) {
	// Such a client needs a server that listens while its replies wait.
	d := newRawFile(t, bytes.Repeat([]byte("0123456789abcdef"), 32<<10))
	s := serve(t, nbdserver.Options{}, export("", d))
	for _, st := range styles {
		t.Run(st.name, func(t *testing.T) {
			c := attach(t, s.addr, "", st.style)
			const reads = 16
			for range reads {
				// One chunk each, for they come in any order.
				c.send(cmdRead, fDF*uint16(min(1, st.style)), 1, 0, 512<<10, nil)
			}
			big := bytes.Repeat([]byte("0123456789abcdef"), 32<<10)
			c.send(cmdWrite, 0, 2, 0, 512<<10, big)
			seen := map[uint64]int{}
			for range reads + 1 {
				h := c.peekHead()
				if h.read {
					equal(t, "read", c.result(cmdRead, 0, 512<<10).data, big)
				} else {
					c.result(cmdWrite, 0, 512<<10)
				}
				seen[h.cookie]++
			}
			if seen[1] != reads || seen[2] != 1 {
				t.Errorf("replies: got %v", seen)
			}
		})
	}
}

func TestHostileHeadsTakeNoMemory(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("", blocktest.NewMemory(1<<20)))
	before := memoryInUse()
	var cs []*client
	for range 30 {
		c := attach(t, s.addr, "", simple)
		// The head of a long write, and never its payload.
		c.send(cmdWrite, 0, 1, 0, 1<<20, nil)
		cs = append(cs, c)
	}
	for range 10 {
		c := connect(t, s.addr)
		c.write(be.AppendUint32(be.AppendUint32(be.AppendUint64(nil, 0x49484156454F5054), optGo), 1<<20))
		cs = append(cs, c)
	}
	time.Sleep(20 * time.Millisecond)
	if grown := int64(memoryInUse()) - int64(before); grown > 60<<20 {
		t.Errorf("memory: grew by %d MiB", grown>>20)
	}
	for _, c := range cs {
		c.conn.Close()
	}
	requires.Until(t, "connections gone", func() bool { return s.Connections("") == 0 })
}

func TestIdleConnectionsEnd(t *testing.T) {
	g := newGated(blocktest.NewMemory(1<<20), "write")
	s := serve(t, nbdserver.Options{IdleTimeout: 30 * time.Millisecond}, export("", g))
	c := attach(t, s.addr, "", simple)
	c.closed()
	c = attach(t, s.addr, "", simple)
	c.send(cmdWrite, 0, 1, 0, 4, []byte("data"))
	<-g.entered
	time.Sleep(100 * time.Millisecond) // busy is not idle
	close(g.release)
	if r := c.result(cmdWrite, 0, 4); r.errno != 0 {
		t.Errorf("write: got error %d", r.errno)
	}
	c.closed()
}

func TestObserver(t *testing.T) {
	o := &observer{counts: map[string]int{}}
	s := serve(t, nbdserver.Options{Observer: o}, export("disk", newRawFile(t, make([]byte, 1<<20))))
	c := attach(t, s.addr, "disk", structured, "base:allocation")
	c.do(cmdRead, 0, 0, 512, nil)
	c.do(cmdRead, 0, 0, 256<<10, nil)
	c.do(cmdRead, 0, 1<<20, 1, nil)
	c.do(cmdWrite, 0, 0, 512, make([]byte, 512))
	c.do(cmdFlush, 0, 0, 0, nil)
	c.do(cmdStatus, 0, 0, 512, nil)
	c.conn.Close()
	requires.Until(t, "closed", func() bool { return o.get("closed") == 1 })
	for what, want := range map[string]int{"opened": 1, "read 512 0": 1, "read 262144 0": 1, "read 1 22": 1,
		"write 512 0": 1, "flush 0 0": 1, "block_status 512 0": 1} {
		if got := o.get(what); got != want {
			t.Errorf("%s: got %d, want %d", what, got, want)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	before := openFiles(t)
	d, content := newFiled(t)
	mine := openFiles(t)
	goroutines := runtime.NumGoroutine()
	s := serve(t, nbdserver.Options{}, export("", d))
	for _, st := range styles {
		c := attach(t, s.addr, "", st.style)
		equal(t, "read", c.do(cmdRead, 0, 0, 4<<20, nil).data, content[:4<<20])
		c.send(cmdRead, 0, 1, 0, 4<<20, nil)
		c.conn.Close()
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	// What stays is the file of zeroes, for as long as the server is referred to.
	if got := openFiles(t); got > mine+1 {
		t.Errorf("open files: got %d, want %d (%d before the device)", got, mine+1, before)
	}
	requires.Until(t, "goroutines gone", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func openFiles(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
