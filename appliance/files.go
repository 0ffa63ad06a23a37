package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
)

// FilesRequest names something in a point.
type FilesRequest struct {
	VM    string
	Point string
	// Path begins with a slash in the machine's own tree; else it begins with the
	// position of a file system, as disk-0/p1.
	Path string
	// Verified compares what is read with the digests of its clusters.
	Verified bool
	// Keyring is the ID of passphrases that unlock what is encrypted; empty: none.
	Keyring string
}

// File is what is known of a file, directory or whatever else has a name.
type File struct {
	Name      string            `json:"name"`                 // or a path from where a search began
	NameBytes []byte            `json:"name_bytes,omitempty"` // the name, if it is not UTF-8
	Path      string            `json:"path,omitempty"`       // where it is, links resolved
	Type      string            `json:"type"`                 // file, dir, link, pipe, socket, block, char; "" if it cannot be told
	Mode      string            `json:"mode"`                 // octal, as chmod takes it
	UID       uint32            `json:"uid"`
	GID       uint32            `json:"gid"`
	Links     uint32            `json:"links"`
	Size      int64             `json:"size"`
	Allocated int64             `json:"allocated"`
	Modified  time.Time         `json:"modified,omitzero"`
	Changed   time.Time         `json:"changed,omitzero"`
	Created   time.Time         `json:"created,omitzero"`
	Target    string            `json:"target,omitempty"` // of a link
	Major     uint32            `json:"major,omitempty"`
	Minor     uint32            `json:"minor,omitempty"`
	Flags     []string          `json:"flags,omitempty"`
	Xattrs    map[string][]byte `json:"xattrs,omitempty"`
	// Inode tells hard links of one file apart from files, within a point.
	Inode string `json:"inode,omitempty"`
	Error string `json:"error,omitempty"` // why it, or what is in it, cannot be read
}

var types = map[fs.FileMode]string{
	0: "file", fs.ModeDir: "dir", fs.ModeSymlink: "link", fs.ModeNamedPipe: "pipe", fs.ModeSocket: "socket",
	fs.ModeDevice: "block", fs.ModeDevice | fs.ModeCharDevice: "char",
}

func newFile(e guestfs.Entry) File {
	a := e.Attr
	mode := uint32(a.Mode.Perm())
	for bit, m := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if a.Mode&m != 0 {
			mode |= bit
		}
	}
	f := File{Name: e.Name, Type: types[a.Mode.Type()], Mode: fmt.Sprintf("%04o", mode), UID: a.UID, GID: a.GID, Links: a.Links, Size: a.Size,
		Allocated: a.Allocated, Modified: tellable(a.Modified), Changed: tellable(a.Changed), Created: tellable(a.Created), Major: a.Major, Minor: a.Minor, Flags: a.Flags,
		Inode: fmt.Sprintf("%d:%d", e.Node.FS, e.Node.ID)}
	if !utf8.ValidString(e.Name) {
		f.NameBytes = []byte(e.Name)
	}
	if e.Err != nil {
		f.Error = e.Err.Error()
	}
	return f
}

// tellable returns the nearest time that RFC 3339 has in every time zone: anybody
// may set the time of a file in a guest to what it has not.
func tellable(t time.Time) time.Time {
	const first, last = -62167219200 + 86400, 253402300799 - 86400 // of the years 0 and 9999, but for a day
	switch s := t.Unix(); {
	case t.IsZero():
		return t
	case s < first:
		return time.Unix(first, 0)
	case s > last:
		return time.Unix(last, 0)
	}
	return t
}

// RawName returns the name as the guest has it.
func (f *File) RawName() string {
	if f.NameBytes != nil {
		return string(f.NameBytes)
	}
	return f.Name
}

// Visible writes a name that a guest chose so that it cannot do anything to a
// terminal: quoted, if it has something in it that cannot be seen.
func Visible(name string) string {
	for _, r := range name {
		if r == utf8.RuneError || !strconv.IsGraphic(r) {
			return strconv.QuoteToGraphic(name)
		}
	}
	return name
}

