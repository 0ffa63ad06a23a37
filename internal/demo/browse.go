package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// accounts is a file that the guest wrote before the last point.
const accounts = "/srv/data/accounts.txt"

// browse looks into points without booting anything: it compares a file with what
// the running guest has, lists what changed between the last two points, and reads
// the same file through a mount.
func (d *demo) browse(ctx context.Context) error {
	say("Looking into the points: one file, what changed, and a mount …")
	last, before := d.rows[len(d.rows)-1].Point, d.rows[len(d.rows)-2].Point
	running, err := d.vm.Exec(ctx, "cat "+accounts)
	if err != nil {
		return err
	}
	kept, err := output(ctx, "sendense-control", "cat", "demo", last, accounts, "--control", d.control)
	if err != nil {
		return err
	}
	if kept == "" || kept != running {
		return fmt.Errorf("%s: the guest has %q, point %s has %q", accounts, running, last, kept)
	}
	var changes []struct{ Path, What string }
	if err := product(ctx, &changes, "sendense-control", "diff", "demo", before, last, "/srv", "--control", d.control); err != nil {
		return err
	}
	var got []string
	for _, c := range changes {
		got = append(got, c.What+" "+c.Path)
	}
	want := []string{"added data/accounts.txt", "removed data/file1", "removed data/file2", "changed data/file3"}
	if !slices.Equal(got, want) {
		return fmt.Errorf("between %s and %s: got %q, want %q", before, last, got, want)
	}
	return d.mounted(ctx, last, kept)
}

// mounted reads the file through a mount.
func (d *demo) mounted(ctx context.Context, point, want string) (err error) {
	dir := filepath.Join(d.dir, "mount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := product(ctx, nil, "sendense-control", "mount", dir, "--control", d.control); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, product(ctx, nil, "sendense-control", "unmount", dir, "--control", d.control), os.Remove(dir))
	}()
	got, err := os.ReadFile(filepath.Join(dir, "demo", point, "files", accounts))
	if err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("%s through the mount: got %q, want %q", accounts, got, want)
	}
	for _, c := range []string{"cat demo " + point + " " + accounts, "diff demo latest~1 latest /srv"} {
		text, err := output(ctx, "sendense-control", append(strings.Fields(c), "--control", d.control)...)
		if err != nil {
			return err
		}
		d.shown = append(d.shown, "$ sendense-control "+c, strings.TrimRight(text, "\n"))
	}
	return nil
}
