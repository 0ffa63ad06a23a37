package guestfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestAFullWalkBringsWhatQuestionsTell(t *testing.T) {
	for name, mkfs := range map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-O", "inline_data", "-I", "512"},
		"xfs":   {"mkfs.xfs", "-q", "-f"},
		"btrfs": {"mkfs.btrfs", "-q", "-f"},
	} {
		t.Run(name, func(t *testing.T) {
			image := fstest.Filled(t, 512<<20, name, func(dir string) { fstest.Populate(t, dir, fstest.Without{Large: 2500}) }, mkfs...)
			g := open(t, []string{image})
			root, err := g.Resolve(t.Context(), "/", true)
			if err != nil {
				t.Fatal(err)
			}
			n, links, xattrs := 0, 0, 0
			err = g.WalkFull(t.Context(), root.Node, guestfs.Match{}, guestfs.Wanted{Xattrs: true, Files: true}, func(e guestfs.FullEntry) error {
				n++
				list, err := g.Xattrs(t.Context(), e.Node)
				if err != nil || e.XattrsErr != nil || len(list)+len(e.Xattrs) > 0 && !reflect.DeepEqual(list, e.Xattrs) {
					t.Errorf("extended attributes of %q: got %v (%v), want %v (%v)", e.Name, e.Xattrs, e.XattrsErr, list, err)
				}
				xattrs += len(list)
				if e.Attr.Mode.Type() == fs.ModeSymlink {
					links++
					if target, err := g.Readlink(t.Context(), e.Node); err != nil || target != e.Target {
						t.Errorf("target of %q: got %q, want %q (%v)", e.Name, e.Target, target, err)
					}
				}
				if !e.Attr.Mode.IsRegular() {
					return nil
				}
				f, err := g.OpenFile(e.Entry)
				if err != nil {
					return err
				}
				sameFile(t, e.Name, e.File, f)
				return nil
			})
			if err != nil || n < 2000 || links < 10 || xattrs < 20 {
				t.Errorf("walk: got %d entries, %d links, %d extended attributes, %v", n, links, xattrs, err)
			}
		})
	}
}

// sameFile compares the content of a file, in pieces, and its holes with another
// view of it.
func sameFile(t *testing.T, name string, got, want *guestfs.File) {
	t.Helper()
	a, b := make([]byte, got.Size()), make([]byte, want.Size())
	err := want.ReadAt(t.Context(), b, 0)
	for off := int64(0); off < got.Size() && err == nil; off += 700_001 {
		err = got.ReadAt(t.Context(), a[off:min(off+700_001, got.Size())], off)
	}
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("content of %q differs (%v)", name, err)
	}
	extents, err := want.Map(t.Context(), 0, want.Size())
	if err != nil {
		t.Errorf("%q: %v", name, err)
	}
	off := int64(0)
	for _, e := range extents {
		if e.Kind == block.Hole {
			continue
		}
		from, to, err := got.Data(t.Context(), off)
		if err != nil || from != e.Off || to != e.Off+e.Len {
			t.Errorf("data of %q at or behind %d: got %d to %d (%v), want %+v", name, off, from, to, err, e)
		}
		if in, _, err := got.Data(t.Context(), e.Off+e.Len/2); err != nil || in != e.Off+e.Len/2 {
			t.Errorf("data of %q at %d: got %d (%v)", name, e.Off+e.Len/2, in, err)
		}
		off = to
	}
	if from, to, err := got.Data(t.Context(), off); err != nil || from != got.Size() || to != got.Size() {
		t.Errorf("data of %q behind the last: got %d to %d (%v), want none", name, from, to, err)
	}
}

