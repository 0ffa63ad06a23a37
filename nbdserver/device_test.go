package nbdserver_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/nbdserver"
)

// newFiled returns a device over three files with holes between runs, and its
// content.
func newFiled(t testing.TB) (*blocktest.Filed, []byte) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(7, 8))
	var files []*os.File
	var contents [][]byte
	for i := range 3 {
		b := make([]byte, 4<<20)
		for j := range b {
			b[j] = byte(rnd.Uint32() >> 24)
		}
		files = append(files, tempFile(t, fmt.Sprint(i), b))
		contents = append(contents, b)
	}
	d := new(blocktest.Filed)
	var content []byte
	add := func(l block.Location, b []byte) {
		d.Locations = append(d.Locations, l)
		content = append(content, b...)
	}
	for i := 0; d.Size() < 8<<20; i++ {
		n := 1 + rnd.Int64N(200<<10)
		if i%2 == 0 {
			n = (n + 4095) &^ 4095
		}
		if i%4 == 3 {
			add(block.Location{Len: n, Kind: block.InNothing}, make([]byte, n))
			continue
		}
		k, off := rnd.IntN(3), rnd.Int64N(4<<20-n)
		add(block.Location{Len: n, Kind: block.InFile, File: files[k], Off: off}, contents[k][off:off+n])
	}
	return d, content
}

func tempFile(t testing.TB, name string, content []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// rawFile is a writable device over one file, as plain as can be.
type rawFile struct {
	f    *os.File
	size int64
}

func (d *rawFile) Size() int64 { return d.size }

func (d *rawFile) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.f.ReadAt(p, off)
	return err
}

func (d *rawFile) WriteAt(_ context.Context, p []byte, off int64) error {
	_, err := d.f.WriteAt(p, off)
	return err
}

func (d *rawFile) Flush(context.Context) error { return d.f.Sync() }

func (d *rawFile) Locate(_ context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	return append(dst, block.Location{Len: n, Kind: block.InFile, File: d.f, Off: off}), nil
}

func newRawFile(t testing.TB, content []byte) *rawFile {
	t.Helper()
	return &rawFile{tempFile(t, "disk", content), int64(len(content))}
}

// changing is a device that says what changed since the points of a map.
type changing struct {
	block.Wrapped
	since map[string][]block.Range
}

func (d *changing) Changed(_ context.Context, since string, off, n int64) ([]block.Range, error) {
	all, ok := d.since[since]
	if !ok {
		return nil, fmt.Errorf("no state named %s", since)
	}
	var found []block.Range
	for _, r := range all {
		from, to := max(off, r.Off), min(off+n, r.End())
		if from < to {
			found = append(found, block.Range{Off: from, Len: to - from})
		}
	}
	return found, nil
}

// memory returns a device in memory with random content in some places.
func memory(t testing.TB, size int64) (*blocktest.Memory, []byte) {
	t.Helper()
	m := blocktest.NewMemory(size)
	content := make([]byte, size)
	rnd := rand.New(rand.NewPCG(3, 4))
	for off := int64(0); off < size; off += 64 << 10 {
		if rnd.IntN(3) == 0 {
			continue
		}
		p := content[off:min(size, off+64<<10)]
		for i := range p {
			p[i] = byte(rnd.Uint32() >> 24)
		}
		if err := m.WriteAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
	return m, content
}

// served is a running server.
type served struct {
	*nbdserver.Server
	addr net.Addr
	stop func() error // ends Serve and returns what it said
}

// serve runs a server with exports on a unix socket.
func serve(t testing.TB, o nbdserver.Options, exports ...nbdserver.Export) *served {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return serveOn(t, o, "unix", filepath.Join(dir, "s"), exports...)
}

func serveOn(t testing.TB, o nbdserver.Options, network, address string, exports ...nbdserver.Export) *served {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if o.Log == nil && testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s := nbdserver.New(o)
	for _, e := range exports {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { stop() })
	return &served{s, l.Addr(), stop}
}

func export(name string, d block.Device) nbdserver.Export {
	return nbdserver.Export{Name: name, Device: d}
}

func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("%s: differs from byte %d of %d on: got %#x, want %#x", what, i, len(want), got[i], want[i])
		}
	}
	t.Fatalf("%s: got %d bytes, want %d", what, len(got), len(want))
}
