package guestfs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs/child"
	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/proto"
	"github.com/sendense/sendense/internal/guestfs/sandbox"
	"github.com/sendense/sendense/internal/guestfs/tree"
)

// What callers need of the packages below.
type (
	// Attr are the attributes of an inode.
	Attr = fsys.Attr
	// Xattr is an extended attribute.
	Xattr = fsys.Xattr
	// Node is an inode of one of the file systems.
	Node = tree.Node
	// OS says what runs on a machine.
	OS = tree.OS
	// Volume is a place in which there may be a file system.
	Volume = tree.Volume
	// Drivers say what hardware a guest can run on.
	Drivers = drivers.Guest
	// Match chooses entries of a walk.
	Match = tree.Match
	// PathError says how far a path could be followed.
	PathError = tree.PathError
	// What happened to a path.
	What = tree.What
)

// What may have happened to a path between two states.
const (
	Added      = tree.Added
	Removed    = tree.Removed
	Changed    = tree.Changed
	Touched    = tree.Touched
	Unreadable = tree.Unknown
)

// Errors that say what is wrong, beside fs.ErrNotExist.
var (
	ErrNotDir      = tree.ErrNotDir
	ErrLinks       = tree.ErrLinks
	ErrNoRoot      = tree.ErrNoRoot
	ErrCorrupt     = fsys.ErrCorrupt
	ErrUnsupported = fsys.ErrUnsupported
	ErrNoFS        = fsys.ErrNotFound
	ErrVolume      = fsys.ErrVolume
	// ErrBusy says that as many walks are under way as may be.
	ErrBusy = proto.ErrBusy
	// ErrDied says that the process which read the disks has ended.
	ErrDied = errors.New("the process that reads the guest's file systems has ended")
)

// OwnFault reports whether an error says that something is wrong with what is in
// the guest's file systems, and not with the disks that they are on or with who
// reads them.
func OwnFault(err error) bool {
	return proto.Remote(err) && !errors.Is(err, ErrVolume) && !errors.Is(err, ErrBusy)
}

// Main does the work of a confined process, and exits, if that is what this
// process was started for.
func Main() { sandbox.Run(map[string]sandbox.Task{child.Task: child.Run}) }

// Disk is a disk of a machine.
type Disk struct {
	Index int
	// Key is what the machine calls it, such as vda; empty: not known.
	Key    string
	Device block.Device
}

// Options say how disks are opened.
type Options struct {
	// Keys are tried on encrypted containers; default none. If there are such, and
	// none of them is unlocked, that is ErrLocked.
	Keys *Keys
	// Unlocking has room for as many as may derive keys at a time, which takes up to
	// 1 GiB of memory beside MemoryBytes; default: any number.
	Unlocking chan struct{}
	// MemoryBytes is what the confined process may take; default 1 GiB.
	MemoryBytes int64
	// Timeout is how long one answer may take before the process is given up;
	// default 2 minutes.
	Timeout time.Duration
}

// Guest is a machine whose disks are open. Its methods may be called concurrently.
type Guest struct {
	c       *client
	machine int
	disks   map[int]block.Device
	os      OS
	hasRoot bool
	notes   []string
}

// Open opens the disks of a machine. They stay open until the Guest is closed,
// which does not close them.
func Open(ctx context.Context, disks []Disk, o Options) (*Guest, error) {
	list, err := open(ctx, o, disks)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// OpenTwo opens the disks of two states of a machine, for [Diff]. Closing either
// closes both.
func OpenTwo(ctx context.Context, older, newer []Disk, o Options) (before, after *Guest, err error) {
	list, err := open(ctx, o, older, newer)
	if err != nil {
		return nil, nil, err
	}
	return list[0], list[1], nil
}

func open(ctx context.Context, o Options, machines ...[]Disk) ([]*Guest, error) {
	var devices []block.Device
	var guests []*Guest
	var asked [][]proto.Disk
	for i, disks := range machines {
		g := &Guest{machine: i, disks: map[int]block.Device{}}
		var list []proto.Disk
		for _, d := range disks {
			list = append(list, proto.Disk{Number: len(devices), Index: d.Index, Key: d.Key, Size: d.Device.Size()})
			devices = append(devices, d.Device)
			g.disks[d.Index] = d.Device
		}
		guests, asked = append(guests, g), append(asked, list)
	}
	c, reply, err := look(ctx, o, devices, asked)
	if err == nil && len(reply.Machines) != len(guests) {
		c.close()
		err = errProtocol
	}
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("look at the disks: %w", err)
	}
	for i, g := range guests {
		g.c, g.os, g.hasRoot, g.notes = c, reply.Machines[i].OS, reply.Machines[i].Root, reply.Machines[i].Notes
	}
	return guests, nil
}

