package fstest

import (
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Names returns the names in a directory, in its order.
func Names(f fsys.FileSystem, dir fsys.ID) (names []string, err error) {
	err = f.ReadDir(dir, func(e fsys.Entry) bool {
		names = append(names, e.Name)
		return true
	})
	return names, err
}

// Lookup returns what a name in the root directory stands for.
func Lookup(t testing.TB, f fsys.FileSystem, name string) fsys.ID {
	t.Helper()
	id, err := f.Lookup(f.Root(), name)
	if err != nil {
		t.Fatalf("look up %q: %v", name, err)
	}
	return id
}
