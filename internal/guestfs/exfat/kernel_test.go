package exfat_test

import (
	"fmt"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/exfat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestMain(m *testing.M) { fstest.Main(m) }

func TestReadsWhatLinuxWrote(t *testing.T) {
	linux := fstest.Linux{Type: "exfat", Large: 300, Change: `
for i in {1..40}; do
	for f in one two; do printf %09000d $i >>"fragments of $f"; done
done
mkdir fragmented other
for i in {1..80}; do : >"fragmented/a file with a longer name $i"; printf %02000d 0 >other/$i; done
touch readonly && chmod a-w readonly
TZ=UTC touch -d '2024-02-29 12:34:56.78' hundredths`}
	all := fstest.FilledByLinux(t, linux,
		fstest.Make(t, 60<<20, "mkfs.exfat", "-c", "512", "-L", "smallest"),
		fstest.Make(t, 200<<20, "mkfs.exfat", "-c", "32K"))
	for i, shown := range all {
		t.Run(fmt.Sprint(i), func(t *testing.T) { shown.Compare(t, exfat.Open) })
	}
}
