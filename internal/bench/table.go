package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// row is one line of the table. A figure of 0 was not measured.
type row struct {
	figure, unit                       string
	own, qemuNBD, qsd, nbdkit, qemuImg float64
	guestfish, plain                   float64
	checks                             []check
}

// check is a target and what became of it.
type check struct {
	target, got string
	ok          bool
}

func atLeast(than string, ratio, target float64) check {
	return check{fmt.Sprintf("≥ %g × %s", target, than), fmt.Sprintf("%.2f ×", ratio), ratio >= target}
}

func atMost(than string, ratio, target float64) check {
	return check{fmt.Sprintf("≤ %g × %s", target, than), fmt.Sprintf("%.2f ×", ratio), ratio <= target}
}

func limit(value, target float64, unit string) check {
	return check{fmt.Sprintf("≤ %g %s", target, unit), fmt.Sprintf("%.3g %s", value, unit), value <= target}
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// machine is what the figures depend on.
type machine struct {
	lines []string
}

// describeMachine finds out what the figures are about to be measured on and with.
func describeMachine(ctx context.Context, program string) (machine, error) {
	var m machine
	for _, argv := range [][]string{{program, "--version"}, {"qemu-nbd", "--version"}, {"qemu-img", "--version"},
		{"nbdkit", "--version"}, {"nbdcopy", "--version"}, {"fio", "--version"}} {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
		if err != nil {
			return m, fmt.Errorf("%s: %w (install what is missing with: make deps)", strings.Join(argv, " "), err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		m.lines = append(m.lines, line)
	}
	m.lines = append(m.lines, runtime.Version()+" "+runtime.GOARCH)
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.lines = append(m.lines, "Linux "+strings.TrimSpace(string(b)))
	}
	m.lines = append(m.lines, fmt.Sprintf("%d × %s, %s of memory", runtime.NumCPU(),
		field("/proc/cpuinfo", "model name"), field("/proc/meminfo", "MemTotal")))
	return m, nil
}

// field returns a value of a file of the kernel's "name: value" lines.
func field(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// table returns the figures as Markdown.
func (m machine) table(b *bench) string {
	var w strings.Builder
	fmt.Fprintf(&w, "%d MiB of random data, medians of %d runs.\n\n", b.size>>20, b.runs)
	fmt.Fprintln(&w, "| figure | unit | Sendense | qemu-nbd | qsd | nbdkit | qemu-img | guestfish | plain | target | got | |")
	fmt.Fprintln(&w, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |")
	for _, r := range b.rows {
		cells := []string{r.figure, r.unit}
		for _, v := range []float64{r.own, r.qemuNBD, r.qsd, r.nbdkit, r.qemuImg, r.guestfish, r.plain} {
			cells = append(cells, number(v))
		}
		if len(r.checks) == 0 {
			r.checks = []check{{}}
		}
		for i, c := range r.checks {
			if i > 0 {
				cells = make([]string, len(cells)) // a further target of the same figure
			}
			verdict := "met"
			switch {
			case c.target == "":
				verdict = ""
			case !c.ok:
				verdict = "**missed**"
			}
			fmt.Fprintf(&w, "| %s | %s | %s | %s |\n", strings.Join(cells, " | "), c.target, c.got, verdict)
		}
	}
	fmt.Fprintf(&w, "\n%s.\n", strings.Join(m.lines, "; "))
	return w.String()
}

// number prints a figure with three or four digits, or nothing for 0.
func number(v float64) string {
	switch {
	case v == 0:
		return ""
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// The table stands between these in the page.
const (
	tableBegin = "<!-- table: made by make bench -->\n"
	tableEnd   = "<!-- end of table -->\n"
)

// updatePage replaces the table of a page.
func updatePage(path, table string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(page, []byte(tableBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		return fmt.Errorf("update %s: it has no place for the table", path)
	}
	return os.WriteFile(path, bytes.Join([][]byte{before, []byte(tableBegin), []byte(table), []byte(tableEnd), after}, nil), 0o644)
}
