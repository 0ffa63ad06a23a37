package repositorytest

import (
	"errors"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/repository"
)

func testNotes(t *testing.T, m *Model) {
	ctx := t.Context()
	put := func(p *Point, name, content string) error {
		return m.Repository.PutNote(ctx, Web, p.ID, name, []byte(content))
	}
	want := func(p *Point, name, content string) {
		t.Helper()
		b, err := m.Repository.Note(ctx, Web, p.ID, name)
		if err != nil || string(b) != content {
			t.Errorf("note %s of %s: got %q (%v), want %q", name, p.ID, b, err, content)
		}
	}
	wantErr(t, "note of no VM", m.Repository.PutNote(ctx, Web, "20260101-000000", "check.json", nil), repository.ErrNoVM)
	points := m.chain(Web, 3)
	_, err := m.Repository.Note(ctx, Web, points[0].ID, "check.json")
	wantErr(t, "note that is not there", err, repository.ErrNoNote)
	wantErr(t, "note of no point", put(&Point{ID: "20200101-000000"}, "check.json", "x"), repository.ErrNoPoint)
	for _, name := range []string{"", "check", "../x.json", "a/b.json", "check.json.partial", ".x", "CHECK.json", strings.Repeat("a", 50) + ".json"} {
		wantErr(t, "note named "+name, put(points[0], name, "x"), repository.ErrInvalid)
	}
	wantErr(t, "long note", m.Repository.PutNote(ctx, Web, points[0].ID, "check.json", make([]byte, repository.MaxNote+1)), repository.ErrInvalid)

	d, _, err := m.Begin(ctx, Change{VM: Web}) // a writer is no hindrance
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if err := errors.Join(put(p, "check.json", "first"), put(p, "check.json", "of "+string(p.ID)), put(p, "check.png", "picture")); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	m.Repository = m.Reopen()
	for _, p := range points {
		want(p, "check.json", "of "+string(p.ID))
		want(p, "check.png", "picture")
	}
	m.Check()
	for i := range points { // merged, dropped, and the machine with it
		m.Delete(Web, points[i])
		_, err := m.Repository.Note(ctx, Web, points[i].ID, "check.json")
		if gone := repository.ErrNoPoint; i == len(points)-1 {
			wantErr(t, "note of a machine that is gone", err, repository.ErrNoVM)
		} else {
			wantErr(t, "note of a point that is gone", err, gone)
			want(points[i+1], "check.json", "of "+string(points[i+1].ID))
		}
	}
	m.Check()
	// Nothing of them comes back with a machine of the same UUID.
	p := m.Add(Change{VM: Web, Disks: twoDisks()})
	_, err = m.Repository.Note(ctx, Web, p.ID, "check.json")
	wantErr(t, "note of a new machine", err, repository.ErrNoNote)
}
