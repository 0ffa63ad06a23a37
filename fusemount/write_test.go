package fusemount_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/fusemount"
	"golang.org/x/sys/unix"
)

func TestScratchContentTakesWrites(t *testing.T) {
	const size = 5<<20 + 512
	dev := blocktest.NewMemory(size)
	root := newFolder()
	root.add("disk", newDocument(dev))
	m := show(t, root, fusemount.Options{Writable: true, Linger: -1})
	model := filepath.Join(t.TempDir(), "model")
	if err := os.WriteFile(model, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, seed := range []string{"1", "2", "3"} {
		if out, err := role(t, "scribble", m.dir+"/disk", model, "300", seed).CombinedOutput(); err != nil {
			t.Fatalf("random writes, seed %s: %v\n%s", seed, err, out)
		}
		want, err := os.ReadFile(model)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if err := dev.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %s: the device does not hold what was written: %v", seed, err)
		}
	}
}

func TestScratchContentKeepsItsSize(t *testing.T) {
	dev := blocktest.NewMemory(8192)
	var flushed atomic.Int32
	faulty := blocktest.NewFaulty(dev, func(_ context.Context, op string, _, _ int64) error {
		if op == "flush" {
			flushed.Add(1)
		}
		return nil
	})
	root := newFolder()
	doc := newDocument(faulty)
	doc.attr.Modified = time.Unix(1000, 0)
	root.add("disk", doc)
	now := time.Unix(2000, 5)
	m := show(t, root, fusemount.Options{Writable: true, Now: func() time.Time { return now }})
	path := m.dir + "/disk"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if n, err := unix.Pwrite(fd, make([]byte, 4096), 6144); n != 2048 || err != nil {
		t.Errorf("a write across the end: got %d, %v, want 2048", n, err)
	}
	if _, err := unix.Pwrite(fd, []byte{1}, 8192); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write at the end: got %v, want ENOSPC", err)
	}
	if st := lstat(t, path); st.Size != 8192 || st.Mtim != timespec(now) {
		t.Errorf("after writing: got %d bytes of %v, want 8192 of %v", st.Size, st.Mtim, now)
	}
	if err := f.Sync(); err != nil || flushed.Load() != 1 {
		t.Errorf("sync: got %v and %d flushes, want one", err, flushed.Load())
	}
	for _, c := range []struct {
		name string
		do   func() error
		want error
	}{
		{"cut it", func() error { return f.Truncate(100) }, unix.EPERM},
		{"make it longer", func() error { return f.Truncate(10000) }, unix.EPERM},
		{"leave its size", func() error { return f.Truncate(8192) }, nil},
		{"reserve what there is", func() error { return unix.Fallocate(fd, 0, 0, 8192) }, nil},
		{"reserve more", func() error { return unix.Fallocate(fd, 0, 0, 8193) }, unix.ENOSPC},
		{"zero a range", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 100, 200) }, nil},
		{"punch a hole", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, 1<<20)
		}, nil},
		{"take a range out", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096) }, unix.EOPNOTSUPP},
		{"change its mode", func() error { return f.Chmod(0o777) }, unix.EPERM},
		{"give it away", func() error { return f.Chown(1, 1) }, unix.EPERM},
		{"set its time", func() error { return os.Chtimes(path, now, now.Add(time.Hour)) }, nil},
		{"remove it", func() error { return os.Remove(path) }, unix.EPERM},
		{"rename it", func() error { return os.Rename(path, m.dir+"/x") }, unix.EPERM},
		{"link it", func() error { return os.Link(path, m.dir+"/x") }, unix.EPERM},
		{"make a link", func() error { return os.Symlink("x", m.dir+"/x") }, unix.EPERM},
		{"make a folder", func() error { return os.Mkdir(m.dir+"/x", 0o700) }, unix.EPERM},
		{"make a pipe", func() error { return unix.Mkfifo(m.dir+"/x", 0o600) }, unix.EPERM},
		{"set an attribute", func() error { return unix.Setxattr(path, "user.x", nil, 0) }, unix.EPERM},
		{"remove an attribute", func() error { return unix.Removexattr(path, "user.x") }, unix.EPERM},
	} {
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if st := lstat(t, path); st.Size != 8192 || st.Mtim.Sec != 2000+3600 {
		t.Errorf("in the end: got %d bytes of %v", st.Size, st.Mtim)
	}
}

func TestContentThatCannotBeWrittenIsNot(t *testing.T) {
	root := newFolder()
	root.add("disk", newDocument(block.ReadOnly(blocktest.NewMemory(4096))))
	root.add("scratch", newDocument(blocktest.NewMemory(4096)))
	for _, writable := range []bool{false, true} {
		m := show(t, root, fusemount.Options{Writable: writable})
		for _, name := range []string{"disk", "scratch"} {
			f, err := os.OpenFile(m.dir+"/"+name, os.O_WRONLY, 0)
			want := error(unix.EROFS)
			if writable && name == "scratch" {
				want = nil
			}
			if !errors.Is(err, want) {
				t.Errorf("%s, mount writable %v: got %v, want %v", name, writable, err, want)
			}
			f.Close()
		}
	}
}
