package host_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/host"
)

// exhaust takes all the room there is where path is, and all that is left for names
// in the folder names.
func exhaust(t *testing.T, path, names string) {
	t.Helper()
	fstest.Exhaust(t, path)
	var err error
	for i := 0; !errors.Is(err, syscall.ENOSPC); i++ {
		if i > 10_000 {
			t.Fatalf("folder %s is still not full: %v", names, err)
		}
		err = os.WriteFile(filepath.Join(names, fmt.Sprintf("some-other-owner-%d", i)), nil, 0o600)
	}
}

func TestAControlPlaneStartsWhereNothingIsFree(t *testing.T) {
	at, _ := fstest.Mount(t, fstest.Make(t, 16<<20, "mkfs.ext4", "-q", "-m", "0"), "ext4", "")
	repository := filepath.Join(at, "repo")
	c, end := embedded(t, repository)
	src := machine(t)
	for range 2 {
		src.Write("vda", []byte("changed"), 0)
		if _, err := backup(t, c, src); err != nil {
			t.Fatal(err)
		}
	}
	end()
	exhaust(t, at, filepath.Join(repository, ".sendense", "owners"))
	for _, o := range []host.Options{
		{Repository: repository, RunDir: t.TempDir(), Exclusive: true},
		{Repository: repository, RunDir: t.TempDir()},
	} {
		h, err := host.Open(t.Context(), o)
		if err != nil {
			t.Fatalf("open, exclusive %v: %v", o.Exclusive, err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	c, _ = daemon(t, repository)
	j, err := c.Delete(t.Context(), "web1", "latest")
	if err == nil {
		j, err = c.Wait(t.Context(), j.ID, nil)
	}
	if err != nil || j.State != appliance.JobSucceeded || j.Warning != "" {
		t.Errorf("delete: got %+v (%v), want it done and recorded", j, err)
	}
}
