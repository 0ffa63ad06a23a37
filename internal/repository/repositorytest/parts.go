package repositorytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// twoDisks is what most tests begin with.
func twoDisks() map[string]int64 {
	return map[string]int64{"vda": 40*ClusterSize + 512, "vdb": 20 * ClusterSize}
}

// chain makes n points of two disks.
func (m *Model) chain(vm repository.VMID, n int) []*Point {
	m.T.Helper()
	list := []*Point{m.Add(Change{VM: vm, Disks: twoDisks(), Fill: true})}
	for len(list) < n {
		list = append(list, m.Add(Change{VM: vm}))
	}
	return list
}

func testEmpty(t *testing.T, m *Model) {
	ctx := t.Context()
	m.Check()
	_, err := m.Repository.VM(ctx, "web")
	wantErr(t, "find by name", err, repository.ErrNoVM)
	_, err = m.Repository.VM(ctx, string(Web))
	wantErr(t, "find by UUID", err, repository.ErrNoVM)
	_, err = m.Repository.Points(ctx, Web)
	wantErr(t, "list points", err, repository.ErrNoVM)
	_, err = m.Repository.OpenDisk(ctx, Web, "20260101-000000", 0, repository.OpenOptions{})
	wantErr(t, "open disk", err, repository.ErrNoVM)
	_, err = m.Repository.Verify(ctx, repository.VerifyOptions{VM: Web})
	wantErr(t, "verify", err, repository.ErrNoVM)
	wantErr(t, "delete", m.Repository.Delete(ctx, Web, "20260101-000000"), repository.ErrNoVM)
}

func testReads(t *testing.T, m *Model) {
	for i, compress := range []string{"", "zstd", "zstd:9", "zlib", ""} {
		m.Add(Change{VM: Web, Disks: twoDisks(), Compress: compress, Fill: i == 0, Full: i == 3})
		m.Add(Change{VM: DB, Name: "db", Disks: map[string]int64{"sda": 512}})
	}
	m.Check()
	m.Repository = m.Reopen()
	m.Check()
	report := m.Verify()
	if report.VMs != 2 || report.Points != 10 || report.Files != 15 || report.Bytes == 0 {
		t.Errorf("report: got %+v", report)
	}
}

func testRecords(t *testing.T, m *Model) {
	ctx := t.Context()
	audit := &repository.Audit{Unchanged: 100, Sampled: 10, MissRateBound: 0.25}
	var made []repository.Point
	for i := range 3 {
		d, _, err := m.Begin(ctx, Change{VM: Web, Disks: twoDisks()})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 && d.Parent() != nil {
			t.Errorf("parent of the first draft: got %v, want none", d.Parent())
		}
		if i > 0 {
			p := d.Parent()
			if p == nil || p.ID != made[i-1].ID || p.Disk("vda").Token != fmt.Sprint("token-", i-1) || p.Disk("vdb").Token != "" {
				t.Errorf("parent of draft %d: got %+v", i, p)
			}
		}
		p, err := d.Commit(ctx, repository.PointInfo{
			Job: "backup-web-1", Source: "libvirt", Config: json.RawMessage(`{"a": "<x> & y", "n": [1, 2]}`),
			Disks: []repository.DiskInfo{{Key: "vda", Token: fmt.Sprint("token-", i), Mode: "compare", Reason: "why", Audit: audit}},
		})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, p)
	}
	m.Repository = m.Reopen()
	points, err := m.Repository.Points(ctx, Web)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range points {
		var config struct{ A string }
		if err := json.Unmarshal(p.Config, &config); err != nil || config.A != "<x> & y" {
			t.Errorf("config: got %s (%v)", p.Config, err)
		}
		a, b := p.Disk("vda"), p.Disk("vdb")
		if a.Mode != "compare" || a.Reason != "why" || a.Audit == nil || *a.Audit != *audit || b.Audit != nil {
			t.Errorf("disks: got %+v and %+v", a, b)
		}
		if a.Index != 0 || b.Index != 1 || p.DiskAt(1) != b || p.VM != Web || p.Job != "backup-web-1" || p.Source != "libvirt" {
			t.Errorf("point: got %+v", p)
		}
		if p.Full() != (i == 0) || p.ID != made[i].ID {
			t.Errorf("point %d: got %s, full %v", i, p.ID, p.Full())
		}
		if i > 0 && (points[i-1].ID >= p.ID || a.Parent != points[i-1].Disk("vda").File) {
			t.Errorf("point %s does not follow %s", p.ID, points[i-1].ID)
		}
	}
	vm, err := m.Repository.VM(ctx, "web")
	if err != nil || vm.ID != Web || vm.Points != 3 || vm.Latest != made[2].ID {
		t.Errorf("machine: got %+v (%v)", vm, err)
	}
}

