package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func sortFiles(list []appliance.File) {
	slices.SortFunc(list, func(a, b appliance.File) int { return strings.Compare(a.Name, b.Name) })
}

func (s service) cp() *cobra.Command {
	var verified bool
	var format string
	var keys passphrases
	c := &cobra.Command{Use: "cp VM POINT PATH… DEST", Short: "Copy files out of a point, or make an archive of them", Args: cli.Args(4, 1<<10),
		Long: "Cp copies files and directories of a point to a place here, with modes, times, hard\n" +
			"links, holes, and, as far as this user may, owners and extended attributes. Links are\n" +
			"copied as links. Devices, pipes and sockets are left out, and named. Nothing outside\n" +
			"of DEST is touched, whatever is in the point.\n\n" + aboutArchives + "\n\n" + aboutPaths,
		RunE: func(c *cobra.Command, args []string) error {
			paths, dest := args[2:len(args)-1], args[len(args)-1]
			if dest == "-" {
				return s.archive(c, &keys, appliance.ArchiveRequest{VM: args[0], Point: args[1], Paths: paths, Format: format, Verified: verified})
			}
			if c.Flags().Changed("format") {
				return cli.Usagef("Give - in place of "+dest+" to have an archive written to standard output.", "--format is for archives, and %s is no such.", dest)
			}
			return s.unlocking(c, &keys, func(conn *host.Connection, keyring string) error {
				x := &copier{ctx: c.Context(), conn: conn, warn: c.ErrOrStderr()}
				r := appliance.FilesRequest{VM: args[0], Point: args[1], Verified: verified, Keyring: keyring}
				if err := x.copyAll(r, paths, dest); err != nil {
					return err
				}
				return s.Print(c, x.sum, func(w io.Writer) {
					fmt.Fprintf(w, "copied %d files, %s", x.sum.Files, cli.Size(x.sum.Bytes))
					if n := len(x.sum.LeftOut); n > 0 {
						fmt.Fprintf(w, "; left out %d", n)
					}
					fmt.Fprintln(w)
				})
			})
		}}
	c.Flags().BoolVar(&verified, "verified", false, "compare what is read with its digests")
	c.Flags().StringVar(&format, "format", "tar", "of an archive: `tar` or zip")
	keys.flags(c)
	return c
}

// copied is what cp says it did.
type copied struct {
	Files   int      `json:"files"` // also directories and links
	Bytes   int64    `json:"bytes"`
	LeftOut []string `json:"left_out,omitempty"` // with the reason
}

// copier copies one tree after another.
type copier struct {
	ctx   context.Context
	conn  *host.Connection
	warn  io.Writer
	sum   copied
	root  *os.Root          // nothing outside of it is touched
	base  string            // name in root of what is copied
	first map[string]string // name in root by inode, of files with several links
	dirs  []appliance.File  // to get their modes and times when they are full
}

// copyAll copies several paths.
func (x *copier) copyAll(r appliance.FilesRequest, paths []string, dest string) error {
	names := map[string]bool{}
	var all []string
	for _, p := range paths {
		r.Path = p
		top, err := x.conn.Stat(x.ctx, r, false)
		if err != nil {
			return err
		}
		name := path.Base(path.Clean("/" + top.Path))
		if name == "/" {
			name = r.Point
		}
		if names[name] {
			return &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("Two of the paths end in %s, and one would be in the place of the other.", appliance.Visible(name)),
				Hint: "Copy one after the other to different places, or a directory that both are in."}
		}
		names[name] = true
		all = append(all, name)
	}
	for i, p := range paths {
		r.Path = p
		if err := x.copy(r, all[i], dest, len(paths) > 1); err != nil {
			return err
		}
	}
	return nil
}

