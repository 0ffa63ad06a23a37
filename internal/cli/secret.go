package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/sendense/sendense/appliance"
)

// maxSecret is how long a secret may be, in bytes: what cryptsetup takes of a file.
const maxSecret = 8 << 20

// ReadSecret reads a secret from a file; "-" is standard input, where a terminal is
// asked for it and does not show it. One newline at the end is not part of it.
func ReadSecret(c *cobra.Command, name, prompt string) ([]byte, error) {
	var secret []byte
	var err error
	stdin, _ := c.InOrStdin().(*os.File)
	switch {
	case name != "-":
		secret, err = secretFile(name)
	case stdin != nil && term.IsTerminal(int(stdin.Fd())):
		name = "the terminal"
		secret, err = askTerminal(c.Context(), prompt)
	default:
		name = "standard input"
		secret, err = io.ReadAll(io.LimitReader(c.InOrStdin(), maxSecret+1))
	}
	if err != nil {
		return nil, fmt.Errorf("read from %s: %w", name, err)
	}
	if n := len(secret); n > 0 && secret[n-1] == '\n' {
		secret = secret[:n-1]
	}
	switch {
	case len(secret) == 0:
		return nil, Usagef("Give a file that holds it.", "There is no passphrase in what was read from %s.", name)
	case len(secret) > maxSecret:
		return nil, Usagef("Give the file that holds it.", "What was read from %s is too long for a passphrase.", name)
	}
	return secret, nil
}

func secretFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSecret+1))
}

// askTerminal asks at the terminal of this process, whatever its standard output and
// error are. The terminal shows what is typed again when the answer is there or ctx
// ends.
func askTerminal(ctx context.Context, prompt string) (line []byte, err error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer tty.Close()
	raw, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	before, err := terminalMode(raw, func(m *unix.Termios) { m.Lflag = m.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG })
	if err != nil {
		return nil, err
	}
	defer func() {
		_, e := terminalMode(raw, func(m *unix.Termios) { *m = before })
		err = errors.Join(err, e)
	}()
	stop := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) }) // a terminal that cannot be waited for is read to its end
	defer stop()
	if _, err := io.WriteString(tty, prompt); err != nil {
		return nil, err
	}
	line, err = bufio.NewReaderSize(tty, 8<<10).ReadBytes('\n')
	_, _ = io.WriteString(tty, "\n") // the one that was not shown
	switch {
	case ctx.Err() != nil:
		return nil, &appliance.Error{Code: appliance.CodeCancelled, Err: ctx.Err(), Msg: "No passphrase was given.", Hint: "Start it again when you want it."}
	case errors.Is(err, io.EOF):
		err = nil
	}
	return line, err
}

// terminalMode changes how a terminal behaves, and returns how it did.
func terminalMode(raw interface {
	Control(f func(fd uintptr)) error
}, change func(*unix.Termios)) (before unix.Termios, err error) {
	var inner error
	err = raw.Control(func(fd uintptr) {
		var m *unix.Termios
		if m, inner = unix.IoctlGetTermios(int(fd), unix.TCGETS); inner != nil {
			return
		}
		before = *m
		change(m)
		inner = unix.IoctlSetTermios(int(fd), unix.TCSETSW, m)
	})
	return before, errors.Join(err, inner)
}
