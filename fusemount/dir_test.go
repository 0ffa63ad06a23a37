package fusemount_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/requires"
	"golang.org/x/sys/unix"
)

// many returns a folder of n folders, each with a file.
func many(n int) (*folder, *document) {
	root, doc := newFolder(), newDocument(blocktest.NewMemory(1<<20))
	for i := range n {
		d := newFolder()
		d.add("disk", doc)
		root.add(fmt.Sprintf("point-%05d", i), d)
	}
	return root, doc
}

func TestThousandsOfFoldersCostOneListing(t *testing.T) {
	const n = 10000
	root, doc := many(n)
	m := show(t, root, fusemount.Options{})
	for range 2 {
		entries, err := os.ReadDir(m.dir)
		if err != nil || len(entries) != n {
			t.Fatalf("got %d entries, %v, want %d", len(entries), err, n)
		}
		for i, e := range entries {
			if !e.IsDir() || e.Name() != fmt.Sprintf("point-%05d", i) {
				t.Fatalf("entry %d: got %v", i, e)
			}
		}
	}
	if lists, looked := root.counts(); lists != 1 || looked != 0 {
		t.Errorf("the folder was listed %d times and looked into %d times, want once and never", lists, looked)
	}
	for i := range n {
		if i%1000 == 0 {
			lstat(t, fmt.Sprintf("%s/point-%05d/disk", m.dir, i))
		}
	}
	if lists, looked := root.nodes["point-01000"].(*folder).counts(); lists != 0 || looked != 1 {
		t.Errorf("a folder with one name looked up: got %d listings and %d lookups", lists, looked)
	}
	if lists, looked := root.nodes["point-00999"].(*folder).counts(); lists != 0 || looked != 0 {
		t.Errorf("a folder that nobody entered: got %d listings and %d lookups", lists, looked)
	}
	if doc.opened.Load() != 0 {
		t.Error("a file was opened that was only looked at")
	}
}

func TestAttributesAreAskedOnceWhereNamesAreAllThatAListingGives(t *testing.T) {
	root, _ := many(300)
	root.bare = true
	m := show(t, root, fusemount.Options{})
	for range 2 {
		names, err := readNames(m.dir)
		if err != nil || len(names) != 300 {
			t.Fatalf("got %d names, %v, want 300", len(names), err)
		}
		for _, name := range names {
			if st := lstat(t, m.dir+"/"+name); st.Mode != unix.S_IFDIR|0o755 {
				t.Fatalf("%s: got mode %o", name, st.Mode)
			}
		}
	}
	// What does not fit an answer any more may be looked up a second time.
	if _, looked := root.counts(); looked < 300 || looked > 330 {
		t.Errorf("lookups: got %d, want one for each name", looked)
	}
}

