package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/requires"
)

func idOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return api.FileID(&st)
}

func TestContentIsTakenFromNoOtherFile(t *testing.T) {
	dir := t.TempDir()
	right, pipe := filepath.Join(dir, "right"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(right, []byte("x"), 0o600), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	h := holders{}
	defer h.close()
	for _, path := range []string{pipe, dir, filepath.Join(dir, "none")} { // a pipe must not make it wait
		if f, err := h.open(api.FilePlace{Path: path, ID: idOf(t, right)}); err == nil {
			t.Errorf("%s was taken for another file: %v", path, f.Name())
		}
	}
	f, err := h.open(api.FilePlace{Path: right, ID: idOf(t, right), At: 1})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := h.open(api.FilePlace{Path: right, ID: idOf(t, right), At: 2}); err != nil || again != f {
		t.Errorf("the same file once more: got %v (%v), want it to be opened once", again, err)
	}
}

func TestStretchesAreCopied(t *testing.T) {
	content := make([]byte, 3*pieceBytes+77)
	for i := range content {
		content[i] = byte(i*7 + i>>12)
	}
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, content, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	elsewhere, err := os.MkdirTemp("/dev/shm", "stretch-") // another file system than that of the source
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(elsewhere)
	x := &copier{ctx: t.Context()}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, dir := range []string{t.TempDir(), elsewhere} {
		for name, stretch := range map[string]func(in *os.File, from int64, out *os.File, to, n int64) error{"stretch": x.stretch, "pieces": x.pieces} {
			out, err := os.Create(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if err := stretch(in, 33, out, 5, int64(len(content)-33)); err != nil {
				t.Fatalf("%s to %s: %v", name, dir, err)
			}
			got, err := os.ReadFile(out.Name())
			if err != nil || !bytes.Equal(got, append(make([]byte, 5), content[33:]...)) {
				t.Errorf("%s to %s: got %d bytes (%v), or others than those at 33", name, dir, len(got), err)
			}
			if err := stretch(in, 1, out, 0, int64(len(content))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s beyond the end of the source: got %v, want io.ErrUnexpectedEOF", name, err)
			}
			if err := (&copier{ctx: ended}).stretch(in, 0, out, 0, 1); !errors.Is(err, context.Canceled) {
				t.Errorf("%s that nobody waits for: got %v", name, err)
			}
		}
	}
}

func TestProgramsThatRunAsTheirOwnerDoNotRunAsAnother(t *testing.T) {
	requires.Root(t)
	path := filepath.Join(t.TempDir(), "program")
	for _, x := range []struct {
		may  bool // give files away
		want os.FileMode
	}{{true, 0o755 | os.ModeSetuid | os.ModeSetgid}, {false, 0o755}} {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		set := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with what it gave up
			var err error
			if !x.may {
				head, caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
				err = unix.Capget(&head, &caps[0])
				caps[0].Effective &^= 1 << unix.CAP_CHOWN
				err = errors.Join(err, unix.Capset(&head, &caps[0]))
			}
			set <- errors.Join(err, setAttributes(f, &appliance.File{Mode: "6755", UID: 12345, GID: 12345}))
		}()
		if err := errors.Join(<-set, f.Close()); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != x.want {
			t.Errorf("may chown: %v: got mode %v (%v), want %v", x.may, st.Mode(), err, x.want)
		}
	}
}
