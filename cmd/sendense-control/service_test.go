package main_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// otherPrograms builds the programs that make points for the one under test.
var otherPrograms = sync.OnceValue(func() error { return clitest.Build(filepath.Dir(program)) })

// site returns a site with four points of a disk of VM web1, two full and two on the
// first of them, and copies of the disk as it was: then-0 to then-3.
func site(t *testing.T, daemon bool) (s *clitest.Site, flags, points []string) {
	t.Helper()
	if err := otherPrograms(); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	s = clitest.NewSite(t, filepath.Dir(program))
	flags = s.Alone()
	if daemon {
		s.Daemon()
		flags = s.Via()
	}
	content := make([]byte, 2<<20)
	rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))).Read(content)
	for i, more := range [][]string{nil, nil, {"--compress", "zstd"}, {"--full"}} {
		copy(content[i*100_000:], fmt.Sprintf("this is version %d", i))
		for _, name := range []string{"disk.raw", fmt.Sprintf("then-%d", i)} {
			if err := os.WriteFile(s.Path(name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b := clitest.Decode[struct{ Point string }](t, s.Backup(flags, s.Path("disk.raw"), append(more, "--json")...))
		points = append(points, b.Point)
	}
	return s, flags, points
}

// bothWays runs a test without a control plane and through one.
func bothWays(t *testing.T, test func(t *testing.T, daemon bool)) {
	t.Run("without a control plane", func(t *testing.T) { test(t, false) })
	t.Run("through a control plane", func(t *testing.T) { test(t, true) })
}

// keys checks that a JSON object has exactly the members named, separated by
// spaces; those that end in a question mark may be missing.
func keys(t *testing.T, what string, object any, want string) map[string]any {
	t.Helper()
	m, ok := object.(map[string]any)
	if !ok {
		t.Fatalf("%s: got %v, want an object", what, object)
	}
	known := map[string]bool{}
	for _, k := range strings.Fields(want) {
		name, optional := strings.CutSuffix(k, "?")
		known[name] = true
		if _, ok := m[name]; !ok && !optional {
			t.Errorf("%s: got %v, want member %s", what, m, name)
		}
	}
	for k := range m {
		if !known[k] {
			t.Errorf("%s: got member %s, want only %s", what, k, want)
		}
	}
	return m
}

const (
	vmKeys    = "uuid name created points latest"
	pointKeys = "id vm name job source created config disks"
	diskKeys  = "key index size kind file digests digests_sum parent? cluster_size data_bytes zero_bytes stored_bytes token? mode reason? audit?"
	jobKeys   = "id verb vm? point? state started ended? progress error? result? warning? owner"
)

func TestTheRepositoryIsListed(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, points := site(t, daemon)
		asJSON := func(line string) any { return clitest.Decode[any](t, s.Control(flags, line+" --json")) }
		list := func(line string) []any { return asJSON(line).([]any) }
		text := func(line string, want ...string) {
			r := s.Good(s.Control(flags, line))
			for _, w := range want {
				if !strings.Contains(r.Stdout, w) {
					t.Errorf("%s: got %q, want %q in it", line, r.Stdout, w)
				}
			}
		}
		vms := list("vms")
		vm := keys(t, "VM", vms[0], vmKeys)
		if len(vms) != 1 || vm["name"] != "web1" || vm["points"] != 4.0 || vm["latest"] != points[3] {
			t.Errorf("vms: got %v, want web1 with 4 points", vms)
		}
		text("vms", "VM ", "UUID", "web1", vm["uuid"].(string), points[3])

		all := list("points web1")
		for i, p := range all {
			if m := keys(t, "point", p, pointKeys); m["id"] != points[i] || m["name"] != "web1" || m["vm"] != vm["uuid"] {
				t.Errorf("point: got %v, want %s of web1", m, points[i])
			}
			keys(t, "disk", p.(map[string]any)["disks"].([]any)[0], diskKeys)
		}
		if len(all) != 4 || len(list("points "+vm["uuid"].(string))) != 4 {
			t.Errorf("points: got %d, want 4, also by the UUID", len(all))
		}
		text("points web1", "RATIO", points[0]+"  full", points[1]+"  incr", points[2]+"  incr", points[3]+"  full")

		var kinds []string
		for _, l := range list("chain web1") {
			kinds = append(kinds, keys(t, "link", l, "point "+diskKeys)["kind"].(string))
		}
		if want := []string{"full", "incr", "incr", "full"}; !slices.Equal(kinds, want) {
			t.Errorf("chain: got %v, want %v", kinds, want)
		}
		text("chain web1", "●    "+points[0], "├─○  "+points[1], "└─○  "+points[2], "●    "+points[3])

		info := keys(t, "info", asJSON("info web1 latest~2"), "vm point")
		keys(t, "VM", info["vm"], vmKeys)
		if p := keys(t, "point", info["point"], pointKeys); p["id"] != points[1] {
			t.Errorf("info: got point %v, want %s", p["id"], points[1])
		}
		text("info web1 latest", points[3], "Committed", "sda", "2 MiB", "Captured", "full")
	})
}

