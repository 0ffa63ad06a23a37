package dir_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/repository/repositorytest"
	"github.com/sendense/sendense/internal/requires"
)

// files lists what is below a folder, without folders and hidden files.
func files(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(e.Name(), ".") && path != root {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !e.IsDir() {
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			list = append(list, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestLayoutIsTheDocumentedOne(t *testing.T) {
	now := time.Date(2025, 10, 1, 12, 0, 0, 0, time.UTC)
	s, root := subject(t, dir.Options{Now: func() time.Time { return now }})
	m := repositorytest.NewModel(t, s)
	disks := map[string]int64{"vda": 64 << 10, "vdb": 64 << 10}
	m.Add(repositorytest.Change{VM: repositorytest.Web, Name: "pgtest2", Disks: disks, Fill: true})
	now = now.AddDate(0, 0, 1)
	m.Add(repositorytest.Change{VM: repositorytest.Web, Name: "pgtest2"})
	want := []string{
		"11111111-2222-3333-4444-555555555555/disk-0/chain.json",
		"11111111-2222-3333-4444-555555555555/disk-0/pgtest2-full-20251001-120000.digests",
		"11111111-2222-3333-4444-555555555555/disk-0/pgtest2-full-20251001-120000.qcow2",
		"11111111-2222-3333-4444-555555555555/disk-0/pgtest2-incr-20251002-120000.digests",
		"11111111-2222-3333-4444-555555555555/disk-0/pgtest2-incr-20251002-120000.qcow2",
		"11111111-2222-3333-4444-555555555555/disk-1/chain.json",
		"11111111-2222-3333-4444-555555555555/disk-1/pgtest2-disk1-full-20251001-120000.digests",
		"11111111-2222-3333-4444-555555555555/disk-1/pgtest2-disk1-full-20251001-120000.qcow2",
		"11111111-2222-3333-4444-555555555555/disk-1/pgtest2-disk1-incr-20251002-120000.digests",
		"11111111-2222-3333-4444-555555555555/disk-1/pgtest2-disk1-incr-20251002-120000.qcow2",
		"11111111-2222-3333-4444-555555555555/metadata.json",
	}
	if got := files(t, root); !slices.Equal(got, want) {
		t.Errorf("files: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The full goes: what built on it is the full, and is called so.
	m.Delete(repositorytest.Web, m.VMs[repositorytest.Web][0])
	want = []string{want[0], strings.Replace(want[3], "incr", "full", 1), strings.Replace(want[4], "incr", "full", 1),
		want[5], strings.Replace(want[8], "incr", "full", 1), strings.Replace(want[9], "incr", "full", 1), want[10]}
	if got := files(t, root); !slices.Equal(got, want) {
		t.Errorf("files after the removal: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	m.Delete(repositorytest.Web, m.VMs[repositorytest.Web]...)
	if got := files(t, root); len(got) > 0 {
		t.Errorf("files after the last removal: got %v, want none", got)
	}
	if _, err := os.Stat(filepath.Join(root, string(repositorytest.Web))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder after the last removal: got %v, want none", err)
	}
}

func TestEveryFilePassesQemu(t *testing.T) {
	requires.Tool(t, "qemu-img")
	s, root := subject(t, dir.Options{})
	m := repositorytest.NewModel(t, s)
	disks := map[string]int64{"vda": 1<<20 + 512, "vdb": 64 << 10}
	for i, compress := range []string{"", "zstd", "", "zlib", "zstd:19"} {
		m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: disks, Compress: compress, Fill: i == 0})
	}
	checkQemu(t, root, m)
	for _, i := range []int{2, 0, 1} {
		m.Delete(repositorytest.Web, m.VMs[repositorytest.Web][i])
		checkQemu(t, root, m)
	}
}

// checkQemu has qemu-img look at every file, and compares what it reads with what
// was written.
func checkQemu(t *testing.T, root string, m *repositorytest.Model) {
	t.Helper()
	points, err := m.Repository.Points(t.Context(), repositorytest.Web)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	for i, p := range points {
		for _, d := range p.Disks {
			path := filepath.Join(root, string(p.VM), d.File)
			if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
				t.Errorf("qemu-img check %s: %v\n%s", d.File, err, out)
			}
			out, err := exec.Command("qemu-img", "info", "--output=json", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			var info struct {
				Backing string `json:"backing-filename"`
				Format  string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal(out, &info); err != nil {
				t.Fatal(err)
			}
			if d.Parent != "" && (info.Backing != filepath.Base(d.Parent) || info.Format != "qcow2") || d.Parent == "" && info.Backing != "" {
				t.Errorf("backing file of %s: got %q (%s), want %q (qcow2)", d.File, info.Backing, info.Format, d.Parent)
			}
			if err := os.WriteFile(raw, m.VMs[repositorytest.Web][i].Disks[d.Key], 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("qemu-img", "compare", "-F", "raw", path, raw).CombinedOutput(); err != nil {
				t.Errorf("qemu-img compare %s: %v\n%s", d.File, err, out)
			}
		}
	}
}

func TestPointIDsAscendThoughTheClockDoesNot(t *testing.T) {
	times := []string{"20251001-120000", "20251001-120000", "20240101-000000", "20251001-120001", "20251001-120010"}
	want := []string{"20251001-120000", "20251001-120001", "20251001-120002", "20251001-120003", "20251001-120010"}
	now := time.Time{}
	s, _ := subject(t, dir.Options{Now: func() time.Time { return now }})
	m := repositorytest.NewModel(t, s)
	for i := range times {
		now = repository.PointID(times[i]).Time()
		p := m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 512}})
		if string(p.ID) != want[i] {
			t.Errorf("point at %s: got %s, want %s", times[i], p.ID, want[i])
		}
	}
}

func TestReadOnlyRepositoryIsRead(t *testing.T) {
	s, root := subject(t, dir.Options{})
	m := repositorytest.NewModel(t, s)
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 64 << 10}, Fill: true})
	open := func(t *testing.T, root string, o dir.Options) {
		r, err := dir.Open(root, o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		ro := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
		ro.VMs = m.VMs
		ro.Check()
		_, err = ro.TryAdd(repositorytest.Change{VM: repositorytest.Web})
		if !errors.Is(err, repository.ErrReadOnly) || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("backup: got %v, want %v", err, repository.ErrReadOnly)
		}
		if err := r.Delete(t.Context(), repositorytest.Web, m.VMs[repositorytest.Web][0].ID); !errors.Is(err, repository.ErrReadOnly) {
			t.Errorf("removal: got %v, want %v", err, repository.ErrReadOnly)
		}
	}
	t.Run("as asked", func(t *testing.T) { open(t, root, dir.Options{ReadOnly: true}) })
	t.Run("on a file system mounted read-only", func(t *testing.T) {
		requires.Root(t)
		ro := t.TempDir()
		if err := syscall.Mount(root, ro, "", syscall.MS_BIND, ""); err != nil {
			requires.Missing(t, fmt.Sprintf("bind mounts (%v)", err))
		}
		t.Cleanup(func() { syscall.Unmount(ro, 0) })
		if err := syscall.Mount("", ro, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		open(t, ro, dir.Options{})
		if _, err := dir.Open(ro, dir.Options{Exclusive: true}); !errors.Is(err, syscall.EROFS) {
			t.Errorf("open for the control plane: got %v, want %v", err, syscall.EROFS)
		}
	})
}

func TestControlPlaneKeepsOthersOut(t *testing.T) {
	root := t.TempDir()
	shared, err := dir.Open(root, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Open(root, dir.Options{Exclusive: true}); !errors.Is(err, repository.ErrLocked) {
		t.Errorf("open beside another: got %v, want %v", err, repository.ErrLocked)
	}
	second, err := dir.Open(root, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(shared.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	sole, err := dir.Open(root, dir.Options{Exclusive: true, Holder: "sendense-control-plane"})
	if err != nil {
		t.Fatal(err)
	}
	defer sole.Close()
	_, err = dir.Open(root, dir.Options{})
	var locked *repository.LockedError
	if !errors.As(err, &locked) || locked.Holder != "sendense-control-plane" || locked.PID != os.Getpid() {
		t.Errorf("open beside the control plane: got %v", err)
	}
	reader, err := dir.Open(root, dir.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("open for reading: %v", err)
	}
	reader.Close()
}
