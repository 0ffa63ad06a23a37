package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// lingering is storage on which a write of the byte 'a' returns late: after one of
// 'b', or when it is clear that none comes.
type lingering struct {
	diskFile
	begun chan struct{} // closed once 'a' is written
	other chan struct{} // closed once 'b' is written
}

func (l lingering) WriteAt(p []byte, off int64) (int, error) {
	n, err := l.diskFile.WriteAt(p, off)
	switch p[0] {
	case 'a':
		close(l.begun)
		select {
		case <-l.other:
			time.Sleep(10 * time.Millisecond) // for what is left to do behind it
		case <-time.After(100 * time.Millisecond):
		}
	case 'b':
		close(l.other)
	}
	return n, err
}

// Two writers of one cluster may come in any order, but their digests in the same.
func TestIngestTakesWritersOfOneClusterInTurn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "draft")
	if err := Create(path, CreateOptions{Size: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st := lingering{diskFile{f}, make(chan struct{}), make(chan struct{})}
	w, err := newWriter(path, st, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	d, err := NewIngest(t.Context(), w, IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	cluster := func(c byte) []byte { return bytes.Repeat([]byte{c}, 64<<10) }
	// Allocated before, so that the Writer lets both in at once.
	if err := d.WriteAt(t.Context(), cluster('x'), 0); err != nil {
		t.Fatal(err)
	}
	first := make(chan error)
	go func() { first <- d.WriteAt(context.Background(), cluster('a'), 0) }()
	<-st.begun
	if err := errors.Join(d.WriteAt(t.Context(), cluster('b'), 0), <-first); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := d.Finish(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	g, err := ReadDigests(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	r, err := g.Lookup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64<<10)
	if err := d.ReadAt(t.Context(), got, 0); err != nil || r == nil || r.Digest != Sum(got) {
		t.Errorf("digest: got that of something else than %q (%v)", got[:1], err)
	}
}