func testInvisible(t *testing.T, m *Model) {
	ctx := t.Context()
	for i := range 2 {
		d, _, err := m.Begin(ctx, Change{VM: Web, Disks: twoDisks()})
		if err != nil {
			t.Fatal(err)
		}
		m.Check()
		if err := d.Abort(ctx); err != nil {
			t.Fatal(err)
		}
		if err := d.Abort(ctx); err != nil {
			t.Errorf("abort again: %v", err)
		}
		if _, err := d.Commit(ctx, repository.PointInfo{}); err == nil {
			t.Error("commit of what was aborted: got no error")
		}
		if _, err := d.AddDisk(ctx, "vdz", 512); err == nil {
			t.Error("add a disk to what was aborted: got no error")
		}
		m.Check()
		if i == 0 {
			m.chain(Web, 2)
		}
	}
	m.Add(Change{VM: Web})
	m.Check()
}

func testLocked(t *testing.T, m *Model) {
	ctx := t.Context()
	m.chain(Web, 2)
	d, _, err := m.Begin(ctx, Change{VM: Web})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Repository.Begin(ctx, repository.BeginOptions{VM: Web, Name: "web", Holder: "other"})
	wantErr(t, "a second draft", err, repository.ErrLocked)
	if err == nil || !strings.Contains(err.Error(), "VM web is being written by test-job (pid ") {
		t.Errorf("message: got %v", err)
	}
	wantErr(t, "a removal", m.Repository.Delete(ctx, Web, m.VMs[Web][0].ID), repository.ErrLocked)
	m.Add(Change{VM: DB, Name: "db", Disks: twoDisks()})
	m.Check()
	if err := d.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	m.Add(Change{VM: Web})
	m.Check()
}

