package child

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/tree"
)

// stream is a walk or a comparison under way, some of whose results wait to be
// fetched.
type stream struct {
	batches chan proto.Reply
	stopped chan struct{}
	err     error // read after batches is closed
}

const (
	batchEntries = 2000    // of a stream or of a listing at a time
	batchBytes   = 1 << 20 // of names and what comes with them, in a batch of a stream
	maxStreams   = 32      // a download holds one for as long as it takes
	maxLists     = 8
)

var errStopped = errors.New("stopped")

// begin starts a stream. produce sends through the first function that it is given, and
// asks the other one now and then whether to go on.
func (s *server) begin(produce func(send func(proto.Reply) error, goOn func() error) error) (proto.Reply, error) {
	x := &stream{batches: make(chan proto.Reply, 2), stopped: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= maxStreams {
		return proto.Reply{}, proto.ErrBusy
	}
	s.last++
	s.streams[s.last] = x
	go func() {
		x.err = produce(func(r proto.Reply) error {
			select {
			case x.batches <- r:
				return nil
			case <-x.stopped:
				return errStopped
			}
		}, func() error {
			select {
			case <-x.stopped:
				return errStopped
			default:
				return nil
			}
		})
		close(x.batches)
	}()
	return proto.Reply{Stream: s.last}, nil
}

// next returns more of a stream, and forgets it after the last. Who asks is not left
// without an answer for longer than it is ready to wait.
func (s *server) next(r *proto.Request) (proto.Reply, error) {
	s.mu.Lock()
	x := s.streams[r.Stream]
	s.mu.Unlock()
	if x == nil {
		return proto.Reply{}, proto.ErrStream
	}
	late := time.NewTimer(time.Duration(r.N) * time.Millisecond)
	defer late.Stop()
	select {
	case batch, ok := <-x.batches:
		if ok {
			return batch, nil
		}
	case <-late.C:
		return proto.Reply{Later: true}, nil
	}
	s.stop(r.Stream)
	return proto.Reply{Done: true}, x.err
}

func (s *server) stop(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.streams[id]; x != nil {
		close(x.stopped)
		delete(s.streams, id)
	}
}

// walk begins a walk.
func (s *server) walk(m *tree.System, r *proto.Request) (proto.Reply, error) {
	if err := r.Match.Check(); err != nil {
		return proto.Reply{}, err
	}
	return s.begin(func(send func(proto.Reply) error, goOn func() error) error {
		var batch []proto.Entry
		size := 0
		err := m.Find(r.Node, r.Match, goOn, func(name string, n tree.Node, a fsys.Attr, err error) error {
			e := proto.Entry{Name: name, Node: n, Attr: proto.PackAttr(a), Err: proto.PackError(err)}
			if err == nil {
				complete(m, &e, a, r.More)
			}
			batch = append(batch, e)
			if size += entryBytes(&e); len(batch) < batchEntries && size < batchBytes {
				return nil
			}
			full := batch
			batch, size = nil, 0
			return send(proto.Reply{Entries: full})
		})
		if err == nil && len(batch) > 0 {
			err = send(proto.Reply{Entries: batch})
		}
		return err
	})
}

// smallFile is what comes with an entry if it has to be read here, in bytes.
const smallFile = 16 << 10

// complete adds to an entry what is wanted beside attributes.
func complete(m *tree.System, e *proto.Entry, a fsys.Attr, more proto.More) {
	var err error
	if more&proto.Targets != 0 && a.Mode.Type() == fs.ModeSymlink {
		if e.Target, err = m.Readlink(e.Node); err != nil {
			e.Err = proto.PackError(err)
			return
		}
	}
	if more&proto.AllXattrs != 0 {
		if e.Xattrs, err = m.Xattrs(e.Node); err == nil && len(e.Xattrs) > maxXattrs {
			e.Xattrs, err = nil, fmt.Errorf("%d extended attributes: %w", len(e.Xattrs), fsys.ErrUnsupported)
		}
		if err != nil {
			e.XattrsErr = proto.PackError(err)
		}
	}
	if more&proto.Places == 0 || !a.Mode.IsRegular() || a.Size == 0 {
		return
	}
	// What is wrong with them is told to who asks again.
	if e.Extents, err = m.Extents(e.Node, 0, a.Size); err != nil || len(e.Extents) > maxPlaces {
		e.Extents = nil
	}
	if a.Size <= smallFile && slices.ContainsFunc(e.Extents, func(x tree.Extent) bool { return x.Kind == fsys.Opaque }) {
		b := make([]byte, a.Size)
		if n, err := m.ReadAt(e.Node, b, 0); n == len(b) && (err == nil || errors.Is(err, io.EOF)) {
			e.Data = b
		}
	}
}

const (
	maxPlaces = 1000   // extents that come with an entry
	maxXattrs = 10_000 // extended attributes
)

// entryBytes is about what an entry takes.
func entryBytes(e *proto.Entry) int {
	n := len(e.Name) + len(e.Target) + 20*len(e.Extents) + len(e.Data)
	for _, x := range e.Xattrs {
		n += len(x.Name) + len(x.Value) + 32
	}
	return n
}

// diff begins a comparison of machine 0 with machine 1.
func (s *server) diff(m *tree.System, r *proto.Request) (proto.Reply, error) {
	newer, err := s.machine(1)
	if err != nil {
		return proto.Reply{}, err
	}
	return s.begin(func(send func(proto.Reply) error, goOn func() error) error {
		var batch []proto.Change
		names := 0
		err := m.Diff(r.Node, newer, r.Other, s.dirtyOf(), goOn, func(c tree.Change) error {
			batch = append(batch, proto.Change{Path: c.Path, What: c.What, Old: proto.PackAttr(c.Old), New: proto.PackAttr(c.New), Err: c.Err})
			if names += len(c.Path); len(batch) < batchEntries && names < batchBytes {
				return nil
			}
			full := batch
			batch, names = nil, 0
			return send(proto.Reply{Changes: full})
		})
		if err == nil && len(batch) > 0 {
			err = send(proto.Reply{Changes: batch})
		}
		return err
	})
}

// ranges are ordered runs of a disk, without overlaps.
type ranges [][2]int64

// touches reports whether any of [off, off+n) is in one of the ranges.
func (r ranges) touches(off, n int64) bool {
	i, _ := slices.BinarySearchFunc(r, off, func(x [2]int64, off int64) int {
		if x[0]+x[1] <= off {
			return -1
		}
		return 1
	})
	return i < len(r) && r[i][0] < off+n
}

// setDirty adds what differs on the disk whose index is N.
func (s *server) setDirty(r *proto.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.dirty[int(r.N)]
	if x == nil {
		x = new(ranges)
		s.dirty[int(r.N)] = x
	}
	for _, one := range r.Ranges {
		if one[0] < 0 || one[1] <= 0 || len(*x) > 0 && one[0] < (*x)[len(*x)-1][0] {
			return errors.New("ranges out of order")
		}
		*x = append(*x, one)
	}
	return nil
}

// dirtyOf returns what is known to differ; nil if nothing was told.
func (s *server) dirtyOf() tree.Dirty {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dirty) == 0 {
		return nil
	}
	known := make(map[int]ranges, len(s.dirty))
	for disk, r := range s.dirty {
		known[disk] = *r
	}
	return func(disk int, off, n int64) bool {
		r, ok := known[disk]
		return !ok || r.touches(off, n)
	}
}

