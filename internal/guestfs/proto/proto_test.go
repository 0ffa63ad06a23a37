package proto_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/tree"
)

// oneWay is a connection that can be read or written.
type oneWay struct{ *bytes.Buffer }

func receive(frame []byte) (proto.Reply, error) {
	var r proto.Reply
	err := proto.NewConn(oneWay{bytes.NewBuffer(frame)}).Receive(&r)
	return r, err
}

func FuzzReceive(f *testing.F) {
	for _, r := range []proto.Reply{
		{ID: 1, Err: &proto.Error{Text: "x", Code: 3, Path: "/a", Nearest: "/"}},
		{Entries: []proto.Entry{{Name: "a", Node: tree.Node{FS: 7, ID: 300}, Xattrs: []fsys.Xattr{{Name: "user.x", Value: []byte{1}}}}}, Done: true},
		{Data: make([]byte, 300), Extents: []tree.Extent{{Kind: fsys.Data, Len: 1 << 40, Disk: 1, At: 70000}}},
		{Machines: []proto.Machine{{OS: tree.OS{Name: "x"}, Volumes: []tree.Volume{{Path: "disk-0/p1", Free: -1}}, Root: true}}},
	} {
		var b bytes.Buffer
		if err := proto.NewConn(oneWay{&b}).Send(r); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes()[4:])
	}
	f.Add([]byte{0xa1, 6, 0x9a, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := receive(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := proto.NewConn(oneWay{&again}).Send(r); err != nil {
			t.Fatalf("what was received cannot be sent: %v", err)
		}
		if got, err := receive(again.Bytes()); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("round trip: got %+v, %v, want %+v", got, err, r)
		}
	})
}

func TestMessagesThatAreTooLongAreNotSent(t *testing.T) {
	for name, r := range map[string]proto.Reply{
		"bytes":           {Data: make([]byte, proto.MaxFrame)},
		"of one kind":     {Extents: make([]tree.Extent, 1<<15+1)},
		"elements in all": {Entries: many(100, proto.Entry{Extents: make([]tree.Extent, 10_000)})},
	} {
		var b bytes.Buffer
		if err := proto.NewConn(oneWay{&b}).Send(r); err == nil || b.Len() > 0 {
			t.Errorf("too many %s: got %v, and %d bytes sent", name, err, b.Len())
		}
	}
	if _, err := receive([]byte{0, 0, 0, 5, 0xa1}); err != io.ErrUnexpectedEOF {
		t.Errorf("a frame that breaks off: got %v", err)
	}
}

func many[T any](n int, x T) []T {
	list := make([]T, n)
	for i := range list {
		list[i] = x
	}
	return list
}
