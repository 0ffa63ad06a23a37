package dir_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// damaged is a repository of three points of one disk: a full of 16 clusters, one
// with clusters 2 and 3 changed, one with cluster 3 changed.
func damaged(t *testing.T) (repository.Repository, string, []repository.Point) {
	t.Helper()
	s, root := subject(t, dir.Options{})
	ctx := t.Context()
	for i, clusters := range [][]int64{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 3}, {3}} {
		d, err := s.Repository.Begin(ctx, repository.BeginOptions{VM: repositorytest.Web, Name: "web", ClusterSize: 4096})
		if err != nil {
			t.Fatal(err)
		}
		x, err := d.AddDisk(ctx, "vda", 16*4096)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range clusters {
			w := x.Device().(interface {
				WriteAt(context.Context, []byte, int64) error
			})
			if err := w.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, 4096), c*4096); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.Commit(ctx, repository.PointInfo{}); err != nil {
			t.Fatal(err)
		}
	}
	points, err := s.Repository.Points(ctx, repositorytest.Web)
	if err != nil {
		t.Fatal(err)
	}
	return s.Repository, filepath.Join(root, string(repositorytest.Web)), points
}

// hostOf returns where a cluster of a file lies in it.
func hostOf(t *testing.T, path string, cluster int64) int64 {
	t.Helper()
	c, err := image.OpenChain(path, image.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	loc, err := c.Locate(t.Context(), nil, cluster*4096, 1)
	if err != nil {
		t.Fatal(err)
	}
	return loc[0].Off
}

// patch changes bytes of a file.
func patch(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyNamesWhatIsDamaged(t *testing.T) {
	for _, tt := range []struct {
		name     string
		damage   func(t *testing.T, folder string, p []repository.Point)
		point    int
		cluster  int64
		what     string
		affected []int
	}{
		{"a byte of a cluster that all points share", func(t *testing.T, folder string, p []repository.Point) {
			path := filepath.Join(folder, p[0].Disks[0].File)
			patch(t, path, hostOf(t, path, 7)+100, []byte{0xff})
		}, 0, 7, "not what its digest says", []int{0, 1, 2}},
		{"a byte of a cluster that the next point replaces", func(t *testing.T, folder string, p []repository.Point) {
			path := filepath.Join(folder, p[0].Disks[0].File)
			patch(t, path, hostOf(t, path, 2), []byte{0xff})
		}, 0, 2, "not what its digest says", []int{0}},
		{"a byte of the newest point", func(t *testing.T, folder string, p []repository.Point) {
			path := filepath.Join(folder, p[2].Disks[0].File)
			patch(t, path, hostOf(t, path, 3)+4095, []byte{0xff})
		}, 2, 3, "not what its digest says", []int{2}},
		{"an entry of a table set to nothing", func(t *testing.T, folder string, p []repository.Point) {
			patch(t, filepath.Join(folder, p[1].Disks[0].File), l2Of(t, folder, p[1])+2*8, make([]byte, 8))
		}, 1, 2, "does not hold it", []int{1, 2}},
		{"an entry of a table set to zeroes", func(t *testing.T, folder string, p []repository.Point) {
			patch(t, filepath.Join(folder, p[1].Disks[0].File), l2Of(t, folder, p[1])+2*8, []byte{0, 0, 0, 0, 0, 0, 0, 1})
		}, 1, 2, "holds zeroes for it, its digests say data", []int{1, 2}},
		{"an entry of a table that appeared", func(t *testing.T, folder string, p []repository.Point) {
			patch(t, filepath.Join(folder, p[1].Disks[0].File), l2Of(t, folder, p[1])+9*8, []byte{0, 0, 0, 0, 0, 0, 0, 1})
		}, 1, 9, "holds zeroes for it, its digests say nothing", []int{1, 2}},
		{"a byte of the digests", func(t *testing.T, folder string, p []repository.Point) {
			patch(t, filepath.Join(folder, p[1].Disks[0].Digests), 4096+30, []byte{0xff})
		}, 1, -1, "digests file is damaged", []int{1, 2}},
		{"the digests of another point", func(t *testing.T, folder string, p []repository.Point) {
			b, err := os.ReadFile(filepath.Join(folder, p[1].Disks[0].Digests))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(folder, p[2].Disks[0].Digests), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 2, -1, "not those that were recorded", []int{2}},
		{"a file cut in half", func(t *testing.T, folder string, p []repository.Point) {
			path := filepath.Join(folder, p[2].Disks[0].File)
			if err := os.Truncate(path, hostOf(t, path, 3)-1); err != nil {
				t.Fatal(err)
			}
		}, 2, -1, "", []int{2}},
		{"a file that is missing", func(t *testing.T, folder string, p []repository.Point) {
			if err := os.Remove(filepath.Join(folder, p[1].Disks[0].File)); err != nil {
				t.Fatal(err)
			}
		}, 1, -1, "no such file", []int{1, 2}},
		{"another backing file", func(t *testing.T, folder string, p []repository.Point) {
			w, err := image.OpenWriter(filepath.Join(folder, p[2].Disks[0].File), image.WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(w.Rebase(t.Context(), filepath.Base(p[0].Disks[0].File), "qcow2"), w.Close()); err != nil {
				t.Fatal(err)
			}
		}, 2, -1, "is backed by", []int{2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, folder, points := damaged(t)
			tt.damage(t, folder, points)
			report, err := r.Verify(t.Context(), repository.VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var affected []repository.PointID
			for _, i := range tt.affected {
				affected = append(affected, points[i].ID)
			}
			found := slices.ContainsFunc(report.Problems, func(p repository.Problem) bool {
				return p.VM == repositorytest.Web && p.Name == "web" && p.Point == points[tt.point].ID && p.Disk == "vda" &&
					p.Cluster == tt.cluster && strings.Contains(p.What, tt.what) && slices.Equal(p.Affected, affected) && p.Hint != ""
			})
			if !found {
				t.Errorf("problems: got %+v, want one of point %s, cluster %d", report.Problems, points[tt.point].ID, tt.cluster)
			}
			// What is not affected reads as ever; what is gives errors.
			for i, p := range points {
				err := readVerified(t.Context(), r, p.ID)
				if slices.Contains(tt.affected, i) && tt.what != "digests file is damaged" {
					if err != nil && !errors.Is(err, repository.ErrCorrupt) {
						t.Errorf("read point %d: got %v, want %v", i, err, repository.ErrCorrupt)
					}
					if err == nil && tt.cluster >= 0 {
						t.Errorf("read point %d: got no error", i)
					}
				} else if err != nil && !slices.Contains(tt.affected, i) {
					t.Errorf("read point %d: %v", i, err)
				}
			}
		})
	}
}

// l2Of returns where the L2 table of a point's file is.
func l2Of(t *testing.T, folder string, p repository.Point) int64 {
	t.Helper()
	f, err := os.Open(filepath.Join(folder, p.Disks[0].File))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := image.ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if _, err := f.ReadAt(b[:], h.L1Offset); err != nil {
		t.Fatal(err)
	}
	off := int64(0)
	for _, x := range b[1:] {
		off = off<<8 | int64(x)
	}
	return off &^ 511
}

func readVerified(ctx context.Context, r repository.Repository, id repository.PointID) error {
	d, err := r.OpenDisk(ctx, repositorytest.Web, id, 0, repository.OpenOptions{Verified: true})
	if err != nil {
		return err
	}
	defer d.Close()
	return d.ReadAt(ctx, make([]byte, d.Size()), 0)
}

func TestVerifiedReadNamesThePlace(t *testing.T) {
	r, folder, points := damaged(t)
	path := filepath.Join(folder, points[0].Disks[0].File)
	patch(t, path, hostOf(t, path, 7)+100, []byte{0xff})
	err := readVerified(t.Context(), r, points[2].ID)
	var c *repository.CorruptError
	if !errors.As(err, &c) || c.VM != repositorytest.Web || c.Point != points[2].ID || c.Disk != "vda" || c.Cluster != 7 || c.File != path {
		t.Errorf("got %+v", err)
	}
	if !errors.Is(err, syscall.EIO) || !errors.Is(err, repository.ErrCorrupt) {
		t.Errorf("got %v, want %v and %v", err, syscall.EIO, repository.ErrCorrupt)
	}
}

func TestOneDamagedRecordHidesNoOther(t *testing.T) {
	s, root := subject(t, dir.Options{})
	m := repositorytest.NewModel(t, s)
	disks := map[string]int64{"vda": 512}
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: disks})
	m.Add(repositorytest.Change{VM: repositorytest.DB, Name: "db", Disks: disks})
	path := filepath.Join(root, string(repositorytest.Web), "metadata.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"flipped": bytes.Replace(b, []byte(`"web"`), []byte(`"wev"`), 1),
		"cut":     b[:len(b)/2],
		"empty":   {},
		"newer":   bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			want := repository.ErrCorrupt
			if name == "newer" {
				want = repository.ErrTooNew
			}
			vms, err := m.Repository.VMs(t.Context())
			if len(vms) != 1 || vms[0].ID != repositorytest.DB || !errors.Is(err, want) {
				t.Errorf("machines: got %v and %v, want the other one and %v", vms, err, want)
			}
			if vm, err := m.Repository.VM(t.Context(), "db"); err != nil || vm.ID != repositorytest.DB {
				t.Errorf("find the other: got %v, %v", vm, err)
			}
			if _, err := m.TryAdd(repositorytest.Change{VM: repositorytest.Web, Disks: disks}); !errors.Is(err, want) {
				t.Errorf("backup: got %v, want %v", err, want)
			}
			m.Add(repositorytest.Change{VM: repositorytest.DB, Name: "db"})
			report, err := m.Repository.Verify(t.Context(), repository.VerifyOptions{VM: repositorytest.Web})
			if name == "newer" {
				if !errors.Is(err, want) {
					t.Errorf("verify: got %v, want %v", err, want)
				}
			} else if err != nil || len(report.Problems) != 1 {
				t.Errorf("verify: got %+v (%v), want a problem", report, err)
			} else if p := report.Problems[0]; strings.Count(p.String(), "VM ") != 1 || strings.Count(p.String(), path) != 1 || p.Affected == nil {
				t.Errorf("problem: got %q affecting %v, want VM and file named once, and a list", p, p.Affected)
			}
		})
	}
}

func TestForeignFilesAreReportedAndLeftAlone(t *testing.T) {
	s, root := subject(t, dir.Options{})
	m := repositorytest.NewModel(t, s)
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 512}})
	folder := filepath.Join(root, string(repositorytest.Web), "disk-0")
	foreign := []string{"notes.txt", "web-full-20200101-000000.qcow2", "web.partial"}
	for _, name := range foreign {
		if err := os.WriteFile(filepath.Join(folder, name), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stale := filepath.Join(folder, "web-incr-20200101-000000.qcow2.partial")
	if err := os.WriteFile(stale, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			t.Errorf("foreign file: %v", err)
		}
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("file in the making: got %v, want none", err)
	}
	report, err := m.Repository.Verify(t.Context(), repository.VerifyOptions{})
	if err != nil || !report.OK() || len(report.Notes) < 2 {
		t.Errorf("verify: got %+v (%v), want notes", report, err)
	}
}

func TestDamagedFilesAreMeasuredAsFarAsTheyGo(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			r, folder, points := damaged(t)
			if err := damage(filepath.Join(folder, points[1].Disks[0].File)); err != nil {
				t.Fatal(err)
			}
			u, err := r.Usage(t.Context(), repositorytest.Web)
			if err != nil || len(u.Points) != 3 || u.Points[1].DataBytes != 2*4096 || u.Points[1].Ratio != 1 {
				t.Errorf("usage: got %+v (%v), want all points, the damaged one as recorded", u, err)
			}
		})
	}
}
