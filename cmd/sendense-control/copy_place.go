package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/archive"
)

// A copy goes to where the user has files already, and to file systems that take two
// names for one. Nothing is taken for what it is not: directories are looked at
// before anything is put into them, and all else is made under a name of its own,
// which is replaced by the real one when it is whole.

// reason is why a file is left out.
type reason string

func (r reason) Error() string { return string(r) }

const (
	directoryThere reason = "a directory is in its place"
	otherThere     reason = "something else than a directory is in its place"
	madeHere       reason = "what was copied from another name is in its place"
	nameTooLong    reason = "its name is longer than there is room for"
	noType         reason = "it cannot be told what it is"
	noName         reason = "it has a name that no file can have here"
)

func isReason(err error) bool {
	var r reason
	return errors.As(err, &r) || archive.IsReason(err)
}

// fileKey tells a file here from all others.
type fileKey struct{ dev, ino uint64 }

func keyOf(st fs.FileInfo) fileKey {
	s := st.Sys().(*syscall.Stat_t) // as os.Root has it on Unix
	return fileKey{s.Dev, s.Ino}
}

// folder is a directory that is being filled.
type folder struct {
	file appliance.File // what it is to be when it is full
	path string         // from where the walk began
	root *os.Root
	// made are the files in it that this copy has made. Where A is found under a as
	// well, one is not to take the place of the other.
	made map[fileKey]bool
}

// look tells what has a name by now: nil if that is nothing.
func (d *folder) look(name string) (fs.FileInfo, error) {
	st, err := d.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ENAMETOOLONG):
		return nil, nameTooLong
	case errors.Is(err, unix.EILSEQ), errors.Is(err, unix.EINVAL):
		return nil, noName
	case err != nil:
		return nil, err
	case d.made[keyOf(st)]:
		return nil, madeHere
	}
	return st, nil
}

// mkdir makes a directory, unless it is there, and opens it.
func (d *folder) mkdir(name string) (*os.Root, error) {
	st, err := d.look(name)
	if err == nil && st == nil {
		if err = d.root.Mkdir(name, 0o700); err == nil {
			st, err = d.root.Lstat(name)
		}
	}
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, otherThere
	}
	in, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	if is, err := in.Stat("."); err != nil || !os.SameFile(st, is) {
		return nil, errors.Join(otherThere, err, in.Close())
	}
	d.made[keyOf(st)] = true
	return in, nil
}

// put has something made under a name of its own, and gives it the one that it is
// to have.
func (d *folder) put(name string, create func(name string) error) error {
	st, err := d.look(name)
	if err != nil {
		return err
	}
	if st != nil && st.IsDir() {
		return directoryThere
	}
	part := fmt.Sprintf(".sendense-%016x", rand.Uint64())
	if err = create(part); err == nil {
		st, err = d.root.Lstat(part)
	}
	if err == nil {
		err = d.root.Rename(part, name)
	}
	if err != nil {
		if removeErr := d.root.Remove(part); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
		return err
	}
	d.made[keyOf(st)] = true
	return nil
}

// finish gives a directory what it has in the point.
func (d *folder) finish() error {
	defer d.root.Close()
	in, err := d.root.OpenFile(".", os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	return setAttributes(in, &d.file)
}

// begin makes the topmost directory, which is the root of all that is in it.
func (x *copier) begin() (*os.Root, error) {
	in, err := x.outer.mkdir(x.name)
	if isReason(err) {
		return nil, &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("Nothing is copied to %s: %v.", appliance.Visible(x.name), err),
			Hint: "Copy to another place, or move what is there."}
	}
	return in, err
}

// here is the directory that the walk is in.
func (x *copier) here() *folder {
	if n := len(x.inside); n > 0 {
		return x.inside[n-1]
	}
	return &x.outer
}

// place puts one file of the walk where it belongs.
func (x *copier) place(f *appliance.File) error {
	here, name := x.here(), path.Base(f.RawName())
	if len(x.inside) == 0 {
		name = x.name
	}
	if l := x.first[f.Inode]; l != nil && f.Type != "dir" {
		if l.left--; l.left == 0 {
			delete(x.first, f.Inode)
		}
		return here.put(name, func(part string) error { return x.top.Link(l.path, path.Join(here.path, part)) })
	}
	var err error
	switch f.Type {
	case "dir":
		return x.enter(f, name)
	case "link":
		target := f.RawTarget()
		if target == "" || len(target) >= unix.PathMax || strings.Contains(target, "\x00") {
			return archive.ErrTarget
		}
		err = here.put(name, func(part string) error {
			err := here.root.Symlink(target, part)
			_ = here.root.Lchown(part, int(f.UID), int(f.GID)) // as far as this user may
			return err
		})
	case "file":
		err = here.put(name, func(part string) error { return x.file(f, here.root, part) })
	case "":
		return noType
	default:
		x.sum.Special++
		return reason("it is of type " + f.Type)
	}
	if err == nil && f.Links > 1 {
		x.first[f.Inode] = &linked{path.Join(here.path, name), f.Links - 1}
	}
	return err
}

// enter begins a directory.
func (x *copier) enter(f *appliance.File, name string) error {
	d := &folder{file: *f, path: f.RawName(), root: x.top, made: map[fileKey]bool{}}
	if len(x.inside) > 0 { // else it was made to begin with
		var err error
		if d.root, err = x.here().mkdir(name); err != nil {
			return err
		}
	}
	x.inside = append(x.inside, d)
	return nil
}

// leave finishes directories until only so many are left that lead to where we are.
func (x *copier) leave(n int) error {
	var errs []error
	for len(x.inside) > n {
		last := len(x.inside) - 1
		errs = append(errs, x.inside[last].finish())
		x.inside = x.inside[:last]
	}
	return errors.Join(errs...)
}

// file copies a regular file to a new one.
func (x *copier) file(f *appliance.File, in *os.Root, name string) error {
	out, err := in.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = x.content(f, out)
	if err == nil {
		err = setAttributes(out, f)
	}
	return errors.Join(err, out.Close())
}

// setAttributes gives an open file what the one in the point has: owners and
// extended attributes as far as this user may, modes and times. A program that runs
// as its owner does so for that owner only.
func setAttributes(out *os.File, f *appliance.File) error {
	fd := int(out.Fd())
	mode, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil {
		return err
	}
	if unix.Fchown(fd, int(f.UID), int(f.GID)) != nil {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	for name, value := range f.Xattrs {
		_ = unix.Fsetxattr(fd, name, value, 0) // as far as this user and file system may
	}
	if err := unix.Fchmod(fd, uint32(mode)); err != nil {
		return fmt.Errorf("mode of %s: %w", out.Name(), err)
	}
	if f.Modified.IsZero() {
		return nil
	}
	t, err := unix.TimeToTimespec(f.Modified)
	if err != nil {
		return fmt.Errorf("time of %s: %w", out.Name(), err)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{t, t}, 0)
}
