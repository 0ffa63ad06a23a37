package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Print prints the result of a command: with --json v, else what text writes.
func (p *Program) Print(c *cobra.Command, v any, text func(w io.Writer)) error {
	if !p.JSON {
		text(c.OutOrStdout())
		return nil
	}
	e := json.NewEncoder(c.OutOrStdout())
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// outputBuffer is how much is collected before it is written, in bytes.
const outputBuffer = 64 << 10

// Lines returns what many lines are written to, and what writes the rest of them. A
// terminal gets each line when it is there, anything else many at a time.
func Lines(w io.Writer) (lines io.Writer, flush func() error) {
	if isTerminal(w) {
		return w, func() error { return nil }
	}
	b := bufio.NewWriterSize(w, outputBuffer)
	return b, b.Flush
}

// Table aligns columns. It prints nothing before Flush.
type Table struct{ w *tabwriter.Writer }

// NewTable returns a table with a line of headings, in capitals; none if there
// are no headings.
func NewTable(w io.Writer, headings ...string) *Table {
	t := &Table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	if len(headings) > 0 {
		fmt.Fprintln(t.w, strings.ToUpper(strings.Join(headings, "\t")))
	}
	return t
}

// Row adds a line.
func (t *Table) Row(cells ...any) {
	s := make([]string, len(cells))
	for i, c := range cells {
		s[i] = strings.ReplaceAll(fmt.Sprint(c), "\t", " ")
	}
	fmt.Fprintln(t.w, strings.Join(s, "\t"))
}

// Flush prints the table. Errors of writing are told by the program's end.
func (t *Table) Flush() { _ = t.w.Flush() }

// Size returns a number of bytes as people read it, in binary units.
func Size(bytes int64) string {
	const units = "KMGTPE"
	if bytes > -1024 && bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	v, u := float64(bytes)/1024, 0
	for (v >= 1023.95 || v <= -1023.95) && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%s %ciB", strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0"), units[u])
}

// ToTerminal reports whether the result of a command goes to a terminal.
func (p *Program) ToTerminal(c *cobra.Command) bool { return isTerminal(c.OutOrStdout()) }

// isTerminal reports whether what is written goes to a terminal.
func isTerminal(w io.Writer) bool {
	if r, ok := w.(*results); ok {
		w = r.w
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
