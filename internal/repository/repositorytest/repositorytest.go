// Package repositorytest holds what every repository has to pass: that points read
// as they were written, for good, whatever is added and removed around them, and
// that what is not committed is not there.
package repositorytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// Subject is a repository under test, empty at first.
type Subject struct {
	Repository repository.Repository
	// Reopen closes the repository and opens it again, as after a restart.
	Reopen func() repository.Repository
}

// Machines of the tests.
const (
	Web repository.VMID = "11111111-2222-3333-4444-555555555555"
	DB  repository.VMID = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// ClusterSize is that of all chains of the tests, in bytes.
const ClusterSize = 4096

// Run runs the suite. open is called once for each part.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	t.Helper()
	for _, part := range []struct {
		name string
		fn   func(*testing.T, *Model)
	}{
		{"an empty repository has nothing", testEmpty},
		{"points read as they were written", testReads},
		{"the record of a point is what was said of it", testRecords},
		{"a draft is not there until it is committed", testInvisible},
		{"one writer a machine", testLocked},
		{"a failed commit leaves the chain as it was", testFailedCommit},
		{"disks come, go and change their size", testDisks},
		{"machines are renamed and have hostile names", testNames},
		{"nonsense is refused", testRefusals},
		{"digests find what differs", testDiffers},
		{"changes since older points", testChanged},
		{"the newest point is deleted", testDeleteNewest},
		{"the oldest point is deleted", testDeleteOldest},
		{"a point in the middle is deleted", testDeleteMiddle},
		{"several points are deleted at once", testDeleteSeveral},
		{"all points are deleted", testDeleteAll},
		{"readers go on while points are deleted", testReadersGoOn},
		{"notes live as long as their points", testNotes},
		{"usage adds up", testUsage},
		{"the ratio is what compression gains", testRatio},
		{"anything in any order", testRandom},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.fn(t, &Model{T: t, Subject: open(t), VMs: map[repository.VMID][]*Point{}, rnd: rand.New(rand.NewPCG(1, 2))})
		})
	}
}

// Model is a repository and what it has to hold.
type Model struct {
	T testing.TB
	Subject
	VMs map[repository.VMID][]*Point
	// Tried is the point whose commit was asked for last, done or not.
	Tried *Point
	rnd   *rand.Rand
}

// Point is a point as it has to read: the content of each disk by key.
type Point struct {
	ID    repository.PointID
	Disks map[string][]byte
	Keys  []string
}

// NewModel returns a model of an empty repository.
func NewModel(t testing.TB, s Subject) *Model {
	return &Model{T: t, Subject: s, VMs: map[repository.VMID][]*Point{}, rnd: rand.New(rand.NewPCG(3, 4))}
}

// Change says what a point is to be like.
type Change struct {
	VM       repository.VMID
	Name     string // default: "web"
	Full     bool
	Compress string
	Disks    map[string]int64 // sizes by key; default: as before
	Fill     bool             // write all of each disk, not some of it
}

func (m *Model) latest(vm repository.VMID) *Point {
	if list := m.VMs[vm]; len(list) > 0 {
		return list[len(list)-1]
	}
	return nil
}

// Begin opens a draft and writes to its disks what a point after the latest might
// hold, which it returns.
func (m *Model) Begin(ctx context.Context, c Change) (repository.Draft, *Point, error) {
	if c.Name == "" {
		c.Name = "web"
	}
	d, err := m.Repository.Begin(ctx, repository.BeginOptions{
		VM: c.VM, Name: c.Name, Full: c.Full, Compress: c.Compress, ClusterSize: ClusterSize, Holder: "test-job",
	})
	if err != nil {
		return nil, nil, err
	}
	p := &Point{ID: d.Point(), Disks: map[string][]byte{}}
	last := m.latest(c.VM)
	if c.Disks == nil {
		c.Disks = map[string]int64{}
		for k, b := range last.Disks {
			c.Disks[k] = int64(len(b))
		}
	}
	for key := range c.Disks {
		p.Keys = append(p.Keys, key)
	}
	slices.Sort(p.Keys)
	for _, key := range p.Keys {
		b := make([]byte, c.Disks[key])
		if last != nil && !c.Full {
			copy(b, last.Disks[key])
		}
		x, err := d.AddDisk(ctx, key, c.Disks[key])
		if err == nil {
			err = m.write(ctx, x.Device(), b, c.Fill)
		}
		if err != nil {
			return d, p, err
		}
		p.Disks[key] = b
	}
	return d, p, nil
}

// write changes some places of a device and of what it has to read as.
func (m *Model) write(ctx context.Context, d block.Device, b []byte, fill bool) error {
	if fill {
		m.random(b)
		return block.Write(ctx, d, b, 0)
	}
	for range 4 {
		off := m.rnd.Int64N(int64(len(b)))
		n := 1 + m.rnd.Int64N(min(int64(len(b))-off, 5*ClusterSize))
		if m.rnd.IntN(3) > 0 {
			off, n = off/ClusterSize*ClusterSize, min((n+ClusterSize-1)/ClusterSize*ClusterSize, int64(len(b))-off/ClusterSize*ClusterSize)
		}
		p := b[off : off+n]
		if m.rnd.IntN(4) == 0 {
			clear(p)
			if err := block.WriteZeroes(ctx, d, off, n, block.MayTrim); err != nil {
				return err
			}
			continue
		}
		m.random(p)
		if err := block.Write(ctx, d, p, off); err != nil {
			return err
		}
	}
	return block.Flush(ctx, d)
}