// browsed is a place in an open point.
type browsed struct {
	a     *Appliance
	open  *openGuest
	guest *guestfs.Guest
	vm    VM
	point Point
	entry guestfs.Entry
}

// close gives the point back.
func (b *browsed) close() { b.a.guests.release(b.open) }

func (b *browsed) error(err error) error { return filesError(b.point, b.entry.Name, err) }

// browse opens a point and finds a path in it. The caller closes what it returns.
func (a *Appliance) browse(ctx context.Context, r FilesRequest, follow bool) (*browsed, error) {
	vm, p, err := a.Point(ctx, r.VM, r.Point)
	if err != nil {
		return nil, err
	}
	o, err := a.guests.get(ctx, p, r.Verified, r.Keyring)
	if err != nil {
		return nil, err
	}
	b := &browsed{a: a, open: o, guest: o.guest, vm: vm, point: p}
	where := r.Path
	if where == "" && b.guest.HasRoot() {
		where = "/"
	}
	if b.entry, err = b.guest.Resolve(ctx, where, follow); err != nil {
		b.close()
		return nil, filesError(p, where, err)
	}
	return b, nil
}

// Contents is what the disks of a point hold.
type Contents struct {
	VM      string           `json:"vm"`
	Point   string           `json:"point"`
	OS      guestfs.OS       `json:"os"`
	HasRoot bool             `json:"has_root"` // paths that begin with a slash lead somewhere
	Volumes []guestfs.Volume `json:"volumes"`
	// Notes say what there is to know of disks, groups and arrays.
	Notes []string `json:"notes,omitempty"`
}

// Contents tells what runs on a machine, and what file systems it has. It does not
// regard the path.
func (a *Appliance) Contents(ctx context.Context, r FilesRequest) (Contents, error) {
	r.Path = "."
	b, err := a.browse(ctx, r, true)
	if err != nil {
		return Contents{}, err
	}
	defer b.close()
	volumes, err := b.guest.Volumes(ctx)
	return Contents{string(b.vm.ID), string(b.point.ID), b.guest.OS(), b.guest.HasRoot(), volumes, b.guest.Notes()}, b.error(err)
}

// Stat tells of one file. The last name is followed if it is a link and follow is
// set; extended attributes come with it.
func (a *Appliance) Stat(ctx context.Context, r FilesRequest, follow bool) (File, error) {
	b, err := a.browse(ctx, r, follow)
	if err != nil {
		return File{}, err
	}
	defer b.close()
	f := newFile(b.entry)
	f.Name, f.Path = path.Base(b.entry.Name), b.entry.Name
	if err := b.complete(ctx, &f, b.entry, true); err != nil {
		return f, b.error(err)
	}
	return f, nil
}

// complete adds what takes further questions: the target of a link, and extended
// attributes if they are wanted.
func (b *browsed) complete(ctx context.Context, f *File, e guestfs.Entry, xattrs bool) error {
	var err error
	if f.Type == "link" {
		f.Target, err = b.guest.Readlink(ctx, e.Node)
	}
	if !xattrs || err != nil {
		return err
	}
	list, err := b.guest.Xattrs(ctx, e.Node)
	f.setXattrs(list)
	return err
}

func (f *File) setXattrs(list []guestfs.Xattr) {
	for _, x := range list {
		if f.Xattrs == nil {
			f.Xattrs = map[string][]byte{}
		}
		f.Xattrs[x.Name] = x.Value
	}
}

