package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/cli"
	"github.com/spf13/cobra"
)

func imageCommands(p *cli.Program) *cobra.Command {
	return cli.Group("image", "Look at QCOW2 and raw image files",
		imageInfo(p), imageCheck(p), imageMap(p), imageCompare(p))
}

func imageInfo(p *cli.Program) *cobra.Command {
	chain := false
	c := &cobra.Command{
		Use: "info FILE...", Short: "Describe image files", Args: cobra.MinimumNArgs(1),
		Long: "Describe image files. With --json the result is an array with an object for each file.\n" +
			"A file that cannot be read is told as an error beside what the others are.",
		RunE: func(c *cobra.Command, args []string) error {
			infos := []image.Info{}
			unread := eachFile(c.Context(), args, func(path string) error {
				more, err := readInfos(path, chain)
				infos = append(infos, more...)
				return err
			})
			if unread != nil && len(infos) == 0 {
				return unread
			}
			err := p.Print(c, infos, func(w io.Writer) {
				for n, i := range infos {
					if n > 0 {
						fmt.Fprintln(w)
					}
					printInfo(w, i)
				}
			})
			return errors.Join(err, unread)
		},
	}
	c.Flags().BoolVar(&chain, "backing-chain", false, "describe all files that back it, too")
	return c
}

// eachFile calls fn for each path. A file that cannot be read hides nothing of the
// others: the error is about the first of those, and names the rest.
func eachFile(ctx context.Context, paths []string, fn func(path string) error) error {
	var first *appliance.Error
	var rest []string
	for _, path := range paths {
		err := fn(path)
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		switch {
		case err == nil:
		case first == nil:
			first = appliance.AsError(explain(path, err))
		default:
			rest = append(rest, path)
		}
	}
	if first == nil {
		return nil
	}
	if len(rest) > 0 {
		all := *first
		all.Msg += " Nor can these be read: " + strings.Join(rest, ", ") + "."
		first = &all
	}
	return first
}

