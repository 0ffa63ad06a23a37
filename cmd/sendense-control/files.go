package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/host"
)

// fileCommands work with what is inside of a point.
func fileCommands(p *cli.Program) []*cobra.Command {
	s := service{p}
	return []*cobra.Command{s.ls(), s.cat(), s.cp(), s.find(), s.diff(), s.versions(), s.mount(), s.unmount()}
}

const aboutPaths = "A path that begins with a slash is one of the machine's own tree; any other begins\n" +
	"with the position of a file system, as disk-0/p1, which ls without a path lists."

func pathArg(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

func (s service) ls() *cobra.Command {
	var long bool
	var r appliance.FilesRequest
	var p passphrases
	c := &cobra.Command{Use: "ls VM POINT [PATH]", Short: "List files inside a point", Args: cli.Args(2, 3), Long: "Ls lists a directory of a point, without mounting anything.\n" + aboutPaths,
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point, r.Path = args[0], args[1], pathArg(args, 2)
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				r.Keyring = keyring
				if len(args) < 3 {
					return s.listTop(c, conn, r, long)
				}
				return s.list(c, conn, r, long)
			})
		}}
	c.Flags().BoolVarP(&long, "long", "l", false, "modes, owners, sizes and times")
	c.Flags().BoolVar(&r.Verified, "verified", false, "compare what is read with its digests")
	p.flags(c)
	return c
}

// listTop tells what there is to be named in a path.
func (s service) listTop(c *cobra.Command, conn *host.Connection, r appliance.FilesRequest, long bool) error {
	contents, err := conn.Contents(c.Context(), r)
	if err != nil {
		return err
	}
	return s.Print(c, contents, func(w io.Writer) {
		if contents.OS.Name != "" {
			fmt.Fprintln(w, appliance.Visible(strings.TrimSpace(contents.OS.Name+" "+contents.OS.Hostname)))
		}
		t := cli.NewTable(w, "path", "type", "label", "size", "mounted on", "")
		for _, v := range contents.Volumes {
			t.Row(appliance.Visible(v.Path), appliance.Visible(v.Type), appliance.Visible(v.Label), cli.Size(v.Size), appliance.Visible(v.Mounted), remarks(v))
		}
		t.Flush()
		for _, n := range contents.Notes {
			fmt.Fprintln(w, appliance.Visible(n))
		}
		if long {
			for _, n := range contents.OS.Notes {
				fmt.Fprintln(w, appliance.Visible(n))
			}
		}
	})
}

// remarks are what there is to say of a volume.
func remarks(v guestfs.Volume) string {
	var list []string
	switch {
	case v.Locked:
		list = []string{"Locked.", v.Refusal, "Give it with --passphrase-file FILE."}
	case v.Refusal != "":
		list = []string{v.Refusal}
	}
	return appliance.Visible(strings.Join(append(list, v.Notes...), " "))
}

func (s service) list(c *cobra.Command, conn *host.Connection, r appliance.FilesRequest, long bool) error {
	var list []appliance.File
	var top *appliance.File
	err := conn.List(c.Context(), r, func(f appliance.File) error {
		if top == nil {
			top = &f
			return nil
		}
		list = append(list, f)
		return nil
	})
	if top != nil && top.Type != "dir" {
		top.Name = r.Path
		list = append(list, *top)
	}
	if err != nil && list == nil {
		return err
	}
	sortFiles(list)
	printErr := s.Print(c, list, func(w io.Writer) {
		if !long {
			for _, f := range list {
				fmt.Fprintln(w, appliance.Visible(f.Name))
			}
			return
		}
		t := cli.NewTable(w)
		for _, f := range list {
			t.Row(longFile(f)...)
		}
		t.Flush()
	})
	if err == nil {
		err = printErr
	}
	return err
}

// longFile returns the columns of a long listing.
func longFile(f appliance.File) []any {
	size := strconv.FormatInt(f.Size, 10)
	if f.Type == "block" || f.Type == "char" {
		size = fmt.Sprintf("%d,%d", f.Major, f.Minor)
	}
	name := appliance.Visible(f.Name)
	if f.Target != "" {
		name += " -> " + appliance.Visible(f.Target)
	}
	if f.Error != "" {
		name += " (" + f.Error + ")"
	}
	return []any{modeString(f), f.Links, f.UID, f.GID, size, f.Modified.UTC().Format("2006-01-02 15:04:05"), name}
}

