package host_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/requires"
)

// command runs a program that has to succeed.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		requires.Missing(t, fmt.Sprintf("%s %v (%v: %s)", name, args, err, out))
	}
}

// ext4 mounts a small file system of its own.
func ext4(t *testing.T) string {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "mkfs.ext4", "mount", "umount")
	disk, path := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 16<<20)); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-m", "0", disk)
	command(t, "mount", "-o", "loop", disk, path)
	t.Cleanup(func() { command(t, "umount", "-l", path) })
	return path
}

// exhaust takes all the room there is where path is, and all that is left for names
// in the folder names.
func exhaust(t *testing.T, path, names string) {
	t.Helper()
	f, err := os.Create(filepath.Join(path, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 1 << 20; n >= 512; n /= 2 {
		for err = error(nil); err == nil; {
			if _, err = f.Write(make([]byte, n)); err == nil {
				err = f.Sync()
			}
		}
	}
	for i := 0; !errors.Is(err, syscall.ENOSPC) || i == 0; i++ {
		if i > 10_000 {
			t.Fatalf("folder %s is still not full: %v", names, err)
		}
		err = os.WriteFile(filepath.Join(names, fmt.Sprintf("some-other-owner-%d", i)), nil, 0o600)
	}
}

func TestAControlPlaneStartsWhereNothingIsFree(t *testing.T) {
	at := ext4(t)
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
