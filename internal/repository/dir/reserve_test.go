package dir_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

const reserve = ".reserve"

// smallExt4 mounts an ext4 file system of so many bytes, none of them kept for root.
func smallExt4(t *testing.T, size int64) string {
	t.Helper()
	path, _ := fstest.Mount(t, fstest.Make(t, size, "mkfs.ext4", "-q", "-m", "0"), "ext4", "")
	return path
}

// kept returns the length of the reserve, -1 if there is none.
func kept(root string) int64 {
	st, err := os.Stat(filepath.Join(root, reserve))
	if err != nil {
		return -1
	}
	return st.Size()
}

func TestPointsAreDeletedWhereNothingIsFree(t *testing.T) {
	for name, mount := range map[string]func(*testing.T, int64) string{"tmpfs": small, "ext4": smallExt4} {
		t.Run(name, func(t *testing.T) {
			root := mount(t, 16<<20)
			r, err := dir.Open(root, dir.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
			disks := map[string]int64{"vda": 2 << 20, "vdb": 64 << 10}
			m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: disks, Fill: true})
			for range 3 {
				m.Add(repositorytest.Change{VM: repositorytest.Web})
			}
			m.Add(repositorytest.Change{VM: repositorytest.DB, Name: "db", Disks: disks, Fill: true})
			before := kept(root)
			if before < 1<<20 {
				t.Errorf("reserve: got %d bytes, want 1 MiB", before)
			}
			for len(m.VMs) > 0 {
				fstest.Exhaust(t, root)
				vm := repositorytest.Web
				if len(m.VMs[vm]) == 0 {
					vm = repositorytest.DB
				}
				list := m.VMs[vm]
				if len(list) > 1 { // what others build on has to be copied, for which there is no room
					if err := r.Delete(t.Context(), vm, list[0].ID); !errors.Is(err, repository.ErrNoSpace) {
						t.Errorf("removal of the full: got %v, want %v", err, repository.ErrNoSpace)
					}
					fstest.Exhaust(t, root)
				}
				m.Delete(vm, list[len(list)-1])
				m.Check()
				if after := kept(root); after != before {
					t.Errorf("reserve: got %d bytes after a removal, want %d", after, before)
				}
			}
		})
	}
}

func TestTheReserveIsMadeWhenThereIsRoom(t *testing.T) {
	root := small(t, 8<<20)
	open := func() *dir.Repository {
		r, err := dir.Open(root, dir.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	r := open()
	if err := os.Remove(filepath.Join(root, reserve)); err != nil {
		t.Fatal(err)
	}
	fstest.Exhaust(t, root)
	open()
	if n := kept(root); n > 0 {
		t.Errorf("reserve where nothing is free: got %d bytes", n)
	}
	if err := os.Remove(filepath.Join(root, "ballast")); err != nil {
		t.Fatal(err)
	}
	reader, err := dir.Open(root, dir.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if n := kept(root); n > 0 {
		t.Errorf("reserve made by a reader: got %d bytes", n)
	}
	// A backup that ends makes it, one way or the other.
	m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 512}})
	if n := kept(root); n != 1<<20 {
		t.Errorf("reserve after a backup: got %d bytes, want 1 MiB", n)
	}
	for _, n := range []int64{0, 1 << 19} { // as a process that was killed may leave it
		if err := os.Truncate(filepath.Join(root, reserve), n); err != nil {
			t.Fatal(err)
		}
		open()
		if n := kept(root); n != 1<<20 {
			t.Errorf("reserve after it was opened: got %d bytes, want 1 MiB", n)
		}
	}
}

func TestTheReserveGrowsWithTheRecord(t *testing.T) {
	root := small(t, 24<<20)
	r, err := dir.Open(root, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var last repository.PointID
	for i := range 2 {
		d, err := r.Begin(t.Context(), repository.BeginOptions{VM: repositorytest.Web, Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.AddDisk(t.Context(), "vda", 64<<10); err != nil {
			t.Fatal(err)
		}
		config := fmt.Sprintf("%q", strings.Repeat("x", 1<<20+i))
		p, err := d.Commit(t.Context(), repository.PointInfo{Config: json.RawMessage(config)})
		if err != nil {
			t.Fatal(err)
		}
		last = p.ID
	}
	before := kept(root)
	if before < 4<<20 {
		t.Errorf("reserve: got %d bytes, want twice a record of 2 MiB", before)
	}
	fstest.Exhaust(t, root)
	if err := r.Delete(t.Context(), repositorytest.Web, last); err != nil {
		t.Error(err)
	}
	if after := kept(root); after != before {
		t.Errorf("reserve: got %d bytes after a removal, want %d", after, before)
	}
}

func TestAMergeThatHasNoRoomKeepsNothingElseFromBeingDeleted(t *testing.T) {
	root := small(t, 16<<20)
	r, err := dir.Open(root, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 4 << 20}, Fill: true})
	for range 4 {
		m.Add(repositorytest.Change{VM: repositorytest.Web})
	}
	list := slices.Clone(m.VMs[repositorytest.Web])
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := r.Delete(stopped, repositorytest.Web, list[0].ID); !errors.Is(err, context.Canceled) {
		t.Fatalf("removal that was stopped: got %v, want %v", err, context.Canceled)
	}
	fstest.Exhaust(t, root)
	// It cannot be finished, nor anything else that copies.
	for _, i := range []int{1, 2} {
		if err := r.Delete(t.Context(), repositorytest.Web, list[i].ID); !errors.Is(err, repository.ErrNoSpace) {
			t.Errorf("removal of point %d: got %v, want %v", i, err, repository.ErrNoSpace)
		}
		fstest.Exhaust(t, root)
	}
	m.Delete(repositorytest.Web, list[4])
	fstest.Exhaust(t, root)
	m.Delete(repositorytest.Web, list[3], list[2])
	readable(t, m)
	if err := os.Remove(filepath.Join(root, "ballast")); err != nil {
		t.Fatal(err)
	}
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	m.Forget(repositorytest.Web, list[0].ID)
	m.Check()
}
