package main_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
)

// A guest with systemd tells which of its units failed. It is backed up without ever
// having run.
func TestACheckTellsWhichUnitsFailed(t *testing.T) {
	host := guesttest.Host(t)
	img := guesttest.Image(t)
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := guest.Made(t.Context(), cache, "systemd", os.DirFS("testdata/systemd"), "build.sh")
	if err != nil {
		t.Fatal(err)
	}
	g := &guestSite{Site: clitest.NewSite(t, filepath.Dir(program)), host: host}
	img.Disk = filepath.Join(dir, "disk.qcow2")
	disk := g.Path("guest.qcow2")
	if err := img.CopyDisk(t.Context(), disk, "qcow2"); err != nil {
		t.Fatal(err)
	}
	guesttest.Define(t, host, guest.Spec{Name: "web1", Image: img, MemoryMiB: 512, Disks: []guest.Disk{{Target: "vda", Source: disk}}})
	g.daemon = g.Daemon()
	g.backup(t)
	c := clitest.Decode[appliance.BootCheck](t, g.Control(g.Via(), "check web1 latest --json --connect "+host.URI()))
	if !c.Passed || c.Guest == nil || c.Guest.Hostname != "sendense-systemd" || !slices.Equal(c.Guest.FailedUnits, []string{"broken.service"}) {
		t.Errorf("check: got %+v with guest %+v, want that it boots, with broken.service failed", c, c.Guest)
	}
}
