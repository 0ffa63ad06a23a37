package dir

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

var errStopped = errors.New("the machine stopped")

// faulty fails at the k-th operation: with err that one alone, or from there on
// everything, as if the program had been killed.
type faulty struct {
	disk
	mu   sync.Mutex // guards the field below
	n    int        // operations begun
	k    int        // the first is 1
	err  error
	once bool
}

// next counts an operation and returns why it fails, if it does.
func (f *faulty) next() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.n == f.k || f.n > f.k && !f.once {
		return f.err
	}
	return nil
}

// do does an operation unless it fails.
func (f *faulty) do(fn func() error) error {
	if err := f.next(); err != nil {
		return err
	}
	return fn()
}

func (f *faulty) Mkdir(p string) error   { return f.do(func() error { return f.disk.Mkdir(p) }) }
func (f *faulty) Sync(p string) error    { return f.do(func() error { return f.disk.Sync(p) }) }
func (f *faulty) SyncDir(p string) error { return f.do(func() error { return f.disk.SyncDir(p) }) }
func (f *faulty) Remove(p string) error  { return f.do(func() error { return f.disk.Remove(p) }) }
func (f *faulty) Link(a, b string) error { return f.do(func() error { return f.disk.Link(a, b) }) }
func (f *faulty) Rename(a, b string) error {
	return f.do(func() error { return f.disk.Rename(a, b) })
}

func (f *faulty) Create(path string) (file, error) {
	if err := f.next(); err != nil {
		return nil, err
	}
	w, err := f.disk.Create(path)
	return &faultyFile{w, f}, err
}

type faultyFile struct {
	file
	f *faulty
}

func (w *faultyFile) Write(b []byte) (int, error) {
	if err := w.f.next(); err != nil {
		n, _ := w.file.Write(b[:len(b)/2])
		return n, err
	}
	return w.file.Write(b)
}

func (w *faultyFile) Sync() error {
	if err := w.f.next(); err != nil {
		return err
	}
	return w.file.Sync()
}

// models copies what a repository has to hold.
func models(m map[repository.VMID][]*repositorytest.Point) map[repository.VMID][]*repositorytest.Point {
	c := map[repository.VMID][]*repositorytest.Point{}
	for vm, list := range m {
		c[vm] = slices.Clone(list)
	}
	return c
}

// work is something done to a repository that has a chain of five points.
type work struct {
	name    string
	do      func(m *repositorytest.Model) error
	removes []int // which of the five points
	first   bool  // it is about the other machine, which is not there yet
}

func works() []work {
	remove := func(name string, which ...int) work {
		return work{name: name, removes: which, do: func(m *repositorytest.Model) error {
			var ids []repository.PointID
			for _, i := range which {
				ids = append(ids, m.VMs[repositorytest.Web][i].ID)
			}
			err := m.Repository.Delete(context.Background(), repositorytest.Web, ids...)
			if err == nil {
				m.Forget(repositorytest.Web, ids...)
			}
			return err
		}}
	}
	return []work{
		{name: "a backup", do: func(m *repositorytest.Model) error {
			_, err := m.TryAdd(repositorytest.Change{VM: repositorytest.Web, Name: "renamed"})
			return err
		}},
		{name: "a first backup", first: true, do: func(m *repositorytest.Model) error {
			_, err := m.TryAdd(repositorytest.Change{VM: repositorytest.DB, Disks: map[string]int64{"sda": 9000, "sdb": 512}})
			return err
		}},
		{name: "a note", do: func(m *repositorytest.Model) error {
			return errors.Join(m.Repository.PutNote(context.Background(), repositorytest.Web, m.VMs[repositorytest.Web][1].ID, "check.png", make([]byte, 10_000)),
				m.Repository.PutNote(context.Background(), repositorytest.Web, m.VMs[repositorytest.Web][1].ID, noted, []byte("new")))
		}},
		remove("the newest deleted", 4),
		remove("the oldest deleted", 0),
		remove("one in the middle deleted", 2),
		remove("all deleted", 0, 1, 2, 3, 4),
	}
}

