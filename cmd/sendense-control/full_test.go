package main_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

func TestAFullRepositoryIsNoDeadEnd(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "mount", "umount")
	bothWays(t, func(t *testing.T, daemon bool) {
		s := clitest.NewSite(t, filepath.Dir(program))
		if err := os.Mkdir(s.Repo, 0o700); err != nil {
			t.Fatal(err)
		}
		clitest.Tool(t, "mount", "-t", "tmpfs", "-o", "size=16m", "sendense-test", s.Repo)
		t.Cleanup(func() { clitest.Tool(t, "umount", "-l", s.Repo) })
		flags := s.Alone()
		var plane *clitest.Process
		if daemon {
			plane = s.Daemon()
			flags = s.Via()
		}
		content := make([]byte, 2<<20)
		rand.NewChaCha8([32]byte{}).Read(content)
		for i := range 4 {
			copy(content[i*100_000:], fmt.Sprintf("this is version %d", i))
			if err := os.WriteFile(s.Path("disk.raw"), content, 0o600); err != nil {
				t.Fatal(err)
			}
			s.Good(s.Backup(flags, s.Path("disk.raw")))
		}
		for n := 4; n > 1; n-- {
			fstest.Exhaust(t, s.Repo)
			r := s.Good(s.Control(flags, "verify web1"))
			if !strings.Contains(r.Stdout, "note: The result is not recorded: ") || !strings.Contains(r.Stdout, "no space left") ||
				!strings.Contains(r.Stdout, fmt.Sprintf("%d points", n)) || !strings.Contains(r.Stdout, "all intact") {
				t.Errorf("verify: got %+v, want %d intact points and that it is not recorded", r, n)
			}
			report := clitest.Decode[struct{ Notes []string }](t, s.Control(flags, "verify --json"))
			if !strings.Contains(fmt.Sprint(report.Notes), "not recorded") {
				t.Errorf("verify: got notes %q, want that it is not recorded", report.Notes)
			}
			clitest.Refused(t, s.Backup(flags, s.Path("disk.raw"), "--full"), 8, "no space left")
			clitest.Refused(t, s.Control(flags, fmt.Sprintf("delete web1 latest~%d", n-1)), 8, "not enough room")
			fstest.Exhaust(t, s.Repo)
			if daemon { // which has to start, too
				plane.Signal(syscall.SIGTERM)
				plane = s.Daemon()
			}
			s.Good(s.Control(flags, "delete web1 latest"))
			if j := s.Jobs(flags)[0]; j.Verb != "delete" || j.State != "succeeded" {
				t.Errorf("jobs: got %+v, want the removal: there is room for it now", j)
			}
		}
		if r := s.Good(s.Control(flags, "verify")); strings.Contains(r.Stdout, "not recorded") || !strings.Contains(r.Stdout, "1 point,") {
			t.Errorf("verify: got %q, want one point, recorded", r.Stdout)
		}
	})
}
