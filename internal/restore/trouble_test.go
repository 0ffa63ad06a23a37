package restore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/restore"
)

// asUser is a hypervisor whose QEMU runs as another user.
type asUser struct {
	restore.Hypervisor
	uid, gid int
}

func (a asUser) Survey(ctx context.Context, w machine.Wants) (machine.Site, error) {
	s, err := a.Hypervisor.Survey(ctx, w)
	s.UID, s.GID, s.OwnerKnown = a.uid, a.gid, true
	return s, err
}

func TestFilesBelongToTheUserOfQEMU(t *testing.T) {
	h := guesttest.Host(t)
	closed := t.TempDir()
	dir := filepath.Join(closed, "images")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(closed, 0o700)); err != nil {
		t.Fatal(err)
	}
	const user, group = 64055, 108
	l := into(h, dir)
	l.Hypervisor = asUser{l.Hypervisor, user, group}
	r, err := restore.Run(t.Context(), l, three(definition("", "")), restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.Disks {
		st, err := os.Stat(d.To)
		if err != nil {
			t.Fatal(err)
		}
		if s := st.Sys().(*syscall.Stat_t); s.Uid != user || s.Gid != group || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: got user %d, group %d, %v", d.To, s.Uid, s.Gid, st.Mode())
		}
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "let into "+closed) {
		t.Errorf("notes: got\n%s\nwant that QEMU cannot enter %s", notes, closed)
	}
}

func TestFileThatAppearsMeanwhileIsNotOverwritten(t *testing.T) {
	h := guesttest.Host(t)
	for name, target := range map[string]func(dir string) restore.Target{
		"files":   func(dir string) restore.Target { return &restore.Files{Dir: dir} },
		"libvirt": func(dir string) restore.Target { return into(h, dir) },
	} {
		dir := t.TempDir()
		theirs := filepath.Join(dir, "web1-disk-1.qcow2")
		_, err := restore.Run(t.Context(), target(dir), three(definition("", "")), restore.Options{Progress: func(_ string, done, total int64) {
			if done == total {
				if err := os.WriteFile(theirs, []byte("theirs"), 0o600); err != nil {
					t.Error(err)
				}
			}
		}})
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("%s: got %v, want that it exists", name, err)
		}
		if b, err := os.ReadFile(theirs); err != nil || string(b) != "theirs" {
			t.Errorf("%s: their file: got %.20q, %v", name, b, err)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"web1-disk-1.qcow2"}) {
			t.Errorf("%s: left behind: %q", name, got)
		}
	}
	if got := domains(t, h); len(got) > 0 {
		t.Errorf("machines: got %q", got)
	}
}

// remains is a hypervisor that is lost while it makes a machine.
type remains struct{ restore.Hypervisor }

func (remains) Define(context.Context, machine.Definition) ([]string, error) {
	return nil, fmt.Errorf("%w: it was lost", machine.ErrRemains)
}

func TestHypervisorThatIsLost(t *testing.T) {
	h := guesttest.Host(t)
	t.Run("while the machine is made", func(t *testing.T) {
		dir := t.TempDir()
		l := into(h, dir)
		l.Hypervisor = remains{l.Hypervisor}
		if _, err := restore.Run(t.Context(), l, three(definition("", "")), restore.Options{}); !errors.Is(err, machine.ErrRemains) {
			t.Errorf("got %v, want ErrRemains", err)
		}
		// A machine that is there after all has its disks.
		if got := names(t, dir); len(got) != 6 || got[1] != got[0]+".partial" {
			t.Errorf("left: got %q, want each file under two names", got)
		}
	})
	t.Run("for good", func(t *testing.T) {
		dir := t.TempDir()
		l := into(h, dir)
		l.Hypervisor = meanwhile{l.Hypervisor, func() { h.Close() }}
		if _, err := restore.Run(t.Context(), l, three(definition("", "")), restore.Options{}); !errors.Is(err, instant.ErrUnreachable) {
			t.Errorf("got %v, want ErrUnreachable", err)
		}
		if got := names(t, dir); len(got) > 0 {
			t.Errorf("left behind: %q", got)
		}
		if _, err := l.Plan(t.Context(), three(definition("", ""))); !errors.Is(err, instant.ErrUnreachable) {
			t.Errorf("plan: got %v, want ErrUnreachable", err)
		}
	})
}