// list is a directory that is being listed page by page.
type list struct {
	m       *tree.System
	dir     tree.Node
	entries []tree.Entry
	err     error
}

// list returns entries of a directory with their attributes, from number N on.
func (s *server) list(m *tree.System, r *proto.Request) (proto.Reply, error) {
	l := s.listed(m, r.Node, r.N > 0)
	var reply proto.Reply
	if r.N < 0 || r.N > int64(len(l.entries)) {
		return reply, errors.New("no such page")
	}
	page := l.entries[r.N:min(r.N+batchEntries, int64(len(l.entries)))]
	for _, e := range page {
		a, err := m.Stat(e.Node)
		if err != nil {
			a.Mode = e.Type
		}
		reply.Entries = append(reply.Entries, proto.Entry{Name: e.Name, Node: e.Node, Attr: proto.PackAttr(a), Err: proto.PackError(err)})
	}
	reply.Done = int(r.N)+len(page) == len(l.entries)
	if reply.Done && l.err != nil {
		if len(page) > 0 {
			reply.Done = false // the error follows the entries
			return reply, nil
		}
		return reply, l.err
	}
	return reply, nil
}

// listed returns the entries of a directory; those that an earlier page was cut
// from, if that is not the first one.
func (s *server) listed(m *tree.System, dir tree.Node, again bool) list {
	s.mu.Lock()
	for _, l := range s.lists {
		if again && l.m == m && l.dir == dir {
			s.mu.Unlock()
			return l
		}
	}
	s.mu.Unlock()
	l := list{m: m, dir: dir}
	l.entries, l.err = m.ReadDir(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists = slices.DeleteFunc(s.lists, func(x list) bool { return x.m == m && x.dir == dir })
	if len(s.lists) >= maxLists {
		s.lists = s.lists[1:]
	}
	s.lists = append(s.lists, l)
	return l
}
