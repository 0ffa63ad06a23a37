package cli_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/internal/cli"
)

// counted counts what is written to it.
type counted struct{ writes, bytes int }

func (c *counted) Write(p []byte) (int, error) {
	c.writes++
	c.bytes += len(p)
	return len(p), nil
}

func TestLinesAreWrittenManyAtATime(t *testing.T) {
	c := &counted{}
	w, flush := cli.Lines(c)
	for range 10_000 {
		fmt.Fprintln(w, "a line")
	}
	if err := flush(); err != nil || c.bytes != 70_000 || c.writes > 3 {
		t.Errorf("10000 lines: got %d bytes in %d writes (%v), want 70000 in 2", c.bytes, c.writes, err)
	}
}

func TestLinesSayThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	lines, flush := cli.Lines(w)
	_, err = io.WriteString(lines, "a line\n")
	if flushed := flush(); err == nil && flushed == nil {
		t.Error("a line into a pipe that nobody reads: got no error")
	}
}

func TestATerminalGetsEachLineAtOnce(t *testing.T) {
	near, far := terminal(t)
	p := cli.New("prog", "Test.", "1")
	p.Root.AddCommand(&cobra.Command{Use: "find", RunE: func(c *cobra.Command, _ []string) error {
		lines, flush := cli.Lines(c.OutOrStdout())
		fmt.Fprintln(lines, "a line")
		near.SetReadDeadline(time.Now().Add(10 * time.Second)) // it may never come
		got := make([]byte, 8)
		if _, err := io.ReadFull(near, got); err != nil || string(got) != "a line\r\n" {
			t.Errorf("before the end: got %q, %v, want the line", got, err)
		}
		return flush()
	}})
	var errs bytes.Buffer
	if code := p.Main(t.Context(), []string{"find"}, far, &errs); code != 0 {
		t.Errorf("got exit code %d, %s", code, errs.String())
	}
}