// List calls yield for each entry of a directory, with targets of links; for what
// is no directory, for that itself. The first call is for the place itself, with
// Path set.
func (a *Appliance) List(ctx context.Context, r FilesRequest, yield func(File) error) error {
	b, err := a.browse(ctx, r, true)
	if err != nil {
		return err
	}
	defer b.close()
	top := newFile(b.entry)
	top.Name, top.Path = path.Base(b.entry.Name), b.entry.Name
	if err := yield(top); err != nil || top.Type != "dir" {
		return err
	}
	var stopped error
	err = b.guest.ReadDir(ctx, b.entry.Node, func(e guestfs.Entry) bool {
		f := newFile(e)
		if err := b.complete(ctx, &f, e, false); err != nil {
			f.Error = err.Error()
		}
		stopped = yield(f)
		return stopped == nil
	})
	if stopped != nil {
		return stopped
	}
	return b.error(err)
}

// FindRequest chooses files below a place.
type FindRequest struct {
	FilesRequest
	guestfs.Match
	Xattrs bool // with extended attributes
}

// Find calls yield for each file at or below a place that the request chooses; the
// names are paths from there.
func (a *Appliance) Find(ctx context.Context, r FindRequest, yield func(File) error) error {
	if err := r.Match.Check(); err != nil {
		return &Error{Code: CodeInvalid, Err: err, Msg: fmt.Sprintf("%q is no pattern of names.", r.Match.Name),
			Hint: "Use * for any characters, ? for one, [a-z] for one of several, and \\ before those that mean themselves."}
	}
	b, err := a.browse(ctx, r.FilesRequest, false)
	if err != nil {
		return err
	}
	defer b.close()
	var stopped error
	err = b.guest.WalkFull(ctx, b.entry.Node, r.Match, guestfs.Wanted{Xattrs: r.Xattrs}, func(e guestfs.FullEntry) error {
		f := newFile(e.Entry)
		f.Target = e.Target
		f.setXattrs(e.Xattrs)
		if e.XattrsErr != nil && f.Error == "" {
			f.Error = e.XattrsErr.Error()
		}
		stopped = yield(f)
		return stopped
	})
	if stopped != nil {
		return stopped
	}
	return b.error(err)
}

// Content is the content of a file.
type Content struct {
	*guestfs.File
	Info  File
	close func()
}

// Close gives the point back.
func (c *Content) Close() { c.close() }

// OpenFile opens a regular file. Links are followed.
func (a *Appliance) OpenFile(ctx context.Context, r FilesRequest) (*Content, error) {
	b, err := a.browse(ctx, r, true)
	if err != nil {
		return nil, err
	}
	if !b.entry.Attr.Mode.IsRegular() {
		defer b.close()
		f := newFile(b.entry)
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%s is no file, but of type %s.", Visible(cmp.Or(b.entry.Name, ".")), f.Type),
			Hint: "Name a file; list directories with: sendense-control ls"}
	}
	f, err := b.guest.OpenFile(b.entry)
	if err != nil {
		defer b.close()
		return nil, b.error(err)
	}
	info := newFile(b.entry)
	info.Name, info.Path = path.Base(b.entry.Name), b.entry.Name
	return &Content{f, info, b.close}, nil
}

// FileChange is what differs between two points.
type FileChange struct {
	Path  string       `json:"path"`
	What  guestfs.What `json:"what"` // added, removed, changed, attributes, unreadable
	Old   *File        `json:"old,omitempty"`
	New   *File        `json:"new,omitempty"`
	Error string       `json:"error,omitempty"`
}

