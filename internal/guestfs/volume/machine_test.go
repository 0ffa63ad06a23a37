package volume_test

import (
	"crypto/md5"
	_ "embed"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

//go:embed testdata/storage.sh
var storageScript string

// disks opens images as disks that are called vda, vdb and so on, from first.
func disks(t testing.TB, first byte, images ...string) []volume.Disk {
	t.Helper()
	var list []volume.Disk
	for i, image := range images {
		list = append(list, volume.Disk{Index: i, Key: "vd" + string(first+byte(i)), Volume: fstest.Open(t, image)})
	}
	return list
}

// find returns the node at a path.
func find(nodes []*volume.Node, path string) *volume.Node {
	var found *volume.Node
	volume.Walk(nodes, func(n *volume.Node) bool {
		if n.Path == path {
			found = n
		}
		return found == nil
	})
	return found
}

// show prints a tree.
func show(nodes []*volume.Node) string {
	var b strings.Builder
	volume.Walk(nodes, func(n *volume.Node) bool {
		fmt.Fprintf(&b, "%-24s %-14s %12d %-4s %-18s %q %s also=%v readable=%v refusal=%q notes=%q\n",
			n.Path, n.Kind, n.Size, n.Table, n.Type, n.Label, n.UUID, n.Also, n.Volume != nil, n.Refusal, n.Notes)
		return true
	})
	return b.String()
}

// sum returns the MD5 of n bytes of a volume, and fails the test unless Locate
// leads to the same bytes.
func sum(t *testing.T, v fsys.Volume, off, n int64, disks []volume.Disk) string {
	t.Helper()
	direct, located := md5.New(), md5.New()
	buf := make([]byte, 1<<20)
	for at := off; at < off+n; {
		p := buf[:min(int64(len(buf)), off+n-at)]
		if err := v.ReadAt(p, at); err != nil {
			t.Fatalf("read %d bytes at %d: %v", len(p), at, err)
		}
		direct.Write(p)
		at += int64(len(p))
	}
	l, ok := v.(volume.Located)
	if !ok {
		return fmt.Sprintf("%x", direct.Sum(nil))
	}
	for at := off; at < off+n; {
		pieces, err := l.Locate(at, off+n-at)
		if err != nil || len(pieces) == 0 {
			t.Fatalf("locate %d bytes at %d: got %d pieces, %v", off+n-at, at, len(pieces), err)
		}
		for _, p := range pieces {
			if p.Disk == volume.Zeroes {
				io.CopyN(located, zeroReader{}, p.Len)
			} else {
				b := make([]byte, p.Len)
				if err := disks[p.Disk].Volume.ReadAt(b, p.Off); err != nil {
					t.Fatalf("piece %+v: %v", p, err)
				}
				located.Write(b)
			}
			at += p.Len
		}
	}
	if got, want := fmt.Sprintf("%x", located.Sum(nil)), fmt.Sprintf("%x", direct.Sum(nil)); got != want {
		t.Errorf("content by Locate: got %s, by reading %s", got, want)
	}
	return fmt.Sprintf("%x", direct.Sum(nil))
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// storage makes the disks that the script fills, and returns them with what the
// kernel saw of their volumes.
func storage(t *testing.T) ([]string, string) {
	const lvm = 128 << 20
	md := func(name string, sizes ...int64) string {
		var parts []partition
		for _, mib := range sizes {
			parts = append(parts, partition{mib: mib})
		}
		return partitioned(t, name, 400<<20, "gpt", parts...)
	}
	images := []string{
		partitioned(t, "vdc", lvm, "gpt", partition{mib: 1, name: "boot"}, partition{name: "physical", lvm: true}),
		partitioned(t, "vdd", lvm, ""),
		partitioned(t, "vde", lvm, ""),
		md("vdf", 9, 9, 9, 9, 9, 14, 9, 9, 9, 9, 9, 34, 9),
		md("vdg", 9, 9, 9, 9, 13, 9, 12, 9, 9, 9, 9, 34, 9),
		partitioned(t, "vdh", 128<<20, "dos", partition{mib: 8}, partition{mib: 8}, partition{mib: 24}, partition{mib: 24}),
	}
	return images, fstest.InMachine(t, storageScript, images...)
}

func TestVolumesAreThoseOfTheKernel(t *testing.T) {
	images, out := storage(t)
	list := disks(t, 'c', images...)
	nodes := volume.Scan(list, volume.Options{Keys: &volume.Keys{Passphrases: [][]byte{[]byte("wrong"), []byte("secret")}}})
	t.Logf("\n%s", show(nodes))
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if f[0] == "part" {
			n, off := find(nodes, f[1]), int64(0)
			fmt.Sscan(f[2], &off)
			if n == nil || n.Volume == nil {
				t.Errorf("%s is missing or cannot be read", f[1])
			} else if got := sum(t, n.Volume, off, 2<<20, list); got != f[3] {
				t.Errorf("content of %s at %d: got %s, want %s", f[1], off, got, f[3])
			}
			continue
		}
		n := find(nodes, f[0])
		if n == nil || n.Volume == nil {
			t.Errorf("%s is missing or cannot be read", f[0])
			continue
		}
		if got := fmt.Sprint(n.Volume.Size()); got != f[1] {
			t.Errorf("size of %s: got %s, want %s", f[0], got, f[1])
			continue
		}
		if got := sum(t, n.Volume, 0, n.Volume.Size(), list); got != f[2] {
			t.Errorf("content of %s: got %s, want %s", f[0], got, f[2])
		}
	}
}
