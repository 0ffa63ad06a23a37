package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) session() *cobra.Command {
	return cli.Group("session", "Machines that run from points: list, show, start, resume, keep, migrate, discard",
		s.sessionList(), s.sessionShow(), s.sessionStart(), s.sessionResume(), s.sessionKeep(), s.sessionMigrate(), s.sessionDiscard())
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
		at := d.URI
		if d.Moved != "" {
			at = d.Moved
		}
		t.Row(fmt.Sprintf("Disk %d", d.Index), d.Key, cli.Size(d.Size), cli.Size(d.FileBytes)+" written", at)
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
	var r appliance.SessionStart
	c := &cobra.Command{Use: "start ID", Short: "Start the machine of a session again, once it has ended", Args: cli.Args(1, 1),
		Long: "Start starts the machine of a session again after it was shut down or its host was. Without flags it is\n" +
			"the one that ended; a session of disks only gets one.\n\n" +
			"With --from-session it starts although its machine ended while its disks changed hands in a migration: it\n" +
			"goes on from what the session has. The copies are named, and stay where they are.",
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, true, func(conn *host.Connection) error {
				x, err := conn.StartSession(c.Context(), args[0], r)
				if err != nil {
					return err
				}
				return s.Print(c, x, func(w io.Writer) {
					printMachine(w, x)
					printNotes(w, x.Notes)
				})
			})
		}}
	machineFlags(c, &r.MachineSpec)
	c.Flags().BoolVar(&r.FromSession, "from-session", false, "although disks are elsewhere, or may be; what the session has counts")
	return c
}

func (s service) sessionResume() *cobra.Command {
	var quota int64
	c := &cobra.Command{Use: "resume ID", Short: "Have the machine of a session go on after it paused", Args: cli.Args(1, 1),
		Long: "Resume has a machine go on that paused: because the quota was reached, which --quota raises, or for any\n" +
			"other reason. What it was about to write is written then; it notices nothing.",
		RunE: func(c *cobra.Command, args []string) error {
			var how api.SessionResume
			if c.Flags().Changed("quota") {
				how.QuotaBytes = &quota
			}
			return s.with(c, true, func(conn *host.Connection) error {
				x, err := conn.ResumeSession(c.Context(), args[0], how)
				if err != nil {
					return err
				}
				return s.Print(c, x, func(w io.Writer) { printSession(w, x) })
			})
		}}
	c.Flags().Int64Var(&quota, "quota", 0, "`bytes` that the session may write from now on, with what it has; 0: no limit")
	return c
}

func (s service) sessionMigrate() *cobra.Command {
	var r appliance.MigrateRequest
	var rate int64
	c := &cobra.Command{Use: "migrate ID --to PLACE", Short: "Move a session's disks to production storage while its machine runs", Args: cli.Args(1, 1),
		Long: "Migrate copies the disks of a session while its machine runs, has it go on with the copies, and ends the\n" +
			"session; the machine stays, as one of libvirt's. They go\n" +
			"  --to file:DIR              to a new image file for each disk, in DIR\n" +
			"  --to pool:NAME             the same, in a storage pool of libvirt\n" +
			"  --to blockdev:PATH[,PATH]  over block devices, one for each disk\n" +
			"Until all are copied nothing is changed: if it fails or is cancelled (sendense-control cancel JOB) the session\n" +
			"runs on as it was.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := absolutePlace(&r.To); err != nil {
				return err
			}
			if rate < 0 || rate > math.MaxInt64>>20 {
				return cli.Usagef("Give the MiB to copy in a second; 0 is no limit.", "--limit %d is no rate.", rate)
			}
			r.Limit = rate << 20
			return s.with(c, true, func(conn *host.Connection) error {
				job, err := conn.Migrate(c.Context(), args[0], r)
				if err != nil {
					return err
				}
				if job, err = s.follow(c, conn, job); err != nil {
					return err
				}
				var result appliance.MigrateResult
				if err := json.Unmarshal(job.Result, &result); err != nil {
					return fmt.Errorf("read the result of %s: %w", job.ID, err)
				}
				return s.Print(c, result, func(w io.Writer) {
					for _, key := range slices.Sorted(maps.Keys(result.Disks)) {
						fmt.Fprintf(w, "%s is in %s\n", key, result.Disks[key])
					}
					fmt.Fprintf(w, "machine %s runs from there; the session has ended\n", result.Machine)
					printNotes(w, result.Notes)
				})
			})
		}}
	c.Flags().StringVar(&r.To, "to", "", "`place` on the host of the machine: file:DIR, pool:NAME or blockdev:PATH[,PATH]")
	c.Flags().StringVar(&r.Format, "format", "", "`format` of the files: qcow2 (default) or raw")
	c.Flags().Int64Var(&rate, "limit", 0, "copy at most so many `MiB` in a second, of each disk")
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
				return s.Print(c, job, func(w io.Writer) {
					fmt.Fprintf(w, "kept as point %s of %s\n", job.Point, job.VM)
					if job.Warning != "" {
						fmt.Fprintln(w, "note:", job.Warning)
					}
				})
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
				x, err := conn.Session(c.Context(), args[0])
				if err != nil {
					return err
				}
				if err := conn.Discard(c.Context(), args[0], end); err != nil {
					return err
				}
				return s.Print(c, map[string]string{"discarded": args[0]}, func(w io.Writer) {
					fmt.Fprintln(w, "discarded", args[0])
					for _, path := range x.Copies() {
						fmt.Fprintln(w, "still there:", path)
					}
				})
			})
		}}
	c.Flags().BoolVar(&end.Force, "force", false, "also if the hypervisor does not answer, or disks are elsewhere, which stay there")
	return c
}
