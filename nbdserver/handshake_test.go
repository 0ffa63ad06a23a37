package nbdserver_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/nbdserver"
)

func TestHandshakeOptions(t *testing.T) {
	d := &changing{block.Wrapped{Inner: blocktest.NewMemory(1 << 20)}, map[string][]block.Range{"mon": nil, "tue": nil}}
	s := serve(t, nbdserver.Options{},
		nbdserver.Export{Name: "disk", Device: d, Since: []string{"mon", "tue"}},
		nbdserver.Export{Name: "", Device: d, ReadOnly: true})
	tests := []struct {
		name string
		opt  uint32
		data []byte
		want uint32
	}{
		{"an unknown option is skipped", 99, []byte("whatever it says"), repUnsup},
		{"an unknown option without data is skipped", 4, nil, repUnsup},
		{"a long unknown option is too big", 99, make([]byte, 100<<10), repTooBig},
		{"a list takes no data", optList, []byte{1}, repInvalid},
		{"structured replies take no data", optStructured, []byte{1}, repInvalid},
		{"extended headers take no data", optExtended, []byte{1}, repInvalid},
		{"TLS is refused where there is none", optStartTLS, nil, repPolicy},
		{"TLS takes no data", optStartTLS, []byte{1}, repInvalid},
		{"an export that is not there is unknown", optInfo, infoData("nope"), repUnknown},
		{"going to an export that is not there fails", optGo, infoData("nope"), repUnknown},
		{"a name longer than the option is invalid", optInfo, []byte{0, 0, 1, 0, 'x', 0, 0}, repInvalid},
		{"a name of 4 GiB is invalid", optGo, []byte{255, 255, 255, 255, 'x', 0, 0}, repInvalid},
		{"an empty option is invalid", optGo, nil, repInvalid},
		{"fewer information requests than announced are invalid", optGo, infoData("disk", 3)[:11], repInvalid},
		{"more information requests than announced are invalid", optGo, append(infoData("disk"), 0, 3), repInvalid},
		{"information about an export succeeds", optInfo, infoData("disk", 0, 1, 2, 3, 77), repAck},
		{"contexts need structured replies", optSetMeta, metaData("disk", "base:allocation"), repInvalid},
		{"a list of contexts needs structured replies", optListMeta, metaData("disk"), repInvalid},
	}
	c := connect(t, s.addr)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			rs := c.option(tt.opt, tt.data)
			if got := rs[len(rs)-1].kind; got != tt.want {
				t.Errorf("reply: got %#x, want %#x", got, tt.want)
			}
		})
	}
	// After all of that the connection still works.
	c.t = t
	c.enter("disk")
	if got := c.do(cmdRead, 0, 0, 512, nil); got.errno != 0 {
		t.Errorf("read: got error %d", got.errno)
	}
}

func TestHandshakeThatEndsTheConnection(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("disk", blocktest.NewMemory(1<<20)))
	flags := func(f byte) []byte { return []byte{0, 0, 0, f} }
	tests := []struct {
		name string
		send []byte
	}{
		{"reserved client flags", flags(7)},
		{"a high reserved client flag", []byte{0x80, 0, 0, 3}},
		{"a wrong magic", append(flags(3), make([]byte, 16)...)},
		{"an option of 4 GiB", append(flags(3), 'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 99, 255, 255, 255, 255)},
		{"an export name that does not exist", append(flags(3), optionBytes(optExportName, []byte("nope"))...)},
		{"an export name that is far too long", append(flags(3), optionBytes(optExportName, make([]byte, 70<<10))...)},
		{"an option without fixed newstyle", append(flags(0), optionBytes(optList, nil)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, s.addr)
			c.read(18)
			c.conn.Write(tt.send) // may fail when the server is faster
			c.closed()
		})
	}
}

func TestDisconnectDuringTheHandshake(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("disk", blocktest.NewMemory(1<<20)))
	whole := append([]byte{0, 0, 0, 3}, optionBytes(optInfo, infoData("disk", 0, 3))...)
	for n := range len(whole) {
		c := dial(t, s.addr)
		c.write(whole[:n])
		c.conn.Close()
	}
	attach(t, s.addr, "disk", structured)
}