func TestJobsAreListed(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, points := site(t, daemon)
		report := keys(t, "report", clitest.Decode[any](t, s.Control(flags, "verify web1 --point latest --json")), "vms points files clusters bytes problems omitted? notes?")
		if report["vms"] != 1.0 || report["points"] != 1.0 || len(report["problems"].([]any)) != 0 {
			t.Errorf("verify: got %v, want one point without problems", report)
		}
		if r := s.Good(s.Control(flags, "verify")); !strings.HasPrefix(r.Stdout, "1 VM, 4 points, 4 files, ") || !strings.HasSuffix(r.Stdout, "all intact\n") {
			t.Errorf("verify: got %q, want four intact points", r.Stdout)
		}
		deleted := keys(t, "job", clitest.Decode[any](t, s.Control(flags, "delete web1 "+points[1]+" --json")), jobKeys)
		if deleted["verb"] != "delete" || deleted["state"] != "succeeded" || deleted["point"] != points[1] {
			t.Errorf("delete: got %v, want a job that removed %s", deleted, points[1])
		}
		if r := s.Good(s.Control(flags, "delete web1 "+points[0])); r.Stdout != "deleted "+points[0]+" of web1\n" {
			t.Errorf("delete: got %q", r.Stdout)
		}
		s.Good(s.Control(flags, "verify"))

		jobs := clitest.Decode[[]any](t, s.Control(flags, "jobs --json"))
		var verbs []string
		for _, j := range jobs {
			m := keys(t, "job", j, jobKeys)
			keys(t, "progress", m["progress"], "phase? disk? done_bytes total_bytes rate_bytes_per_second eta_seconds")
			verbs = append(verbs, m["verb"].(string))
		}
		if want := strings.Fields("verify delete delete verify verify backup backup backup backup"); !slices.Equal(verbs, want) {
			t.Errorf("jobs: got %v, want %v", verbs, want)
		}
		id := deleted["id"].(string)
		one := keys(t, "job", clitest.Decode[any](t, s.Control(flags, "jobs "+id+" --json")), jobKeys)
		if one["id"] != id || one["state"] != "succeeded" {
			t.Errorf("jobs %s: got %v", id, one)
		}
		if r := s.Good(s.Control(flags, "jobs "+id)); !strings.Contains(r.Stdout, "succeeded") || !strings.Contains(r.Stdout, points[1]) {
			t.Errorf("jobs %s: got %q, want state and point", id, r.Stdout)
		}
		if r := s.Good(s.Control(flags, "jobs")); strings.Count(r.Stdout, "\n") != 10 || !strings.HasPrefix(r.Stdout, "JOB") {
			t.Errorf("jobs: got %q, want a heading and 9 lines", r.Stdout)
		}
		clitest.Refused(t, s.Control(flags, "cancel "+id), 2, "succeeded")
	})
}

// exported is what export --json prints.
type exported struct {
	ID, VM, Point, Name, Created string
	Socket, Listen               string
	Persist                      bool
	PID                          int
	Disks                        []struct {
		Index, Clients   int
		Key, Export, URI string
		Size             int64
		Since            []string
	}
}

func TestExportsInTheBackgroundLeaveNothing(t *testing.T) {
	requires.Tool(t, "qemu-img", "nbdinfo")
	s, flags, points := site(t, false)
	for _, c := range []struct {
		name, args string
		socket     string // expected to be listened on; "" for another
	}{
		{"a socket of its own", "", ""},
		{"a socket that is named", " --socket " + s.Path("a.sock"), s.Path("a.sock")},
		{"an address", " --listen 127.0.0.1:0", ""},
		{"every cluster checked", " --verified --disk 0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := s.Good(s.Control(flags, "export web1 "+points[1]+c.args))
			uri := strings.TrimSpace(r.Stdout)
			var pid int
			if _, err := fmt.Sscanf(r.Stderr, "Process %d serves it.", &pid); err != nil || !strings.Contains(r.Stderr, fmt.Sprintf("kill %d", pid)) {
				t.Fatalf("stderr: got %q, want who serves it and how to end it", r.Stderr)
			}
			clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", uri, s.Path("then-1"))
			since := clitest.Tool(t, "nbdinfo", "--map=qemu:dirty-bitmap:since-"+points[0], uri)
			if !strings.Contains(since, "dirty") {
				t.Errorf("map of what changed: got %q, want something dirty", since)
			}
			_, socket, unix := strings.Cut(uri, "socket=")
			if unix != !strings.Contains(c.args, "--listen") || c.socket != "" && socket != c.socket {
				t.Errorf("URI: got %s, want socket %q", uri, c.socket)
			}
			clitest.EndOther(t, pid)
			if !unix {
				return
			}
			for _, path := range []string{socket, filepath.Dir(socket)} {
				if _, err := os.Stat(path); err == nil && path != s.Dir {
					t.Errorf("%s is still there", path)
				}
			}
		})
	}
}

