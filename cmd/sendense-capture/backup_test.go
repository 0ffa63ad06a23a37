package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// backedUp is what is documented of backup --json.
type backedUp struct {
	VM     struct{ UUID, Name string }
	Job    string
	Point  string
	Parent string
	Config struct {
		Source, Host, Consistency string
		Running                   *bool
	}
	Disks []struct {
		Key, Mode, Reason string
		Size, Read, Sent  int64
	}
	Record struct {
		ID, VM, Name, Job, Source, Created string
		Disks                              []struct {
			Key, Kind, File, Parent string
			Index                   int
			Size                    int64
			DataBytes               int64 `json:"data_bytes"`
			StoredBytes             int64 `json:"stored_bytes"`
			ClusterSize             int64 `json:"cluster_size"`
		}
	}
}

func TestEveryPointIsTheDiskAsItWas(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io", "nbdcopy")
	for _, format := range []string{"raw", "qcow2"} {
		for _, daemon := range []bool{false, true} {
			name := map[bool]string{false: format + " without a control plane", true: format + " through a control plane"}[daemon]
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := clitest.NewSite(t, bin)
				flags := s.Alone()
				if daemon {
					s.Daemon()
					flags = s.Via()
				}
				backUpAndCompare(t, s, flags, format)
			})
		}
	}
}

// backUpAndCompare makes points of a disk that changes, then compares each with a
// copy of the disk made at its time.
func backUpAndCompare(t *testing.T, s *clitest.Site, flags []string, format string) {
	source := s.Path("disk." + format)
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", format, source, "24M")
	var points []string
	for i, step := range []struct {
		kind  string
		edits []string // qemu-io commands before the backup
		flags []string
	}{
		{"full", []string{"write -P 1 0 3M", "write -P 2 7M 64k", "write -P 3 20M 100k"}, nil},
		{"incr", []string{"write -P 4 1M 70k", "write -z 7M 64k", "discard 20M 64k"}, nil},
		{"incr", nil, nil}, // nothing changed
		{"incr", []string{"write -P 5 9M 1M", "write -P 6 23M 1M"}, []string{"--compress", "zstd"}},
		{"full", []string{"write -P 7 512k 1k"}, []string{"--full"}},
		{"incr", []string{"write -P 8 12M 65k"}, []string{"--full=false", "--compress", "zstd:9"}},
	} {
		for _, edit := range step.edits {
			clitest.Tool(t, "qemu-io", "-f", format, "-d", "unmap", "-c", edit, source)
		}
		clitest.Tool(t, "cp", source, s.Path(fmt.Sprintf("then-%d", i)))
		b := clitest.Decode[backedUp](t, s.Good(s.Backup(flags, source, append(step.flags, "--json")...)))
		checkBackedUp(t, b, step.kind, points)
		points = append(points, b.Point)
		checkFile(t, s, b, format, s.Path(fmt.Sprintf("then-%d", i)))
	}
	for i, point := range points {
		compareExport(t, s, flags, point, format, s.Path(fmt.Sprintf("then-%d", i)))
	}
	s.Good(s.Control(flags, "verify"))
}

func checkBackedUp(t *testing.T, b backedUp, kind string, before []string) {
	t.Helper()
	if len(b.Disks) != 1 || len(b.Record.Disks) != 1 {
		t.Fatalf("got %+v, want one disk", b)
	}
	parent := ""
	if kind == "incr" {
		parent = before[len(before)-1]
	}
	r := b.Record
	if b.VM.Name != "web1" || len(b.VM.UUID) != 36 || b.Parent != parent || b.Config.Source != "blockdev" ||
		b.Config.Running == nil || b.Config.Consistency != "clean" || !strings.HasPrefix(b.Job, "backup-web1-") {
		t.Errorf("summary: got %+v, want one of VM web1 on parent %q", b, parent)
	}
	if r.ID != b.Point || r.VM != b.VM.UUID || r.Name != "web1" || r.Job != b.Job || r.Source != "blockdev" || r.Created == "" {
		t.Errorf("record: got %+v, want that of point %s", r, b.Point)
	}
	if d := r.Disks[0]; d.Key != "sda" || d.Kind != kind || d.Size != 24<<20 || d.ClusterSize != 64<<10 || (d.Parent == "") != (kind == "full") {
		t.Errorf("disk: got %+v, want a %s of sda", d, kind)
	}
	mode := map[string]string{"full": "full", "incr": "compare"}[kind]
	if d := b.Disks[0]; d.Key != "sda" || d.Mode != mode || d.Size != 24<<20 || d.Sent > d.Read || (d.Reason == "") != (kind == "full") {
		t.Errorf("capture: got %+v, want mode %s", d, mode)
	}
}

// checkFile has QEMU check the committed file and compare it with the source.
func checkFile(t *testing.T, s *clitest.Site, b backedUp, format, then string) {
	t.Helper()
	path := filepath.Join(s.Repo, b.VM.UUID, b.Record.Disks[0].File)
	clitest.Tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", format, path, then)
}

// compareExport compares an export of a point with what the disk was then, once
// read by QEMU and once by libnbd.
func compareExport(t *testing.T, s *clitest.Site, flags []string, point, format, then string) {
	t.Helper()
	e := clitest.Decode[struct {
		ID    string
		PID   int
		Disks []struct{ URI string }
	}](t, s.Control(flags, "export web1 "+point+" --json"))
	uri := e.Disks[0].URI
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", format, uri, then)
	copied := s.Path("copied.raw")
	clitest.Tool(t, "nbdcopy", uri, copied)
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", format, copied, then)
	if e.PID == 0 {
		s.Good(s.Control(flags, "unexport "+e.ID))
		return
	}
	clitest.EndOther(t, e.PID)
	_, path, _ := strings.Cut(uri, "socket=")
	if _, err := os.Stat(filepath.Dir(path)); err == nil {
		t.Errorf("%s is still there after the export ended", filepath.Dir(path))
	}
}