// modeString writes type and mode as ls does.
func modeString(f appliance.File) string {
	letter := map[string]string{"file": "-", "dir": "d", "link": "l", "pipe": "p", "socket": "s", "block": "b", "char": "c"}[f.Type]
	if letter == "" {
		letter = "?"
	}
	mode, _ := strconv.ParseUint(f.Mode, 8, 32) // it is octal
	b := []byte("rwxrwxrwx")
	for i := range b {
		if mode&(1<<(8-i)) == 0 {
			b[i] = '-'
		}
	}
	for i, x := range []struct {
		at     int
		letter byte
	}{{2, 's'}, {5, 's'}, {8, 't'}} {
		if mode&(0o4000>>i) == 0 {
			continue
		}
		if b[x.at] == 'x' {
			b[x.at] = x.letter
		} else {
			b[x.at] = x.letter - 'a' + 'A'
		}
	}
	return letter + string(b)
}

func (s service) cat() *cobra.Command {
	var r appliance.FilesRequest
	var p passphrases
	c := &cobra.Command{Use: "cat VM POINT PATH", Short: "Write a file of a point to standard output", Args: cli.Args(3, 3), Long: "Cat writes the content of a file.\n" + aboutPaths,
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point, r.Path = args[0], args[1], args[2]
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				r.Keyring = keyring
				body, _, err := conn.ReadFile(c.Context(), r)
				if err != nil {
					return err
				}
				defer body.Close()
				_, err = io.CopyBuffer(struct{ io.Writer }{c.OutOrStdout()}, body, make([]byte, 1<<20))
				return writing(c.Context(), r.Path, err)
			})
		}}
	c.Flags().BoolVar(&r.Verified, "verified", false, "compare what is read with its digests")
	p.flags(c)
	return c
}

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
	for flag, x := range map[string]struct {
		text string
		to   *int64
	}{"--larger": {larger, &r.MinSize}, "--smaller": {smaller, &r.MaxSize}} {
		if x.text == "" {
			continue
		}
		n, err := parseSize(x.text)
		if err != nil {
			return cli.Usagef("Give a size as 4096, 10k, 10M or 1G.", "%s is %q.", flag, x.text)
		}
		*x.to = n
	}
	if !strings.Contains(" f d l", " "+r.Type) {
		return cli.Usagef("Give f, d or l.", "--type is %q.", r.Type)
	}
	return nil
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

func (s service) runFind(c *cobra.Command, conn *host.Connection, r appliance.FindRequest) (err error) {
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
	var found []foundIn
	w, flush := cli.Lines(c.OutOrStdout())
	defer func() { err = errors.Join(err, flush()) }()
	for _, p := range points {
		one := r
		one.Point = p
		err := conn.Find(c.Context(), one, func(f appliance.File) error {
			if s.JSON {
				found = append(found, foundIn{p, f})
				return nil
			}
			line := appliance.Visible(f.Name)
			if r.Point == "" {
				line = p + "  " + line
			}
			if f.Error != "" {
				fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", line, f.Error)
				return nil
			}
			_, err := fmt.Fprintln(w, line)
			return err
		})
		if err != nil {
			return err
		}
	}
	if s.JSON {
		return s.Print(c, found, nil)
	}
	return nil
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
				var list []appliance.FileChange
				w, flush := cli.Lines(c.OutOrStdout())
				err := conn.Diff(c.Context(), r, args[2], func(x appliance.FileChange) error {
					if s.JSON {
						list = append(list, x)
						return nil
					}
					_, err := fmt.Fprintln(w, changeLine(x))
					return err
				})
				err = errors.Join(err, flush())
				if err != nil || !s.JSON {
					return err
				}
				return s.Print(c, list, nil)
			})
		}}
	p.flags(c)
	return c
}

func changeLine(x appliance.FileChange) string {
	letter := map[guestfs.What]string{guestfs.Added: "A", guestfs.Removed: "R", guestfs.Changed: "C", guestfs.Touched: "M"}[x.What]
	if letter == "" {
		return "? " + appliance.Visible(x.Path) + ": " + x.Error
	}
	return letter + " " + appliance.Visible(x.Path)
}

func (s service) versions() *cobra.Command {
	var p passphrases
	c := &cobra.Command{Use: "versions VM PATH", Short: "List what a path was in each point", Args: cli.Args(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return s.unlocking(c, &p, func(conn *host.Connection, keyring string) error {
				list, err := conn.Versions(c.Context(), appliance.FilesRequest{VM: args[0], Path: args[1], Keyring: keyring})
				if err != nil {
					return err
				}
				return s.Print(c, list, func(w io.Writer) {
					t := cli.NewTable(w, "from", "to", "points", "type", "size", "modified")
					for _, v := range list {
						from, to := v.Points[0], v.Points[len(v.Points)-1]
						switch {
						case v.Error != "":
							t.Row(from, to, len(v.Points), v.Error, "", "")
						case v.File == nil:
							t.Row(from, to, len(v.Points), "not there", "", "")
						default:
							t.Row(from, to, len(v.Points), v.File.Type, v.File.Size, v.File.Modified.UTC().Format("2006-01-02 15:04:05"))
						}
					}
					t.Flush()
				})
			})
		}}
	p.flags(c)
	return c
}