// random fills p with noise, or with something that can be compressed.
func (m *Model) random(p []byte) {
	if m.rnd.IntN(2) == 0 {
		word := fmt.Sprintf("%08x", m.rnd.Uint32())
		for i := range p {
			p[i] = word[i%8]
		}
		return
	}
	for i := range p {
		p[i] = byte(m.rnd.Uint32())
	}
}

// Add makes a point.
func (m *Model) Add(c Change) *Point {
	m.T.Helper()
	p, err := m.TryAdd(c)
	if err != nil {
		m.T.Fatal(err)
	}
	return p
}

// TryAdd makes a point, or fails and discards it.
func (m *Model) TryAdd(c Change) (*Point, error) {
	ctx := context.Background()
	d, p, err := m.Begin(ctx, c)
	if err != nil {
		if d != nil {
			return nil, errors.Join(err, d.Abort(ctx))
		}
		return nil, err
	}
	m.Tried = p
	committed, err := d.Commit(ctx, repository.PointInfo{Job: "job", Config: json.RawMessage(`{"cpus": 2}`)})
	if err != nil {
		return nil, err
	}
	if committed.ID != p.ID {
		m.T.Errorf("commit: got point %s, want %s", committed.ID, p.ID)
	}
	m.VMs[c.VM] = append(m.VMs[c.VM], p)
	return p, nil
}

// Delete removes points from the repository and the model.
func (m *Model) Delete(vm repository.VMID, points ...*Point) {
	m.T.Helper()
	var ids []repository.PointID
	for _, p := range points {
		ids = append(ids, p.ID)
	}
	if err := m.Repository.Delete(context.Background(), vm, ids...); err != nil {
		m.T.Fatal(err)
	}
	m.Forget(vm, ids...)
}

// Forget removes points from the model.
func (m *Model) Forget(vm repository.VMID, ids ...repository.PointID) {
	m.VMs[vm] = slices.DeleteFunc(m.VMs[vm], func(p *Point) bool { return slices.Contains(ids, p.ID) })
	if len(m.VMs[vm]) == 0 {
		delete(m.VMs, vm)
	}
}

// Check compares the repository with the model: the points there are, what each
// disk reads as, and that nothing is found to be damaged.
func (m *Model) Check() {
	m.T.Helper()
	ctx := context.Background()
	vms, err := m.Repository.VMs(ctx)
	if err != nil {
		m.T.Fatal(err)
	}
	if len(vms) != len(m.VMs) {
		m.T.Fatalf("machines: got %v, want %d", vms, len(m.VMs))
	}
	for vm, want := range m.VMs {
		points, err := m.Repository.Points(ctx, vm)
		if err != nil {
			m.T.Fatal(err)
		}
		if len(points) != len(want) {
			m.T.Fatalf("points of %s: got %d, want %d", vm, len(points), len(want))
		}
		for i, p := range points {
			if p.ID != want[i].ID || len(p.Disks) != len(want[i].Disks) {
				m.T.Fatalf("point %d: got %s with %d disks, want %s with %d", i, p.ID, len(p.Disks), want[i].ID, len(want[i].Disks))
			}
			for _, d := range p.Disks {
				m.compare(ctx, vm, p.ID, d, want[i].Disks[d.Key])
			}
		}
	}
	m.Verify()
}

// Verify fails the test if the repository finds damage in itself, or notes
// something.
func (m *Model) Verify() *repository.Report {
	m.T.Helper()
	report, err := m.Repository.Verify(context.Background(), repository.VerifyOptions{})
	if err != nil {
		m.T.Fatal(err)
	}
	for _, p := range report.Problems {
		m.T.Errorf("verify: got problem: %v", p)
	}
	for _, n := range report.Notes {
		m.T.Errorf("verify: got note: %s", n)
	}
	return report
}

func (m *Model) compare(ctx context.Context, vm repository.VMID, id repository.PointID, d repository.PointDisk, want []byte) {
	m.T.Helper()
	for _, verified := range []bool{false, true} {
		dev, err := m.Repository.OpenDisk(ctx, vm, id, d.Index, repository.OpenOptions{Verified: verified})
		if err != nil {
			m.T.Fatal(err)
		}
		if dev.Size() != int64(len(want)) {
			m.T.Fatalf("disk %s of %s: got %d bytes, want %d", d.Key, id, dev.Size(), len(want))
		}
		got := make([]byte, len(want))
		err = dev.ReadAt(ctx, got, 0)
		if err != nil || !bytes.Equal(got, want) {
			m.T.Errorf("disk %s of %s: got other bytes than written (%v)", d.Key, id, err)
		}
		if err := dev.Close(); err != nil {
			m.T.Error(err)
		}
	}
}

// wantErr fails the test unless err is want.
func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// sumOf returns the digest of a cluster padded with zeroes.
func sumOf(b []byte) image.Digest {
	c := make([]byte, ClusterSize)
	copy(c, b)
	return image.Sum(c)
}
