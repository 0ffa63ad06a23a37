package appliance

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"time"
	"unicode/utf8"

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
	Name      string    `json:"name"`                 // or a path from where a search began
	NameBytes []byte    `json:"name_bytes,omitempty"` // the name, if it is not UTF-8
	Path      string    `json:"path,omitempty"`       // where it is, links resolved
	PathBytes []byte    `json:"path_bytes,omitempty"` // the same, if it is not UTF-8
	Type      string    `json:"type"`                 // file, dir, link, pipe, socket, block, char; "" if it cannot be told
	Mode      string    `json:"mode"`                 // octal, as chmod takes it
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	Links     uint32    `json:"links"`
	Size      int64     `json:"size"`
	Allocated int64     `json:"allocated"`
	Modified  time.Time `json:"modified,omitzero"`
	Changed   time.Time `json:"changed,omitzero"`
	Created   time.Time `json:"created,omitzero"`
	Target    string    `json:"target,omitempty"` // of a link
	// TargetBytes is the target, if it is not UTF-8.
	TargetBytes []byte            `json:"target_bytes,omitempty"`
	Major       uint32            `json:"major,omitempty"`
	Minor       uint32            `json:"minor,omitempty"`
	Flags       []string          `json:"flags,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	// Inode tells hard links of one file apart from files, within a point.
	Inode string `json:"inode,omitempty"`
	Error string `json:"error,omitempty"` // why it, or what is in it, cannot be read
	// XattrsError is why its extended attributes cannot be read.
	XattrsError string `json:"xattrs_error,omitempty"`
	// Lost says that what cannot be read is not as the guest had it: the repository
	// does not yield it.
	Lost bool `json:"lost,omitempty"`
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
	f.NameBytes = notText(e.Name)
	if e.Err != nil {
		f.Error, f.Lost = e.Err.Error(), !guestfs.OwnFault(e.Err)
	}
	return f
}

// newPlace is newFile for what a path leads to, which is its name.
func newPlace(e guestfs.Entry) File {
	where := e.Name
	e.Name = path.Base(where)
	f := newFile(e)
	f.Path, f.PathBytes = where, notText(where)
	return f
}

// notText returns a name as bytes if it is not UTF-8, which JSON would change.
func notText(name string) []byte {
	if utf8.ValidString(name) {
		return nil
	}
	return []byte(name)
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

// RawPath returns the path as the guest has it.
func (f *File) RawPath() string {
	if f.PathBytes != nil {
		return string(f.PathBytes)
	}
	return f.Path
}

// RawTarget returns the target of a link as the guest has it.
func (f *File) RawTarget() string {
	if f.TargetBytes != nil {
		return string(f.TargetBytes)
	}
	return f.Target
}

func (f *File) setTarget(target string) { f.Target, f.TargetBytes = target, notText(target) }

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
	f := newPlace(b.entry)
	if err := b.complete(ctx, &f, b.entry, true); err != nil {
		return f, b.error(err)
	}
	return f, nil
}

// complete adds what takes further questions: the target of a link, and extended
// attributes if they are wanted. A file whose own cannot be read goes without.
func (b *browsed) complete(ctx context.Context, f *File, e guestfs.Entry, xattrs bool) error {
	if f.Type == "link" {
		target, err := b.guest.Readlink(ctx, e.Node)
		if err != nil {
			return err
		}
		f.setTarget(target)
	}
	if !xattrs {
		return nil
	}
	list, err := b.guest.Xattrs(ctx, e.Node)
	if guestfs.OwnFault(err) {
		f.XattrsError = err.Error()
		return nil
	}
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
	top := newPlace(b.entry)
	if err := yield(top); err != nil || top.Type != "dir" {
		return err
	}
	var stopped error
	err = b.guest.ReadDir(ctx, b.entry.Node, func(e guestfs.Entry) bool {
		f := newFile(e)
		if err := b.complete(ctx, &f, e, false); err != nil {
			f.Error, f.Lost = err.Error(), !guestfs.OwnFault(err)
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

// Check returns an error if the request makes no sense.
func (r *FindRequest) Check() error {
	if err := r.Match.Check(); err != nil {
		return &Error{Code: CodeInvalid, Err: err, Msg: fmt.Sprintf("%q is no pattern of names.", r.Name),
			Hint: "Use * for any characters, ? for one, [a-z] for one of several, and \\ before those that mean themselves."}
	}
	return nil
}

// Find calls yield for each file at or below a place that the request chooses; the
// names are paths from there.
func (a *Appliance) Find(ctx context.Context, r FindRequest, yield func(File) error) error {
	if err := r.Check(); err != nil {
		return err
	}
	b, err := a.browse(ctx, r.FilesRequest, false)
	if err != nil {
		return err
	}
	defer b.close()
	var stopped error
	err = b.guest.WalkFull(ctx, b.entry.Node, r.Match, guestfs.Wanted{Xattrs: r.Xattrs}, func(e guestfs.FullEntry) error {
		f := newFile(e.Entry)
		f.setTarget(e.Target)
		f.setXattrs(e.Xattrs)
		if e.XattrsErr != nil {
			f.XattrsError, f.Lost = e.XattrsErr.Error(), f.Lost || !guestfs.OwnFault(e.XattrsErr)
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
	Info File
	b    *browsed
}

// Close gives the point back.
func (c *Content) Close() { c.b.close() }

// ReadAt implements block.Device.
func (c *Content) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.File.ReadAt(ctx, p, off); err != nil {
		return c.b.error(err)
	}
	return nil
}

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
	return &Content{f, newPlace(b.entry), b}, nil
}
