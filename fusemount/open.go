package fusemount

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sendense/sendense/block"
)

// file is a file that was opened: all who have it open share one content.
type file struct {
	node *node
	turn chan struct{} // holds an element while somebody uses the fields below

	users   int
	closing *time.Timer // runs from when the last user went; nil while there are some

	open atomic.Pointer[content] // nil while it is closed; set in turn
}

// content is a Content, with what is known of it.
type content struct {
	Content
	size     int64
	writable bool
	copied   atomic.Bool // cannot be spliced
}

// files are the contents that are open.
type files struct {
	linger   time.Duration // for which a content stays open without users
	writable bool          // the mount is
	once     *once

	mu   sync.Mutex // guards the field below
	open map[*file]struct{}
}

// of returns the file of a node.
func (fl *files) of(n *node) *file {
	f := n.file.Load()
	if f == nil {
		f = &file{node: n, turn: make(chan struct{}, 1)}
		if !n.file.CompareAndSwap(nil, f) {
			f = n.file.Load()
		}
	}
	return f
}

// use opens f for one more user, who has to release it.
func (fl *files) use(ctx context.Context, f *file, tree File, write bool) error {
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-f.turn }()
	if f.open.Load() == nil {
		if err := fl.begin(ctx, f, tree); err != nil {
			return err
		}
	}
	if write && !f.open.Load().writable {
		if f.users == 0 {
			fl.idle(f)
		}
		return block.ErrReadOnly
	}
	if f.closing != nil {
		f.closing.Stop()
		f.closing = nil
	}
	f.users++
	return nil
}

// begin opens the content of f.
func (fl *files) begin(ctx context.Context, f *file, tree File) error {
	opened, err := tree.Open(ctx)
	if err != nil {
		return err
	}
	c := &content{Content: opened, size: opened.Size()}
	a, err := tree.Attr(ctx)
	if err == nil && a.Size != c.size {
		err = fmt.Errorf("the file has %d bytes and its content %d", a.Size, c.size)
	}
	if err != nil {
		fl.end(f, c)
		return err
	}
	c.writable = fl.writable && block.Writable(opened)
	f.open.Store(c)
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.open[f] = struct{}{}
	return nil
}

// release takes a user away.
func (fl *files) release(f *file) {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.users--; f.users == 0 {
		fl.idle(f)
	}
}

// idle has f, which nobody uses, closed after a while.
func (fl *files) idle(f *file) {
	if fl.linger <= 0 {
		fl.shut(f)
		return
	}
	if f.closing != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(fl.linger, func() {
		f.turn <- struct{}{}
		defer func() { <-f.turn }()
		if f.closing == t {
			fl.shut(f)
		}
	})
	f.closing = t
}

// shut closes the content of f.
func (fl *files) shut(f *file) {
	f.closing = nil
	c := f.open.Swap(nil)
	if c == nil {
		return
	}
	fl.mu.Lock()
	delete(fl.open, f)
	fl.mu.Unlock()
	fl.end(f, c)
}

func (fl *files) end(f *file, c *content) {
	if err := c.Close(); err != nil {
		fl.once.report("close", f.node.path(), err)
	}
}

// close closes every content, when nothing reads any more.
func (fl *files) close() {
	fl.mu.Lock()
	var all []*file
	for f := range fl.open {
		all = append(all, f)
	}
	fl.mu.Unlock()
	for _, f := range all {
		f.turn <- struct{}{}
		if f.closing != nil {
			f.closing.Stop()
		}
		fl.shut(f)
		<-f.turn
	}
}

// Open implements fuse.RawFileSystem. Since all who have a file open share its
// content there is no handle.
func (s *shower) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, tree := s.nodes.get(in.NodeId)
	f, ok := tree.(File)
	if !ok {
		return fuse.EINVAL
	}
	c := newCall(cancel)
	defer c.end()
	write := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if err := s.files.use(c, s.files.of(n), f, write); err != nil {
		return s.fail("open", n.path, err)
	}
	if !n.changing {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// Release implements fuse.RawFileSystem.
func (s *shower) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if n, _ := s.nodes.get(in.NodeId); n != nil {
		if f := n.file.Load(); f != nil {
			s.files.release(f)
		}
	}
}

// Flush implements fuse.RawFileSystem: there is nothing to do when a descriptor is
// closed, and the kernel need not ask again.
func (s *shower) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// content returns the content of a node that is open.
func (s *shower) content(id uint64) (*node, *content) {
	n, _ := s.nodes.get(id)
	if n == nil {
		return nil, nil
	}
	f := n.file.Load()
	if f == nil {
		return n, nil
	}
	return n, f.open.Load()
}