// look starts a process that looks at disks. It is given keys only if it finds
// something that they may unlock.
func look(ctx context.Context, o Options, devices []block.Device, asked [][]proto.Disk) (*client, proto.Reply, error) {
	if o.MemoryBytes == 0 {
		o.MemoryBytes = defaultMemory
	}
	r := &proto.Request{Op: proto.Open, Disks: asked}
	c, err := startClient(devices, o)
	if err != nil {
		return nil, proto.Reply{}, err
	}
	reply, err := c.call(ctx, r)
	if err != nil {
		c.close()
		return nil, reply, err
	}
	locked := lockedOf(reply.Machines)
	if o.Keys == nil || len(locked) == 0 {
		return c, reply, nil
	}
	c.close()
	return unlock(ctx, o, r, devices, locked)
}

// defaultMemory is what a confined process may take, in bytes.
const defaultMemory = 1 << 30

// Close ends the confined process.
func (g *Guest) Close() { g.c.close() }

// Done is closed when the confined process has ended.
func (g *Guest) Done() <-chan struct{} { return g.c.dead }

// OS says what runs on the machine, as far as its disks tell.
func (g *Guest) OS() OS { return g.os }

// Notes say what an operator should know of disks, groups and arrays, as opposed to
// volumes.
func (g *Guest) Notes() []string { return g.notes }

// HasRoot reports whether paths that begin with a slash lead anywhere.
func (g *Guest) HasRoot() bool { return g.hasRoot }

// call asks the confined process.
func (g *Guest) call(ctx context.Context, r proto.Request) (proto.Reply, error) {
	r.Machine = g.machine
	return g.c.call(ctx, &r)
}

// Volumes returns the places in which there may be file systems, with what was
// learnt of them by now.
func (g *Guest) Volumes(ctx context.Context) ([]Volume, error) {
	reply, err := g.call(ctx, proto.Request{Op: proto.Volumes})
	if err != nil {
		return nil, err
	}
	if len(reply.Machines) != 1 {
		return nil, errProtocol
	}
	return reply.Machines[0].Volumes, nil
}

// Drivers tells what hardware the guest can run on, as far as its disks tell.
func (g *Guest) Drivers(ctx context.Context) (Drivers, error) {
	reply, err := g.call(ctx, proto.Request{Op: proto.Drivers})
	reply.Drivers.Clean()
	return reply.Drivers, err
}

// Resolve follows a path: from the root of the machine's own tree if it begins
// with a slash, else by position (disk-0/p1/…). Symbolic links are followed as the
// machine would; that of the last name only if follow is set. It returns where the
// path led.
func (g *Guest) Resolve(ctx context.Context, path string, follow bool) (Entry, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.Resolve, Path: path, Follow: follow})
	return Entry{Name: r.Path, Node: r.Node, Attr: r.Attr.Unpack()}, err
}

// Lookup returns what a name in a directory stands for.
func (g *Guest) Lookup(ctx context.Context, dir Node, name string) (Entry, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.Lookup, Node: dir, Name: name})
	return Entry{Name: name, Node: r.Node, Attr: r.Attr.Unpack()}, err
}

// Stat returns the attributes of a node.
func (g *Guest) Stat(ctx context.Context, n Node) (Attr, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.Stat, Node: n})
	return r.Attr.Unpack(), err
}

// Readlink returns the target of a symbolic link, as the guest wrote it.
func (g *Guest) Readlink(ctx context.Context, n Node) (string, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.Readlink, Node: n})
	return r.Path, err
}

// Xattrs returns extended attributes.
func (g *Guest) Xattrs(ctx context.Context, n Node) ([]Xattr, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.Xattrs, Node: n})
	return r.Xattrs, err
}

// Entry is a name with what it stands for.
type Entry struct {
	Name string
	Node Node
	Attr Attr
	Err  error // why there are no attributes but a type
}

// ReadDir calls yield for the entries of a directory until it returns false. An
// error at the end says that some are missing.
func (g *Guest) ReadDir(ctx context.Context, dir Node, yield func(Entry) bool) error {
	for at := int64(0); ; {
		r, err := g.call(ctx, proto.Request{Op: proto.List, Node: dir, N: at})
		if err != nil {
			return err
		}
		for _, e := range r.Entries {
			if !plainName(e.Name) {
				return errProtocol
			}
			if !yield(Entry{e.Name, e.Node, e.Attr.Unpack(), e.Err.Unpack()}) {
				return nil
			}
		}
		if r.Done {
			return nil
		}
		at += int64(len(r.Entries))
		if len(r.Entries) == 0 || at > maxEntries {
			return errProtocol
		}
	}
}

// maxEntries is how many entries of one directory are believed.
const maxEntries = 1 << 25

// plainName reports whether a name is one: not a path, not "..".
func plainName(name string) bool {
	return name != "" && name != "." && name != ".." && !hasSlash(name)
}
