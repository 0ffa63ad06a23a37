package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/cli"
)

// askedAgain tells a process of this test that it asks at its terminal.
const askedAgain = "CLI_TEST_ASKS"

func TestMain(m *testing.M) {
	if os.Getenv(askedAgain) != "" {
		p := cli.New("prog", "Try things", "v1")
		p.Root.AddCommand(&cobra.Command{Use: "ask", RunE: func(c *cobra.Command, _ []string) error {
			secret, err := cli.ReadSecret(c, "-", "Passphrase: ")
			fmt.Fprintf(c.OutOrStdout(), "%q", secret)
			return err
		}})
		os.Exit(p.Main(context.Background(), []string{"ask"}, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// terminal returns both ends of a terminal.
func terminal(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return near, far
}

// shows reports whether a terminal shows what is typed.
func shows(t *testing.T, tty *os.File) bool {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return m.Lflag&unix.ECHO != 0
}

// ask runs a process that asks at a terminal, waits for the prompt and types.
func ask(t *testing.T, typed func(near *os.File, p *os.Process)) (stdout, shown string, code int) {
	t.Helper()
	near, far := terminal(t)
	var out, errs bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), askedAgain+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = far, &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watch := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer watch.Stop()
	prompt := make([]byte, len("Passphrase: "))
	if _, err := io.ReadFull(near, prompt); err != nil || string(prompt) != "Passphrase: " {
		t.Fatalf("prompt: got %q, %v", prompt, err)
	}
	if shows(t, far) {
		t.Error("the terminal shows what is typed")
	}
	typed(near, cmd.Process)
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if !shows(t, far) {
		t.Error("the terminal does not show any more what is typed")
	}
	near.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	rest, _ := io.ReadAll(near)
	return out.String() + errs.String(), string(rest), cmd.ProcessState.ExitCode()
}

func TestATerminalIsAskedAndDoesNotShowTheAnswer(t *testing.T) {
	out, shown, code := ask(t, func(near *os.File, _ *os.Process) { near.WriteString("corect\x7f\x7f\x7frect horse\n") })
	if out != `"correct horse"` || code != 0 || strings.Contains(shown, "horse") {
		t.Errorf("got %q, %d, shown %q", out, code, shown)
	}
}

func TestASignalEndsTheQuestion(t *testing.T) {
	out, _, code := ask(t, func(_ *os.File, p *os.Process) { p.Signal(syscall.SIGTERM) })
	if code != 130 || !strings.Contains(out, "No passphrase was given.") {
		t.Errorf("after SIGTERM: got %q, %d, want exit code 130", out, code)
	}
	out, _, code = ask(t, func(near *os.File, _ *os.Process) { near.WriteString("half\x03") })
	if code != 130 || !strings.Contains(out, "No passphrase was given.") {
		t.Errorf("after Ctrl-C: got %q, %d, want exit code 130", out, code)
	}
}

func TestSecretsOfFiles(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{"secret": "secret", "secret\n": "secret", "secret\n\n": "secret\n", " a b\t": " a b\t", "\x00\xff\n": "\x00\xff"} {
		name := dir + "/file"
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &cobra.Command{}
		if got, err := cli.ReadSecret(c, name, ""); err != nil || string(got) != want {
			t.Errorf("file with %q: got %q, %v, want %q", content, got, err, want)
		}
		c.SetIn(strings.NewReader(content))
		if got, err := cli.ReadSecret(c, "-", ""); err != nil || string(got) != want {
			t.Errorf("standard input with %q: got %q, %v, want %q", content, got, err, want)
		}
	}
	for what, name := range map[string]string{"no end": "/dev/zero", "nothing": "/dev/null", "a folder": dir, "no file": dir + "/none"} {
		if got, err := cli.ReadSecret(&cobra.Command{}, name, ""); err == nil {
			t.Errorf("%s: got %d bytes and no error", what, len(got))
		}
	}
}