func TestExportName(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("disk", blocktest.NewMemory(1<<20)))
	for _, tt := range []struct {
		name   string
		flags  byte
		zeroes int
	}{
		{"with padding", 1, 124},
		{"without padding", 3, 0},
		{"from a client that is not fixed newstyle", 0, 124},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, s.addr)
			c.read(18)
			c.write([]byte{0, 0, 0, tt.flags})
			c.write(optionBytes(optExportName, []byte("disk")))
			h := c.read(10 + tt.zeroes)
			if got := be.Uint64(h); got != 1<<20 {
				t.Errorf("size: got %d", got)
			}
			if f := be.Uint16(h[8:]); f&1 == 0 || f&(1<<7) != 0 {
				t.Errorf("flags: got %#x, want has-flags and no DF", f)
			}
			if r := c.do(cmdRead, 0, 0, 4096, nil); r.errno != 0 || len(r.data) != 4096 {
				t.Errorf("read: got %+v", r.errno)
			}
		})
	}
	t.Run("not after extended headers", func(t *testing.T) {
		c := connect(t, s.addr)
		c.negotiate(extended)
		c.write(optionBytes(optExportName, []byte("disk")))
		c.closed()
	})
}

func TestAbortIsAnswered(t *testing.T) {
	s := serve(t, nbdserver.Options{})
	c := connect(t, s.addr)
	c.must(optAbort, []byte("data to be ignored"))
	c.closed()
}

func TestListIsInOrder(t *testing.T) {
	d := blocktest.NewMemory(4096)
	s := serve(t, nbdserver.Options{}, export("b", d), export("", d), export("c", d),
		nbdserver.Export{Name: "a", Device: d, Description: "the first"})
	var got []string
	for _, r := range connect(t, s.addr).must(optList, nil) {
		if r.kind == repServer {
			n := be.Uint32(r.data)
			got = append(got, string(r.data[4:4+n])+"|"+string(r.data[4+n:]))
		}
	}
	if want := []string{"|", "a|the first", "b|", "c|"}; !slices.Equal(got, want) {
		t.Errorf("exports: got %q, want %q", got, want)
	}
}

func TestExtendedHeadersWinOverStructuredReplies(t *testing.T) {
	s := serve(t, nbdserver.Options{}, export("disk", blocktest.NewMemory(1<<20)))
	c := connect(t, s.addr)
	c.negotiate(structured)
	c.negotiate(extended)
	if got := c.option(optStructured, nil)[0].kind; got != repExtReqd {
		t.Errorf("structured after extended: got %#x, want %#x", got, uint32(repExtReqd))
	}
	c.enter("disk")
	if r := c.do(cmdRead, 0, 4096, 4096, nil); r.errno != 0 {
		t.Errorf("read: got error %d", r.errno)
	}
}

func TestInformation(t *testing.T) {
	s := serve(t, nbdserver.Options{MaxRequest: 8 << 20}, nbdserver.Export{Name: "disk", Description: "a disk",
		Device: blocktest.NewMemory(1 << 20), MinBlock: 512, PreferredBlock: 65536, MaxBlock: 1 << 20})
	got := map[uint16][]byte{}
	for _, r := range connect(t, s.addr).must(optInfo, infoData("disk", 0, 1, 2, 3)) {
		if r.kind == repInfo {
			got[be.Uint16(r.data)] = r.data[2:]
		}
	}
	if be.Uint64(got[0]) != 1<<20 || string(got[1]) != "disk" || string(got[2]) != "a disk" {
		t.Errorf("information: got %v", got)
	}
	if b := got[3]; be.Uint32(b) != 512 || be.Uint32(b[4:]) != 65536 || be.Uint32(b[8:]) != 1<<20 {
		t.Errorf("block sizes: got %x", b)
	}
}