// TestSeekingInDirectories is what xfstests generic/257 does: each entry is where
// its position says, in any order.
func TestSeekingInDirectories(t *testing.T) {
	for _, changing := range []bool{false, true} { // and with it, whether the kernel keeps the listing
		root, _ := many(500)
		root.attr.Changing = changing
		m := show(t, root, fusemount.Options{})
		fd, err := unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		all := direntries(t, fd, 1<<10)
		if len(all) != 502 || all[0].name != "." || all[1].name != ".." || all[0].ino != lstat(t, m.dir).Ino {
			t.Fatalf("got %d entries, beginning with %+v", len(all), all[:2])
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		for _, i := range append(rnd.Perm(len(all)), 0, 1, 501) {
			from := int64(0)
			if i > 0 {
				from = all[i-1].off
			}
			if _, err := unix.Seek(fd, from, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if rest := direntries(t, fd, 4096); !slices.Equal(rest, all[i:]) {
				t.Fatalf("from entry %d on: got %d entries, want %d", i, len(rest), len(all)-i)
			}
			if i%10 != 0 { // otherwise from the end
				continue
			}
			for j := i; j < min(i+3, len(all)-1); j++ {
				if _, err := unix.Seek(fd, all[j].off, io.SeekStart); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

type direntry struct {
	name string
	ino  uint64
	off  int64
}

// direntries reads a directory from where it is, with calls of size bytes.
func direntries(t *testing.T, fd, size int) []direntry {
	t.Helper()
	var list []direntry
	for buf := make([]byte, size); ; {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return list
		}
		for b := buf[:n]; len(b) > 0; {
			length := int(b[16]) | int(b[17])<<8
			e := direntry{ino: le64(b), off: int64(le64(b[8:]))}
			e.name, _, _ = strings.Cut(string(b[19:length]), "\x00")
			list = append(list, e)
			b = b[length:]
		}
	}
}

func le64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func TestManyReadersOfOneDirectory(t *testing.T) {
	root, _ := many(2000)
	root.attr.Changing = true // the kernel keeps nothing
	m := show(t, root, fusemount.Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 3 {
				if names, err := readNames(m.dir); err != nil || len(names) != 2000 {
					t.Errorf("got %d names, %v, want 2000", len(names), err)
				}
			}
		}()
	}
	wg.Wait()
}

func TestAListingThatFailsIsNoShortListing(t *testing.T) {
	for _, after := range []int{0, 1, 400} {
		root, _ := many(1000)
		root.err, root.after = errors.New("block 17 has a wrong checksum"), after
		var j journal
		m := show(t, root, fusemount.Options{Log: j.log()})
		for range 2 {
			names, err := readNames(m.dir)
			if !errors.Is(err, unix.EIO) || len(names) > after {
				t.Errorf("fails after %d: got %d names, %v, want EIO", after, len(names), err)
			}
		}
		if n := strings.Count(j.String(), "block 17"); n != 1 {
			t.Errorf("logged %d times, want once:\n%s", n, &j)
		}
		root.mu.Lock()
		root.err = nil
		root.mu.Unlock()
		if names, err := readNames(m.dir); err != nil || len(names) != 1000 {
			t.Errorf("when it works again: got %d names, %v", len(names), err)
		}
	}
}

func TestWhatChangesIsAskedAgain(t *testing.T) {
	root := newFolder()
	root.attr.Changing = true
	m := show(t, root, fusemount.Options{Fresh: time.Nanosecond})
	if _, err := os.Stat(m.dir + "/new"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v, want that it does not exist", err)
	}
	doc := newDocument(blocktest.NewMemory(10))
	root.add("new", doc)
	if st := lstat(t, m.dir+"/new"); st.Size != 10 {
		t.Errorf("a new file: got %d bytes, want 10", st.Size)
	}
	if names, err := readNames(m.dir); err != nil || !slices.Equal(names, []string{"new"}) {
		t.Errorf("list: got %q, %v", names, err)
	}
	root.add("new", newFolder())
	requires.Until(t, "it becomes a folder", func() bool { return lstat(t, m.dir+"/new").Mode&unix.S_IFMT == unix.S_IFDIR })
	root.mu.Lock()
	delete(root.nodes, "new")
	root.names = nil
	root.mu.Unlock()
	requires.Until(t, "it is taken away", func() bool {
		_, err := os.Stat(m.dir + "/new")
		return errors.Is(err, fs.ErrNotExist)
	})
	if names, err := readNames(m.dir); err != nil || len(names) != 0 {
		t.Errorf("list: got %q, %v, want nothing", names, err)
	}
}

func TestWhatDoesNotChangeIsAskedOnce(t *testing.T) {
	root := newFolder()
	root.add("disk", newDocument(blocktest.NewMemory(10)))
	m := show(t, root, fusemount.Options{})
	for range 5 {
		lstat(t, m.dir+"/disk")
		if _, err := os.Stat(m.dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("got %v, want that it does not exist", err)
		}
	}
	if _, looked := root.counts(); looked != 2 {
		t.Errorf("lookups: got %d, want one for what there is and one for what there is not", looked)
	}
}

// stuck is a folder whose listing waits for the reader's end.
type stuck struct {
	*folder
	waits chan struct{}
}

func (d stuck) List(ctx context.Context, yield func(fusemount.Entry) bool) error {
	if !yield(fusemount.Entry{Name: "first"}) {
		return nil
	}
	d.waits <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func TestAKilledReaderOfADirectoryIsNotWaitedFor(t *testing.T) {
	root := newFolder()
	d := stuck{newFolder(), make(chan struct{}, 10)}
	root.add("stuck", d)
	m := show(t, root, fusemount.Options{})
	cmd := role(t, "list", m.dir+"/stuck")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-d.waits
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // was killed; the test is that it returns
}
