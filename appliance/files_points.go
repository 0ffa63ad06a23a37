package appliance

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/repository"
)

// Files are also compared between points: two of them, or all that a machine has.

// FileChange is what differs between two points.
type FileChange struct {
	Path      string       `json:"path"`
	PathBytes []byte       `json:"path_bytes,omitempty"` // the path, if it is not UTF-8
	What      guestfs.What `json:"what"`                 // added, removed, changed, attributes, unreadable
	Old       *File        `json:"old,omitempty"`
	New       *File        `json:"new,omitempty"`
	Error     string       `json:"error,omitempty"`
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
	f := FileChange{Path: c.Path, PathBytes: notText(c.Path), What: c.What, Error: c.Err}
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
// all of them can be read and there is nothing at the path in any. r.Point is not
// regarded.
func (a *Appliance) Versions(ctx context.Context, r FilesRequest) ([]FileVersion, error) {
	points, err := a.Points(ctx, r.VM)
	if err != nil {
		return nil, err
	}
	var list []FileVersion
	var last error
	told := false // there is something to tell
	for _, p := range points {
		v := FileVersion{Points: []string{string(p.ID)}}
		r.Point = string(p.ID)
		f, err := a.Stat(ctx, r, false)
		last = err
		switch {
		case err == nil:
			v.File, told = &f, true
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case isLocked(err) && r.Keyring != "":
			return nil, err // others would take as long to say the same
		case !notThere(err):
			v.Error = err.Error()
			told = told || AsError(err).Code != CodeInvalid // a path that makes no sense in any point
		}
		if n := len(list); n > 0 && sameVersion(list[n-1], v) {
			list[n-1].Points = append(list[n-1].Points, v.Points...)
			continue
		}
		list = append(list, v)
	}
	if !told {
		return nil, last
	}
	return list, nil
}

// notThere reports whether an error says that a point has nothing at a path, which
// is no matter of what the repository has lost.
func notThere(err error) bool {
	return guestfs.OwnFault(err) && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, guestfs.ErrNotDir) || errors.Is(err, guestfs.ErrNoRoot)) ||
		errors.Is(err, repository.ErrNoPoint)
}

// sameVersion reports that two versions are one, as far as times tell.
func sameVersion(a, b FileVersion) bool {
	if a.Error != "" || b.Error != "" || a.File == nil || b.File == nil {
		return a.Error == b.Error && a.File == nil && b.File == nil
	}
	x, y := a.File, b.File
	return x.Type == y.Type && x.Mode == y.Mode && x.UID == y.UID && x.GID == y.GID && x.Size == y.Size && x.RawTarget() == y.RawTarget() &&
		x.Modified.Equal(y.Modified) && x.Changed.Equal(y.Changed)
}
