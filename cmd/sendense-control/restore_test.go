package main_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

func TestRestoreGivesDisksBack(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, points := site(t, daemon)
		for i, p := range points {
			want, err := os.ReadFile(s.Path(fmt.Sprintf("then-%d", i)))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "web1-disk-0.raw")
			place := " --format raw --to file:" + dir
			if r := s.Control(flags, "restore web1 "+p+place+" --dry-run"); r.Code != 0 || !strings.Contains(r.Stdout, file) {
				t.Errorf("plan: got %+v", r)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("after a plan: got %v, %v", left, err)
			}
			if r := s.Control(flags, "restore web1 "+p+place); r.Code != 0 {
				t.Fatalf("restore: got %+v", r)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
				t.Errorf("point %d: restored something else (%v)", i, err)
			}
			if r := s.Control(flags, "restore web1 "+p+place); r.Code == 0 || !strings.Contains(r.Stderr, "is there already") {
				t.Errorf("restore over a file: got %+v", r)
			}
			// Back to the first point, with what differs.
			if r := s.Control(flags, "restore web1 "+points[0]+" --delta --to blockdev:"+file); r.Code != 0 {
				t.Errorf("delta: got %+v", r)
			}
			first, err := os.ReadFile(s.Path("then-0"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, first) {
				t.Errorf("delta from point %d: restored something else (%v)", i, err)
			}
		}
		for line, says := range map[string]string{
			"restore web1 latest": "--to", "restore web1 latest --to nowhere": "--to", "restore web1 latest --to cloud:/x": "no place",
			"restore web1 latest --to file:/none/at/all": "/none/at/all", "restore web1 latest --disk 7 --to file:/tmp": "no disk 7",
			"restore web1 latest --delta --to file:/tmp": "no older state", "restore web1 latest --format raw --to blockdev:/none": "/none",
		} {
			if r := s.Control(flags, line); r.Code == 0 || !strings.Contains(r.Stderr, says) || !strings.Contains(r.Stderr, "hint: ") {
				t.Errorf("%s: got %+v, want it to say %q", line, r, says)
			}
		}
	})
}

func TestARestoreThatHasNoRoomSaysWhere(t *testing.T) {
	requires.Root(t)
	s, flags, _ := site(t, false)
	small := s.Path("small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	clitest.Tool(t, "mount", "-t", "tmpfs", "-o", "size=1m", "sendense-test", small)
	t.Cleanup(func() { clitest.Tool(t, "umount", "-l", small) })
	for _, format := range []string{"raw", "qcow2"} {
		r := s.Control(flags, "restore web1 latest --format "+format+" --to file:"+small)
		if r.Code != 8 || !strings.Contains(r.Stderr, small) || !strings.Contains(r.Stderr, "hint: Free space where the disks go") {
			t.Errorf("%s: got %+v, want it to say that there is no room, and where", format, r)
		}
		if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", format, left, err)
		}
	}
}
