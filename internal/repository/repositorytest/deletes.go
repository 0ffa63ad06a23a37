package repositorytest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/repository"
)

func testDeleteNewest(t *testing.T, m *Model) {
	list := m.chain(Web, 3)
	m.Delete(Web, list[2])
	m.Check()
	m.Repository = m.Reopen()
	m.Check()
	if p := m.Add(Change{VM: Web}); p.ID <= list[2].ID {
		t.Errorf("id after a removal: got %s, want more than %s", p.ID, list[2].ID)
	}
	m.Check()
}

func testDeleteOldest(t *testing.T, m *Model) {
	list := m.chain(Web, 5)
	for i := range 4 {
		m.Delete(Web, list[i])
		m.Check()
		points, err := m.Repository.Points(t.Context(), Web)
		if err != nil {
			t.Fatal(err)
		}
		if !points[0].Full() {
			t.Errorf("the oldest point is not full: %+v", points[0])
		}
	}
	m.Add(Change{VM: Web})
	m.Repository = m.Reopen()
	m.Check()
}

func testDeleteMiddle(t *testing.T, m *Model) {
	list := m.chain(Web, 6)
	for _, i := range []int{2, 4, 1, 3} {
		m.Delete(Web, list[i])
		m.Check()
	}
	m.Add(Change{VM: Web})
	m.Check()
}

func testDeleteSeveral(t *testing.T, m *Model) {
	list := m.chain(Web, 6)
	m.Add(Change{VM: Web, Full: true})
	m.Add(Change{VM: Web})
	m.Delete(Web, list[5], list[0], list[2], list[3])
	m.Check()
	m.Delete(Web, m.VMs[Web][0], m.VMs[Web][1])
	m.Check()
	if n := len(m.VMs[Web]); n != 2 {
		t.Errorf("points: got %d, want 2", n)
	}
}

func testDeleteAll(t *testing.T, m *Model) {
	list := m.chain(Web, 4)
	m.Delete(Web, list...)
	m.Check()
	m.chain(Web, 2)
	m.Repository = m.Reopen()
	m.Check()
}

func testReadersGoOn(t *testing.T, m *Model) {
	ctx := t.Context()
	list := m.chain(Web, 8)
	open, err := m.Repository.OpenDisk(ctx, Web, list[7].ID, 0, repository.OpenOptions{Verified: true})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			p := list[i%8]
			err := m.readOnce(ctx, p, i%2 == 0)
			// Even points are being removed.
			if err != nil && !(i%8%2 == 0 && errors.Is(err, repository.ErrNoPoint)) {
				t.Errorf("read point %d: %v", i%8, err)
				return
			}
		}
	})
	for i := 0; i < 8; i += 2 {
		m.Delete(Web, list[i])
	}
	close(stop)
	wg.Wait()
	got := make([]byte, open.Size())
	if err := open.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, list[7].Disks["vda"]) {
		t.Errorf("disk opened before: got other bytes (%v)", err)
	}
	m.Check()
}

// readOnce opens a disk of a point, and reads and compares all of it.
func (m *Model) readOnce(ctx context.Context, p *Point, verified bool) error {
	d, err := m.Repository.OpenDisk(ctx, Web, p.ID, 0, repository.OpenOptions{Verified: verified})
	if err != nil {
		return err
	}
	defer d.Close()
	got := make([]byte, d.Size())
	if err := d.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, p.Disks["vda"]) {
		return errors.New("got other bytes than written")
	}
	return nil
}

