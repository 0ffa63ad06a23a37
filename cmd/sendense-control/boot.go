package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) boot() *cobra.Command {
	var spec appliance.SessionSpec
	var m appliance.MachineSpec
	var disksOnly bool
	c := &cobra.Command{Use: "boot VM POINT", Short: "Start a machine from a point at once, on disks that take writes",
		Long: "Boot begins a session: it serves the disks of a point so that they can be written, and starts a machine\n" +
			"on them under the libvirt of this host, as the one that was captured. The point stays as it is. The\n" +
			"machine has another name and UUID, and no network unless --network names one of libvirt.\n\n" +
			"What it writes survives the end of the control plane, and the machine goes on when that is back. End the\n" +
			"session with session keep, which makes a new point of it, or with session discard.",
		Args: cli.Args(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			spec.VM, spec.Point = args[0], args[1]
			if !disksOnly {
				spec.Machine = &m
			}
			return s.with(c, true, func(conn *host.Connection) error {
				x, err := conn.Boot(c.Context(), spec)
				if err != nil {
					return err
				}
				return s.Print(c, x, func(w io.Writer) { printBoot(w, x) })
			})
		}}
	machineFlags(c, &m)
	f := c.Flags()
	f.BoolVar(&disksOnly, "disks-only", false, "serve the disks and start no machine")
	f.Int64Var(&spec.QuotaBytes, "quota", 0, "`bytes` that the session may write; the machine pauses when it has (default: no limit)")
	for _, name := range []string{"connect", "name", "network"} {
		c.MarkFlagsMutuallyExclusive("disks-only", name)
	}
	return c
}

func machineFlags(c *cobra.Command, m *appliance.MachineSpec) {
	f := c.Flags()
	f.StringVar(&m.Connect, "connect", "", "libvirt `URI` on this host (default qemu:///system)")
	f.StringVar(&m.Name, "name", "", "`name` of the machine; default the VM's with the session's id")
	f.StringVar(&m.Network, "network", "", "libvirt `network` for its interfaces (default isolated: it has none)")
}

func printBoot(w io.Writer, x appliance.Session) {
	fmt.Fprintf(w, "%s: disks ready after %s\n", x.ID, time.Duration(x.ReadySeconds*float64(time.Second)).Round(time.Millisecond/10))
	if x.Machine == nil {
		for _, d := range x.Disks {
			fmt.Fprintln(w, d.URI)
		}
		return
	}
	printMachine(w, x)
	for _, n := range x.Notes {
		fmt.Fprintln(w, "note:", n)
	}
}

func printMachine(w io.Writer, x appliance.Session) {
	m := x.Machine
	fmt.Fprintf(w, "machine %s is %s\n", m.Name, x.State)
	for _, console := range m.Consoles {
		fmt.Fprintln(w, "console:", console)
	}
	connect := m.Connect
	if connect == "" {
		connect = "qemu:///system"
	}
	fmt.Fprintf(w, "console: virsh --connect '%s' console %s\n", connect, m.Name)
}
