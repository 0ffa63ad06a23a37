package appliance

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/repository"
)

// The tree of a mount: {vm}/{point}/ with disk-N.raw, the live image of a disk;
// files, the tree as the machine saw it; and disk-N, its file systems by position.

// mountRoot lists the machines.
type mountRoot struct{ m *mount }

// mountVM lists the points of a machine.
type mountVM struct {
	m  *mount
	vm VM
}

// mountPoint is a point.
type mountPoint struct {
	m     *mount
	point Point
}

// folder returns the attributes of a directory of ours.
func folder(changing bool, at time.Time, id ...any) fusemount.Attr {
	h := fnv.New64a()
	fmt.Fprint(h, id...)
	return fusemount.Attr{ID: fusemount.ID{Volume: 1, Inode: h.Sum64()}, Mode: fs.ModeDir | 0o555, Links: 2, Modified: at, Changed: at, Changing: changing,
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

func (r mountRoot) Attr(context.Context) (fusemount.Attr, error) {
	return folder(true, r.m.Created, "root"), nil
}

func (r mountRoot) List(ctx context.Context, yield func(fusemount.Entry) bool) error {
	vms, err := r.m.a.VMs(ctx)
	names := vmNames(vms)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !yield(fusemount.Entry{Name: name, Type: fs.ModeDir, Node: mountVM{r.m, names[name]}}) {
			return nil
		}
	}
	return present(err)
}

func (r mountRoot) Lookup(ctx context.Context, name string) (fusemount.Node, error) {
	vms, err := r.m.a.VMs(ctx)
	if vm, ok := vmNames(vms)[name]; ok {
		return mountVM{r.m, vm}, nil
	}
	if err != nil { // it may be the name of one that could not be read
		return nil, present(err)
	}
	return nil, fs.ErrNotExist
}

// present returns err as one that does not say that something is not there, unless
// the guest's own file systems say so. Who copies a mount would take what the
// repository lost for what the machine deleted.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) && !guestfs.OwnFault(err) {
		return fmt.Errorf("%w: %v", syscall.EIO, err)
	}
	return err
}

// vmNames gives each machine a name that a folder can have: its UUID where another
// one has the same, or where its own is none.
func vmNames(vms []VM) map[string]VM {
	names := map[string]VM{}
	twice := map[string]bool{}
	for _, vm := range vms {
		name := strings.ReplaceAll(vm.Name, "/", "_")
		if name == "" || name == "." || name == ".." || len(name) > 255 {
			name = string(vm.ID)
		}
		if other, ok := names[name]; ok || twice[name] {
			if ok {
				delete(names, name)
				names[string(other.ID)] = other
			}
			twice[name] = true
			name = string(vm.ID)
		}
		names[name] = vm
	}
	return names
}

func (v mountVM) Attr(context.Context) (fusemount.Attr, error) {
	return folder(true, v.m.Created, "vm", v.vm.ID), nil
}

func (v mountVM) List(ctx context.Context, yield func(fusemount.Entry) bool) error {
	points, err := v.m.a.repo.Points(ctx, v.vm.ID)
	if err != nil {
		return present(err)
	}
	for _, p := range points {
		if !yield(fusemount.Entry{Name: string(p.ID), Type: fs.ModeDir, Node: mountPoint{v.m, p}}) {
			return nil
		}
	}
	return nil
}

