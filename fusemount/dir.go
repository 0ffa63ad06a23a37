package fusemount

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// readers are the directories that are open.
type readers struct {
	mu   sync.Mutex // guards the fields below
	open map[uint64]*reader
	last uint64 // number given last
}

func (rs *readers) add(r *reader) uint64 {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.open == nil {
		rs.open = map[uint64]*reader{}
	}
	rs.last++
	rs.open[rs.last] = r
	return rs.last
}

func (rs *readers) get(fh uint64) *reader {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.open[fh]
}

func (rs *readers) remove(fh uint64) *reader {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.open[fh]
	delete(rs.open, fh)
	return r
}

// close ends them all, when nothing reads any more.
func (rs *readers) close() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, r := range rs.open {
		r.close()
	}
	clear(rs.open)
}

// reader reads a directory in pieces. The kernel names a place in it by the number
// of entries before. It goes forward, but may come back to any place in what it was
// given last, which is therefore kept; elsewhere the directory is listed anew.
type reader struct {
	node *node
	dir  Dir

	mu     sync.Mutex // guards the fields below
	recent []listed
	first  uint64 // number of recent[0]
	next   func() (Entry, error, bool)
	stop   func()

	ending sync.Mutex // guards the field below
	cancel context.CancelFunc
}

// listed is an entry, with what was found out about it.
type listed struct {
	Entry
	complete bool // or as far as it can be
}

// restart begins to list from the first entry.
func (r *reader) restart() {
	r.close()
	ctx, cancel := context.WithCancel(context.Background())
	r.ending.Lock()
	r.cancel = cancel
	r.ending.Unlock()
	r.next, r.stop = iter.Pull2(func(yield func(Entry, error) bool) {
		more := true
		err := r.dir.List(ctx, func(e Entry) bool {
			more = more && yield(e, nil)
			return more
		})
		if err != nil && more {
			yield(Entry{}, err)
		}
	})
	r.recent, r.first = nil, 0
}

// interrupt ends a listing that somebody waits for.
func (r *reader) interrupt() {
	r.ending.Lock()
	defer r.ending.Unlock()
	if r.cancel != nil {
		r.cancel()
	}
}

// close gives up listing.
func (r *reader) close() {
	if r.next != nil {
		r.interrupt()
		r.next = nil
		r.stop()
	}
}

// pull returns the next entry. After an error, or a panic, the directory has to be
// listed anew.
func (r *reader) pull() (e Entry, err error, ok bool) {
	failed := true
	defer func() {
		if failed {
			r.close()
		}
	}()
	e, err, ok = r.next()
	failed = err != nil
	return e, err, ok
}

// entry returns entry i; nil behind the last.
func (r *reader) entry(s *shower, i uint64) (*listed, error) {
	if r.next == nil || i < r.first {
		r.restart()
	}
	for {
		at := r.first + uint64(len(r.recent))
		if i < at {
			return &r.recent[i-r.first], nil
		}
		e, err, ok := r.pull()
		switch {
		case !ok || err != nil:
			return nil, err
		case !showable(e.Name):
			s.once.report("list", r.node.path(), fmt.Errorf("name %q cannot be shown", e.Name))
		case at < i: // on the way to where the kernel wants to go on
			r.recent, r.first = r.recent[:0], at+1
		default:
			r.recent = append(r.recent, listed{Entry: e})
		}
	}
}

// forget drops what lies before entry i.
func (r *reader) forget(i uint64) {
	if i > r.first && i-r.first <= uint64(len(r.recent)) {
		r.recent = append(r.recent[:0], r.recent[i-r.first:]...)
		r.first = i
	}
}

// OpenDir implements fuse.RawFileSystem.
func (s *shower) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, tree := s.nodes.get(in.NodeId)
	dir, ok := tree.(Dir)
	if !ok {
		return fuse.ENOTDIR
	}
	out.Fh = s.readers.add(&reader{node: n, dir: dir})
	if !n.changing {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (s *shower) ReleaseDir(in *fuse.ReleaseIn) {
	if r := s.readers.remove(in.Fh); r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.close()
	}
}

// ReadDir implements fuse.RawFileSystem.
func (s *shower) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, func(_ context.Context, r *reader, e *listed) bool {
		return out.AddDirEntry(r.dirent(e))
	}, out.AddDirEntry)
}

// ReadDirPlus implements fuse.RawFileSystem: it tells of attributes, too.
func (s *shower) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(cancel, in, func(ctx context.Context, r *reader, e *listed) bool {
		s.complete(ctx, r, e)
		o := out.AddDirLookupEntry(r.dirent(e))
		if o != nil && e.Attr != nil {
			s.entry(r.node, e.Name, e.Node, e.Attr, o)
		}
		return o != nil
	}, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
}

// readDir gives entries to add, or to dots, until one does not fit.
func (s *shower) readDir(cancel <-chan struct{}, in *fuse.ReadIn,
	add func(context.Context, *reader, *listed) bool, dots func(fuse.DirEntry) bool,
) fuse.Status {
	r := s.readers.get(in.Fh)
	if r == nil {
		return fuse.Status(syscall.EBADF)
	}
	c := newCall(cancel)
	defer c.end()
	defer context.AfterFunc(c, r.interrupt)()
	r.mu.Lock()
	defer r.mu.Unlock()
	if in.Offset >= 2 {
		r.forget(in.Offset - 2)
	}
	for at := in.Offset; ; at++ {
		if at < 2 {
			if !dots(r.node.dot(at)) {
				return fuse.OK
			}
			continue
		}
		e, err := r.entry(s, at-2)
		if err != nil && at == in.Offset {
			return s.fail("list", r.node.path, err)
		}
		if err != nil || e == nil || !add(c, r, e) {
			return fuse.OK // an error is met again by the next request
		}
	}
}

// dot returns "." for 0 and ".." for 1.
func (n *node) dot(i uint64) fuse.DirEntry {
	e := fuse.DirEntry{Name: ".", Ino: n.number, Mode: typeBits(fs.ModeDir)}
	if i == 1 {
		e.Name = ".."
		if n.parent != nil {
			e.Ino = n.parent.number
		}
	}
	return e
}

// dirent returns what the kernel is told of an entry.
func (r *reader) dirent(e *listed) fuse.DirEntry {
	id, mode := e.ID, e.Type
	if e.Attr != nil {
		id, mode = e.Attr.ID, e.Attr.Mode
	}
	d := fuse.DirEntry{Name: e.Name, Ino: id.number(), Mode: typeBits(mode)}
	if id == (ID{}) {
		d.Ino = derived(r.node.number, e.Name)
	}
	return d
}

// complete finds out what an entry does not say. Where it cannot be found out the
// kernel will look the name up, and be told why.
func (s *shower) complete(ctx context.Context, r *reader, e *listed) {
	if e.complete {
		return
	}
	e.complete = true
	var err error
	if e.Node == nil {
		e.Attr = nil
		e.Node, err = r.dir.Lookup(ctx, e.Name)
	}
	switch {
	case err != nil:
	case e.Attr == nil:
		e.Attr, err = s.attr(ctx, e.Node)
	default:
		err = check(e.Node, e.Attr)
	}
	if err != nil {
		e.Attr = nil
	}
}
