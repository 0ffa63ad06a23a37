package nbdserver_test

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/nbdserver"
)

// fuzzServer runs one server for all inputs of a fuzz target.
func fuzzServer(f *testing.F) *served {
	d := &changing{block.Wrapped{Inner: blocktest.NewMemory(64 << 10)}, map[string][]block.Range{"mon": {{Off: 100, Len: 5000}}}}
	raw := newRawFile(f, make([]byte, 64<<10))
	o := nbdserver.Options{MaxRequest: 1 << 20, MaxConns: 1000, HandshakeTimeout: 5 * time.Second}
	return serveOn(f, o, "unix", filepath.Join(f.TempDir(), "s"),
		nbdserver.Export{Name: "", Device: d, Since: []string{"mon"}}, export("file", raw))
}

// feed sends bytes, hangs up its side, and fails unless the server ends the
// connection by itself, having sent no more than what can have been asked for.
func feed(t *testing.T, addr net.Addr, b []byte) {
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go func() {
		conn.Write(b) // the server may hang up before it has read all
		conn.(*net.UnixConn).CloseWrite()
	}()
	n, err := io.Copy(io.Discard, conn)
	if isTimeout(err) {
		t.Fatalf("connection: still open after %d bytes", n)
	}
	if limit := int64(len(b)+100) << 20; n > limit {
		t.Fatalf("server sent %d bytes for %d", n, len(b))
	}
}

func FuzzHandshake(f *testing.F) {
	s := fuzzServer(f)
	flags := []byte{0, 0, 0, 3}
	for _, opts := range [][][]byte{
		{optionBytes(optList, nil)},
		{optionBytes(optStructured, nil), optionBytes(optSetMeta, metaData("", "base:allocation", "qemu:")), optionBytes(optGo, infoData("", 3))},
		{optionBytes(optExtended, nil), optionBytes(optListMeta, metaData("file")), optionBytes(optInfo, infoData("file", 0, 1, 2, 3))},
		{optionBytes(optExportName, []byte("file"))},
		{optionBytes(optStartTLS, nil), optionBytes(optAbort, nil), optionBytes(77, []byte("unknown"))},
	} {
		b := append([]byte(nil), flags...)
		for _, o := range opts {
			b = append(b, o...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { feed(t, s.addr, b) })
}

func FuzzTransmission(f *testing.F) {
	s := fuzzServer(f)
	for st := range 3 {
		c := &client{style: style(st)}
		var b []byte
		b = append(b, c.requestBytes(cmdRead, 0, 1, 0, 4096, nil)...)
		b = append(b, c.requestBytes(cmdRead, fDF, 1, 0, 60000, nil)...)
		b = append(b, c.requestBytes(cmdWrite, fFUA, 1, 100, 10, []byte("0123456789"))...)
		b = append(b, c.requestBytes(cmdZeroes, fFastZero|fNoHole, 1, 100, 5000, nil)...)
		b = append(b, c.requestBytes(cmdStatus, fReqOne, 1, 0, 1<<16, nil)...)
		b = append(b, c.requestBytes(cmdStatus, fPayload, 1, 0, 12, []byte{0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1})...)
		b = append(b, c.requestBytes(cmdTrim, 0, 1, 0, 1<<16, nil)...)
		b = append(b, c.requestBytes(cmdFlush, 0, 1, 0, 0, nil)...)
		b = append(b, c.requestBytes(cmdDisc, 0, 1, 0, 0, nil)...)
		f.Add(uint8(st), true, b)
		f.Add(uint8(st), false, b)
	}
	f.Fuzz(func(t *testing.T, st uint8, file bool, b []byte) {
		name := ""
		if file {
			name = "file"
		}
		head := []byte{0, 0, 0, 3}
		switch st % 3 {
		case 1:
			head = append(head, optionBytes(optStructured, nil)...)
		case 2:
			head = append(head, optionBytes(optExtended, nil)...)
		}
		if st%3 != 0 {
			head = append(head, optionBytes(optSetMeta, metaData(name, "base:allocation", "qemu:dirty-bitmap:since-mon"))...)
		}
		head = append(head, optionBytes(optGo, infoData(name))...)
		feed(t, s.addr, append(head, b...))
	})
}