func TestMetadataContexts(t *testing.T) {
	d := &changing{block.Wrapped{Inner: blocktest.NewMemory(1 << 20)}, map[string][]block.Range{"mon": nil, "tue": nil}}
	s := serve(t, nbdserver.Options{},
		nbdserver.Export{Name: "disk", Device: d, Since: []string{"mon", "tue"}}, export("other", d))
	const mon, tue = "qemu:dirty-bitmap:since-mon", "qemu:dirty-bitmap:since-tue"
	tests := []struct {
		name    string
		opt     uint32
		queries []string
		want    []string
	}{
		{"a list without queries has all", optListMeta, nil, []string{"base:allocation", mon, tue}},
		{"a list of the base namespace", optListMeta, []string{"base:"}, []string{"base:allocation"}},
		{"a list of QEMU's namespace", optListMeta, []string{"qemu:"}, []string{mon, tue}},
		{"a list of dirty bitmaps", optListMeta, []string{"qemu:dirty-bitmap:"}, []string{mon, tue}},
		{"a list of one by name", optListMeta, []string{tue}, []string{tue}},
		{"a list of unknown ones is empty", optListMeta, []string{"x-y:z", "base:nope", "rubbish"}, nil},
		{"nothing selects nothing", optSetMeta, nil, nil},
		{"wildcards select nothing", optSetMeta, []string{"base:", "qemu:", "qemu:dirty-bitmap:", "x:"}, nil},
		{"names select, each once", optSetMeta, []string{tue, "base:allocation", tue}, []string{"base:allocation", tue}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, s.addr)
			c.negotiate(structured)
			var got []string
			ids := map[uint32]bool{}
			for _, r := range c.must(tt.opt, metaData("disk", tt.queries...)) {
				if r.kind == repMeta {
					got = append(got, string(r.data[4:]))
					ids[be.Uint32(r.data)] = true
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("contexts: got %q, want %q", got, tt.want)
			}
			if tt.opt == optSetMeta && len(ids) != len(got) {
				t.Errorf("ids of %q: got %v, want them to differ", got, ids)
			}
		})
	}
	for name, data := range map[string][]byte{
		"a query that is cut short":       metaData("disk", "base:allocation")[:20],
		"more queries than there is data": append(metaData("disk")[:8], 255, 255, 255, 255),
		"bytes behind the queries":        append(metaData("disk", "base:"), 0),
		"no queries at all":               []byte{0, 0, 0, 0},
		"a query of 4 GiB":                append(metaData("disk")[:8], 0, 0, 0, 1, 255, 255, 255, 255),
	} {
		t.Run(name+" is invalid", func(t *testing.T) {
			c := connect(t, s.addr)
			c.negotiate(structured)
			if got := c.option(optSetMeta, data)[0].kind; got != repInvalid {
				t.Errorf("reply: got %#x, want %#x", got, uint32(repInvalid))
			}
		})
	}
	t.Run("contexts of another export do not count", func(t *testing.T) {
		c := connect(t, s.addr)
		c.negotiate(structured)
		c.must(optSetMeta, metaData("disk", "base:allocation"))
		c.enter("other")
		if got := c.do(cmdStatus, 0, 0, 4096, nil).errno; got != eInval {
			t.Errorf("block status: got error %d, want %d", got, eInval)
		}
	})
	t.Run("a selection that fails drops the one before", func(t *testing.T) {
		c := connect(t, s.addr)
		c.negotiate(structured)
		c.must(optSetMeta, metaData("disk", "base:allocation"))
		c.option(optSetMeta, metaData("nope", "base:allocation"))
		c.enter("disk")
		if got := c.do(cmdStatus, 0, 0, 4096, nil).errno; got != eInval {
			t.Errorf("block status: got error %d, want %d", got, eInval)
		}
	})
}

