package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
	"github.com/spf13/cobra"
)

func TestExitCodesAreTheDocumentedOnes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d+) \\| `(\\w+)` \\|").FindAllStringSubmatch(string(doc), -1) {
		documented[m[2]] = m[1]
	}
	codes := []appliance.Code{appliance.CodeInternal, appliance.CodeInvalid, appliance.CodeNotFound, appliance.CodeBusy,
		appliance.CodeCorrupt, appliance.CodeUnreachable, appliance.CodeDenied, appliance.CodeNoSpace,
		appliance.CodeCancelled, appliance.CodeInterrupted, appliance.CodeUnproven}
	for _, c := range codes {
		if got := fmt.Sprint(cli.ExitCode(&appliance.Error{Code: c})); got != documented[string(c)] {
			t.Errorf("exit code of %s: got %s, want %s as documented", c, got, documented[string(c)])
		}
	}
	if len(documented) != len(codes) {
		t.Errorf("documented codes: got %v, want %d", documented, len(codes))
	}
	if got := cli.ExitCode(fmt.Errorf("compare: %w", cli.ErrFound)); got != 5 {
		t.Errorf("exit code of a difference: got %d, want 5", got)
	}
}

// run runs a program with one command, "do", that ends with err.
func run(args []string, err error) (code int, stdout, stderr string) {
	p := cli.New("prog", "Try things", "v1")
	var depth int
	do := &cobra.Command{Use: "do", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		fmt.Fprint(c.OutOrStdout(), "done ", depth)
		return err
	}}
	do.Flags().IntVar(&depth, "depth", 0, "how deep")
	p.Root.AddCommand(cli.Group("group", "A group", do))
	var out, errs bytes.Buffer
	code = p.Main(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestMainTellsErrors(t *testing.T) {
	known := &appliance.Error{Code: appliance.CodeBusy, Msg: "VM web1 is being written.", Hint: "Wait."}
	for _, c := range []struct {
		name           string
		args           []string
		err            error
		code           int
		stdout, stderr string
	}{
		{"nothing when there is none", []string{"group", "do"}, nil, 0, "done 0", ""},
		{"the product's own as it is", []string{"group", "do"}, known, 4, "done 0", "prog: VM web1 is being written.\nhint: Wait.\n"},
		{"the product's own inside another", []string{"group", "do"}, fmt.Errorf("x: %w", known), 4, "done 0", "prog: VM web1 is being written.\nhint: Wait.\n"},
		{"the product's own as JSON", []string{"group", "do", "--json"}, known, 4, "done 0",
			`{"error":{"code":"busy","message":"VM web1 is being written.","hint":"Wait."}}` + "\n"},
		{"names that would do something to a terminal", []string{"group", "do"}, &appliance.Error{Code: appliance.CodeNotFound, Msg: "No \x1b[2J\u202e\u009b.", Hint: "See."}, 3,
			"done 0", "prog: No \ufffd[2J\ufffd\ufffd.\nhint: See.\n"},
		{"others as a sentence", []string{"group", "do"}, errors.New("read table: too short"), 1, "done 0",
			"prog: Read table: too short.\nhint: If the cause is not plain from this, it is a mistake in the program: please report it.\n"},
		{"a full disk", []string{"group", "do"}, &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, 8, "done 0",
			"prog: Write /x: no space left on device.\nhint: Free space on the repository's file system, or delete points, and start again.\n"},
		{"what a command found, which it has told", []string{"group", "do"}, cli.ErrFound, 5, "done 0", ""},
		{"what a command found, and what else went wrong", []string{"group", "do"}, errors.Join(known, cli.ErrFound), 5, "done 0",
			"prog: VM web1 is being written.\nhint: Wait.\n"},
		{"a bad flag", []string{"group", "do", "--depth=x"}, nil, 2, "",
			"prog: Invalid argument \"x\" for \"--depth\" flag: strconv.ParseInt: parsing \"x\": invalid syntax.\nhint: See how to call it with: prog group do --help\n"},
		{"an unknown command, as JSON, with what may be meant", []string{"group", "doo", "--json"}, nil, 2, "",
			`{"error":{"code":"invalid","message":"There is no command \"prog group doo\".","hint":"Did you mean: prog group do"}}` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := run(c.args, c.err)
			if code != c.code || stdout != c.stdout || stderr != c.stderr {
				t.Errorf("got %d, %q, %q, want %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
}

func TestTheFirstSignalEndsTheContext(t *testing.T) {
	for _, signals := range [][]syscall.Signal{{syscall.SIGTERM}, {syscall.SIGINT}, {syscall.SIGHUP, syscall.SIGHUP}} {
		p := cli.New("prog", "Try things", "v1")
		p.Root.AddCommand(&cobra.Command{Use: "wait", RunE: func(c *cobra.Command, _ []string) error {
			for _, sig := range signals {
				if err := syscall.Kill(os.Getpid(), sig); err != nil {
					return err
				}
				<-c.Context().Done()
			}
			return c.Context().Err()
		}})
		if code := p.Main(context.Background(), []string{"wait"}, io.Discard, io.Discard); code != 130 {
			t.Errorf("exit code after %v: got %d, want 130", signals, code)
		}
	}
}

func TestFlagsFollowTheEnvironment(t *testing.T) {
	t.Setenv(cli.EnvRepository, "/srv/points")
	t.Setenv(cli.EnvControl, "unix:/run/x")
	p := cli.New("prog", "Try things", "v1")
	p.Root.AddCommand(&cobra.Command{Use: "do", RunE: func(*cobra.Command, []string) error { return nil }})
	if p.Main(context.Background(), []string{"do"}, io.Discard, io.Discard); p.Repository != "/srv/points" || p.Control != "unix:/run/x" {
		t.Errorf("from the environment: got %q, %q", p.Repository, p.Control)
	}
	if p.Main(context.Background(), []string{"do", "--repository", "/mnt"}, io.Discard, io.Discard); p.Repository != "/mnt" {
		t.Errorf("--repository: got %q, want /mnt", p.Repository)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 64 << 10: "64 KiB",
		1<<20 - 1: "1 MiB", 3<<30 + 1<<29: "3.5 GiB", 1 << 40: "1 TiB", 1<<63 - 1: "8 EiB", -2048: "-2 KiB"} {
		if got := cli.Size(n); got != want {
			t.Errorf("size %d: got %q, want %q", n, got, want)
		}
	}
}

func TestSentence(t *testing.T) {
	for s, want := range map[string]string{"open x: gone": "Open x: gone.", "/x is gone": "/x is gone.", "a.qcow2 is bad": "a.qcow2 is bad.",
		"Already one.": "Already one.", "": "", "why?": "why?"} {
		if got := cli.Sentence(s); got != want {
			t.Errorf("sentence of %q: got %q, want %q", s, got, want)
		}
	}
}

func TestTableAligns(t *testing.T) {
	var b strings.Builder
	table := cli.NewTable(&b, "vm", "points")
	table.Row("a-long-name", 3)
	table.Row("b", 12)
	table.Flush()
	if want := "VM           POINTS\na-long-name  3\nb            12\n"; b.String() != want {
		t.Errorf("table: got %q, want %q", b.String(), want)
	}
}
