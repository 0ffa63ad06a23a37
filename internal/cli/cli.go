// Package cli is what the command line programs share: their persistent flags,
// how they end on a signal, how they tell errors, and what they print.
//
// Results go to stdout; errors and progress go to stderr. With --json a result is
// one JSON value on stdout, and an error is {"error": {"code", "message", "hint"}}
// on one line of stderr. Content goes to stdout as it is, whatever else there is to
// tell of it to stderr. Exit codes are those of docs/exit-codes.md.
//
// The package knows nothing of what the commands do.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/appliance"
)

// defaultRepository is where points are kept unless --repository says otherwise.
const defaultRepository = "/var/lib/sendense/backups"

// Environment variables that take the place of flags.
const (
	EnvRepository = "SENDENSE_REPOSITORY"
	EnvControl    = "SENDENSE_CONTROL"
)

// Program is one command line program.
type Program struct {
	// Root is the command that the program's own commands are added to.
	Root *cobra.Command

	JSON       bool   // --json: results and errors are for programs
	Repository string // --repository: the folder of the repository
	Control    string // --control: where the control plane listens, "unix:PATH"; "" for the usual place

	started bool // a command began: what fails now is no usage error
}

// New returns a program without commands. about is one line that says what it is
// for.
func New(name, about, version string) *Program {
	p := &Program{Root: &cobra.Command{
		Use: name, Short: about, Version: version,
		Args: cobra.ArbitraryArgs, RunE: group,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}}
	p.Root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	repository := defaultRepository
	if s := os.Getenv(EnvRepository); s != "" {
		repository = s
	}
	f := p.Root.PersistentFlags()
	f.BoolVar(&p.JSON, "json", false, "print results and errors as JSON")
	f.StringVar(&p.Repository, "repository", repository, "`folder` of the repository ($"+EnvRepository+")")
	f.StringVar(&p.Control, "control", os.Getenv(EnvControl), "where the control plane listens, as unix:`PATH` ($"+EnvControl+")")
	return p
}

// Group returns a command that consists of others.
func Group(use, about string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: about, Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(commands...)
	return c
}

// group runs a command that consists of others: without arguments it explains
// itself, and anything else is a command it does not have.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	c.SuggestionsMinimumDistance = 2
	hint := fmt.Sprintf("See the commands with: %s --help", c.CommandPath())
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		hint = fmt.Sprintf("Did you mean: %s %s", c.CommandPath(), like[0])
	}
	return Usagef(hint, "There is no command %q.", c.CommandPath()+" "+args[0])
}

// Main runs the program and returns its exit code. The first SIGINT, SIGTERM or
// SIGHUP ends the context of the command, another SIGINT or SIGTERM the process.
func (p *Program) Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := withSignals(ctx)
	defer stop()
	out := &results{w: stdout}
	p.Root.SetArgs(args)
	p.Root.SetOut(out)
	p.Root.SetErr(stderr)
	p.prepare(p.Root)
	c, err := p.Root.ExecuteContextC(ctx)
	if err == nil && out.err != nil {
		err = fmt.Errorf("write results: %w", out.err)
	}
	if err == nil {
		return 0
	}
	if !p.started {
		p.JSON = p.JSON || slices.Contains(args, "--json") // flags may not have been read
		err = asUsage(c, err)
	}
	var other *appliance.Error // beside what was found, which the command has told
	if !errors.Is(err, ErrFound) || errors.As(err, &other) {
		printError(stderr, p.Root.Name(), p.JSON, err)
	}
	return ExitCode(err)
}

// prepare makes every command note that it began.
func (p *Program) prepare(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			p.started = true
			return run(c, args)
		}
	}
	for _, sub := range c.Commands() {
		p.prepare(sub)
	}
}

// withSignals returns a context that ends with the first signal. From then on
// signals do what they do by default, but for SIGHUP: who loses a terminal gets it
// from the shell, and again from the kernel. One that was ignored stays so, as nohup
// wants.
func withSignals(ctx context.Context) (context.Context, func()) {
	stopHangup := func() {}
	if !signal.Ignored(syscall.SIGHUP) {
		ctx, stopHangup = signal.NotifyContext(ctx, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, func() {
		stop()
		stopHangup()
	}
}

// results remembers the first error of writing what a command prints.
type results struct {
	w   io.Writer
	err error
}

func (r *results) Write(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.w.Write(b)
	r.err = err
	return n, err
}

// Sentence makes a sentence of an error's text: a capital letter, unless it
// begins with a name, and a full stop.
func Sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return s
	}
	word, _, _ := strings.Cut(s, " ")
	if strings.IndexFunc(word, func(r rune) bool { return (r < 'a' || r > 'z') && r != ':' }) < 0 {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	if !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "?") && !strings.HasSuffix(s, "!") {
		s += "."
	}
	return s
}