func TestTransmissionFlags(t *testing.T) {
	d := blocktest.NewMemory(1 << 20)
	s := serve(t, nbdserver.Options{}, export("rw", d), nbdserver.Export{Name: "ro", Device: d, ReadOnly: true},
		export("reader", readerOnly{d}))
	const base = 1 | 4 | 8 | 1<<8 | 1<<10
	const changes = 1<<5 | 1<<6 | 1<<11
	for _, tt := range []struct {
		name, export string
		style        style
		contexts     []string
		want         uint16
	}{
		{"a writable export can do everything", "rw", structured, nil, base | changes | 1<<7},
		{"no structured replies, no DF", "rw", simple, nil, base | changes},
		{"a read-only export", "ro", structured, nil, base | 2 | 1<<7},
		{"a device that cannot be written", "reader", structured, nil, base | 2 | 1<<7},
		{"status payloads with extended headers and contexts", "ro", extended, []string{"base:allocation"}, base | 2 | 1<<7 | 1<<12},
		{"no status payloads without contexts", "ro", extended, nil, base | 2 | 1<<7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := attach(t, s.addr, tt.export, tt.style, tt.contexts...).flags; got != tt.want {
				t.Errorf("flags: got %#x, want %#x", got, tt.want)
			}
		})
	}
}

// readerOnly hides every capability of a device.
type readerOnly struct{ d block.Device }

func (r readerOnly) Size() int64 { return r.d.Size() }
func (r readerOnly) ReadAt(ctx context.Context, p []byte, off int64) error {
	return r.d.ReadAt(ctx, p, off)
}

func TestHandshakeIsBoundedInTime(t *testing.T) {
	s := serve(t, nbdserver.Options{HandshakeTimeout: 50 * time.Millisecond}, export("disk", blocktest.NewMemory(4096)))
	c := dial(t, s.addr)
	if rest, err := io.ReadAll(c.conn); err != nil || len(rest) != 18 {
		t.Errorf("a client that says nothing: got %d bytes and %v, want the greeting and the end", len(rest), err)
	}
	c = attach(t, s.addr, "disk", simple)
	time.Sleep(100 * time.Millisecond)
	if r := c.do(cmdRead, 0, 0, 512, nil); r.errno != 0 {
		t.Errorf("read long after the handshake: got error %d", r.errno)
	}
}

func TestAuthorization(t *testing.T) {
	d := blocktest.NewMemory(4096)
	o := nbdserver.Options{Authorize: func(_ context.Context, _ net.Conn, export string) error {
		if strings.HasPrefix(export, "secret") {
			return errors.New("not for you")
		}
		return nil
	}}
	s := serve(t, o, export("open", d), export("secret", d))
	c := connect(t, s.addr)
	if got := c.must(optList, nil); len(got) != 2 {
		t.Errorf("list: got %d replies, want one export and the ack", len(got))
	}
	for _, opt := range []uint32{optInfo, optGo} {
		if got := c.option(opt, infoData("secret"))[0].kind; got != repPolicy {
			t.Errorf("option %d: got %#x, want %#x", opt, got, uint32(repPolicy))
		}
	}
	c.enter("open")
	c = connect(t, s.addr)
	c.write(optionBytes(optExportName, []byte("secret")))
	c.closed()
}

func TestAddRefusesWhatCannotBeServed(t *testing.T) {
	d := blocktest.NewMemory(4096)
	s := nbdserver.New(nbdserver.Options{})
	if err := s.Add(export("twice", d)); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]nbdserver.Export{
		"no device":                       {Name: "x"},
		"a name that is taken":            {Name: "twice", Device: d},
		"a name that is too long":         {Name: strings.Repeat("x", 4097), Device: d},
		"a name with NUL":                 {Name: "a\x00b", Device: d},
		"a name that is not UTF-8":        {Name: "\xff", Device: d},
		"an empty since":                  {Name: "x", Device: d, Since: []string{""}},
		"a minimum that is no power of 2": {Name: "x", Device: d, MinBlock: 3},
		"a minimum that is too large":     {Name: "x", Device: d, MinBlock: 1 << 17},
		"a preferred below the minimum":   {Name: "x", Device: d, MinBlock: 4096, PreferredBlock: 512},
		"a maximum below the preferred":   {Name: "x", Device: d, MaxBlock: 512},
		"a maximum beyond the server's":   {Name: "x", Device: d, MaxBlock: 1 << 30},
	} {
		if err := s.Add(e); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
