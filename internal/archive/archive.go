// Package archive writes trees of files as a stream, in the format tar (pax,
// POSIX.1-2008) or zip (APPNOTE 6.3.10 with the fields of Info-ZIP). It takes
// names, targets and contents from who means harm: what it writes leads nowhere
// but down from where it is extracted, with every name once, and none below
// anything but a directory. It needs no temporary file, and memory that does not
// grow with what is in the tree.
//
// It knows nothing of where files come from.
package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"
)

// Format is how an archive is written.
type Format string

// The formats.
const (
	Tar Format = "tar" // all there is: owners, times, extended attributes, hard links, devices, holes
	Zip Format = "zip" // files, directories and symbolic links, with modes, owners and times
)

// Entry is what an archive holds under a name.
type Entry struct {
	Name     string // path from where it is extracted; bytes, of any encoding
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64 // of a regular file, in bytes
	Modified time.Time
	Target   string // of a symbolic link
	// Link is the name of an earlier entry whose file this is too. Zip has no such
	// thing: there the content is written again.
	Link         string
	Major, Minor uint32 // of a device
	// Xattrs are for tar; CutXattrs sees to it that there is room for them.
	Xattrs []Xattr
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Content is that of a regular file.
type Content interface {
	// ReadAt fills p from byte off on.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Data returns the first run at or behind off that may be other than zeroes. Both
	// ends are the file's size if there is none.
	Data(ctx context.Context, off int64) (from, to int64, err error)
}

// RefusedError says that an entry is not in the archive, which may go on without.
type RefusedError struct {
	Name string
	Err  error // what is wrong with it, or what reading its content ended with
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%q: %v", e.Name, e.Err) }

// Unwrap returns the reason.
func (e *RefusedError) Unwrap() error { return e.Err }

// Errors of entries that an archive does not take.
var (
	ErrName   = errors.New("it has a name that no file can have")
	ErrOrder  = errors.New("something else in its directory has the same name")
	ErrParent = errors.New("the directory that it is in is left out")
	ErrType   = errors.New("the format has no such thing")
	ErrLong   = errors.New("its name is longer than the format has room for")
	ErrTarget = errors.New("its target is no path")
	ErrAlias  = errors.New("where upper and lower case are one, it has the name of a directory or a link beside it")
	// ErrAliases is for links where there are too many names to remember.
	ErrAliases = errors.New("there are too many names in its directory to tell whether others are taken for it")
	ErrMany    = errors.New("too many files for a zip; make a tar")
)

// IsReason reports whether an error is one of these, but for the last.
func IsReason(err error) bool {
	return slices.ContainsFunc([]error{ErrName, ErrOrder, ErrParent, ErrType, ErrLong, ErrTarget, ErrAlias, ErrAliases}, func(e error) bool { return errors.Is(err, e) })
}

// Writer writes an archive.
type Writer struct {
	f       format
	names   Names
	aliases aliases
	err     error // what ended it
}

// format is what differs between tar and zip.
type format interface {
	// check returns why an entry cannot be written, and prepares what can.
	check(e *Entry) error
	// add writes an entry. An error with begun set has spoilt the archive.
	add(ctx context.Context, e *Entry, c Content) (begun bool, err error)
	end() error
	// spoil makes what was written until now no archive, not even a shorter one.
	spoil() error
	// renamed returns the name under which an entry is found.
	renamed(name string) string
}

// New begins an archive.
func New(w io.Writer, f Format) (*Writer, error) {
	out := &output{w: w}
	x := &Writer{}
	switch f {
	case Tar:
		x.f = &tarWriter{w: out}
	case Zip:
		x.f = newZip(out)
	default:
		return nil, fmt.Errorf("archive format %q", f)
	}
	return x, nil
}

// Add writes an entry; c may be nil of what is no regular file or is empty. An
// entry comes behind the directory that it is in, before anything that is not
// below that, and in the order of names; topmost ones come in any order, and files
// among them at any time. After a [RefusedError] the archive is as if Add had not been called. Any other error
// ends it.
func (x *Writer) Add(ctx context.Context, e *Entry, c Content) error {
	if x.err != nil {
		return x.err
	}
	if err := x.names.Check(e); err != nil {
		return x.refuse(e, err)
	}
	if err := x.aliases.check(e); err != nil {
		return x.refuse(e, err)
	}
	if err := x.f.check(e); err != nil {
		return x.refuse(e, err)
	}
	begun, err := x.f.add(ctx, e, c)
	switch {
	case err != nil && !begun:
		return x.refuse(e, err)
	case err != nil:
		x.err = fmt.Errorf("write %q: %w", e.Name, err)
		return x.err
	}
	x.names.Took(e)
	x.aliases.took(e)
	return nil
}

func (x *Writer) refuse(e *Entry, err error) error {
	x.names.Refused(e)
	return &RefusedError{e.Name, err}
}

// Has reports whether a topmost name is taken.
func (x *Writer) Has(top string) bool { return x.names.tops[top] }

// Renamed returns the name under which an entry called name is found in the
// archive: another one if the format cannot have that.
func (x *Writer) Renamed(name string) string { return x.f.renamed(name) }

// Close writes what an archive ends with. Without it, and after an error, what was
// written is none.
func (x *Writer) Close() error {
	if x.err == nil {
		x.err = errors.New("the archive is closed")
		return x.f.end()
	}
	return x.err
}

// Spoil ends an archive that is not to be finished, so that whoever reads it sees
// that something is missing: a tar that ends behind a file is taken for a whole one
// by some.
func (x *Writer) Spoil() error {
	if x.err != nil {
		return nil // it ends within a file, or was told
	}
	x.err = errors.New("the archive was given up")
	return x.f.spoil()
}

// output counts what is written.
type output struct {
	w io.Writer
	n int64
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.n += int64(n)
	return n, err
}

// pieceBytes is how much content is read at a time.
const pieceBytes = 256 << 10

// copyRange writes the bytes [from, to) of c.
func copyRange(ctx context.Context, w io.Writer, c Content, from, to int64, buf []byte) error {
	for from < to {
		p := buf[:min(int64(len(buf)), to-from)]
		if err := c.ReadAt(ctx, p, from); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		from += int64(len(p))
	}
	return nil
}

// unixMode returns a mode as stat(2) has it.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, is := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&is != 0 {
			mode |= bit
		}
	}
	return mode
}
