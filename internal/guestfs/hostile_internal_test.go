package guestfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/tree"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// takenOver is a Guest whose process answers whatever answer says. It returns the
// far end of the connection for reads of disks.
func takenOver(t *testing.T, answer func(proto.Request) proto.Reply) (*Guest, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	nearReads, farReads := net.Pipe()
	disk := blocktest.NewMemory(1 << 20)
	c := &client{timeout: 10 * time.Second, dead: make(chan struct{}), waiting: map[uint64]chan proto.Reply{}}
	c.serve(near, nearReads, []block.Device{disk})
	g := &Guest{c: c, disks: map[int]block.Device{0: disk}}
	t.Cleanup(g.Close)
	go func() {
		conn := proto.NewConn(far)
		for {
			var r proto.Request
			if conn.Receive(&r) != nil {
				return
			}
			reply := answer(r)
			if reply.ID == 0 {
				reply.ID = r.ID
			}
			if conn.Send(reply) != nil {
				return
			}
		}
	}()
	return g, farReads
}

func TestAProcessThatWasTakenOverGetsNothing(t *testing.T) {
	file := Entry{Name: "file", Attr: Attr{Size: 1 << 20}}
	readFile := func(g *Guest) error {
		f, err := g.OpenFile(file)
		if err != nil {
			return err
		}
		return f.ReadAt(t.Context(), make([]byte, 4096), 8192)
	}
	walk := func(g *Guest) error {
		return g.Walk(t.Context(), Node{}, Match{}, func(e Entry) error {
			if strings.Contains(e.Name, "..") || strings.HasPrefix(e.Name, "/") {
				t.Errorf("got the name %q", e.Name)
			}
			return nil
		})
	}
	entries := func(names ...string) func(proto.Request) proto.Reply {
		var list []proto.Entry
		for _, n := range names {
			list = append(list, proto.Entry{Name: n})
		}
		return func(proto.Request) proto.Reply { return proto.Reply{Entries: list} }
	}
	list := func(g *Guest) error {
		return g.ReadDir(t.Context(), Node{}, func(e Entry) bool {
			if hasSlash(e.Name) || e.Name == ".." {
				t.Errorf("got the name %q", e.Name)
			}
			return true
		})
	}
	extents := func(list ...tree.Extent) func(proto.Request) proto.Reply {
		return func(proto.Request) proto.Reply { return proto.Reply{Extents: list} }
	}
	for name, tt := range map[string]struct {
		answer func(proto.Request) proto.Reply
		do     func(*Guest) error
	}{
		"a name with a slash":             {entries("a/b"), list},
		"a name that leads up":            {entries(".."), list},
		"an empty name":                   {entries(""), list},
		"a directory without end":         {func(r proto.Request) proto.Reply { return proto.Reply{} }, list},
		"a walk that leads up":            {entries("a", "../../etc/passwd"), walk},
		"a walk that begins at the root":  {entries("/etc"), walk},
		"a walk through ..":               {entries("a/../../b"), walk},
		"no extents":                      {extents(), readFile},
		"an extent of no length":          {extents(tree.Extent{}), readFile},
		"an extent of negative length":    {extents(tree.Extent{Len: -4096}), readFile},
		"an extent beyond the file":       {extents(tree.Extent{Len: 2 << 20}), readFile},
		"an extent beyond the disk":       {extents(tree.Extent{Kind: fsys.Data, Len: 8192, At: 1<<20 - 4096}), readFile},
		"an extent before the disk":       {extents(tree.Extent{Kind: fsys.Data, Len: 8192, At: -1}), readFile},
		"an extent of another disk":       {extents(tree.Extent{Kind: fsys.Data, Len: 8192, Disk: 1}), readFile},
		"a sum that overflows":            {extents(tree.Extent{Kind: fsys.Data, Len: 8192, At: 1<<63 - 1}), readFile},
		"more content than was asked for": {coded(make([]byte, 5000)), readFile},
		"less content than there is":      {coded(nil), readFile},
		"an answer to nobody":             {func(proto.Request) proto.Reply { return proto.Reply{ID: 99} }, list},
		"more machines than were asked for": {func(proto.Request) proto.Reply { return proto.Reply{Machines: make([]proto.Machine, 2)} }, func(g *Guest) error {
			_, err := g.Volumes(t.Context())
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := takenOver(t, tt.answer)
			if err := tt.do(g); err == nil {
				t.Error("got no error")
			}
		})
	}
}

// coded answers that content is stored in another form, and gives b for it.
func coded(b []byte) func(proto.Request) proto.Reply {
	return func(r proto.Request) proto.Reply {
		if r.Op == proto.Extents {
			return proto.Reply{Extents: []tree.Extent{{Kind: fsys.Opaque, Len: r.N}}}
		}
		return proto.Reply{Data: b}
	}
}

