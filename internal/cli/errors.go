package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/sendense/sendense/appliance"
	"github.com/spf13/cobra"
)

// ErrFound is what a command returns that looked for something wrong, found it,
// and has said so in its result: a damaged point, images that differ. The program
// ends with the exit code of [appliance.CodeCorrupt] and says nothing more, but for
// another [appliance.Error] that was joined to it.
var ErrFound = errors.New("damage or a difference was found")

// exitCode is the table of docs/exit-codes.md.
func exitCode(c appliance.Code) int {
	switch c {
	case appliance.CodeInvalid:
		return 2
	case appliance.CodeNotFound:
		return 3
	case appliance.CodeBusy:
		return 4
	case appliance.CodeCorrupt, appliance.CodeUnproven:
		return 5
	case appliance.CodeUnreachable:
		return 6
	case appliance.CodeDenied:
		return 7
	case appliance.CodeNoSpace:
		return 8
	case appliance.CodeInterrupted:
		return 9
	case appliance.CodeCancelled:
		return 130
	}
	return 1
}

// ExitCode returns the exit code for an error; 0 for nil.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrFound):
		return exitCode(appliance.CodeCorrupt)
	}
	return exitCode(appliance.AsError(err).Code)
}

// Usagef returns an error about how a command was called: hint says what to do,
// the rest is the sentence that says what is wrong.
func Usagef(hint, format string, args ...any) error {
	return &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// asUsage turns what the reading of arguments ended with into an error for users.
func asUsage(c *cobra.Command, err error) error {
	var e *appliance.Error
	if errors.As(err, &e) {
		return err
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return Usagef(fmt.Sprintf("See how to call it with: %s --help", c.CommandPath()), "%s", Sentence(text))
}

// message is an error as --json tells it.
type message struct {
	Code    appliance.Code `json:"code"`
	Message string         `json:"message"`
	Hint    string         `json:"hint,omitempty"`
}

// printError tells an error: as a sentence and a hint, or as a line of JSON.
func printError(w io.Writer, program string, asJSON bool, err error) {
	e := appliance.AsError(err)
	m := message{Code: e.Code, Message: Sentence(e.Error()), Hint: e.Hint}
	if m.Hint == "" {
		m.Hint = usualHint(e.Code)
	}
	if asJSON {
		b, err := json.Marshal(map[string]message{"error": m})
		if err == nil {
			fmt.Fprintf(w, "%s\n", b)
			return
		}
	}
	fmt.Fprintf(w, "%s: %s\n", program, harmless(m.Message))
	fmt.Fprintf(w, "hint: %s\n", harmless(m.Hint))
}

// harmless keeps names that somebody else chose from doing anything to a terminal.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) || unicode.IsControl(r) && r != '\n' && r != '\t' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// usualHint is what to do about an error that brings no advice of its own.
func usualHint(c appliance.Code) string {
	switch c {
	case appliance.CodeInvalid:
		return "See how to call it with --help."
	case appliance.CodeNotFound:
		return "Check the name."
	case appliance.CodeBusy:
		return "Try again when the other program is done."
	case appliance.CodeCorrupt:
		return "Keep the file as it is and restore it from a copy."
	case appliance.CodeUnreachable:
		return "Check that the other side runs and that its address is right."
	case appliance.CodeDenied:
		return "Check the permissions and mount options of the path."
	case appliance.CodeNoSpace:
		return "Free space on that file system and start again."
	case appliance.CodeCancelled, appliance.CodeInterrupted:
		return "Start it again when you want it."
	}
	return "If the cause is not plain from this, it is a mistake in the program: please report it."
}

// ParseError returns the error that a program run with --json told on its stderr.
func ParseError(stderr string) error {
	var m struct {
		Error message `json:"error"`
	}
	if json.Unmarshal([]byte(stderr), &m) != nil || m.Error.Message == "" {
		return &appliance.Error{Code: appliance.CodeInternal, Msg: "The process in the background ended: " + Sentence(stderr)}
	}
	return &appliance.Error{Code: m.Error.Code, Msg: m.Error.Message, Hint: m.Error.Hint}
}
