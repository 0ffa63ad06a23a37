package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/capture/blockdev"
	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/internal/cli"
)

// source tells about a kind of source.
type source struct {
	Name     string `json:"name"`
	Captures string `json:"captures"`
	Tracking string `json:"tracking"` // how it knows what changed
}

var sources = []source{
	{"libvirt", "running and stopped VMs of QEMU through libvirt", "dirty bitmaps of checkpoints; comparison of digests where there are none"},
	{blockdev.Kind, "block devices, logical volumes, raw and qcow2 files", "none: comparison of digests"},
}

func sourcesCommand(p *cli.Program) *cobra.Command {
	return &cobra.Command{Use: "sources", Short: "List what can be captured", Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return p.Print(c, sources, func(w io.Writer) {
				t := cli.NewTable(w, "source", "captures", "change tracking")
				for _, s := range sources {
					t.Row(s.Name, s.Captures, s.Tracking)
				}
				t.Flush()
			})
		}}
}

const thawGuardName = "thaw-guard"

// thawGuardCommand is what a capture starts before it freezes a guest: a process
// that thaws it should the capture die.
func thawGuardCommand() *cobra.Command {
	return &cobra.Command{Use: thawGuardName, Hidden: true, Args: cli.Args(0, 0),
		Short: "Thaw a guest when the capture that froze it dies (started by backup)",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := libvirt.RunGuard(c.Context(), os.Stdin, c.OutOrStdout()); err != nil {
				return fmt.Errorf("thaw guest: %w", err)
			}
			return nil
		}}
}
