package fat_test

import (
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fat"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestMain(m *testing.M) { fstest.Main(m) }

func TestReadsWhatLinuxWrote(t *testing.T) {
	linux := fstest.Linux{Type: "vfat", Options: "utf8,tz=UTC,shortname=winnt", Large: 500, Change: `
for i in {1..100}; do
	for f in one two; do printf %09000d $i >>"fragments of $f"; done
done
touch lower.txt UPPER.TXT lower.EXT MIXED.ext Camel.Txt "ümläut" "ÜMLÄUT.TXT" åäö.é "with space" "a+b=c;[d],e" KANJI日本.txt x.y.z .dot
chmod a-w UPPER.TXT`}
	all := fstest.FilledByLinux(t, linux,
		fstest.Make(t, 30<<20, "mkfs.vfat", "-F", "12", "-s", "16", "-n", "TWELVE"),
		fstest.Make(t, 120<<20, "mkfs.vfat", "-F", "16", "-n", "label 16"),
		fstest.Make(t, 120<<20, "mkfs.vfat", "-F", "32", "-s", "1", "-i", "a1b2c3d4"))
	for i, shown := range all {
		t.Run([]string{"fat12", "fat16", "fat32"}[i], func(t *testing.T) { shown.Compare(t, fat.Open) })
	}
}
