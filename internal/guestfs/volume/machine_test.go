package volume_test

import (
	"crypto/md5"
	_ "embed"
	"fmt"
	"io"
	"slices"
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

// seen is what the kernel saw of a volume, or of a part of it.
type seen struct {
	path string
	off  int64 // -1: all of it
	size int64
	sum  string
}

// kernelView reads what the script printed.
func kernelView(t *testing.T, out string) []seen {
	t.Helper()
	var list []seen
	for line := range strings.Lines(out) {
		x := seen{off: -1}
		_, err := fmt.Sscan(line, &x.path, &x.size, &x.sum)
		if strings.HasPrefix(line, "part ") {
			_, err = fmt.Sscan(line, new(string), &x.path, &x.off, &x.sum)
			x.size = 2 << 20
		}
		if err != nil {
			t.Fatalf("output %q: %v", line, err)
		}
		list = append(list, x)
	}
	return list
}

// compare compares the content of a volume with what the kernel saw.
func (x seen) compare(t *testing.T, n *volume.Node, disks []volume.Disk) {
	t.Helper()
	off := x.off
	if off < 0 {
		off = 0
		if got := n.Volume.Size(); got != x.size {
			t.Errorf("size of %s: got %d, want %d", x.path, got, x.size)
			return
		}
	}
	if got := sum(t, n.Volume, off, x.size, disks); got != x.sum {
		t.Errorf("content of %s at %d: got %s, want %s", x.path, off, got, x.sum)
	}
}

var secrets = [][]byte{[]byte("wrong"), []byte("secret")}

func TestVolumesAreThoseOfTheKernel(t *testing.T) {
	images, out := storage(t)
	view, all := kernelView(t, out), disks(t, 'c', images...)
	t.Run("all disks", func(t *testing.T) {
		nodes := volume.Scan(all, volume.Options{Keys: &volume.Keys{Passphrases: secrets}})
		t.Logf("\n%s", show(nodes))
		for _, x := range view {
			if n := find(nodes, x.path); n == nil || n.Volume == nil {
				t.Errorf("%s is missing or cannot be read", x.path)
			} else {
				x.compare(t, n, all)
			}
		}
	})
	for i := range all {
		t.Run("without "+all[i].Key, func(t *testing.T) { lacking(t, all, i, view) })
	}
}

// lacking scans all disks but one. What can be read is what it was; what cannot says
// why; and what may be older than what is not here says so, too.
func lacking(t *testing.T, all []volume.Disk, i int, view []seen) {
	rest := append(all[:i:i], all[i+1:]...)
	nodes := volume.Scan(rest, volume.Options{Keys: &volume.Keys{Passphrases: secrets}})
	read, refused := 0, 0
	for _, x := range view {
		n := find(nodes, x.path)
		switch {
		case n == nil && (strings.HasPrefix(x.path, all[i].Key+"/") || strings.HasPrefix(x.path, "onmd/")):
		case n == nil:
			t.Errorf("%s is missing", x.path)
		case n.Volume == nil:
			refused++
			if !strings.Contains(n.Refusal, "missing") && !strings.Contains(n.Refusal, "lacks") {
				t.Errorf("%s: got refusal %q", x.path, n.Refusal)
			}
		case x.path == "md-stale" && all[i].Key == "vdg":
			// Only the member is here that the array did without.
			if text := strings.Join(n.Notes, " "); !strings.Contains(text, "may be older") {
				t.Errorf("%s: got notes %q", x.path, text)
			}
		default:
			read++
			// Half of a mirror does not know what the other half got since; what was taken
			// out of step before is told of as such.
			mirror := slices.Contains([]string{"md-one0", "md-one1", "md-one2", "md5"}, x.path) && (all[i].Key == "vdf" || all[i].Key == "vdg") ||
				x.path == "data/r1" && (all[i].Key == "vdc" || all[i].Key == "vdd")
			if told := strings.Contains(strings.Join(n.Notes, " "), "may be older"); told != mirror {
				t.Errorf("%s: got notes %q", x.path, n.Notes)
			}
			x.compare(t, n, all)
		}
	}
	t.Logf("%d read, %d refused\n%s", read, refused, said(nodes))
	if read == 0 {
		t.Error("nothing could be read")
	}
}
