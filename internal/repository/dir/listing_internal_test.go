package dir

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// listedRepository returns a repository of one machine with a point, and a clock
// that runs ahead of its files.
func listedRepository(t *testing.T) (*Repository, *repositorytest.Model, string) {
	t.Helper()
	ahead := time.Duration(0)
	r, err := Open(t.TempDir(), Options{Now: func() time.Time { return time.Now().Add(ahead) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 5000}})
	ahead = time.Hour
	return r, m, filepath.Join(r.root, string(repositorytest.Web), metadataName)
}

func points(t *testing.T, r *Repository) int {
	t.Helper()
	list, err := r.Points(t.Context(), repositorytest.Web)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestListingsAreRemembered(t *testing.T) {
	r, m, _ := listedRepository(t)
	if _, err := r.VMs(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := r.listings.get(repositorytest.Web)
	if got := points(t, r); got != 1 || before == nil || r.listings.get(repositorytest.Web) != before {
		t.Errorf("after a second look: got %d points and %p, want 1 and %p", got, r.listings.get(repositorytest.Web), before)
	}
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	if got := points(t, r); got != 2 {
		t.Errorf("after a further point: got %d points, want 2", got)
	}
	vms, err := r.VMs(t.Context())
	if err != nil || len(vms) != 1 || vms[0].Points != 2 {
		t.Errorf("machines after a further point: got %+v (%v), want one with 2 points", vms, err)
	}
	list, err := r.Points(t.Context(), repositorytest.Web)
	if err != nil {
		t.Fatal(err)
	}
	list[0].Disks[0].File = "changed by who asked"
	if again, err := r.Points(t.Context(), repositorytest.Web); err != nil || again[0].Disks[0].File == list[0].Disks[0].File {
		t.Errorf("what one caller changed is seen by the next: %+v (%v)", again, err)
	}
	if err := os.RemoveAll(filepath.Join(r.root, string(repositorytest.Web))); err != nil {
		t.Fatal(err)
	}
	if vms, err := r.VMs(t.Context()); err != nil || len(vms) != 0 || r.listings.get(repositorytest.Web) != nil || r.listings.bytes != 0 {
		t.Errorf("machines after the last is gone: got %v (%v), %d bytes are kept, want none", vms, err, r.listings.bytes)
	}
}

func TestDamageOfARememberedListingIsSeen(t *testing.T) {
	r, _, path := listedRepository(t)
	points(t, r)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("X"), 20); err != nil {
		t.Fatal(err)
	}
	var damaged *repository.CorruptError
	if _, err := r.Points(t.Context(), repositorytest.Web); !errors.As(err, &damaged) {
		t.Errorf("points of a machine whose record was damaged: got %v, want a CorruptError", err)
	}
}

func TestListingOfAFileThatJustChangedIsNotRemembered(t *testing.T) {
	r, _, _ := listedRepository(t)
	r.now = time.Now
	points(t, r)
	if l := r.listings.get(repositorytest.Web); l != nil {
		t.Errorf("a record that was written a moment ago is remembered: %+v", l)
	}
}

func TestListingsAreBounded(t *testing.T) {
	var l listings
	rec := &record{}
	ids := []repository.VMID{"a", "b", "c"}
	for _, id := range ids {
		l.keep(id, &listing{file: identity{size: maxListings/2 + 1}, vm: repository.VM{ID: id}, rec: rec})
	}
	kept := 0
	for _, id := range ids {
		x := l.get(id)
		if x == nil || x.vm.ID != id {
			t.Fatalf("listing %s: got %+v", id, x)
		}
		if x.rec != nil {
			kept++
		}
	}
	if kept != 1 || l.bytes != maxListings/2+1 {
		t.Errorf("records kept: got %d of %d bytes, want 1", kept, l.bytes)
	}
	l.drop(nil)
	if l.bytes != 0 || len(l.known) != 0 {
		t.Errorf("after all are gone: got %d bytes of %d", l.bytes, len(l.known))
	}
}

// TestNamesOfFilesAreTold compares with what the names are, as an expression.
func TestNamesOfFilesAreTold(t *testing.T) {
	want := regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}-(full|incr)-([0-9]{8}-[0-9]{6})\.(qcow2|digests)(\.partial)?$`)
	pieces := []string{"web", "-", "-full-", "-incr-", "full", "20251002-120000", "20251302-120000", "99999999-999999", ".qcow2", ".digests", ".partial", "",
		"_", ".", "é", "\n", " ", strings.Repeat("x", 90), "0", "a"}
	random := rand.New(rand.NewPCG(1, 2))
	known := 0
	for range 200_000 {
		var b strings.Builder
		for range random.IntN(8) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		name := b.String()
		if random.IntN(2) == 0 { // more often than by chance
			name += "-full-20251002-120000.qcow2"
		}
		got, ok := parsePointFile(name)
		m := want.FindStringSubmatch(name)
		is := m != nil
		if is {
			_, err := repository.ParsePointID(m[2])
			is = err == nil
		}
		if ok != is || ok && got != (pointFile{m[1], repository.PointID(m[2]), m[3] == "digests", m[4] != ""}) {
			t.Fatalf("%q: got %+v, %v, want %q", name, got, ok, m)
		}
		if ok {
			known++
		}
	}
	if known < 1000 {
		t.Errorf("only %d names were good ones", known)
	}
}
