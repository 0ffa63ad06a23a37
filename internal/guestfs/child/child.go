// Package child is what runs confined: it reads the disks of machines through a
// socket, makes trees of what they hold, and answers requests for them.
package child

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/tree"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// Task is the name of the task of a confined process.
const Task = "guestfs"

// Run answers requests on the first socket, reading disks through the second,
// until the first is closed.
func Run(sockets []*os.File) error {
	if len(sockets) != 2 {
		return fmt.Errorf("%d sockets", len(sockets))
	}
	requests, err := net.FileConn(sockets[0])
	if err != nil {
		return err
	}
	disks, err := net.FileConn(sockets[1])
	if err != nil {
		return err
	}
	s := &server{conn: proto.NewConn(requests), disks: newDisks(disks), streams: map[uint64]*stream{}, dirty: map[int]*ranges{},
		slots: make(chan struct{}, 16)}
	return s.serve()
}

// server answers requests.
type server struct {
	conn  *proto.Conn
	disks *disks
	slots chan struct{} // a token for each request at work

	mu       sync.Mutex // guards the fields below
	machines []*tree.System
	streams  map[uint64]*stream
	last     uint64          // stream
	lists    []list          // directories listed last
	dirty    map[int]*ranges // by index of the disk
}

func (s *server) serve() error {
	for {
		var r proto.Request
		if err := s.conn.Receive(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.slots <- struct{}{}
		go func() {
			defer func() { <-s.slots }()
			reply, err := s.answer(&r)
			reply.ID, reply.Err = r.ID, proto.PackError(err)
			err = s.conn.Send(reply)
			if errors.Is(err, proto.ErrMessage) {
				err = s.conn.Send(proto.Reply{ID: r.ID, Err: proto.PackError(fmt.Errorf("answer to request %d: %w: %w", r.Op, err, fsys.ErrUnsupported))})
			}
			// Without its answer the other side gives this process up.
			if err != nil {
				os.Exit(1)
			}
		}()
	}
}

func (s *server) answer(r *proto.Request) (proto.Reply, error) {
	switch r.Op {
	case proto.Open:
		return s.open(r)
	case proto.Dirty:
		return proto.Reply{}, s.setDirty(r)
	case proto.Next:
		return s.next(r)
	case proto.Stop:
		s.stop(r.Stream)
		return proto.Reply{}, nil
	}
	m, err := s.machine(r.Machine)
	if err != nil {
		return proto.Reply{}, err
	}
	switch r.Op {
	case proto.Walk:
		return s.walk(m, r)
	case proto.Diff:
		return s.diff(m, r)
	case proto.List:
		return s.list(m, r)
	case proto.Drivers:
		return proto.Reply{Drivers: drivers.Inspect(m)}, nil
	case proto.Volumes:
		return proto.Reply{Machines: []proto.Machine{describe(m)}}, nil
	}
	return one(m, r)
}

// one answers what concerns one inode.
func one(m *tree.System, r *proto.Request) (reply proto.Reply, err error) {
	var a fsys.Attr
	switch r.Op {
	case proto.Resolve:
		if reply.Node, reply.Path, err = m.Resolve(r.Path, r.Follow); err == nil {
			a, err = m.Stat(reply.Node)
		}
		reply.Attr = proto.PackAttr(a)
	case proto.Lookup:
		if reply.Node, err = m.Lookup(r.Node, r.Name); err == nil {
			a, err = m.Stat(reply.Node)
		}
		reply.Attr = proto.PackAttr(a)
	case proto.Stat:
		a, err = m.Stat(r.Node)
		reply.Attr = proto.PackAttr(a)
	case proto.Readlink:
		reply.Path, err = m.Readlink(r.Node)
	case proto.Xattrs:
		reply.Xattrs, err = m.Xattrs(r.Node)
	case proto.Extents:
		reply.Extents, err = m.Extents(r.Node, r.Off, r.N)
	case proto.Read:
		if r.N < 0 || r.N > maxRead {
			return reply, fmt.Errorf("read of %d bytes", r.N)
		}
		b := make([]byte, r.N)
		var n int
		n, err = m.ReadAt(r.Node, b, r.Off)
		reply.Data = b[:n]
		if errors.Is(err, io.EOF) {
			err, reply.Done = nil, true
		}
	default:
		err = fmt.Errorf("request %d is not known", r.Op)
	}
	return reply, err
}

// maxRead is how much of a file is read at a time, in bytes.
const maxRead = 4 << 20

func (s *server) machine(i int) (*tree.System, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i < 0 || i >= len(s.machines) {
		return nil, fmt.Errorf("machine %d: %w", i, fs.ErrNotExist)
	}
	return s.machines[i], nil
}

// open looks at the disks.
func (s *server) open(r *proto.Request) (proto.Reply, error) {
	var reply proto.Reply
	keys := &volume.Keys{Passphrases: r.Passphrases, Known: r.Keys}
	for _, list := range r.Disks {
		var disks []volume.Disk
		for _, d := range list {
			disks = append(disks, volume.Disk{Index: d.Index, Key: fmt.Sprintf("disk-%d", d.Index), Device: d.Key, Volume: &disk{s.disks, d.Number, d.Size}})
		}
		m := tree.Open(disks, volume.Scan(disks, volume.Options{Keys: keys}), openFS)
		s.mu.Lock()
		s.machines = append(s.machines, m)
		s.mu.Unlock()
		reply.Machines = append(reply.Machines, describe(m))
	}
	for _, p := range keys.Passphrases { // they are not needed any more
		clear(p)
	}
	reply.Keys = keys.Known
	return reply, nil
}

func describe(m *tree.System) proto.Machine {
	_, _, err := m.Resolve("/", true)
	return proto.Machine{OS: m.OS(), Volumes: m.Volumes(), Root: err == nil, Notes: m.Notes()}
}