// noted is the name of a note that each of those points has.
const noted = "check.json"

// baseline makes a repository with a chain of five points.
func baseline(t *testing.T) (string, map[repository.VMID][]*repositorytest.Point) {
	t.Helper()
	root := t.TempDir()
	r, err := Open(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 50_000, "vdb": 4096}, Fill: true})
	for range 4 {
		m.Add(repositorytest.Change{VM: repositorytest.Web})
	}
	m.Check()
	for _, p := range m.VMs[repositorytest.Web] {
		if err := r.PutNote(t.Context(), repositorytest.Web, p.ID, noted, []byte("old")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return root, m.VMs
}

// envExhaustive makes TestRepositorySurvivesAnyStop go through all operations, where
// it takes every third otherwise, beginning with another one each time.
const envExhaustive = "SENDENSE_TEST_EXHAUSTIVE"

// TestRepositorySurvivesAnyStop stops each kind of work before one of its
// operations, or makes one of them fail.
func TestRepositorySurvivesAnyStop(t *testing.T) {
	base, points := baseline(t)
	for _, how := range []struct {
		name string
		err  error
		once bool
	}{
		{"killed", errStopped, false},
		{"one failure", nil, true},
	} {
		for _, w := range works() {
			t.Run(how.name+"/"+w.name, func(t *testing.T) {
				t.Parallel()
				step := 3
				if os.Getenv(envExhaustive) != "" {
					step = 1
				}
				for k := 1 + rand.IntN(step); ; k += step {
					f := &faulty{k: k, err: how.err, once: how.once}
					if f.err == nil {
						f.err = []error{syscall.ENOSPC, syscall.EIO}[k%2]
					}
					stopWork(t, base, models(points), w, f)
					if t.Failed() {
						t.Fatalf("at operation %d", k)
					}
					if f.n < k {
						if k < 8 {
							t.Errorf("operations: got %d, want more", f.n)
						}
						return
					}
				}
			})
		}
	}
}

// stopWork does some work on a copy of the repository with f below it.
func stopWork(t *testing.T, base string, before map[repository.VMID][]*repositorytest.Point, w work, f *faulty) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(root, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	r, err := open(root, Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
	m.VMs = models(before)
	workErr := w.do(m)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	x := expectation{before: before, after: m.VMs, failed: workErr != nil, removes: w.removes, first: w.first,
		fresh: map[repository.VMID][]*repositorytest.Point{}}
	if !f.once {
		// Killed after metadata.json was replaced: it is committed, though nobody
		// was told.
		x.tried = m.Tried
	}

	// Whoever reads now has no need of recovery.
	reader, err := Open(root, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	m = repositorytest.NewModel(t, repositorytest.Subject{Repository: reader})
	m.VMs = x.present(t, reader)
	readAll(t, m)

	// The next backup works, and nothing is left of what was stopped.
	next, err := Open(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	m.Repository = next
	for _, vm := range []repository.VMID{repositorytest.Web, repositorytest.DB} {
		disks := map[string]int64{"vda": 30_000}
		if _, err := m.TryAdd(repositorytest.Change{VM: vm, Disks: disks}); err != nil {
			t.Errorf("next backup: %v", err)
			return
		}
		x.fresh[vm] = []*repositorytest.Point{m.Tried}
	}
	// A removal that was begun is over by now.
	m.VMs = x.present(t, next)
	m.Check()
	for _, p := range m.VMs[repositorytest.Web] {
		if slices.Contains(before[repositorytest.Web], p) {
			b, err := next.Note(t.Context(), repositorytest.Web, p.ID, noted)
			if err != nil || string(b) != "old" && string(b) != "new" {
				t.Errorf("note of %s: got %q (%v), want the old one or the new", p.ID, b, err)
			}
		}
	}
	noLeftovers(t, root)
}

// expectation is what work that was stopped may leave.
type expectation struct {
	before, after map[repository.VMID][]*repositorytest.Point
	tried         *repositorytest.Point // may be committed even so
	failed        bool
	removes       []int                                       // which of the points before may be gone
	first         bool                                        // tried is of the other machine
	fresh         map[repository.VMID][]*repositorytest.Point // made since
}

// present returns the model of what is there, which has to be what was before or
// what was to be.
func (x *expectation) present(t *testing.T, r *Repository) map[repository.VMID][]*repositorytest.Point {
	t.Helper()
	have := map[repository.VMID][]*repositorytest.Point{}
	for _, vm := range []repository.VMID{repositorytest.Web, repositorytest.DB} {
		list, err := r.Points(context.Background(), vm)
		if err != nil && !errors.Is(err, repository.ErrNoVM) {
			t.Fatal(err)
		}
		known := slices.Concat(x.after[vm], x.before[vm])
		if x.tried != nil && x.first == (vm == repositorytest.DB) {
			known = append([]*repositorytest.Point{x.tried}, known...)
		}
		// An id that was not committed, or of a machine that was forgotten, may be
		// given again.
		known = append(slices.Clone(x.fresh[vm]), known...)
		for _, p := range list {
			i := slices.IndexFunc(known, func(k *repositorytest.Point) bool { return k.ID == p.ID })
			if i < 0 {
				t.Errorf("point %s is there", p.ID)
				continue
			}
			have[vm] = append(have[vm], known[i])
		}
		for i, p := range x.before[vm] {
			there := slices.Contains(have[vm], p)
			switch mayGo := slices.Contains(x.removes, i); {
			case !there && !mayGo:
				t.Errorf("point %s is gone", p.ID)
			case there && mayGo && !x.failed:
				t.Errorf("point %s is still there", p.ID)
			}
		}
		for _, p := range slices.Concat(x.after[vm], x.fresh[vm]) {
			if !slices.Contains(x.before[vm], p) && !slices.Contains(have[vm], p) {
				t.Errorf("point %s is not there", p.ID)
			}
		}
		if len(have[vm]) == 0 {
			delete(have, vm)
		}
	}
	return have
}

// readAll reads all points with and without verification, which finds no damage.
func readAll(t *testing.T, m *repositorytest.Model) {
	t.Helper()
	ctx := context.Background()
	for vm, list := range m.VMs {
		for _, p := range list {
			for i, key := range p.Keys {
				for _, verified := range []bool{false, true} {
					d, err := m.Repository.OpenDisk(ctx, vm, p.ID, i, repository.OpenOptions{Verified: verified})
					if err != nil {
						t.Error(err)
						continue
					}
					got := make([]byte, d.Size())
					if err := d.ReadAt(ctx, got, 0); err != nil || string(got) != string(p.Disks[key]) {
						t.Errorf("disk %s of %s: got other bytes than written (%v)", key, p.ID, err)
					}
					d.Close()
				}
			}
		}
	}
	report, err := m.Repository.Verify(ctx, repository.VerifyOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	for _, p := range report.Problems {
		t.Errorf("verify: got problem: %v", p)
	}
}

// noLeftovers looks for files that a writer should have cleared away.
func noLeftovers(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		name := e.Name()
		if strings.HasSuffix(name, partialSuffix) || name == draftName || strings.HasPrefix(name, ".digests") {
			t.Errorf("left over: %s", path)
		}
		if m := noteFiles.FindStringSubmatch(name); m != nil {
			id := repository.VMID(filepath.Base(filepath.Dir(filepath.Dir(path))))
			if rec, _, err := loadRecord(filepath.Join(root, string(id), metadataName), id); err != nil || rec == nil || rec.point(repository.PointID(m[1])) == nil {
				t.Errorf("left over: %s, of a point that is gone (%v)", path, err)
			}
		}
		if name == metadataName {
			id := repository.VMID(filepath.Base(filepath.Dir(path)))
			rec, _, err := loadRecord(path, id)
			if err != nil || rec.Merge != nil || len(rec.Trash) > 0 {
				t.Errorf("record of %s: got merge %v and trash %v (%v)", id, rec.Merge, rec.Trash, err)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
