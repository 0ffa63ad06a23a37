package dir_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/repository/repositorytest"
	"github.com/sendense/sendense/internal/requires"
)

func TestBackupGoesOnOverDamagedDigests(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing":  os.Remove,
		"cut":      func(path string) error { return os.Truncate(path, 5000) },
		"one page": func(path string) error { return flipByte(path, 4096+30) },
	} {
		t.Run(name, func(t *testing.T) {
			s, root := subject(t, dir.Options{})
			m := repositorytest.NewModel(t, s)
			m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 50_000}, Fill: true})
			points, err := s.Repository.Points(t.Context(), repositorytest.Web)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(root, string(repositorytest.Web), points[0].Disks[0].Digests)); err != nil {
				t.Fatal(err)
			}
			d, err := s.Repository.Begin(t.Context(), repository.BeginOptions{VM: repositorytest.Web, Name: "web"})
			if err != nil {
				t.Fatal(err)
			}
			x, err := d.AddDisk(t.Context(), "vda", 50_000)
			if err != nil {
				t.Fatal(err)
			}
			// All of it again, but for one byte.
			b := bytes.Clone(m.VMs[repositorytest.Web][0].Disks["vda"])
			b[5*4096] ^= 1
			if err := block.Write(t.Context(), x.Device(), b, 0); err != nil {
				t.Fatal(err)
			}
			p, err := d.Commit(t.Context(), repository.PointInfo{})
			if err != nil {
				t.Fatal(err)
			}
			if p.Disks[0].DataBytes != 4096 {
				t.Errorf("stored: got %d bytes, want one cluster", p.Disks[0].DataBytes)
			}
			dev, err := s.Repository.OpenDisk(t.Context(), repositorytest.Web, p.ID, 0, repository.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			got := make([]byte, len(b))
			if err := dev.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
				t.Errorf("content: got other bytes than written (%v)", err)
			}
		})
	}
}

func flipByte(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	b[0] ^= 0xff
	_, err2 := f.WriteAt(b[:], off)
	return errors.Join(err, err2, f.Close())
}

func TestBackupsGoOnWhileARemovalCannotBeFinished(t *testing.T) {
	s, root := subject(t, dir.Options{})
	m := repositorytest.NewModel(t, s)
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 50_000, "vdb": 9000}, Fill: true})
	for range 3 {
		m.Add(repositorytest.Change{VM: repositorytest.Web})
	}
	points, err := s.Repository.Points(t.Context(), repositorytest.Web)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(root, string(repositorytest.Web), points[1].Disk("vdb").Digests)
	if err := flipByte(bad, 4096+30); err != nil {
		t.Fatal(err)
	}
	if err := s.Repository.Delete(t.Context(), repositorytest.Web, points[1].ID); err == nil {
		t.Fatal("removal over damaged digests: got no error")
	}
	// Disk 0 is merged, disk 1 is not: everything is there, and there is no damage
	// but what was done.
	readable(t, m)
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	m.Repository = m.Reopen()
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	readable(t, m)
	report, err := m.Repository.Verify(t.Context(), repository.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		if p.Point != points[1].ID || p.Disk != "vdb" {
			t.Errorf("verify: got problem: %v", p)
		}
	}
	if !strings.Contains(fmt.Sprint(report.Notes), "removal of point "+string(points[1].ID)+" is not finished") {
		t.Errorf("notes: got %v", report.Notes)
	}
	if err := s.Repository.Delete(t.Context(), repositorytest.Web, points[0].ID); err == nil {
		t.Error("another removal: got no error")
	}
	// As soon as it can be finished the next backup does it.
	if err := flipByte(bad, 4096+30); err != nil {
		t.Fatal(err)
	}
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	m.Forget(repositorytest.Web, points[1].ID)
	m.Check()
}

// readable reads all points plainly.
func readable(t *testing.T, m *repositorytest.Model) {
	t.Helper()
	for _, p := range m.VMs[repositorytest.Web] {
		for i, key := range p.Keys {
			d, err := m.Repository.OpenDisk(t.Context(), repositorytest.Web, p.ID, i, repository.OpenOptions{})
			if err != nil {
				t.Error(err)
				continue
			}
			got := make([]byte, d.Size())
			if err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, p.Disks[key]) {
				t.Errorf("disk %s of %s: got other bytes than written (%v)", key, p.ID, err)
			}
			d.Close()
		}
	}
}

// small mounts a file system with room for so many bytes.
func small(t *testing.T, size int64) string {
	t.Helper()
	requires.Root(t)
	path := t.TempDir()
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		requires.Missing(t, fmt.Sprintf("mounts (%v)", err))
	}
	t.Cleanup(func() { syscall.Unmount(path, syscall.MNT_DETACH) })
	return path
}

func TestFullFileSystemLeavesTheChainAsItWas(t *testing.T) {
	root := small(t, 8<<20)
	r, err := dir.Open(root, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
	disks := map[string]int64{"vda": 3 << 20, "vdb": 64 << 10}
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: disks, Fill: true})
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	for _, full := range []bool{true, false} {
		c := repositorytest.Change{VM: repositorytest.Web, Full: full, Fill: true, Disks: map[string]int64{"vda": 7 << 20}}
		if _, err := m.TryAdd(c); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("backup: got %v, want %v", err, syscall.ENOSPC)
		}
		m.Check()
	}
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: disks})
	if err := os.WriteFile(filepath.Join(root, "ballast"), make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	oldest := m.VMs[repositorytest.Web][0]
	if err := r.Delete(t.Context(), repositorytest.Web, oldest.ID); !errors.Is(err, repository.ErrNoSpace) {
		t.Errorf("removal of the full: got %v, want %v", err, repository.ErrNoSpace)
	}
	m.Check()
	if err := os.Remove(filepath.Join(root, "ballast")); err != nil {
		t.Fatal(err)
	}
	m.Delete(repositorytest.Web, oldest)
	m.Check()
}