// readInfos describes an image, and with chain what backs it.
func readInfos(path string, chain bool) ([]image.Info, error) {
	files, err := []string{path}, error(nil)
	if chain {
		files, err = chainFiles(path)
	}
	var infos []image.Info
	for _, f := range files {
		i, err := image.ReadInfo(f)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	return infos, err
}

// chainFiles returns the files of the chain of an image, top first.
func chainFiles(path string) ([]string, error) {
	ch, err := image.OpenChain(path, image.ChainOptions{})
	if err != nil {
		return nil, err
	}
	var files []string
	for _, l := range ch.Layers() {
		files = append(files, l.Path)
	}
	return files, ch.Close()
}

func printInfo(w io.Writer, i image.Info) {
	t := cli.NewTable(w)
	defer t.Flush()
	t.Row("image:", i.Path)
	t.Row("format:", i.Format)
	t.Row("virtual size:", exactSize(i.VirtualBytes))
	t.Row("file size:", exactSize(i.FileBytes))
	t.Row("occupied:", cli.Size(i.OccupiedBytes))
	q := i.QCOW2
	if q == nil {
		return
	}
	t.Row("compat:", q.Compat)
	t.Row("cluster size:", exactSize(q.ClusterBytes))
	t.Row("compression:", q.Compression)
	t.Row("refcount bits:", q.RefcountBits)
	for _, f := range []struct {
		set  bool
		name string
	}{{q.ExtendedL2, "extended L2"}, {q.LazyRefcounts, "lazy refcounts"}, {q.Dirty, "dirty"}, {q.Corrupt, "marked corrupt"}} {
		if f.set {
			t.Row(f.name+":", "yes")
		}
	}
	if q.BackingFile != "" {
		t.Row("backing file:", q.BackingFile)
		t.Row("backing format:", q.BackingFormat)
	}
	if q.DataFile != "" {
		t.Row("data file:", q.DataFile)
	}
	for _, s := range q.Snapshots {
		t.Row("snapshot:", fmt.Sprintf("%s %q of %s", s.ID, s.Name, s.Taken.UTC().Format("2006-01-02 15:04:05 UTC")))
	}
	for _, b := range q.Bitmaps {
		t.Row("bitmap:", fmt.Sprintf("%q, a bit for %s", b.Name, cli.Size(b.Granularity)))
	}
}

func exactSize(n int64) string { return fmt.Sprintf("%s (%d bytes)", cli.Size(n), n) }

// checked is the result of image check for one file.
type checked struct {
	Path        string   `json:"path"`
	Clean       bool     `json:"clean"`
	Corruptions int64    `json:"corruptions"`
	Leaks       int64    `json:"leaks"` // host clusters
	Unexplained int64    `json:"unexplained"`
	Stored      int64    `json:"stored_clusters"`
	Compressed  int64    `json:"compressed_clusters"`
	Zeroed      int64    `json:"zeroed_clusters"`
	Clusters    int64    `json:"clusters"`
	End         int64    `json:"image_end_offset"`
	Problems    []string `json:"problems,omitempty"`
}

func imageCheck(p *cli.Program) *cobra.Command {
	return &cobra.Command{
		Use: "check FILE...", Short: "Check the structure of QCOW2 files", Args: cobra.MinimumNArgs(1),
		Long: "Check that the tables and refcounts of QCOW2 files agree. Nothing is changed. With --json the result is an array\n" +
			"with an object for each file. A file that cannot be read is told as an error beside what was found in the others.\n" +
			"The exit code is 5 if data are at risk. Leaked clusters, which take space and do no harm, are told and do not count.",
		RunE: func(c *cobra.Command, args []string) error {
			all, corrupt := []checked{}, false
			unread := eachFile(c.Context(), args, func(path string) error {
				r, err := image.Check(c.Context(), path)
				if err != nil {
					return err
				}
				k := checked{Path: path, Clean: r.Clean(), Corruptions: r.Corruptions, Leaks: r.Leaks, Unexplained: r.Unexplained,
					Stored: r.Stored, Compressed: r.Compressed, Zeroed: r.Zeroed, Clusters: r.Clusters, End: r.End}
				for _, e := range r.Errors {
					k.Problems = append(k.Problems, e.String())
				}
				all, corrupt = append(all, k), corrupt || r.Corruptions > 0
				return nil
			})
			if unread != nil && len(all) == 0 {
				return unread
			}
			err := p.Print(c, all, func(w io.Writer) {
				for _, k := range all {
					printCheck(w, k)
				}
			})
			if corrupt {
				unread = errors.Join(unread, cli.ErrFound)
			}
			return errors.Join(err, unread)
		},
	}
}

func printCheck(w io.Writer, k checked) {
	for _, s := range k.Problems {
		fmt.Fprintf(w, "%s: %s\n", k.Path, s)
	}
	verdict := "no errors"
	if k.Corruptions > 0 {
		verdict = fmt.Sprintf("%d corruptions: keep the file as it is and restore it from a copy", k.Corruptions)
	}
	fmt.Fprintf(w, "%s: %s", k.Path, verdict)
	if k.Leaks+k.Unexplained > 0 {
		fmt.Fprintf(w, ", %d leaked clusters", k.Leaks+k.Unexplained)
	}
	fmt.Fprintf(w, "; %d of %d clusters stored, %d of them compressed, %d zeroed\n",
		k.Stored+k.Compressed, k.Clusters, k.Compressed, k.Zeroed)
}

// comparison is the result of image compare.
type comparison struct {
	Equal     bool     `json:"equal"`
	Files     []string `json:"files"`
	Sizes     []int64  `json:"sizes"`                      // bytes
	Different *int64   `json:"first_difference,omitempty"` // offset in bytes; of the content that both have
}

func imageCompare(p *cli.Program) *cobra.Command {
	formats := make([]string, 2)
	c := &cobra.Command{
		Use: "compare A B", Short: "Compare what two images hold", Args: cobra.ExactArgs(2),
		Long: "Compare two disks: their sizes and every byte. How and in how many files they are stored makes no difference.\n" +
			"The exit code is 0 if they are equal and 5 if they differ.",
		RunE: func(c *cobra.Command, args []string) error {
			var disks [2]*image.Chain
			for i, path := range args {
				ch, err := image.OpenChain(path, image.ChainOptions{Format: formats[i]})
				if err != nil {
					return explain(path, err)
				}
				defer ch.Close()
				disks[i] = ch
			}
			bar := p.NewProgress(c, "comparing")
			first, err := compareDevices(c.Context(), disks[0], disks[1], func(done, total int64) { bar.Set("", done, total) })
			bar.Close()
			if err != nil {
				return explain(args[0], err)
			}
			r := comparison{Files: args, Sizes: []int64{disks[0].Size(), disks[1].Size()}}
			if first >= 0 {
				r.Different = &first
			}
			r.Equal = first < 0 && r.Sizes[0] == r.Sizes[1]
			err = p.Print(c, r, func(w io.Writer) { printComparison(w, r) })
			if err == nil && !r.Equal {
				return cli.ErrFound
			}
			return err
		},
	}
	c.Flags().StringVar(&formats[0], "format", "", "`format` of A: qcow2 or raw (found out by default)")
	c.Flags().StringVar(&formats[1], "other-format", "", "`format` of B")
	return c
}

func printComparison(w io.Writer, r comparison) {
	if r.Equal {
		fmt.Fprintf(w, "The disks are equal: %s.\n", exactSize(r.Sizes[0]))
		return
	}
	if r.Sizes[0] != r.Sizes[1] {
		fmt.Fprintf(w, "The disks have different sizes: %d and %d bytes.\n", r.Sizes[0], r.Sizes[1])
	}
	if r.Different != nil {
		fmt.Fprintf(w, "The disks differ, first at offset %d.\n", *r.Different)
	} else {
		fmt.Fprintln(w, "As far as the smaller one reaches they are equal.")
	}
}