func testFailedCommit(t *testing.T, m *Model) {
	ctx := t.Context()
	m.chain(Web, 2)
	for _, tt := range []struct {
		name string
		info repository.PointInfo
	}{
		{"a disk that is not in the draft", repository.PointInfo{Disks: []repository.DiskInfo{{Key: "vdx"}}}},
		{"a configuration that is no JSON", repository.PointInfo{Config: json.RawMessage(`{`)}},
	} {
		d, _, err := m.Begin(ctx, Change{VM: Web})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Commit(ctx, tt.info); err == nil {
			t.Errorf("%s: got no error", tt.name)
		}
		m.Check()
	}
	d, _, err := m.Begin(ctx, Change{VM: Web})
	if err != nil {
		t.Fatal(err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	_, err = d.Commit(stopped, repository.PointInfo{})
	wantErr(t, "a commit that was stopped", err, context.Canceled)
	m.Check()
	m.Add(Change{VM: Web})
	m.Check()
}

func testDisks(t *testing.T, m *Model) {
	m.Add(Change{VM: Web, Disks: map[string]int64{"vda": 10 * ClusterSize}, Fill: true})
	m.Add(Change{VM: Web, Disks: map[string]int64{"vda": 10*ClusterSize + 1024, "vdb": 512}, Fill: true})
	m.Add(Change{VM: Web, Disks: map[string]int64{"vdb": 512, "vdc": 3 * ClusterSize}})
	m.Add(Change{VM: Web, Disks: map[string]int64{"vda": 5*ClusterSize + 512, "vdb": 8 * ClusterSize}})
	m.Add(Change{VM: Web, Disks: map[string]int64{"vda": 20 * ClusterSize, "vdb": 2*ClusterSize + 512}})
	m.Add(Change{VM: Web, Disks: map[string]int64{"vda": 2*ClusterSize + 512, "vdb": 4 * ClusterSize}})
	m.Add(Change{VM: Web, Disks: map[string]int64{"vda": 30 * ClusterSize, "vdb": 4 * ClusterSize}})
	m.Check()
	points, err := m.Repository.Points(t.Context(), Web)
	if err != nil {
		t.Fatal(err)
	}
	for i, kinds := range []string{"vda0full", "vda0incr vdb1full", "vdb1incr vdc2full", "vda0full vdb1incr"} {
		var got []string
		for _, d := range points[i].Disks {
			got = append(got, fmt.Sprint(d.Key, d.Index, d.Kind))
		}
		if strings.Join(got, " ") != kinds {
			t.Errorf("point %d: got %v, want %s", i, got, kinds)
		}
	}
	for len(m.VMs[Web]) > 1 {
		m.Delete(Web, m.VMs[Web][0])
		m.Check()
	}
}

func testNames(t *testing.T, m *Model) {
	names := []string{"web", "wéb ✓", "../../etc/passwd", "-rf", ".hidden", "a\x00b", strings.Repeat("long", 200), "/", "新しい", "web-full-20200101-000000.qcow2"}
	for _, name := range names {
		m.Add(Change{VM: Web, Name: name, Disks: map[string]int64{"vda": 4 * ClusterSize, "../x": ClusterSize}})
		vm, err := m.Repository.VM(t.Context(), name)
		if err != nil || vm.ID != Web || vm.Name != name {
			t.Errorf("find %q: got %+v (%v)", name, vm, err)
		}
	}
	m.Check()
	m.Repository = m.Reopen()
	m.Check()
	m.Add(Change{VM: DB, Name: names[len(names)-1], Disks: twoDisks()})
	_, err := m.Repository.VM(t.Context(), names[len(names)-1])
	wantErr(t, "find one of two", err, repository.ErrAmbiguous)
}

func testRefusals(t *testing.T, m *Model) {
	ctx := t.Context()
	for _, o := range []repository.BeginOptions{
		{VM: "not-a-uuid", Name: "web"},
		{VM: "../../../../../../../../etc/passwd/x", Name: "web"},
		{VM: Web},
		{VM: Web, Name: "a\xffb"},
		{VM: Web, Name: "web", Compress: "lz4"},
		{VM: Web, Name: "web", Compress: "zstd:99"},
		{VM: Web, Name: "web", Compress: "zlib:3"},
	} {
		if d, err := m.Repository.Begin(ctx, o); err == nil {
			t.Errorf("begin %+v: got no error", o)
			_ = d.Abort(ctx)
		}
	}
	d, err := m.Repository.Begin(ctx, repository.BeginOptions{VM: Web, Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddDisk(ctx, "vda", ClusterSize); err != nil {
		t.Fatal(err)
	}
	for key, size := range map[string]int64{"vda": 512, "": 512, "a\nb": 512, "vdb": -1} {
		if _, err := d.AddDisk(ctx, key, size); err == nil {
			t.Errorf("add disk %q of %d: got no error", key, size)
		}
	}
	if err := d.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if d, err = m.Repository.Begin(ctx, repository.BeginOptions{VM: Web, Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Commit(ctx, repository.PointInfo{}); err == nil {
		t.Error("commit without disks: got no error")
	}
	p := m.Add(Change{VM: Web, Disks: twoDisks()})
	_, err = m.Repository.OpenDisk(ctx, Web, p.ID.Next(p.ID.Time()), 0, repository.OpenOptions{})
	wantErr(t, "open a point that is not there", err, repository.ErrNoPoint)
	_, err = m.Repository.OpenDisk(ctx, Web, p.ID, 7, repository.OpenOptions{})
	wantErr(t, "open a disk that is not there", err, repository.ErrNoDisk)
	_, err = m.Repository.Verify(ctx, repository.VerifyOptions{VM: Web, Points: []repository.PointID{"20010101-000000"}})
	wantErr(t, "verify a point that is not there", err, repository.ErrNoPoint)
	wantErr(t, "delete a point that is not there", m.Repository.Delete(ctx, Web, p.ID, "20010101-000000"), repository.ErrNoPoint)
	m.Check()
}

func testDiffers(t *testing.T, m *Model) {
	ctx := t.Context()
	m.chain(Web, 3)
	have := m.latest(Web).Disks["vda"]
	d, err := m.Repository.Begin(ctx, repository.BeginOptions{VM: Web, Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort(ctx)
	x, err := d.AddDisk(ctx, "vda", int64(len(have))+2*ClusterSize)
	if err != nil {
		t.Fatal(err)
	}
	n := (len(have) + ClusterSize - 1) / ClusterSize
	sums := make([]image.Digest, n)
	for i := range sums {
		sums[i] = sumOf(have[i*ClusterSize : min((i+1)*ClusterSize, len(have))])
	}
	sums[3][0] ^= 1
	differ, err := x.Differs(ctx, 0, append(sums, sumOf(nil)))
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range differ {
		if want := i == 3 || i == n; got != want {
			t.Errorf("cluster %d differs: got %v, want %v", i, got, want)
		}
	}
	if _, err := x.Differs(ctx, int64(n), make([]image.Digest, 10)); err == nil {
		t.Error("digests behind the end: got no error")
	}
}

func testChanged(t *testing.T, m *Model) {
	ctx := t.Context()
	list := m.chain(Web, 5)
	last := list[4]
	dev, err := m.Repository.OpenDisk(ctx, Web, last.ID, 0, repository.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for _, p := range list {
		changed, err := block.Changed(ctx, dev, string(p.ID), 0, dev.Size())
		if err != nil {
			t.Fatal(err)
		}
		old := bytes.Clone(p.Disks["vda"])
		for _, r := range changed {
			copy(old[r.Off:r.End()], last.Disks["vda"][r.Off:r.End()])
		}
		if !bytes.Equal(old, last.Disks["vda"]) {
			t.Errorf("changes since %s: there are more", p.ID)
		}
		if p == last && len(changed) > 0 {
			t.Errorf("changes since itself: got %v, want none", changed)
		}
	}
	if _, err := block.Changed(ctx, dev, "20010101-000000", 0, 512); err == nil {
		t.Error("changes since a point that is not there: got no error")
	}
}
