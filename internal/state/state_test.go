package state_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/state"
)

type doc struct{ N int }

func open(t *testing.T, dir string) *state.Store {
	t.Helper()
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestDocumentsStay(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i, id := range []string{"a", "b", "c"} {
		if err := s.Put("jobs", id, doc{i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put("jobs", "b", doc{7}); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete("jobs", "c"); err != nil {
		t.Fatal(err)
	}
	got, err := state.All[doc](open(t, dir), "jobs")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got["a"].N != 0 || got["b"].N != 7 {
		t.Errorf("documents: got %v, want a:0 b:7", got)
	}
}

func TestOneDocumentIsRead(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Put("jobs", "a", doc{7}); err != nil {
		t.Fatal(err)
	}
	if got, err := state.Get[doc](s, "jobs", "a"); err != nil || got.N != 7 {
		t.Errorf("document: got %v (%v), want 7", got, err)
	}
	for _, id := range []string{"b", "../a", ""} {
		if _, err := state.Get[doc](s, "jobs", id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("document %q: got %v, want fs.ErrNotExist", id, err)
		}
	}
}

func TestOneBadDocumentHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Put("jobs", "good", doc{1}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "jobs", "bad.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := state.All[doc](s, "jobs")
	if err == nil || !strings.Contains(err.Error(), "bad") {
		t.Errorf("error: got %v, want one that names the bad document", err)
	}
	if got["good"].N != 1 {
		t.Errorf("documents: got %v, want the good one", got)
	}
}

func TestNamesCannotLeaveTheFolder(t *testing.T) {
	s := open(t, t.TempDir())
	for _, id := range []string{"", "..", "../x", "a/b", ".hidden", strings.Repeat("x", 300)} {
		if err := s.Put("jobs", id, doc{}); err == nil {
			t.Errorf("document %q was stored", id)
		}
	}
}

func TestAliveUntilKilled(t *testing.T) {
	if dir := os.Getenv("STATE_TEST_DIR"); dir != "" {
		s, err := state.Open(dir)
		if err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString(s.Owner() + "\n")
		select {} // until killed
	}
	dir := t.TempDir()
	s := open(t, dir)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAliveUntilKilled$")
	cmd.Env = append(os.Environ(), "STATE_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	owner := strings.TrimSpace(line)
	if !s.Alive(owner) {
		t.Errorf("owner %q: got dead, want alive", owner)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if s.Alive(owner) {
		t.Errorf("owner %q: got alive after kill, want dead", owner)
	}
	if !s.Alive(s.Owner()) {
		t.Error("this process: got dead, want alive")
	}
}

func TestAddTakesANameOnce(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	if err := a.Add("jobs", "x", doc{1}); err != nil {
		t.Fatal(err)
	}
	if err := b.Add("jobs", "x", doc{2}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second add: got %v, want fs.ErrExist", err)
	}
	got, err := state.All[doc](b, "jobs")
	if err != nil || got["x"].N != 1 {
		t.Errorf("document: got %v, %v, want that of the first", got, err)
	}
}
