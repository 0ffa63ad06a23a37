package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/archive"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) cp() *cobra.Command {
	var verified bool
	var format string
	var keys passphrases
	c := &cobra.Command{Use: "cp VM POINT PATH… DEST", Short: "Copy files out of a point, or make an archive of them", Args: cli.Args(4, 1<<10),
		Long: "Cp copies files and directories of a point to a place here, with modes, times, hard\n" +
			"links, holes, and, as far as this user may, owners and extended attributes. Links are\n" +
			"copied as links. Devices, pipes and sockets are left out, and named. Files are replaced\n" +
			"when the new ones are whole. Nothing outside of DEST is touched, whatever is in the\n" +
			"point. What cannot be read is left out and named, and the exit code is 5.\n\n" + aboutArchives + "\n\n" + aboutPaths,
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
				return errors.Join(s.Print(c, x.sum, func(w io.Writer) { tellSummary(w, x.sum.ArchiveSummary) }), foundIf(x.sum.Incomplete()))
			})
		}}
	c.Flags().BoolVar(&verified, "verified", false, "compare what is read with its digests")
	c.Flags().StringVar(&format, "format", "tar", "of an archive: `tar` or zip")
	keys.flags(c)
	return c
}

// copied is what cp says it did. What is changed lacks extended attributes.
type copied struct {
	appliance.ArchiveSummary
	Reasons []string `json:"left_out,omitempty"` // of each file that is left out
}

// copier copies one tree after another.
type copier struct {
	ctx   context.Context
	conn  *host.Connection
	warn  io.Writer
	sum   copied
	outer folder // what is copied goes into

	// Of one tree:
	from   appliance.FilesRequest
	name   string   // of what is copied, in outer
	top    *os.Root // that, if it is a directory: nothing outside of it is touched
	names  archive.Names
	first  map[string]*linked // by inode: files with several links
	inside []*folder          // the directories that lead to where we are, the topmost first
}

// linked is a file that more links may follow of.
type linked struct {
	path string // in top
	left uint32
}

// top is where a walk begins, and the name that it gets.
type top struct{ path, name, kind string }

// copyAll copies several paths.
func (x *copier) copyAll(r appliance.FilesRequest, paths []string, dest string) error {
	names := map[string]bool{}
	var all []top
	for _, p := range paths {
		r.Path = p
		f, err := x.conn.Stat(x.ctx, r, false)
		if err != nil {
			return err
		}
		t := top{f.RawPath(), path.Base(path.Clean("/" + f.RawPath())), f.Type}
		if t.name == "/" {
			t.name = r.Point
		}
		if t.path == "" {
			t.path = "." // where the disks are
		}
		if names[t.name] {
			return &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("Two of the paths end in %s, and one would be in the place of the other.", appliance.Visible(t.name)),
				Hint: "Copy one after the other to different places, or a directory that both are in."}
		}
		names[t.name] = true
		all = append(all, t)
	}
	x.outer.made = map[fileKey]bool{}
	for _, t := range all {
		r.Path = t.path
		if err := x.copy(r, t, dest, len(paths) > 1); err != nil {
			return err
		}
	}
	return nil
}

// copy copies what is at r.Path to dest: into it if it is a directory, or as it.
func (x *copier) copy(r appliance.FilesRequest, t top, dest string, into bool) error {
	parent := dest
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		into = true
	} else if into {
		return &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("%s is no directory, and there are several files to copy to it.", dest), Hint: "Make it with: mkdir " + dest}
	}
	if !into {
		parent, t.name = filepath.Split(filepath.Clean(dest))
		parent = filepath.Join(parent, ".")
	}
	var err error
	if x.outer.root, err = os.OpenRoot(parent); err != nil {
		return err
	}
	defer x.outer.root.Close()
	x.from, x.name, x.names, x.first, x.inside = r, t.name, archive.Names{}, map[string]*linked{}, nil
	if t.kind == "dir" {
		if x.top, err = x.begin(); err != nil {
			return err
		}
		defer x.top.Close()
	}
	err = x.conn.Find(x.ctx, appliance.FindRequest{FilesRequest: r, Xattrs: true}, x.one)
	return errors.Join(err, x.leave(0))
}

// shown is how a file of the walk is called towards the user.
func (x *copier) shown(f *appliance.File) string {
	return appliance.Visible(path.Join(x.name, f.RawName()))
}

// leaveOut notes a file that is not copied.
func (x *copier) leaveOut(f *appliance.File, why string) {
	why = appliance.Visible(why)
	x.sum.LeftOut++
	x.sum.Reasons = append(x.sum.Reasons, x.shown(f)+": "+why)
	what := x.shown(f)
	if f.Type == "dir" && f.Error != "" { // it is there by now
		what = "some or all of what is in " + what
	}
	fmt.Fprintf(x.warn, "%s is left out: %s\n", what, why)
}

// lost is the error of what the repository does not yield.
func (x *copier) lost(f *appliance.File, why string) error {
	return &appliance.Error{Code: appliance.CodeCorrupt, Msg: fmt.Sprintf("%s cannot be read: %s.", appliance.Visible(path.Join(x.from.Path, f.RawName())), strings.TrimSuffix(appliance.Visible(why), ".")),
		Hint: fmt.Sprintf("Find out what is damaged with: sendense-control verify %s --point %s", x.from.VM, x.from.Point)}
}

// one copies one file of the walk. What is the guest's own fault is left out, and so
// is what something is in the way of.
func (x *copier) one(f appliance.File) error {
	switch {
	case f.Lost:
		return x.lost(&f, cmp.Or(f.Error, f.XattrsError))
	case f.Error != "":
		x.leaveOut(&f, f.Error)
		return nil
	}
	e := archive.Entry{Name: "top"}
	if f.RawName() != "." {
		e.Name += "/" + f.RawName()
	}
	if f.Type == "dir" {
		e.Mode = fs.ModeDir
	}
	err := x.leave(strings.Count(e.Name, "/"))
	if err != nil {
		return err
	}
	if err = x.names.Check(&e); err == nil {
		err = x.place(&f)
	}
	switch {
	case err == nil:
		x.names.Took(&e)
		x.sum.Files++
		if f.XattrsError != "" {
			x.sum.Changed++
			fmt.Fprintf(x.warn, "%s lacks its extended attributes: %s\n", x.shown(&f), appliance.Visible(f.XattrsError))
		}
		return nil
	case isReason(err):
		x.leaveOut(&f, err.Error())
	case appliance.AsError(err).Guest:
		x.leaveOut(&f, appliance.AsError(err).Error())
	default:
		return err
	}
	x.names.Refused(&e)
	return nil
}

// content writes what is in a regular file.
func (x *copier) content(f *appliance.File, out *os.File) error {
	if f.Size == 0 {
		return nil
	}
	one := x.from
	one.Path = path.Join(x.from.Path, f.RawName())
	if !one.Verified && f.Size >= fetchedFrom {
		switch err := x.fetch(one, out, f.Size); {
		case err == nil:
			x.sum.Bytes += f.Size
			return nil
		case !errors.Is(err, errNotHere):
			return err
		}
	}
	body, n, err := x.conn.ReadFile(x.ctx, one)
	if err != nil {
		return err
	}
	defer body.Close()
	got, err, failed := copySparse(out, body)
	if failed != nil {
		return notCopied(one.Path, failed)
	}
	if err != nil {
		return err
	}
	x.sum.Bytes += got
	return out.Truncate(n)
}