func TestAnExportInTheForegroundEndsWithASignal(t *testing.T) {
	requires.Tool(t, "qemu-img")
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, _ := site(t, daemon)
		socket := s.Path("point.sock")
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			p := clitest.Start(t, program, append([]string{"export", "web1", "latest~1", "--foreground", "--socket", socket}, flags...)...)
			clitest.Until(t, "it prints the URI", func() bool { return strings.HasSuffix(p.Stdout(), "\n") || !clitest.Runs(p.PID) })
			clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", strings.TrimSpace(p.Stdout()), s.Path("then-2"))
			if r := p.Signal(sig); r.Code != 0 || r.Stderr != "" {
				t.Errorf("%v: got %+v, want a quiet end", sig, r)
			}
			if _, err := os.Stat(socket); err == nil {
				t.Error("the socket is still there")
			}
		}
		if !daemon {
			return
		}
		p := clitest.Start(t, program, append([]string{"export", "--foreground", "--json", "--socket", socket}, append(flags, "--", "web1", "latest~1")...)...)
		clitest.Until(t, "it prints the export", func() bool { return strings.HasSuffix(p.Stdout(), "}\n") || !clitest.Runs(p.PID) })
		e := clitest.Decode[exported](t, clitest.Ran{Stdout: p.Stdout()})
		s.Good(s.Control(flags, "unexport "+e.ID))
		if r := p.Wait(); r.Code != 0 {
			t.Errorf("after the export ended: got %+v, want a quiet end", r)
		}
	})
}

func TestTheControlPlaneServesExports(t *testing.T) {
	requires.Tool(t, "qemu-img", "nbdinfo")
	s, flags, points := site(t, true)
	r := s.Control(flags, "export web1 latest~2 --persist --json")
	keys(t, "export", clitest.Decode[any](t, r), "id vm point socket persist created name disks")
	e := clitest.Decode[exported](t, r)
	if e.Point != points[1] || e.Name != "web1" || !e.Persist || e.PID != 0 || e.Created == "" || len(e.Disks) != 1 {
		t.Errorf("export: got %+v, want one of point %s", e, points[1])
	}
	if d := e.Disks[0]; d.Key != "sda" || d.Size != 2<<20 || !slices.Equal(d.Since, points[:1]) {
		t.Errorf("disk: got %+v, want sda, with what changed since %s", d, points[0])
	}
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", e.Disks[0].URI, s.Path("then-1"))
	clitest.Tool(t, "nbdinfo", e.Disks[0].URI)

	tcp := strings.TrimSpace(s.Good(s.Control(flags, "export web1 latest --listen 127.0.0.1:0")).Stdout)
	clitest.Tool(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", tcp, s.Path("then-3"))
	all := clitest.Decode[[]exported](t, s.Control(flags, "exports --json"))
	if len(all) != 2 || all[0].ID != e.ID || all[1].Disks[0].URI != tcp {
		t.Errorf("exports: got %+v, want both, oldest first", all)
	}
	if r := s.Good(s.Control(flags, "exports")); !strings.Contains(r.Stdout, e.ID) || !strings.Contains(r.Stdout, tcp) {
		t.Errorf("exports: got %q, want both", r.Stdout)
	}
	clitest.Refused(t, s.Control(flags, "export web1 latest --socket "+e.Socket), 4, e.Socket)
	clitest.Refused(t, s.Control(flags, "delete web1 "+points[1]), 4, e.ID)
	if r := s.Good(s.Control(flags, "unexport "+e.ID)); r.Stdout != "ended "+e.ID+"\n" {
		t.Errorf("unexport: got %q", r.Stdout)
	}
	ended := clitest.Decode[map[string]string](t, s.Control(flags, "unexport --json "+all[1].ID))
	if ended["ended"] != all[1].ID {
		t.Errorf("unexport: got %v", ended)
	}
	s.Good(s.Control(flags, "delete web1 "+points[1]))
}

func TestBenchLeavesNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, _ := site(t, daemon)
		figures := clitest.Decode[[]struct {
			Name, Unit string
			Value      float64
		}](t, s.Control(flags, "bench --size 8 --json"))
		if len(figures) != 3 {
			t.Errorf("bench: got %+v, want three figures", figures)
		}
		for _, f := range figures {
			if f.Name == "" || f.Unit != "MiB/s" || f.Value <= 0 {
				t.Errorf("figure: got %+v, want a rate", f)
			}
		}
		if left := s.Drafts(); len(left) > 0 {
			t.Errorf("drafts: got %q, want none", left)
		}
		if vms := clitest.Decode[[]any](t, s.Control(flags, "vms --json")); len(vms) != 1 {
			t.Errorf("vms: got %v, want only web1", vms)
		}
		if dirs, _ := filepath.Glob(filepath.Join(s.Repo, "????????-*")); len(dirs) != 1 {
			t.Errorf("folders: got %q, want only web1's", dirs)
		}
	})
}

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
	if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", path)), &extents); err != nil {
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

