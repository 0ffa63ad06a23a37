package main_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// site returns a site with four points of a disk of VM web1, two full and two on the
// first of them, and copies of the disk as it was: then-0 to then-3.
func site(t *testing.T, daemon bool) (s *clitest.Site, flags, points []string) {
	t.Helper()
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
