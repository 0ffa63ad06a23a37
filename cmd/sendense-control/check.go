package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

func (s service) check() *cobra.Command {
	var r appliance.CheckRequest
	var timeout time.Duration
	var last bool
	var screen string
	c := &cobra.Command{Use: "check VM [POINT]", Short: "Prove that a point boots, and measure how long it takes", Args: cli.Args(1, 2),
		Long: "Check boots a point (default: the latest) on a machine that is connected to nothing, and waits until its\n" +
			"guest agent answers or it asks for a login. What there is to see is kept with the point: how long it took,\n" +
			"the states of its file systems, failed units, its console and its screen. The point stays as it is; what\n" +
			"the machine wrote is thrown away. It ends with exit code 5 if the point does not boot.",
		RunE: func(c *cobra.Command, args []string) error {
			r.VM, r.Point = args[0], "latest"
			if len(args) > 1 {
				r.Point = args[1]
			}
			if timeout < 0 || timeout%time.Second != 0 {
				return cli.Usagef("Give whole seconds: 90s, 15m.", "--timeout is %s.", timeout)
			}
			r.Timeout = int64(timeout / time.Second)
			return s.with(c, !last, func(conn *host.Connection) error { return s.runCheck(c, conn, r, last, screen) })
		}}
	f := c.Flags()
	f.StringVar(&r.Connect, "connect", "", "libvirt `URI` on this host (default qemu:///system)")
	f.DurationVar(&timeout, "timeout", appliance.CheckTimeout, "how `long` it may take")
	f.BoolVar(&last, "last", false, "boot nothing; tell what the last check of the point found")
	f.StringVar(&screen, "screen", "", "write the picture of the screen to this `file`, as PNG")
	c.MarkFlagsMutuallyExclusive("last", "timeout")
	c.MarkFlagsMutuallyExclusive("last", "connect")
	return c
}

func (s service) runCheck(c *cobra.Command, conn *host.Connection, r appliance.CheckRequest, last bool, screen string) (err error) {
	var found appliance.BootCheck
	if last {
		if found, err = conn.LastCheck(c.Context(), r.VM, r.Point); err != nil {
			return err
		}
	} else {
		job, err := conn.Check(c.Context(), r)
		if err != nil {
			return err
		}
		job, err = s.follow(c, conn, job)
		if len(job.Result) == 0 || json.Unmarshal(job.Result, &found) != nil || found.Version == 0 {
			return err
		}
		var e *appliance.Error
		if err != nil && (!errors.As(err, &e) || e.Code != appliance.CodeUnproven) {
			return err
		}
	}
	if err := s.Print(c, found, func(w io.Writer) { printBootCheck(w, found) }); err != nil {
		return err
	}
	if screen != "" {
		var picture []byte
		if picture, err = conn.CheckScreen(c.Context(), r.VM, found.Point); err == nil {
			err = os.WriteFile(screen, picture, 0o644)
		}
	}
	if !found.Passed {
		err = errors.Join(cli.ErrFound, err) // that it does not boot is the more important
	}
	return err
}

func printBootCheck(w io.Writer, b appliance.BootCheck) {
	verdict := fmt.Sprintf("boots; up after %s", seconds(b.RTO))
	if !b.Passed {
		verdict = fmt.Sprintf("DID NOT BOOT; it got as far as: %s", b.Stage)
	}
	fmt.Fprintf(w, "%s %s: %s\n", b.Name, b.Point, verdict)
	if b.Reason != "" {
		fmt.Fprintln(w, cli.Sentence(b.Reason))
	}
	t := cli.NewTable(w)
	how := "emulated (no KVM)"
	if b.Accelerated {
		how = "accelerated by KVM"
	}
	t.Row("Checked", b.Began.Format(time.RFC3339), how)
	for _, x := range []struct {
		what string
		at   float64
	}{{"Disks ready", b.DisksReady}, {"Machine runs", b.Running}, {"Login prompt", b.Login}, {"Guest agent", b.Agent}} {
		if x.at > 0 {
			t.Row(x.what, seconds(x.at))
		} else {
			t.Row(x.what, "-")
		}
	}
	if g := b.Guest; g != nil {
		t.Row("System", appliance.Visible(g.OS), appliance.Visible(g.Hostname))
		for _, f := range g.FileSystems {
			t.Row("  "+appliance.Visible(f.Path), appliance.Visible(f.Type), mountedState(f.ReadOnly, f.Errors))
		}
		t.Row("Failed units", appliance.Visible(failedUnits(g.FailedUnits)))
	}
	for _, v := range b.Volumes {
		t.Row("  "+appliance.Visible(v.Path), appliance.Visible(v.Type), appliance.Visible(strings.Join(append(v.Notes, v.Refusal), " ")))
	}
	t.Flush()
	printNotes(w, b.Notes)
	if !b.Passed && b.Console != "" {
		lines := strings.Split(strings.TrimRight(b.Console, "\n"), "\n")
		fmt.Fprintf(w, "\nThe last of its console:\n  %s\n", strings.Join(lines[max(0, len(lines)-20):], "\n  "))
	}
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond).String()
}

func mountedState(readOnly bool, errors int64) string {
	switch {
	case errors > 0:
		return count(errors, "error") + " recorded"
	case readOnly:
		return "read-only"
	}
	return "mounted"
}

func failedUnits(units []string) string {
	switch {
	case units == nil:
		return "not known"
	case len(units) == 0:
		return "none"
	}
	return strings.Join(units, " ")
}
