package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/repository"
)

// service makes the commands that work through an appliance.
type service struct{ *cli.Program }

func serviceCommands(p *cli.Program) []*cobra.Command {
	s := service{p}
	return []*cobra.Command{s.vms(), s.points(), s.chain(), s.info(), s.verify(), s.delete(),
		s.restore(), s.export(), s.exports(), s.unexport(), s.boot(), s.session(), s.check(), s.jobs(), s.cancel(), s.bench()}
}

// with runs fn with a connection to the control plane, or to an appliance in this
// process. write says that fn changes the repository.
func (s service) with(c *cobra.Command, write bool, fn func(*host.Connection) error) error {
	conn, err := host.Connect(c.Context(), s.Control, host.Options{
		Repository: s.Repository, ReadOnly: !write, Name: "sendense-control " + c.Name(), Version: version})
	if err != nil {
		return err
	}
	err = fn(conn)
	if e := conn.Close(); err == nil {
		err = e
	}
	return err
}

func (s service) vms() *cobra.Command {
	return &cobra.Command{Use: "vms", Short: "List the VMs that have points", Args: cli.Args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				vms, damage := conn.VMs(c.Context())
				if damage != nil && vms == nil {
					return damage
				}
				err := s.Print(c, vms, func(w io.Writer) {
					t := cli.NewTable(w, "vm", "uuid", "points", "latest")
					for _, vm := range vms {
						t.Row(vm.Name, vm.ID, vm.Points, orDash(string(vm.Latest)))
					}
					t.Flush()
				})
				return errors.Join(err, damage)
			})
		}}
}

func (s service) points() *cobra.Command {
	return &cobra.Command{Use: "points VM", Short: "List the points of a VM, oldest first", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				points, err := conn.Points(c.Context(), args[0])
				if err != nil {
					return err
				}
				usage, err := conn.Usage(c.Context(), args[0])
				if err != nil {
					return err
				}
				return s.Print(c, points, func(w io.Writer) {
					t := cli.NewTable(w, "point", "type", "disks", "virtual", "changed", "stored", "ratio", "captured")
					for _, p := range points {
						sum := sumUp(p)
						t.Row(p.ID, pointType(p), len(p.Disks), cli.Size(sum.virtual), cli.Size(sum.data), cli.Size(sum.stored), ratio(usage, p.ID), sum.modes)
					}
					t.Flush()
				})
			})
		}}
}

// sums adds up the disks of a point.
type sums struct {
	virtual, data, stored int64
	modes                 string // how the disks were captured
}

func sumUp(p appliance.Point) sums {
	var s sums
	var modes []string
	for _, d := range p.Disks {
		s.virtual += d.Size
		s.data += d.DataBytes
		s.stored += d.StoredBytes
		mode := orDash(d.Mode)
		if len(modes) == 0 || modes[len(modes)-1] != mode {
			modes = append(modes, mode)
		}
	}
	s.modes = strings.Join(modes, ",")
	return s
}

// ratio is what compression gained for a point, if it did.
func ratio(u repository.Usage, id repository.PointID) string {
	for _, p := range u.Points {
		if p.Point == id && p.Ratio > 1 {
			return fmt.Sprintf("%.2f", p.Ratio)
		}
	}
	return "-"
}

func pointType(p appliance.Point) string {
	if p.Full() {
		return "full"
	}
	return "incr"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (s service) chain() *cobra.Command {
	var disk int
	c := &cobra.Command{Use: "chain VM", Short: "Draw the chain of a disk: which point builds on which", Args: cli.Args(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				points, err := conn.Points(c.Context(), args[0])
				if err != nil {
					return err
				}
				links := []chainLink{}
				for _, p := range points {
					if d := p.DiskAt(disk); d != nil {
						links = append(links, chainLink{string(p.ID), d})
					}
				}
				if len(links) == 0 {
					return &appliance.Error{Code: appliance.CodeNotFound, Msg: fmt.Sprintf("VM %s has no disk %d.", args[0], disk),
						Hint: "See its disks with: sendense-control info " + args[0] + " latest"}
				}
				return s.Print(c, links, func(w io.Writer) { drawChain(w, links) })
			})
		}}
	c.Flags().IntVar(&disk, "disk", 0, "`number` of the disk")
	return c
}

// chainLink is one file of a chain.
type chainLink struct {
	Point string `json:"point"`
	*appliance.PointDisk
}

// drawChain draws links, oldest first: a full begins a line of its own, what
// builds on it hangs below.
func drawChain(w io.Writer, links []chainLink) {
	for i, l := range links {
		branch := "●"
		if l.Kind != "full" {
			branch = "├─○"
			if i == len(links)-1 || links[i+1].Kind == "full" {
				branch = "└─○"
			}
		} else if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%-4s %s  %-4s  %10s  %s\n", branch, l.Point, l.Kind, cli.Size(l.DataBytes), l.File)
	}
}

func (s service) info() *cobra.Command {
	return &cobra.Command{Use: "info VM POINT", Short: "Tell all about a point", Args: cli.Args(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return s.with(c, false, func(conn *host.Connection) error {
				vp, err := conn.Point(c.Context(), args[0], args[1])
				if err != nil {
					return err
				}
				return s.Print(c, vp, func(w io.Writer) { printPoint(w, vp.Point) })
			})
		}}
}

func printPoint(w io.Writer, p appliance.Point) {
	t := cli.NewTable(w)
	t.Row("VM", p.Name, p.VM)
	t.Row("Point", p.ID, pointType(p))
	t.Row("Committed", p.Created.Format(time.RFC3339))
	t.Row("Job", orDash(p.Job))
	t.Row("Source", orDash(p.Source))
	t.Flush()
	for _, d := range p.Disks {
		fmt.Fprintln(w)
		t := cli.NewTable(w)
		t.Row(fmt.Sprintf("Disk %d", d.Index), d.Key, cli.Size(d.Size))
		t.Row("  File", d.File)
		t.Row("  Builds on", orDash(d.Parent))
		t.Row("  Changed", cli.Size(d.DataBytes)+" data, "+cli.Size(d.ZeroBytes)+" zeroes")
		t.Row("  Stored", cli.Size(d.StoredBytes))
		t.Row("  Captured", orDash(d.Mode), d.Reason)
		if a := d.Audit; a != nil {
			t.Row("  Tracker audit", fmt.Sprintf("%d of %d unchanged clusters read, %d missed; miss rate at most %.3g (95 %% confidence)",
				a.Sampled, a.Unchanged, a.Missed, a.MissRateBound))
		}
		t.Flush()
	}
}
