package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/host"
)

func (s service) find() *cobra.Command {
	var r appliance.FindRequest
	var p passphrases
	var after, before, larger, smaller string
	c := &cobra.Command{Use: "find VM [POINT] [PATH]", Short: "Find files inside points by name, size and time", Args: cli.Args(1, 3),
		Long: "Find walks a directory of a point, or of every point if none is named.\n" + aboutPaths,
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point, r.Path = args[0], pathArg(args, 1), pathArg(args, 2)
			if err := findFlags(&r, after, before, larger, smaller); err != nil {
				return err
			}
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				r.Keyring = keyring
				return s.runFind(c, conn, r)
			})
		}}
	f := c.Flags()
	f.StringVar(&r.Name, "name", "", "`pattern` of the name: * ? [a-z]")
	f.BoolVarP(&r.FoldCase, "ignore-case", "i", false, "ignore case in names")
	f.StringVar(&r.Type, "type", "", "only `f`iles, d(irectories) or l(inks)")
	f.StringVar(&larger, "larger", "", "only files of this `size` or more, as 10M")
	f.StringVar(&smaller, "smaller", "", "only files of this `size` or less")
	f.StringVar(&after, "after", "", "only what was modified after this `time`, as 2025-10-02 or 2025-10-02T12:00:00Z")
	f.StringVar(&before, "before", "", "only what was modified before this `time`")
	f.IntVar(&r.Shallow, "depth", 0, "go down only so many directories")
	f.BoolVar(&r.Verified, "verified", false, "compare what is read with its digests")
	p.flags(c)
	return c
}

func findFlags(r *appliance.FindRequest, after, before, larger, smaller string) error {
	for flag, x := range map[string]struct {
		text string
		to   *int64
	}{"--after": {after, &r.After}, "--before": {before, &r.Before}} {
		if x.text == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, x.text)
		if err != nil {
			t, err = time.Parse(time.DateOnly, x.text)
		}
		if err != nil {
			return cli.Usagef("Give a time as 2025-10-02 or 2025-10-02T12:00:00Z.", "%s is %q.", flag, x.text)
		}
		*x.to = t.Unix()
	}
	var atMost int64
	for flag, x := range map[string]struct {
		text string
		to   *int64
	}{"--larger": {larger, &r.MinSize}, "--smaller": {smaller, &atMost}} {
		if x.text == "" {
			continue
		}
		n, err := parseSize(x.text)
		if err != nil {
			return cli.Usagef("Give a size as 4096, 10k, 10M or 1G.", "%s is %q.", flag, x.text)
		}
		*x.to = n
	}
	if smaller != "" {
		r.MaxSize = &atMost
	}
	if !strings.Contains(" f d l", " "+r.Type) {
		return cli.Usagef("Give f, d or l.", "--type is %q.", r.Type)
	}
	return r.Check()
}