func TestAMapOfManyExtentsComesInParts(t *testing.T) {
	const block4k, runs = 4096, 3000
	dir := t.TempDir()
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(runs) {
		if _, err := f.WriteAt(bytes.Repeat([]byte("x"), block4k), 2*i*block4k); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	g := open(t, []string{fstest.Make(t, 64<<20, "mkfs.ext4", "-q", "-b", "4096", "-d", dir)})
	e, err := g.Resolve(t.Context(), "/sparse", true)
	if err != nil {
		t.Fatal(err)
	}
	file, err := g.OpenFile(e)
	if err != nil {
		t.Fatal(err)
	}
	first, err := file.Map(t.Context(), 0, file.Size())
	if err != nil || len(first) == 0 || len(first) > 1024 {
		t.Errorf("a map: got %d extents, %v, want 1024 at most", len(first), err)
	}
	n := 0
	err = block.MapAll(t.Context(), file, 0, file.Size(), func(e block.Extent) error {
		if n++; e.Len != block4k || (e.Kind == block.Hole) != (e.Off/block4k%2 == 1) {
			t.Errorf("extent: got %+v", e)
		}
		return nil
	})
	if err != nil || n != 2*runs-1 {
		t.Errorf("all of it: got %d extents, %v, want %d", n, err, 2*runs-1)
	}
}

func TestAWalkOfLongPathsEnds(t *testing.T) {
	dir := t.TempDir()
	at, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("x", 250)
	for range 80 { // 20 KiB of path; a batch of such is more than a message may have
		if err := at.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		below, err := at.OpenRoot(name)
		if err := errors.Join(err, at.Close()); err != nil {
			t.Fatal(err)
		}
		at = below
	}
	for i := range 2500 {
		if err := at.WriteFile(fmt.Sprintf("file-%d", i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at.Close()
	g := open(t, []string{fstest.Make(t, 64<<20, "mkfs.ext4", "-q", "-d", dir)})
	root, err := g.Resolve(t.Context(), "/", true)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = g.Walk(t.Context(), root.Node, guestfs.Match{Type: "f"}, func(e guestfs.Entry) error { n++; return e.Err })
	if err != nil || n != 2500 {
		t.Errorf("walk: got %d files, %v, want 2500", n, err)
	}
}

// gated is a disk that does not answer before it is told to.
type gated struct {
	device
	closed *atomic.Bool
	gate   chan struct{}
}

func (g gated) ReadAt(ctx context.Context, p []byte, off int64) error {
	if g.closed.Load() {
		select {
		case <-g.gate:
		case <-ctx.Done():
		}
	}
	return g.device.ReadAt(ctx, p, off)
}

func TestAWalkThatFindsNothingForLongGoesOn(t *testing.T) {
	image := fstest.Filled(t, 512<<20, "ext4", func(dir string) { fstest.Populate(t, dir, fstest.Without{Large: 5000}) }, "mkfs.ext4", "-q")
	disk := gated{device{fstest.Open(t, image)}, new(atomic.Bool), make(chan struct{})}
	g, err := guestfs.Open(t.Context(), []guestfs.Disk{{Device: disk}}, guestfs.Options{Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	root, err := g.Resolve(t.Context(), "/", true)
	if err != nil {
		t.Fatal(err)
	}
	disk.closed.Store(true)
	time.AfterFunc(3*time.Second, func() { close(disk.gate) })
	if err := g.Walk(t.Context(), root.Node, guestfs.Match{Name: "nothing"}, func(e guestfs.Entry) error { return e.Err }); err != nil {
		t.Errorf("walk: got %v", err)
	}
	if _, err := g.Resolve(t.Context(), "/", true); err != nil {
		t.Errorf("after it: got %v", err)
	}
}

func TestTooManyWalksAreRefusedAsThat(t *testing.T) {
	g := open(t, []string{filled(t, map[string]string{"file": "x"})})
	root, err := g.Resolve(t.Context(), "/", true)
	if err != nil {
		t.Fatal(err)
	}
	const most = 32
	begun, end := make(chan struct{}, most), make(chan struct{})
	var wg sync.WaitGroup
	for range most {
		wg.Go(func() {
			err := g.Walk(t.Context(), root.Node, guestfs.Match{Type: "f"}, func(guestfs.Entry) error {
				begun <- struct{}{}
				<-end
				return nil
			})
			if err != nil {
				t.Errorf("walk: got %v", err)
			}
		})
	}
	for range most {
		<-begun
	}
	walk := func() error {
		return g.Walk(t.Context(), root.Node, guestfs.Match{}, func(guestfs.Entry) error { return nil })
	}
	if err := walk(); !errors.Is(err, guestfs.ErrBusy) || guestfs.OwnFault(err) {
		t.Errorf("one walk more: got %v, want ErrBusy", err)
	}
	close(end)
	wg.Wait()
	if err := walk(); err != nil {
		t.Errorf("after they have ended: got %v", err)
	}
}

// failing is a disk that fails when it is told to.
type failing struct {
	device
	broken *atomic.Bool
}

func (f failing) ReadAt(ctx context.Context, p []byte, off int64) error {
	if f.broken.Load() {
		return errors.New("broken")
	}
	return f.device.ReadAt(ctx, p, off)
}

func TestADiskThatFailsIsNoFaultOfTheGuest(t *testing.T) {
	for name, mkfs := range map[string][]string{"ext4": {"mkfs.ext4", "-q"}, "xfs": {"mkfs.xfs", "-q", "-f"}, "btrfs": {"mkfs.btrfs", "-q", "-f"}} {
		t.Run(name, func(t *testing.T) {
			image := fstest.Filled(t, 512<<20, name, func(dir string) { fstest.Populate(t, dir, fstest.Without{}) }, mkfs...)
			disk := failing{device{fstest.Open(t, image)}, new(atomic.Bool)}
			g, err := guestfs.Open(t.Context(), []guestfs.Disk{{Device: disk}}, guestfs.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			root, err := g.Resolve(t.Context(), "/", true)
			if err != nil {
				t.Fatal(err)
			}
			disk.broken.Store(true)
			n := 0
			err = g.WalkFull(t.Context(), root.Node, guestfs.Match{}, guestfs.Wanted{Xattrs: true}, func(e guestfs.FullEntry) error {
				for _, err := range []error{e.Err, e.XattrsErr} {
					if err == nil {
						continue
					}
					if n++; guestfs.OwnFault(err) || !errors.Is(err, guestfs.ErrVolume) {
						t.Errorf("%q: got %v, want that the disk fails", e.Name, err)
					}
				}
				return nil
			})
			if err == nil && n == 0 || guestfs.OwnFault(err) {
				t.Errorf("walk: got %v and %d errors, want that the disk fails", err, n)
			}
		})
	}
}