func TestBadInputOfServiceCommandsGetsASentenceAHintAndAnExitCode(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, _ := site(t, daemon)
		file := s.Path("notes")
		if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		busy, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer busy.Close()
		for _, c := range []struct {
			name, line string
			exit       int
			code       string
			want       string // in the sentence
		}{
			{"a command that does not exist", "vmz", 2, "invalid", "no command"},
			{"a flag that does not exist", "vms --fast", 2, "invalid", "--fast"},
			{"an argument too few", "points", 2, "invalid", "missing"},
			{"an argument too many", "vms web1", 2, "invalid", "web1"},
			{"a VM that is not there", "points web9", 3, "not_found", "web9"},
			{"a point that is not there", "info web1 20200101-000000", 3, "not_found", "20200101-000000"},
			{"a point that is none", "info web1 yesterday", 2, "invalid", "yesterday"},
			{"a point before the first", "info web1 latest~9", 3, "not_found", "latest~9"},
			{"a disk that is not there", "chain web1 --disk 7", 3, "not_found", "disk 7"},
			{"verify of a VM that is not there", "verify web9", 3, "not_found", "web9"},
			{"verify of a point without its VM", "verify --point latest", 2, "invalid", "VM"},
			{"delete of a point that is not there", "delete web1 20200101-000000", 3, "not_found", "20200101-000000"},
			{"a job that is not there", "jobs backup-x", 3, "not_found", "backup-x"},
			{"cancel of a job that is not there", "cancel backup-x", 3, "not_found", "backup-x"},
			{"unexport of what is not there", "unexport export-x", 3, "not_found", "export-x"},
			{"export of a VM that is not there", "export web9 latest", 3, "not_found", "web9"},
			{"export of a disk that is not there", "export web1 latest --disk 7", 3, "not_found", "disk 7"},
			{"export on a file", "export web1 latest --socket " + file, 4, "busy", file},
			{"export in a folder that is missing", "export web1 latest --socket /nonexistent/a.sock", 3, "not_found", "/nonexistent"},
			{"export on a socket with too long a path", "export web1 latest --socket /" + strings.Repeat("x", 120), 2, "invalid", "too long"},
			{"export to everybody without certificates", "export web1 latest --listen 0.0.0.0:0", 2, "invalid", "unencrypted"},
			{"export on an address that is none", "export web1 latest --listen a:b:c", 2, "invalid", "a:b:c"},
			{"export on a port in use", "export web1 latest --listen " + busy.Addr().String(), 4, "busy", busy.Addr().String()},
			{"export with certificates that are not there", "export web1 latest --listen 127.0.0.1:0 --tls-dir /nonexistent", 3, "not_found", "/nonexistent"},
			{"both socket and address", "export web1 latest --socket /x --listen 127.0.0.1:0", 2, "invalid", "socket"},
			{"bench with nothing", "bench --size 0", 2, "invalid", "0 MiB"},
		} {
			t.Run(c.name, func(t *testing.T) {
				clitest.Refused(t, s.Control(flags, c.line), c.exit, c.want)
				clitest.RefusedJSON(t, s.Control(flags, c.line+" --json"), c.exit, c.code)
			})
		}
		if exports := clitest.Decode[[]any](t, s.Control(flags, "exports --json")); len(exports) != 0 {
			t.Errorf("exports: got %v, want none of those refused", exports)
		}
		if daemon {
			return
		}
		clitest.Refused(t, s.Control(flags, "export web1 latest --persist"), 2, "control plane")
		for _, command := range []string{"vms", "points x", "chain x", "info x latest", "verify", "jobs", "export x latest"} {
			gone := []string{"--repository", s.Path("gone")}
			clitest.Refused(t, s.Control(gone, command), 3, "no repository", s.Path("gone"))
		}
		clitest.Refused(t, s.Control([]string{"--repository", file}, "vms"), 2, file)
		clitest.Refused(t, s.Control(s.Via(), "vms"), 6, "control.sock")
		clitest.Refused(t, s.Control([]string{"--control", "tcp:1"}, "vms"), 2, "tcp:1")
	})
}