func TestReadsOfAProcessThatWasTakenOver(t *testing.T) {
	for name, tt := range map[string]struct {
		disk, n uint32
		off     uint64
		ends    bool // the process is given up
	}{
		"of a disk that there is not": {7, 512, 0, true},
		"of more than may be":         {0, 1 << 31, 0, true},
		"beyond the disk":             {0, 512, 1 << 20, false},
		"from before the disk":        {0, 512, 1 << 63, false},
		"that overflows":              {0, 512, 1<<63 - 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			g, reads := takenOver(t, func(proto.Request) proto.Reply { return proto.Reply{} })
			var b [24]byte
			binary.LittleEndian.PutUint64(b[:], 1)
			binary.LittleEndian.PutUint32(b[8:], tt.disk)
			binary.LittleEndian.PutUint32(b[12:], tt.n)
			binary.LittleEndian.PutUint64(b[16:], tt.off)
			reads.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := reads.Write(b[:]); err != nil {
				t.Fatal(err)
			}
			var answer [16]byte
			_, err := io.ReadFull(reads, answer[:])
			if tt.ends {
				<-g.Done()
				return
			}
			if err != nil || binary.LittleEndian.Uint32(answer[8:]) == 0 {
				t.Errorf("got %v, %v, want a refusal", answer, err)
			}
		})
	}
}

func TestAProcessThatHearsNothingKeepsNobodyWaiting(t *testing.T) {
	near, _ := net.Pipe() // nobody reads there
	nearReads, _ := net.Pipe()
	c := &client{timeout: 100 * time.Millisecond, dead: make(chan struct{}), waiting: map[uint64]chan proto.Reply{}}
	c.serve(near, nearReads, nil)
	g := &Guest{c: c}
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.callFor(ctx, &proto.Request{Op: proto.Volumes}, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("somebody who does not wait: got %v", err)
	}
	if _, err := g.Stat(t.Context(), Node{}); !errors.Is(err, ErrDied) {
		t.Errorf("somebody who waits: got %v, want ErrDied", err)
	}
}

func TestTheEndOfEitherSocketIsTheEndOfTheProcess(t *testing.T) {
	for name, end := range map[string]func(requests, reads net.Conn){
		"of requests": func(requests, _ net.Conn) { requests.Close() },
		"of reads":    func(_, reads net.Conn) { reads.Close() },
		"of reads, in the middle of one": func(_, reads net.Conn) {
			reads.Write(make([]byte, 7))
			reads.Close()
		},
		"of reads, before the answer": func(_, reads net.Conn) {
			reads.Write(append(make([]byte, 12), 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
			reads.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			nearReads, farReads := net.Pipe()
			defer far.Close()
			defer farReads.Close()
			c := &client{timeout: 10 * time.Second, dead: make(chan struct{}), waiting: map[uint64]chan proto.Reply{}}
			c.serve(near, nearReads, []block.Device{blocktest.NewMemory(1 << 20)})
			g := &Guest{c: c}
			defer g.Close()
			end(far, farReads)
			select {
			case <-g.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("nobody noticed")
			}
			if _, err := g.Stat(t.Context(), Node{}); !errors.Is(err, ErrDied) {
				t.Errorf("got %v, want ErrDied", err)
			}
		})
	}
}

func TestAProcessGetsTheKeysOfWhatItFoundLocked(t *testing.T) {
	k := NewKeys([][]byte{[]byte("secret")})
	k.remember([]volume.Key{{UUID: "here", Key: []byte{1, 2}}, {UUID: "elsewhere", Key: []byte{3, 4}}})
	c := k.copies([]Volume{{UUID: "here", Locked: true}})
	if len(c.Known) != 1 || c.Known[0].UUID != "here" {
		t.Fatalf("keys: got %v", c.Known)
	}
	c.Clear()
	if again := k.copies([]Volume{{UUID: "here"}}); !bytes.Equal(again.Known[0].Key, []byte{1, 2}) || string(again.Passphrases[0]) != "secret" {
		t.Errorf("keys after a copy was overwritten: got %v", again)
	}
}

// frame is a frame whose content begins with b and goes on with as much of one kind.
func frame(size int, b ...byte) []byte {
	f := binary.BigEndian.AppendUint32(nil, uint32(size))
	f = append(f, b...)
	return append(f, bytes.Repeat([]byte{0xa0}, size+4-len(f))...) // empty maps
}

func TestAFrameMakesNoMoreOfItselfThanItMay(t *testing.T) {
	array := func(n int) []byte { return binary.BigEndian.AppendUint32([]byte{0x9a}, uint32(n)) }
	volumes := []byte{0xa1, 12} // a reply with machines
	volumes = append(volumes, array(31)...)
	for range 31 { // each with a million volumes
		volumes = append(append(volumes, 0xa1, 2), array(1<<20-1)...)
		volumes = append(volumes, bytes.Repeat([]byte{0xa0}, 1<<20-1)...)
	}
	for name, f := range map[string][]byte{
		"a million entries":               frame(1<<20+7, append([]byte{0xa1, 6}, array(1<<20)...)...),
		"many machines with many volumes": append(binary.BigEndian.AppendUint32(nil, uint32(len(volumes))), volumes...),
		"an array without a length":       frame(1<<20, 0xa1, 6, 0x9f),
	} {
		t.Run(name, func(t *testing.T) {
			var r proto.Reply
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := proto.NewConn(readWriter{bytes.NewReader(f)}).Receive(&r)
			runtime.ReadMemStats(&after)
			if taken := after.TotalAlloc - before.TotalAlloc; err == nil || taken > 128<<20 {
				t.Errorf("got %v, and %d MiB taken", err, taken>>20)
			}
		})
	}
}

type readWriter struct{ io.Reader }

func (readWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestFramesAreBounded(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() {
		far.Write([]byte{0x7f, 0xff, 0xff, 0xff})
	}()
	var r proto.Reply
	if err := proto.NewConn(near).Receive(&r); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a frame of 2 GiB: got %v", err)
	}
}
