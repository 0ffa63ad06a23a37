package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

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
	list := []appliance.File{}
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
	if err != nil && len(list) == 0 {
		return err
	}
	slices.SortFunc(list, func(a, b appliance.File) int { return strings.Compare(a.Name, b.Name) })
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
		name += " (" + appliance.Visible(f.Error) + ")"
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
