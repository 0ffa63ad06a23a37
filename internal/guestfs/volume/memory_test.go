package volume_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// memory is a disk of zeroes but for some parts.
type memory struct {
	size  int64
	parts map[int64][]byte
}

func (m memory) Size() int64 { return m.size }

func (m memory) ReadAt(p []byte, off int64) error {
	if off < 0 || off > m.size-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d of %d: %w", len(p), off, m.size, io.ErrUnexpectedEOF)
	}
	clear(p)
	for at, b := range m.parts {
		if from := max(at, off); from < min(at+int64(len(b)), off+int64(len(p))) {
			copy(p[from-off:], b[from-at:])
		}
	}
	return nil
}

// checkScan scans disks that may hold anything, and fails the test unless what is
// found keeps what a Node promises.
func checkScan(t testing.TB, disks []volume.Disk) []*volume.Node {
	t.Helper()
	nodes := volume.Scan(disks, volume.Options{})
	paths := map[string]bool{}
	volume.Walk(nodes, func(n *volume.Node) bool {
		if paths[n.Path] {
			t.Fatalf("two nodes are called %s", n.Path)
		}
		paths[n.Path] = true
		if n.Volume != nil {
			checkVolume(t, n, disks)
		}
		return true
	})
	return nodes
}

// checkVolume reads some of a volume, and where it is said to lie.
func checkVolume(t testing.TB, n *volume.Node, disks []volume.Disk) {
	t.Helper()
	size := n.Volume.Size()
	if size < 0 || n.Kind != volume.KindGroup && size != n.Size {
		t.Fatalf("%s: size %d, and %d as a volume", n.Path, n.Size, size)
	}
	for _, off := range []int64{0, 4096, size / 3 &^ 511, size - 4096} {
		b := make([]byte, 4096)
		if off < 0 || off+int64(len(b)) > size {
			continue
		}
		readErr := n.Volume.ReadAt(b, off)
		l, ok := n.Volume.(volume.Located)
		if !ok {
			continue
		}
		pieces, err := l.Locate(off, int64(len(b)))
		if err != nil || readErr != nil {
			continue
		}
		at := 0
		for _, p := range pieces {
			got := make([]byte, p.Len)
			if p.Len <= 0 || p.Len > int64(len(b)-at) {
				t.Fatalf("%s: piece %+v of %d bytes", n.Path, p, len(b))
			}
			if p.Disk != volume.Zeroes {
				if err := disks[p.Disk].Volume.ReadAt(got, p.Off); err != nil {
					t.Fatalf("%s: piece %+v: %v", n.Path, p, err)
				}
			}
			if !bytes.Equal(got, b[at:at+len(got)]) {
				t.Fatalf("%s: piece %+v holds something else than is read", n.Path, p)
			}
			at += len(got)
		}
	}
	for _, off := range []int64{-1, size, size - 1, 1 << 62} {
		if n.Volume.ReadAt(make([]byte, 2), off) == nil {
			t.Fatalf("%s: read at %d of %d without an error", n.Path, off, size)
		}
	}
}
