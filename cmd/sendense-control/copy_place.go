package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
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
	noName         reason = "it has a name that no file can have here"
)

func isReason(err error) bool {
	var r reason
	return errors.As(err, &r) || archive.IsReason(err)
}

// fileKey tells a file here from all others.
type fileKey struct{ dev, ino uint64 }

// made are the files of one directory that this copy has made. Where A is found
// under a as well, one is not to take the place of the other.
type made map[fileKey]bool

func keyOf(st fs.FileInfo) fileKey {
	s := st.Sys().(*syscall.Stat_t) // as Root.Lstat has it on Unix
	return fileKey{s.Dev, s.Ino}
}

// folder is a directory that is being filled.
type folder struct {
	file appliance.File // what it is to be when it is full
	path string         // in root
	id   fileKey
	made made
}

// begin makes the topmost directory, which is the root of all that is in it.
func (x *copier) begin() (*os.Root, error) {
	_, err := x.mkdir(x.name, x.made)
	if isReason(err) {
		return nil, &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("Nothing is copied to %s: %v.", appliance.Visible(x.name), err),
			Hint: "Copy to another place, or move what is there."}
	}
	if err != nil {
		return nil, err
	}
	return x.root.OpenRoot(x.name)
}

// mkdir makes a directory, unless it is there.
func (x *copier) mkdir(to string, beside made) (fileKey, error) {
	st, err := x.look(to, beside)
	if err != nil {
		return fileKey{}, err
	}
	if st == nil {
		if err := x.root.Mkdir(to, 0o700); err != nil {
			return fileKey{}, err
		}
		if st, err = x.root.Lstat(to); err != nil {
			return fileKey{}, err
		}
	}
	if !st.IsDir() {
		return fileKey{}, otherThere
	}
	beside[keyOf(st)] = true
	return keyOf(st), nil
}

// look tells what is at a place by now: nil if that is nothing.
func (x *copier) look(to string, beside made) (fs.FileInfo, error) {
	st, err := x.root.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ENAMETOOLONG):
		return nil, nameTooLong
	case errors.Is(err, unix.EILSEQ), errors.Is(err, unix.EINVAL):
		return nil, noName
	case err != nil:
		return nil, err
	case beside[keyOf(st)]:
		return nil, madeHere
	}
	return st, nil
}

// put has something made under another name, and puts it where it belongs.
func (x *copier) put(to string, make func(to string) error) error {
	beside := x.made
	if n := len(x.inside); n > 0 {
		beside = x.inside[n-1].made
	}
	st, err := x.look(to, beside)
	if err != nil {
		return err
	}
	if st != nil && st.IsDir() {
		return directoryThere
	}
	part := filepath.Join(filepath.Dir(to), fmt.Sprintf(".sendense-%016x", rand.Uint64()))
	if err = make(part); err == nil {
		st, err = x.root.Lstat(part)
	}
	if err == nil {
		err = x.root.Rename(part, to)
	}
	if err != nil {
		if removeErr := x.root.Remove(part); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
		return err
	}
	beside[keyOf(st)] = true
	return nil
}

// place puts one file of the walk where it belongs.
func (x *copier) place(f *appliance.File) error {
	to := filepath.FromSlash(f.RawName())
	if f.RawName() == "." && f.Type != "dir" {
		to = x.name
	}
	if l := x.first[f.Inode]; l != nil && f.Type != "dir" {
		if l.left--; l.left == 0 {
			delete(x.first, f.Inode)
		}
		return x.put(to, func(part string) error { return x.root.Link(l.path, part) })
	}
	var err error
	switch f.Type {
	case "dir":
		return x.enter(f, to)
	case "link":
		target := f.RawTarget()
		if target == "" || len(target) >= unix.PathMax || strings.Contains(target, "\x00") {
			return archive.ErrTarget
		}
		err = x.put(to, func(part string) error {
			err := x.root.Symlink(target, part)
			_ = x.root.Lchown(part, int(f.UID), int(f.GID)) // as far as this user may
			return err
		})
	case "file":
		err = x.put(to, func(part string) error { return x.file(f, part) })
	default:
		x.sum.Special++
		return reason("it is of type " + f.Type)
	}
	if err == nil && f.Links > 1 {
		x.first[f.Inode] = &linked{to, f.Links - 1}
	}
	return err
}

// enter begins a directory.
func (x *copier) enter(f *appliance.File, to string) error {
	d := &folder{file: *f, path: to, made: made{}}
	var err error
	if n := len(x.inside); n > 0 {
		d.id, err = x.mkdir(to, x.inside[n-1].made)
	} else { // it was made to begin with
		var st fs.FileInfo
		if st, err = x.root.Lstat(to); err == nil {
			d.id = keyOf(st)
		}
	}
	if err == nil {
		x.inside = append(x.inside, d)
	}
	return err
}

// leave gives directories what they have in the point, until only so many are left
// that lead to where we are.
func (x *copier) leave(n int) error {
	var errs []error
	for len(x.inside) > n {
		last := len(x.inside) - 1
		errs = append(errs, x.finish(x.inside[last]))
		x.inside = x.inside[:last]
	}
	return errors.Join(errs...)
}

func (x *copier) finish(d *folder) error {
	in, err := x.root.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || keyOf(st) != d.id {
		return errors.Join(fmt.Errorf("%s was replaced while it was filled", appliance.Visible(in.Name())), err)
	}
	return setAttributes(in, &d.file)
}

// file copies a regular file to a new one.
func (x *copier) file(f *appliance.File, to string) error {
	out, err := x.root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
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