func (v mountVM) Lookup(ctx context.Context, name string) (fusemount.Node, error) {
	points, err := v.m.a.repo.Points(ctx, v.vm.ID)
	if err != nil {
		return nil, present(err)
	}
	for _, p := range points {
		if string(p.ID) == name {
			return mountPoint{v.m, p}, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (p mountPoint) Attr(context.Context) (fusemount.Attr, error) {
	return folder(false, p.point.ID.Time(), "point", p.point.VM, p.point.ID), nil
}

func (p mountPoint) List(_ context.Context, yield func(fusemount.Entry) bool) error {
	for _, d := range p.point.Disks {
		name := fmt.Sprintf("disk-%d", d.Index)
		if !yield(fusemount.Entry{Name: name + ".raw", Node: mountDisk{p, d}}) ||
			!yield(fusemount.Entry{Name: name, Type: fs.ModeDir, Node: p.guest(name)}) {
			return nil
		}
	}
	yield(fusemount.Entry{Name: "files", Type: fs.ModeDir, Node: p.guest("/")})
	return nil
}

func (p mountPoint) Lookup(_ context.Context, name string) (fusemount.Node, error) {
	if name == "files" {
		return p.guest("/"), nil
	}
	for _, d := range p.point.Disks {
		switch disk := "disk-" + strconv.Itoa(d.Index); name {
		case disk:
			return p.guest(disk), nil
		case disk + ".raw":
			return mountDisk{p, d}, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (p mountPoint) guest(path string) mountTop { return mountTop{p, path} }

// mountDisk is the image of a disk.
type mountDisk struct {
	p    mountPoint
	disk repository.PointDisk
}

func (d mountDisk) Attr(context.Context) (fusemount.Attr, error) {
	a := folder(false, d.p.point.ID.Time(), "disk", d.p.point.VM, d.p.point.ID, d.disk.Index)
	a.Mode, a.Links, a.Size = 0o400, 1, d.disk.Size // whose files are on it is nobody's to say here
	if d.p.m.Writable {
		a.Mode = 0o600
	}
	return a, nil
}

func (d mountDisk) Open(ctx context.Context) (fusemount.Content, error) {
	if d.p.m.Writable {
		x, err := d.p.m.scratch(ctx, d.p.point, d.disk)
		if err != nil {
			return nil, present(err)
		}
		return x, nil
	}
	x, err := d.p.m.a.repo.OpenDisk(ctx, d.p.point.VM, d.p.point.ID, d.disk.Index, repository.OpenOptions{Verified: d.p.m.Verified})
	if err != nil {
		return nil, present(err)
	}
	return x, nil
}

// mountTop is where a tree of the machine begins: its own, or that of a disk.
type mountTop struct {
	p    mountPoint
	path string
}

func (t mountTop) Attr(context.Context) (fusemount.Attr, error) {
	return folder(false, t.p.point.ID.Time(), "top", t.p.point.VM, t.p.point.ID, t.path), nil
}

// node opens the point and finds where the tree begins.
func (t mountTop) node(ctx context.Context) (guestDir, error) {
	var d guestDir
	err := t.p.use(ctx, func(g *guestfs.Guest) error {
		e, err := g.Resolve(ctx, t.path, true)
		d = guestDir{guestNode{t.p, e}}
		return err
	})
	if isLocked(err) {
		err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	return d, err
}

func (t mountTop) List(ctx context.Context, yield func(fusemount.Entry) bool) error {
	d, err := t.node(ctx)
	if errors.Is(err, guestfs.ErrNoRoot) || errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is there that could be shown
	}
	if err != nil {
		return err
	}
	return d.List(ctx, yield)
}

func (t mountTop) Lookup(ctx context.Context, name string) (fusemount.Node, error) {
	d, err := t.node(ctx)
	if errors.Is(err, guestfs.ErrNoRoot) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return d.Lookup(ctx, name)
}

// use runs f with the point open.
func (p mountPoint) use(ctx context.Context, f func(*guestfs.Guest) error) error {
	o, err := p.m.get(ctx, p.point)
	if err != nil {
		return present(err)
	}
	defer p.m.a.guests.release(o)
	return present(f(o.guest))
}

// guestNode is an inode of the machine.
type guestNode struct {
	p mountPoint
	e guestfs.Entry
}

type (
	guestDir  struct{ guestNode }
	guestFile struct{ guestNode }
	guestLink struct{ guestNode }
)

// newNode makes the node that an entry stands for.
func (p mountPoint) newNode(e guestfs.Entry) fusemount.Node {
	n := guestNode{p, e}
	switch e.Attr.Mode.Type() {
	case fs.ModeDir:
		return guestDir{n}
	case fs.ModeSymlink:
		return guestLink{n}
	case 0:
		return guestFile{n}
	}
	return n
}

func (n guestNode) attr() fusemount.Attr {
	a := n.e.Attr
	h := fnv.New64a()
	fmt.Fprint(h, n.p.point.VM, n.p.point.ID, n.e.Node.FS)
	return fusemount.Attr{ID: fusemount.ID{Volume: h.Sum64() | 2, Inode: uint64(n.e.Node.ID)}, Mode: a.Mode, UID: a.UID, GID: a.GID, Links: a.Links,
		Size: a.Size, Allocated: a.Allocated, Modified: a.Modified, Changed: a.Changed, Accessed: a.Accessed, Created: a.Created,
		DevMajor: a.Major, DevMinor: a.Minor}
}

func (n guestNode) Attr(context.Context) (fusemount.Attr, error) { return n.attr(), n.e.Err }

func (n guestNode) Xattrs(ctx context.Context) (list []fusemount.Xattr, err error) {
	err = n.p.use(ctx, func(g *guestfs.Guest) error {
		xattrs, err := g.Xattrs(ctx, n.e.Node)
		for _, x := range xattrs {
			list = append(list, fusemount.Xattr{Name: x.Name, Value: x.Value})
		}
		return err
	})
	return list, err
}

func (d guestDir) List(ctx context.Context, yield func(fusemount.Entry) bool) error {
	return d.p.use(ctx, func(g *guestfs.Guest) error {
		return g.ReadDir(ctx, d.e.Node, func(e guestfs.Entry) bool {
			entry := fusemount.Entry{Name: e.Name, Type: e.Attr.Mode.Type()}
			if e.Err == nil {
				n := guestNode{d.p, e}
				a := n.attr()
				entry.Node, entry.Attr, entry.ID = d.p.newNode(e), &a, a.ID
			}
			return yield(entry)
		})
	})
}

func (d guestDir) Lookup(ctx context.Context, name string) (found fusemount.Node, err error) {
	err = d.p.use(ctx, func(g *guestfs.Guest) error {
		e, err := g.Lookup(ctx, d.e.Node, name)
		if err == nil {
			found = d.p.newNode(e)
		}
		return err
	})
	return found, err
}

func (l guestLink) Target(ctx context.Context) (target string, err error) {
	err = l.p.use(ctx, func(g *guestfs.Guest) error {
		target, err = g.Readlink(ctx, l.e.Node)
		return err
	})
	return target, err
}

func (f guestFile) Open(ctx context.Context) (fusemount.Content, error) {
	o, err := f.p.m.get(ctx, f.p.point)
	if err != nil {
		return nil, present(err)
	}
	x, err := o.guest.OpenFile(f.e)
	if err != nil {
		f.p.m.a.guests.release(o)
		return nil, present(err)
	}
	return guestContent{x, func() { f.p.m.a.guests.release(o) }}, nil
}

// guestContent is an open file of the machine.
type guestContent struct {
	*guestfs.File
	release func()
}

func (c guestContent) Close() error {
	c.release()
	return nil
}