func parseSize(s string) (int64, error) {
	shift := 0
	if i := strings.IndexByte("kmgt", s[len(s)-1]|0x20); i >= 0 {
		shift, s = 10*(i+1), s[:len(s)-1]
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<(62-shift) {
		return 0, fmt.Errorf("size %q", s)
	}
	return n << shift, nil
}

// foundIn is a file with the point that it was found in.
type foundIn struct {
	Point string `json:"point"`
	appliance.File
}

// search looks for files in points.
type search struct {
	service
	c          *cobra.Command
	conn       *host.Connection
	r          appliance.FindRequest
	every      bool // of the machine's points, so that they are told apart
	w          io.Writer
	found      []foundIn // with --json
	unreadable bool      // something was, and is told
	stopped    error     // why nothing more can be told
}

func (s service) runFind(c *cobra.Command, conn *host.Connection, r appliance.FindRequest) error {
	points := []string{r.Point}
	if r.Point == "" {
		list, err := conn.Points(c.Context(), r.VM)
		if err != nil {
			return err
		}
		points = points[:0]
		for _, p := range list {
			points = append(points, string(p.ID))
		}
	}
	w, flush := cli.Lines(c.OutOrStdout())
	x := &search{service: s, c: c, conn: conn, r: r, every: r.Point == "", w: w, found: []foundIn{}}
	err := x.all(points)
	if s.JSON && (err == nil || len(x.found) > 0) {
		err = errors.Join(err, s.Print(c, x.found, nil))
	}
	if err = errors.Join(err, flush()); err == nil {
		err = foundIf(x.unreadable)
	}
	return err
}

// all searches one point after another. One that cannot be read is told of, and is
// an error only if there is no other.
func (x *search) all(points []string) error {
	var last error
	failed := 0
	for _, p := range points {
		err := x.in(p)
		if err == nil {
			continue
		}
		if len(points) == 1 || x.ends(err) {
			return err
		}
		last, failed = err, failed+1
		if err := x.tell(p, appliance.File{Name: ".", Error: appliance.AsError(err).Error()}); err != nil {
			return err
		}
	}
	if failed == len(points) {
		return last
	}
	return nil
}

// ends reports whether an error is one that the other points would end in, too.
func (x *search) ends(err error) bool {
	switch appliance.AsError(err).Code {
	case appliance.CodeCancelled, appliance.CodeUnreachable, appliance.CodeInterrupted:
		return true
	case appliance.CodeDenied: // and take as long to find out
		return x.r.Keyring != ""
	}
	return x.stopped != nil
}

// in searches one point.
func (x *search) in(point string) error {
	one := x.r
	one.Point = point
	return x.conn.Find(x.c.Context(), one, func(f appliance.File) error {
		x.stopped = x.tell(point, f)
		return x.stopped
	})
}

// tell tells of a file that was found, or cannot be read.
func (x *search) tell(point string, f appliance.File) error {
	x.unreadable = x.unreadable || f.Error != ""
	if x.JSON {
		x.found = append(x.found, foundIn{point, f})
		return nil
	}
	line := appliance.Visible(f.Name)
	if x.every {
		line = point + "  " + line
	}
	if f.Error != "" {
		fmt.Fprintf(x.c.ErrOrStderr(), "%s: %s\n", line, appliance.Visible(f.Error))
		return nil
	}
	_, err := fmt.Fprintln(x.w, line)
	return err
}

func (s service) diff() *cobra.Command {
	var r appliance.FilesRequest
	var p passphrases
	c := &cobra.Command{Use: "diff VM POINT POINT [PATH]", Short: "List the files that differ between two points", Args: cli.Args(3, 4),
		Long: "Diff compares a directory of an older point with that of a newer one: A added,\nR removed, C changed, M only attributes.\n" + aboutPaths,
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point, r.Path = args[0], args[1], pathArg(args, 3)
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				r.Keyring = keyring
				list := []appliance.FileChange{}
				unreadable := false
				w, flush := cli.Lines(c.OutOrStdout())
				err := conn.Diff(c.Context(), r, args[2], func(x appliance.FileChange) error {
					unreadable = unreadable || x.What == guestfs.Unreadable
					if s.JSON {
						list = append(list, x)
						return nil
					}
					_, err := fmt.Fprintln(w, changeLine(x))
					return err
				})
				if s.JSON && (err == nil || len(list) > 0) {
					err = errors.Join(err, s.Print(c, list, nil))
				}
				if err = errors.Join(err, flush()); err == nil {
					err = foundIf(unreadable)
				}
				return err
			})
		}}
	c.Flags().BoolVar(&r.Verified, "verified", false, "compare what is read with its digests")
	p.flags(c)
	return c
}

func changeLine(x appliance.FileChange) string {
	letter := map[guestfs.What]string{guestfs.Added: "A", guestfs.Removed: "R", guestfs.Changed: "C", guestfs.Touched: "M"}[x.What]
	if letter == "" {
		return "? " + appliance.Visible(x.Path) + ": " + appliance.Visible(x.Error)
	}
	return letter + " " + appliance.Visible(x.Path)
}

func (s service) versions() *cobra.Command {
	var r appliance.FilesRequest
	var p passphrases
	c := &cobra.Command{Use: "versions VM PATH", Short: "List what a path was in each point", Args: cli.Args(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				r.VM, r.Path, r.Keyring = args[0], args[1], keyring
				list, err := conn.Versions(c.Context(), r)
				if err != nil {
					return err
				}
				unreadable := slices.ContainsFunc(list, func(v appliance.FileVersion) bool { return v.Error != "" })
				return errors.Join(foundIf(unreadable), s.Print(c, list, func(w io.Writer) {
					t := cli.NewTable(w, "from", "to", "points", "type", "size", "modified")
					for _, v := range list {
						from, to := v.Points[0], v.Points[len(v.Points)-1]
						switch {
						case v.Error != "":
							t.Row(from, to, len(v.Points), "unreadable", "", "")
							fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", from, appliance.Visible(v.Error))
						case v.File == nil:
							t.Row(from, to, len(v.Points), "not there", "", "")
						default:
							t.Row(from, to, len(v.Points), v.File.Type, v.File.Size, v.File.Modified.UTC().Format("2006-01-02 15:04:05"))
						}
					}
					t.Flush()
				}))
			})
		}}
	c.Flags().BoolVar(&r.Verified, "verified", false, "compare what is read with its digests")
	p.flags(c)
	return c
}