// Diff calls yield for each path at or below r.Path that differs between r.Point
// and a newer point. Where both are in one chain, only what lies where the disks
// changed is read.
func (a *Appliance) Diff(ctx context.Context, r FilesRequest, newer string, yield func(FileChange) error) error {
	_, from, err := a.Point(ctx, r.VM, r.Point)
	if err != nil {
		return err
	}
	_, to, err := a.Point(ctx, r.VM, newer)
	if err != nil {
		return err
	}
	oldDisks, oldList, err := a.openDisks(ctx, from, r.Verified)
	if err != nil {
		return err
	}
	defer func() { _ = closeAll(oldDisks) }() // they were only read
	newDisks, newList, err := a.openDisks(ctx, to, r.Verified)
	if err != nil {
		return err
	}
	defer func() { _ = closeAll(newDisks) }()
	opts, err := a.guestOptions(r.Keyring)
	if err != nil {
		return err
	}
	older, after, err := guestfs.OpenTwo(ctx, oldList, newList, opts)
	if err != nil {
		return filesError(to, "", err)
	}
	defer older.Close()
	where := r.Path
	if where == "" && after.HasRoot() && older.HasRoot() {
		where = "/"
	}
	x, err := older.Resolve(ctx, where, false)
	if err != nil {
		return filesError(from, where, err)
	}
	y, err := after.Resolve(ctx, where, false)
	if err != nil {
		return filesError(to, where, err)
	}
	var stopped error
	err = guestfs.Diff(ctx, older, x.Node, after, y.Node, changedDisks(ctx, from, newList), func(c guestfs.Change) error {
		stopped = yield(newChange(c))
		return stopped
	})
	if stopped != nil {
		return stopped
	}
	return filesError(to, where, err)
}

func newChange(c guestfs.Change) FileChange {
	f := FileChange{Path: c.Path, What: c.What, Error: c.Err}
	if c.What != guestfs.Added {
		x := newFile(guestfs.Entry{Name: path.Base(c.Path), Attr: c.Old})
		x.Inode, f.Old = "", &x
	}
	if c.What != guestfs.Removed {
		x := newFile(guestfs.Entry{Name: path.Base(c.Path), Attr: c.New})
		x.Inode, f.New = "", &x
	}
	return f
}

// changedDisks returns what differs from an older point on each disk that knows;
// the others are compared as a whole.
func changedDisks(ctx context.Context, from Point, disks []guestfs.Disk) guestfs.Dirty {
	dirty := guestfs.Dirty{}
	for _, d := range disks {
		c, ok := d.Device.(block.Changer)
		if !ok {
			continue
		}
		list, err := c.Changed(ctx, string(from.ID), 0, d.Device.Size())
		if err == nil {
			dirty[d.Index] = list
		}
	}
	return dirty
}

// FileVersion is a file as it is in some points.
type FileVersion struct {
	Points []string `json:"points"` // oldest first
	File   *File    `json:"file"`   // nil: it was not there
	Error  string   `json:"error,omitempty"`
}

// Versions tells what a path was in each point of a machine, oldest first. Points
// that follow each other and have the same are told together. It is an error if
// there is nothing at the path in any of them. r.Point is not regarded.
func (a *Appliance) Versions(ctx context.Context, r FilesRequest) ([]FileVersion, error) {
	points, err := a.Points(ctx, r.VM)
	if err != nil {
		return nil, err
	}
	var list []FileVersion
	var last error
	found := false
	for _, p := range points {
		v := FileVersion{Points: []string{string(p.ID)}}
		r.Point = string(p.ID)
		f, err := a.Stat(ctx, r, false)
		last = err
		switch {
		case err == nil:
			v.File, found = &f, true
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case isLocked(err) && r.Keyring != "":
			return nil, err // others would take as long to say the same
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, guestfs.ErrNotDir):
			v.Error = err.Error()
		}
		if n := len(list); n > 0 && sameVersion(list[n-1], v) {
			list[n-1].Points = append(list[n-1].Points, v.Points...)
			continue
		}
		list = append(list, v)
	}
	if !found {
		return nil, last
	}
	return list, nil
}

// sameVersion reports that two versions are one, as far as times tell.
func sameVersion(a, b FileVersion) bool {
	if a.Error != "" || b.Error != "" || a.File == nil || b.File == nil {
		return a.Error == b.Error && a.File == nil && b.File == nil
	}
	x, y := a.File, b.File
	return x.Type == y.Type && x.Mode == y.Mode && x.UID == y.UID && x.GID == y.GID && x.Size == y.Size && x.Target == y.Target &&
		x.Modified.Equal(y.Modified) && x.Changed.Equal(y.Changed)
}
