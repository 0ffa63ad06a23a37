package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// committed returns the path of the file of a disk of a point.
func committed(t *testing.T, s *clitest.Site, flags []string, point string) string {
	t.Helper()
	info := clitest.Decode[struct {
		Point struct {
			VM    string
			Disks []struct{ File string }
		}
	}](t, s.Control(flags, "info web1 "+point+" --json"))
	return filepath.Join(s.Repo, info.Point.VM, info.Point.Disks[0].File)
}

func TestDamageIsNamed(t *testing.T) {
	requires.Tool(t, "qemu-img")
	type problem struct {
		Name, Point, Disk, What, Hint string
		Cluster, Offset               int64
		Affected                      []string
	}
	for _, c := range []struct {
		name    string
		damage  func(t *testing.T, path string)
		cluster int64 // -1: any
	}{
		{"a flipped bit", func(t *testing.T, path string) { flip(t, path, hostOffset(t, path, 5*65536)+77) }, 5},
		{"a file that was cut off", func(t *testing.T, path string) {
			if err := os.Truncate(path, 1<<20); err != nil {
				t.Fatal(err)
			}
		}, -1},
		{"a file that is gone", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, flags, points := site(t, false)
			c.damage(t, committed(t, s, flags, points[0]))
			r := s.Control(flags, "verify web1 --json")
			var report struct{ Problems []problem }
			if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || r.Code != 5 || r.Stderr != "" || len(report.Problems) == 0 {
				t.Fatalf("got %+v, want a report with problems, exit code 5 and no error", r)
			}
			p := report.Problems[0]
			if p.Name != "web1" || p.Point != points[0] || p.Disk != "sda" || p.What == "" || p.Hint == "" || !slices.Contains(p.Affected, points[1]) {
				t.Errorf("problem: got %+v, want point %s of web1, disk sda, with what builds on it", p, points[0])
			}
			if c.cluster >= 0 && (p.Cluster != c.cluster || p.Offset != c.cluster*65536 || len(report.Problems) != 1) {
				t.Errorf("problem: got %+v, want only cluster %d", report.Problems, c.cluster)
			}
			r = s.Control(flags, "verify")
			if r.Code != 5 || !strings.Contains(r.Stdout, "DAMAGED  VM ") || !strings.Contains(r.Stdout, "point "+points[0]+", disk sda") || !strings.Contains(r.Stdout, "problem") {
				t.Errorf("got %+v, want the damage told and exit code 5", r)
			}
			if n := strings.Count(r.Stdout, "\n"); n > 15 {
				t.Errorf("got %d lines, want few enough to read: %s", n, r.Stdout)
			}
			// What does not build on it is as good as ever.
			s.Good(s.Control(flags, "verify web1 --point "+points[3]))
			if j := s.Jobs(flags)[1]; j.State != "failed" || j.Error == nil || j.Error.Code != "corrupt" {
				t.Errorf("job: got %+v, want one that failed as corrupt", j)
			}
		})
	}
}

// hostOffset returns where in a QCOW2 file the data at a guest offset are.
func hostOffset(t *testing.T, path string, guest int64) int64 {
	t.Helper()
	var extents []struct {
		Start, Length, Offset int64
		Data                  bool
	}
	if err := json.Unmarshal([]byte(clitest.Tool(t, "qemu-img", "map", "--output=json", path)), &extents); err != nil {
		t.Fatal(err)
	}
	for _, e := range extents {
		if e.Data && e.Start <= guest && guest < e.Start+e.Length {
			return e.Offset + guest - e.Start
		}
	}
	t.Fatalf("%s has no data at %d", path, guest)
	return 0
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedRecordHidesNoOtherVM(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, points := site(t, daemon)
		capture := filepath.Join(s.Bin, "sendense-capture")
		s.Good(clitest.Run(t, capture, append([]string{"backup", "--source", "blockdev", "--vm", "other", "--disk", s.Path("disk.raw")}, flags...)...))
		dir := filepath.Dir(filepath.Dir(committed(t, s, flags, points[0])))
		if err := os.WriteFile(filepath.Join(dir, "metadata.json"), []byte("\x00garbage{"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := s.Control(flags, "vms --json")
		var vms []struct{ Name string }
		if err := json.Unmarshal([]byte(r.Stdout), &vms); err != nil || len(vms) != 1 || vms[0].Name != "other" {
			t.Errorf("vms: got %+v, want the other one", r)
		}
		r.Stdout = ""
		clitest.RefusedJSON(t, r, 5, "corrupt")
		r = s.Control(flags, "vms")
		if strings.Count(r.Stdout, "\n") != 2 || !strings.Contains(r.Stdout, "other") {
			t.Errorf("vms: got %q, want a heading and the other one", r.Stdout)
		}
		r.Stdout = ""
		clitest.Refused(t, r, 5, "metadata.json")
		s.Good(s.Control(flags, "points other"))
		clitest.Refused(t, s.Control(flags, "points "+filepath.Base(dir)), 5, "metadata.json")
		if r := s.Control(flags, "verify"); r.Code != 5 || !strings.Contains(r.Stdout, filepath.Base(dir)) {
			t.Errorf("verify: got %+v, want the VM named and exit code 5", r)
		}
	})
}