// copy copies what is at r.Path, which is called name, to dest: into it if it is a
// directory, or as it.
func (x *copier) copy(r appliance.FilesRequest, name, dest string, into bool) (err error) {
	parent := dest
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		into = true
	} else if into {
		return &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("%s is no directory, and there are several files to copy to it.", dest), Hint: "Make it with: mkdir " + dest}
	}
	if !into {
		parent, name = filepath.Split(filepath.Clean(dest))
		parent = filepath.Join(parent, ".")
	}
	if x.root, err = os.OpenRoot(parent); err != nil {
		return err
	}
	defer x.root.Close()
	x.base, x.first, x.dirs = name, map[string]string{}, nil
	err = x.conn.Find(x.ctx, appliance.FindRequest{FilesRequest: r, Xattrs: true}, func(f appliance.File) error { return x.one(r, f) })
	return errors.Join(err, x.finish())
}

// at returns where a file of the walk goes.
func (x *copier) at(f *appliance.File) string {
	return filepath.Join(x.base, filepath.FromSlash(f.RawName()))
}

func (x *copier) leaveOut(f *appliance.File, why string) {
	x.sum.LeftOut = append(x.sum.LeftOut, f.Name+": "+why)
	fmt.Fprintf(x.warn, "%s is left out: %s\n", appliance.Visible(f.Name), why)
}

// one copies one file of the walk.
func (x *copier) one(r appliance.FilesRequest, f appliance.File) error {
	to := x.at(&f)
	if f.Error != "" {
		x.leaveOut(&f, f.Error)
		return nil
	}
	if f.Type != "dir" && f.Links > 1 {
		if before, ok := x.first[f.Inode]; ok {
			x.sum.Files++
			return x.root.Link(before, to)
		}
		x.first[f.Inode] = to
	}
	switch f.Type {
	case "dir":
		if err := x.root.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		x.dirs = append(x.dirs, f)
	case "link":
		if err := x.root.Symlink(f.Target, to); err != nil {
			return err
		}
		_ = x.root.Lchown(to, int(f.UID), int(f.GID)) // as far as this user may
	case "file":
		if err := x.file(r, &f, to); err != nil {
			return err
		}
	default:
		delete(x.first, f.Inode)
		x.leaveOut(&f, "it is of type "+f.Type)
		return nil
	}
	x.sum.Files++
	return nil
}

// file copies a regular file: to a new one, never through what is there already.
func (x *copier) file(r appliance.FilesRequest, f *appliance.File, to string) error {
	if err := x.root.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := x.root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = x.content(r, f, out)
	if err == nil {
		err = setAttributes(out, f)
	}
	return errors.Join(err, out.Close())
}

func (x *copier) content(r appliance.FilesRequest, f *appliance.File, out *os.File) error {
	if f.Size == 0 {
		return nil
	}
	one := r
	one.Path = f.RawName()
	if r.Path != "" && f.Name == "." {
		one.Path = r.Path
	} else {
		one.Path = strings.TrimSuffix(r.Path, "/") + "/" + f.RawName()
	}
	if !r.Verified && f.Size >= fetchedFrom {
		switch err := x.fetch(one, out, f.Size); {
		case err == nil:
			x.sum.Bytes += f.Size
			return nil
		case !errors.Is(err, errNotHere):
			return err
		}
	}
	body, n, err := x.conn.ReadFile(x.ctx, one, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	got, err, failed := copySparse(out, body)
	x.sum.Bytes += got
	if failed != nil {
		return notCopied(one.Path, failed)
	}
	if err := cutOff(one.Path, got, n, err); err != nil {
		return err
	}
	return out.Truncate(got)
}

// setAttributes gives an open file what the one in the point has: owners and
// extended attributes as far as this user may, modes and times.
func setAttributes(out *os.File, f *appliance.File) error {
	fd := int(out.Fd())
	_ = unix.Fchown(fd, int(f.UID), int(f.GID)) // as far as this user may
	for name, value := range f.Xattrs {
		_ = unix.Fsetxattr(fd, name, value, 0) // as far as this user and file system may
	}
	mode, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil {
		return err
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

// finish gives directories what they have in the point, the innermost first.
func (x *copier) finish() error {
	var errs []error
	for _, f := range slices.Backward(x.dirs) {
		d, err := x.root.Open(x.at(&f))
		if err == nil {
			err = errors.Join(setAttributes(d, &f), d.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
