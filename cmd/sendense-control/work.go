package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/repository"
)

// follow waits for a job behind a progress bar. A job that did not succeed is
// also an error.
func (s service) follow(c *cobra.Command, conn *host.Connection, job appliance.Job) (appliance.Job, error) {
	bar := s.NewProgress(c, job.Verb)
	defer bar.Close()
	return conn.Wait(c.Context(), job.ID, func(j appliance.Job) {
		bar.Set(j.Progress.Phase, j.Progress.Done, j.Progress.Total)
	})
}

func (s service) verify() *cobra.Command {
	var point string
	c := &cobra.Command{Use: "verify [VM]", Short: "Read every cluster of points and compare it with its digest",
		Long: "Verify reads every cluster of all points, of one VM's, or with --point of one\n" +
			"point and what it builds on, and compares it with its digest; it checks the\n" +
			"files' structure and how they are linked. It ends with exit code 5 if anything\n" +
			"is damaged, and tells what, which points that harms, and what to do.",
		Args: cli.Args(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			r := appliance.VerifyRequest{Point: point}
			if len(args) > 0 {
				r.VM = args[0]
			}
			return s.with(c, false, func(conn *host.Connection) error { return s.runVerify(c, conn, r) })
		}}
	c.Flags().StringVar(&point, "point", "", "verify only this `point` of the VM and what it builds on")
	return c
}

func (s service) runVerify(c *cobra.Command, conn *host.Connection, r appliance.VerifyRequest) error {
	job, err := conn.Verify(c.Context(), r)
	if err != nil {
		return err
	}
	job, err = s.follow(c, conn, job)
	var report repository.Report
	if len(job.Result) == 0 || json.Unmarshal(job.Result, &report) != nil {
		return err
	}
	if job.Warning != "" {
		report.Notes = append(report.Notes, job.Warning)
	}
	if e := s.Print(c, report, func(w io.Writer) { printReport(w, &report) }); e != nil {
		return e
	}
	if !report.OK() {
		return cli.ErrFound
	}
	return err
}

// problemsTold is how many problems of one file are printed; --json has all.
const problemsTold = 5

func printReport(w io.Writer, r *repository.Report) {
	for rest := r.Problems; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].VM == rest[0].VM && rest[n].File == rest[0].File {
			n++
		}
		printDamage(w, rest[:n])
		rest = rest[n:]
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	verdict := "all intact"
	if n := int64(len(r.Problems)) + r.Omitted; n > 0 {
		verdict = count(n, "problem")
	}
	fmt.Fprintf(w, "%s, %s, %s, %s, %s read: %s\n", count(int64(r.VMs), "VM"), count(int64(r.Points), "point"),
		count(int64(r.Files), "file"), count(r.Clusters, "cluster"), cli.Size(r.Bytes), verdict)
}

// printDamage tells the problems of one file. What to do is told for all that have
// it in common.
func printDamage(w io.Writer, ps []repository.Problem) {
	for i, p := range ps[:min(len(ps), problemsTold)] {
		fmt.Fprintf(w, "DAMAGED  %s\n", p)
		next := ps[min(i+1, len(ps)-1)]
		if i+1 < min(len(ps), problemsTold) && slices.Equal(next.Affected, p.Affected) && next.Hint == p.Hint {
			continue
		}
		if len(p.Affected) > 0 {
			fmt.Fprintf(w, "         harms points: %s\n", strings.Trim(fmt.Sprint(p.Affected), "[]"))
		}
		fmt.Fprintf(w, "         %s\n", p.Hint)
	}
	if n := len(ps) - problemsTold; n > 0 {
		fmt.Fprintf(w, "         and %s more in %s; --json tells them\n", count(int64(n), "problem"), ps[0].File)
	}
}

// count returns a number of things, "1 point" or "2 points".
func count(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

func (s service) delete() *cobra.Command {
	return &cobra.Command{Use: "delete VM POINT", Short: "Remove a point; newer points keep what they need of it",
		Args: cli.Args(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, true, func(conn *host.Connection) error {
				job, err := conn.Delete(c.Context(), args[0], args[1])
				if err != nil {
					return err
				}
				if job, err = s.follow(c, conn, job); err != nil {
					return err
				}
				return s.Print(c, job, func(w io.Writer) {
					fmt.Fprintf(w, "deleted %s of %s\n", job.Point, job.VM)
					if job.Warning != "" {
						fmt.Fprintln(w, "note:", job.Warning)
					}
				})
			})
		}}
}

func (s service) jobs() *cobra.Command {
	return &cobra.Command{Use: "jobs [ID]", Short: "List the jobs, newest first, or tell all about one", Args: cli.Args(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				if len(args) == 1 {
					j, err := conn.Job(c.Context(), args[0])
					if err != nil {
						return err
					}
					return s.Print(c, j, func(w io.Writer) { printJob(w, j) })
				}
				jobs, err := conn.Jobs(c.Context())
				if err != nil {
					return err
				}
				return s.Print(c, jobs, func(w io.Writer) { printJobs(w, jobs) })
			})
		}}
}

func printJobs(w io.Writer, jobs []appliance.Job) {
	t := cli.NewTable(w, "job", "state", "point", "took", "remark")
	for _, j := range jobs {
		remark := ""
		if j.State == appliance.JobRunning && j.Progress.Total > 0 {
			remark = fmt.Sprintf("%s %d %%, %s/s", j.Progress.Phase, 100*j.Progress.Done/j.Progress.Total, cli.Size(int64(j.Progress.Rate)))
		} else if j.Error != nil {
			remark = cli.Sentence(j.Error.Msg)
		}
		t.Row(j.ID, j.State, orDash(j.Point), took(j), remark)
	}
	t.Flush()
}

func took(j appliance.Job) string {
	if j.Ended == nil {
		return "-"
	}
	d := j.Ended.Sub(j.Started)
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

func printJob(w io.Writer, j appliance.Job) {
	t := cli.NewTable(w)
	t.Row("Job", j.ID)
	t.Row("State", j.State)
	t.Row("VM", orDash(j.VM))
	t.Row("Point", orDash(j.Point))
	t.Row("Started", j.Started.Format(time.RFC3339))
	t.Row("Took", took(j))
	if j.State == appliance.JobRunning && j.Progress.Phase != "" {
		t.Row("Progress", fmt.Sprintf("%s %s: %s of %s, %s/s", j.Progress.Phase, j.Progress.Disk,
			cli.Size(j.Progress.Done), cli.Size(j.Progress.Total), cli.Size(int64(j.Progress.Rate))))
	}
	if j.Error != nil {
		t.Row("Error", cli.Sentence(j.Error.Msg))
		t.Row("Hint", j.Error.Hint)
	}
	if j.Warning != "" {
		t.Row("Warning", j.Warning)
	}
	t.Flush()
}

func (s service) cancel() *cobra.Command {
	return &cobra.Command{Use: "cancel ID", Short: "Cancel a running job", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				if err := conn.CancelJob(c.Context(), args[0]); err != nil {
					return err
				}
				return s.Print(c, map[string]string{"cancelled": args[0]}, func(w io.Writer) { fmt.Fprintln(w, "cancelled", args[0]) })
			})
		}}
}
