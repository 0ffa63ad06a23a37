package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/cli"
	"github.com/spf13/cobra"
)

// mapped is one range of image map.
type mapped struct {
	Start  int64  `json:"start"`            // guest bytes
	Length int64  `json:"length"`           // bytes
	Depth  int    `json:"depth"`            // 0 for the file itself; -1 where no file holds the range
	Kind   string `json:"kind"`             // "stored", "compressed", "zeroed", "absent"
	File   string `json:"file,omitempty"`   // that holds it
	Offset *int64 `json:"offset,omitempty"` // in the file, of what is stored as it is
}

func imageMap(p *cli.Program) *cobra.Command {
	format := ""
	c := &cobra.Command{
		Use: "map FILE...", Short: "Tell which file of a chain holds what", Args: cobra.MinimumNArgs(1),
		Long: "Tell which file of a chain holds which range of the disk, and where. Ranges that no file holds are left out of the table.\n" +
			"With --json the result is an array with an object for each range; of several files it is an array with an object for\n" +
			"each, which has its path and its ranges. A file that cannot be read is told as an error beside what the others hold.",
		RunE: func(c *cobra.Command, args []string) error {
			m := &mapWriter{w: c.OutOrStdout(), json: p.JSON, several: len(args) > 1}
			err := eachFile(c.Context(), args, func(path string) error { return m.file(c.Context(), path, format) })
			return errors.Join(err, m.end())
		},
	}
	c.Flags().StringVar(&format, "format", "", "`format` of the files: qcow2 or raw (found out by default)")
	return c
}

// mapWriter prints maps as they are read: that of a large disk is long.
type mapWriter struct {
	w             io.Writer
	json, several bool
	files, ranges int // printed; ranges of the file at hand
}

// file prints the map of one file. What was begun is brought to an end even if
// the file cannot be read to its end.
func (m *mapWriter) file(ctx context.Context, path, format string) (err error) {
	ch, err := image.OpenChain(path, image.ChainOptions{Format: format})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ch.Close()) }()
	if err := m.begin(path); err != nil {
		return err
	}
	row := m.row
	if m.json {
		row = m.object
	}
	return errors.Join(eachMapped(ctx, ch, row), m.close())
}

// begin prints what comes before the ranges of a file.
func (m *mapWriter) begin(path string) error {
	between := "\n"
	if m.json {
		between = ",\n"
	}
	if m.files == 0 {
		between = ""
	}
	m.files++
	m.ranges = 0
	heading := ""
	switch {
	case m.json && m.several:
		name, err := json.Marshal(path)
		if err != nil {
			return err
		}
		heading = fmt.Sprintf(`{"path":%s,"ranges":[`, name)
		if m.files == 1 {
			heading = "[" + heading
		}
	case m.json:
		heading = "["
	case m.several:
		heading = path + ":\n"
	}
	if !m.json {
		heading += fmt.Sprintf("%-16s %-16s %-16s %-10s %s\n", "START", "LENGTH", "OFFSET", "KIND", "FILE")
	}
	_, err := fmt.Fprint(m.w, between+heading)
	return err
}

// close prints what comes behind the ranges of a file.
func (m *mapWriter) close() error {
	after := ""
	if m.json {
		after = "]"
	}
	if m.json && m.several {
		after = "]}"
	}
	_, err := fmt.Fprint(m.w, after)
	return err
}

// end prints what comes behind the last file.
func (m *mapWriter) end() error {
	after := ""
	if m.json && m.files > 0 {
		after = "\n"
	}
	if m.json && m.several && m.files > 0 {
		after = "]\n"
	}
	_, err := fmt.Fprint(m.w, after)
	return err
}

// object prints a range as JSON.
func (m *mapWriter) object(r mapped) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if m.ranges++; m.ranges > 1 {
		b = append([]byte(",\n"), b...)
	}
	_, err = m.w.Write(b)
	return err
}

// row prints a range as a line of the table.
func (m *mapWriter) row(r mapped) error {
	if r.Depth < 0 {
		return nil
	}
	off := ""
	if r.Offset != nil {
		off = fmt.Sprintf("%#x", *r.Offset)
	}
	_, err := fmt.Fprintf(m.w, "%-#16x %-#16x %-16s %-10s %s\n", r.Start, r.Length, off, r.Kind, r.File)
	return err
}

// eachMapped calls fn for all ranges of the disk, in order; what is stored is
// divided where it does not lie in one piece in its file.
func eachMapped(ctx context.Context, ch *image.Chain, fn func(mapped) error) error {
	var locs []block.Location
	for off := int64(0); off < ch.Size(); {
		sources, err := ch.Sources(ctx, off, ch.Size()-off)
		if err != nil {
			return err
		}
		for _, s := range sources {
			m := mapped{Start: s.Off, Length: s.Len, Depth: s.Layer, Kind: s.Content.String()}
			if s.Layer >= 0 {
				m.File = ch.Layers()[s.Layer].Path
			}
			off = s.End()
			if s.Content != image.Stored {
				if err := fn(m); err != nil {
					return err
				}
				continue
			}
			if locs, err = ch.Locate(ctx, locs[:0], s.Off, s.Len); err != nil {
				return err
			}
			for _, l := range locs {
				m.Length, m.Offset = l.Len, nil
				if l.Kind == block.InFile {
					m.Offset = &l.Off
				}
				if err := fn(m); err != nil {
					return err
				}
				m.Start += l.Len
			}
		}
	}
	return nil
}