func testUsage(t *testing.T, m *Model) {
	m.Add(Change{VM: Web, Disks: twoDisks(), Fill: true})
	m.Add(Change{VM: Web, Compress: "zstd"})
	u, err := m.Repository.Usage(t.Context(), Web)
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Points) != 2 || u.FileBytes != u.Points[0].FileBytes+u.Points[1].FileBytes || u.FileBytes == 0 {
		t.Errorf("usage: got %+v", u)
	}
	for i, p := range u.Points {
		if p.VirtualBytes != 60*ClusterSize+512 || p.StoredBytes == 0 || p.Ratio <= 0 || p.Point != m.VMs[Web][i].ID {
			t.Errorf("usage of point %d: got %+v", i, p)
		}
	}
	if u.Points[0].DataBytes != 61*ClusterSize {
		t.Errorf("data of the full: got %d, want %d", u.Points[0].DataBytes, 61*ClusterSize)
	}
}

func testRatio(t *testing.T, m *Model) {
	ctx := t.Context()
	word, noise := bytes.Repeat([]byte("sendense"), 20*ClusterSize/8), make([]byte, 20*ClusterSize)
	for i := range noise {
		noise[i] = byte(m.rnd.Uint32())
	}
	for _, tt := range []struct {
		name     string
		compress string
		content  []byte
		atLeast  float64 // 1: exactly that
	}{
		{"plain", "", word, 1},
		{"compressed", "zstd", word, 5},
		{"compressed in the older way", "zlib", word, 5},
		{"compressed to no avail", "zstd", noise, 1},
		{"half of it compressed", "zstd", append(bytes.Clone(word), noise...), 1.5},
		{"nothing", "zstd", nil, 1},
	} {
		d, err := m.Repository.Begin(ctx, repository.BeginOptions{VM: Web, Name: "web", Full: true, Compress: tt.compress, ClusterSize: ClusterSize})
		if err != nil {
			t.Fatal(err)
		}
		x, err := d.AddDisk(ctx, "vda", 100*ClusterSize)
		if err != nil {
			t.Fatal(err)
		}
		if err := block.Write(ctx, x.Device(), tt.content, 7*ClusterSize); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Commit(ctx, repository.PointInfo{}); err != nil {
			t.Fatal(err)
		}
		u, err := m.Repository.Usage(ctx, Web)
		if err != nil {
			t.Fatal(err)
		}
		p := u.Points[len(u.Points)-1]
		if p.DataBytes != int64(len(tt.content)) || p.StoredBytes > p.DataBytes || p.StoredBytes >= p.FileBytes {
			t.Errorf("%s: got %+v, want %d bytes of data, no more stored, and more in the files", tt.name, p, len(tt.content))
		}
		if tt.atLeast == 1 && p.Ratio != 1 || p.Ratio < tt.atLeast || p.Ratio > 1 && p.Ratio != float64(p.DataBytes)/float64(p.StoredBytes) {
			t.Errorf("%s: got a ratio of %v (%+v), want %v", tt.name, p.Ratio, p, tt.atLeast)
		}
	}
}

func testRandom(t *testing.T, m *Model) {
	for i := range 60 {
		vm := []repository.VMID{Web, DB}[m.rnd.IntN(2)]
		n := len(m.VMs[vm])
		switch {
		case n == 0 || m.rnd.IntN(5) < 3:
			disks := map[string]int64{}
			for _, key := range []string{"vda", "vdb", "vdc"} {
				if m.rnd.IntN(4) > 0 {
					disks[key] = 512 * (1 + m.rnd.Int64N(200))
				}
			}
			if n > 0 && m.rnd.IntN(3) > 0 {
				disks = nil
			} else if len(disks) == 0 {
				disks["vda"] = 512
			}
			m.Add(Change{VM: vm, Disks: disks, Full: m.rnd.IntN(8) == 0, Compress: []string{"", "zstd", "zlib"}[m.rnd.IntN(3)]})
		default:
			var gone []*Point
			for _, p := range m.VMs[vm] {
				if m.rnd.IntN(3) == 0 {
					gone = append(gone, p)
				}
			}
			m.Delete(vm, gone...)
		}
		if i%10 == 0 {
			m.Repository = m.Reopen()
		}
		m.Check()
		if t.Failed() {
			t.Fatalf("after step %d", i)
		}
	}
}
