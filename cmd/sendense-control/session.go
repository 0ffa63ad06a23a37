package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) session() *cobra.Command {
	c := &cobra.Command{Use: "session", Short: "Machines that run from points: list, show, start, keep, discard", Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(s.sessionList(), s.sessionShow(), s.sessionStart(), s.sessionKeep(), s.sessionDiscard())
	return c
}

func (s service) sessionList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the sessions, oldest first", Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				all, err := conn.Sessions(c.Context())
				if err != nil {
					return err
				}
				return s.Print(c, all, func(w io.Writer) {
					t := cli.NewTable(w, "session", "vm", "point", "state", "machine", "written", "began")
					for _, x := range all {
						name := ""
						if x.Machine != nil {
							name = x.Machine.Name
						}
						t.Row(x.ID, x.Name, x.Point, x.State, orDash(name), cli.Size(written(x)), x.Created.Format(time.RFC3339))
					}
					t.Flush()
				})
			})
		}}
}

// written is how long the files of a session are, in bytes.
func written(x appliance.Session) (sum int64) {
	for _, d := range x.Disks {
		sum += d.FileBytes
	}
	return sum
}

func (s service) sessionShow() *cobra.Command {
	return &cobra.Command{Use: "show ID", Short: "Tell all about a session", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				x, err := conn.Session(c.Context(), args[0])
				if err != nil {
					return err
				}
				return s.Print(c, x, func(w io.Writer) { printSession(w, x) })
			})
		}}
}

func printSession(w io.Writer, x appliance.Session) {
	t := cli.NewTable(w)
	t.Row("Session", x.ID)
	t.Row("State", x.State)
	if x.Problem != "" {
		t.Row("Problem", x.Problem)
	}
	t.Row("VM", x.Name, x.VM)
	t.Row("Point", x.Point)
	t.Row("Began", x.Created.Format(time.RFC3339))
	if x.QuotaBytes > 0 {
		t.Row("Quota", cli.Size(x.QuotaBytes))
	}
	for _, d := range x.Disks {
		t.Row(fmt.Sprintf("Disk %d", d.Index), d.Key, cli.Size(d.Size), cli.Size(d.FileBytes)+" written", d.URI)
	}
	t.Flush()
	if x.Machine != nil {
		printMachine(w, x)
	}
	for _, n := range x.Notes {
		fmt.Fprintln(w, "note:", n)
	}
}

func (s service) sessionStart() *cobra.Command {
	var m appliance.MachineSpec
	c := &cobra.Command{Use: "start ID", Short: "Start the machine of a session again, once it has ended", Args: cli.Args(1, 1),
		Long: "Start starts the machine of a session again after it was shut down or its host was. Without flags it is\n" +
			"the one that ended; a session of disks only gets one.",
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, true, func(conn *host.Connection) error {
				x, err := conn.StartSession(c.Context(), args[0], m)
				if err != nil {
					return err
				}
				return s.Print(c, x, func(w io.Writer) { printMachine(w, x) })
			})
		}}
	machineFlags(c, &m)
	return c
}

func (s service) sessionKeep() *cobra.Command {
	var end api.SessionEnd
	c := &cobra.Command{Use: "keep ID", Short: "Make what a session wrote a new point of the VM, and end the session", Args: cli.Args(1, 1),
		Long: "Keep makes the disks of a session, as they are, the newest point of the VM; then the session ends. Its\n" +
			"machine has to be shut down. If anything fails the session is what it was.",
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, true, func(conn *host.Connection) error {
				job, err := conn.Keep(c.Context(), args[0], end)
				if err != nil {
					return err
				}
				if job, err = s.follow(c, conn, job); err != nil {
					return err
				}
				return s.Print(c, job, func(w io.Writer) { fmt.Fprintf(w, "kept as point %s of %s\n", job.Point, job.VM) })
			})
		}}
	c.Flags().BoolVar(&end.Force, "force", false, "stop the machine at once, as if its plug were pulled")
	return c
}

func (s service) sessionDiscard() *cobra.Command {
	var end api.SessionEnd
	c := &cobra.Command{Use: "discard ID", Short: "Stop a session's machine at once and throw away what was written", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, true, func(conn *host.Connection) error {
				if err := conn.Discard(c.Context(), args[0], end); err != nil {
					return err
				}
				return s.Print(c, map[string]string{"discarded": args[0]}, func(w io.Writer) { fmt.Fprintln(w, "discarded", args[0]) })
			})
		}}
	c.Flags().BoolVar(&end.Force, "force", false, "also if the hypervisor does not answer")
	return c
}
