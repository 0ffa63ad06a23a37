package fstest_test

import (
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestMachineRunsAScriptOnImages(t *testing.T) {
	image := fstest.Make(t, 16<<20, "truncate", "-s", "16M")
	out := fstest.InMachine(t, `
set -e
modprobe -a dm-thin-pool dm-snapshot dm-raid dm-crypt raid1 vfat exfat isofs
vgcreate -qq -s 1m vg /dev/vdc
lvcreate -qq -L 4m -n lv vg >&2
printf 'written here' >/dev/vg/lv
vgchange -qq -an vg >&2
echo $(uname -r)
`, image)
	if !strings.Contains(out, "amd64") {
		t.Errorf("output: got %q, want the kernel's version", out)
	}
	// The first extent of the volume follows the metadata of 1 MiB.
	p := make([]byte, 12)
	if err := fstest.Open(t, image).ReadAt(p, 1<<20); err != nil || string(p) != "written here" {
		t.Errorf("start of the volume in the image: got %q, %v, want what the script wrote", p, err)
	}
}
