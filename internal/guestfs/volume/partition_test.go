package volume_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/volume"
	"github.com/sendense/sendense/internal/requires"
)

// record is a boot record, by sector of the disk.
type record map[int64][]bootEntry

// bootEntry is an entry of a boot record.
type bootEntry struct {
	kind         byte
	start, count uint32
	flag         byte
}

// tableSize is that of the disks whose tables are tested, in bytes.
const tableSize = 64 << 20

// blank makes an empty disk.
func blank(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, tableSize); err != nil {
		t.Fatal(err)
	}
	return path
}

// put writes b into a disk.
func put(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// dos makes a disk with boot records.
func dos(t testing.TB, name string, records record) string {
	t.Helper()
	path := blank(t, name)
	for sector, entries := range records {
		b := make([]byte, 512)
		b[510], b[511] = 0x55, 0xaa
		for i, e := range entries {
			x := b[446+16*i:]
			x[0], x[4] = e.flag, e.kind
			le.PutUint32(x[8:], e.start)
			le.PutUint32(x[12:], e.count)
		}
		put(t, path, sector*512, b)
	}
	return path
}

// sgdisk makes a disk with a GUID partition table.
func sgdisk(t testing.TB, name string, args ...string) string {
	t.Helper()
	path := blank(t, name)
	fstest.Run(t, "sgdisk", append(args, path)...)
	return path
}

// sfdisk makes a disk by a script.
func sfdisk(t testing.TB, name, script string) string {
	t.Helper()
	requires.Tool(t, "sfdisk")
	path := blank(t, name)
	cmd := exec.Command("sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	return path
}

// tables are disks with partition tables of every kind, in order of their names.
func tables(t testing.TB) map[string]string {
	t.Helper()
	const ext, data = 0x05, 0x83
	many := record{0: {{kind: ext, start: 2048, count: 120000}}}
	for i := range int64(60) {
		many[2048+i*1000] = []bootEntry{{kind: data, start: 63, count: 900}, {kind: ext, start: uint32(i+1) * 1000, count: 1000}}
		if i == 59 {
			many[2048+i*1000] = many[2048+i*1000][:1]
		}
	}
	start := func(count uint32) []bootEntry { return []bootEntry{{kind: ext, start: 2048, count: count}} }
	link := func(start uint32) bootEntry { return bootEntry{kind: ext, start: start, count: 10000} }
	files := map[string]string{
		"logical": sfdisk(t, "logical", "label: dos\nsize=4M\nsize=40M,type=5\nsize=4M\nsize=8M,type=82\nsize=9M,type=7\nsize=5M,type=83\n"),
		"many":    dos(t, "many", many),
		"loop":    dos(t, "loop", record{0: start(60000), 2048: {{kind: data, start: 63, count: 1000}, link(10000)}, 12048: {{kind: data, start: 63, count: 900}, link(0)}}),
		"self":    dos(t, "self", record{0: start(60000), 2048: {{kind: data, start: 63, count: 1000}, link(10000)}, 12048: {{kind: data, start: 63, count: 900}, link(10000)}}),
		"leaves":  dos(t, "leaves", record{0: start(20000), 2048: {{kind: data, start: 63, count: 1000}, link(30000)}}),
		"breaks":  dos(t, "breaks", record{0: start(60000), 2048: {{kind: data, start: 63, count: 1000}, link(10000)}}),
		"nothing": dos(t, "nothing", record{0: {{kind: data, start: 100, count: 500}, {kind: ext, start: 2048, count: 9000}}}),
		"unused": dos(t, "unused", record{0: start(60000), 2048: {{kind: data, start: 63, count: 1000}, link(10000), {kind: data, start: 2000, count: 50},
			{kind: data, start: 3000, count: 99000000, flag: 0x17}}, 12048: {{kind: data, start: 63, count: 700}, {}, {kind: 0x41, start: 64, count: 20000}}}),
		"overlap": dos(t, "overlap", record{0: {{kind: data, start: 2048, count: 20000}, {kind: data, start: 10000, count: 3000}, {kind: ext, start: 30000, count: 60000}},
			30000: {{kind: data, start: 63, count: 5000}, link(10000)}, 40000: {{kind: data, start: 100, count: 4000}, link(12000)}, 42000: {{kind: data, start: 10, count: 4000}}}),
		"two": dos(t, "two", record{0: {{kind: ext, start: 2048, count: 9000}, {kind: 0x0f, start: 20480, count: 9000}, {kind: 0x85, start: 40960, count: 9000}, {kind: data, start: 60000, count: 99}},
			2048: {{kind: data, start: 1, count: 99}}, 20480: {{kind: data, start: 2, count: 98}, {kind: 0x85, start: 500, count: 99}}, 20980: {{kind: data, start: 3, count: 97}},
			40960: {{kind: data, start: 4, count: 96}}}),
		"typeless": dos(t, "typeless", record{0: {{kind: 0, start: 2048, count: 9000}, {kind: data, start: 20480, count: 9000, flag: 0x80}, {kind: data, start: 500}}}),
		"long": dos(t, "long", record{0: {{kind: data, start: 2048, count: 1 << 20}, {kind: data, start: 1 << 20, count: 5}, {kind: data, start: 0xfffffff0, count: 0xff},
			{kind: ext, start: 40960, count: 1 << 30}}, 40960: {{kind: data, start: 63, count: 0xfffffff0}, {kind: ext, start: 0xffffff00, count: 100}}}),
		"gpt":     sgdisk(t, "gpt", "-n1:0:+8M", "-n5:0:+8M", "-n7:0:+1M", "-n128:0:0"),
		"hybrid":  sgdisk(t, "hybrid", "-n1:0:+8M", "-n2:0:+8M", "-h1:2"),
		"fewer":   sgdisk(t, "fewer", "-S", "8", "-n1:0:+8M", "-n8:0:+8M"),
		"crossed": sgdisk(t, "crossed", "-a1", "-n1:3000:4000", "-n2:100:200", "-n3:5000:9000"),
	}
	return files
}

// ofKernel returns the partitions that the kernel finds on each disk: numbers, first
// sectors and counts of sectors.
func ofKernel(t *testing.T, images ...string) [][][3]int64 {
	t.Helper()
	out := fstest.InMachine(t, `
for disk in /sys/block/vd?; do
	name=${disk##*/}
	case $name in vda | vdb) continue ;; esac
	echo "disk $name"
	for part in $disk/$name?*; do
		[ -e "$part/partition" ] || continue
		read n <$part/partition
		read start <$part/start
		read size <$part/size
		echo "$n $start $size"
	done
done
exit 0
`, images...)
	var list [][][3]int64
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "disk ") {
			list = append(list, nil)
			continue
		}
		var p [3]int64
		if _, err := fmt.Sscan(line, &p[0], &p[1], &p[2]); err != nil {
			t.Fatalf("output %q: %v", line, err)
		}
		list[len(list)-1] = append(list[len(list)-1], p)
	}
	if len(list) != len(images) {
		t.Fatalf("the machine shows %d disks of %d", len(list), len(images))
	}
	for _, l := range list {
		slices.SortFunc(l, func(a, b [3]int64) int { return int(a[0] - b[0]) })
	}
	return list
}

// partitions returns those of a disk that can be read, and the disk.
func partitions(t testing.TB, path string) ([][3]int64, *volume.Node) {
	t.Helper()
	nodes := volume.Scan(disks(t, 'a', path), volume.Options{})
	var list [][3]int64
	for _, n := range nodes[0].Children {
		if n.Volume != nil {
			list = append(list, [3]int64{int64(n.Partition.Number), n.Partition.Start / 512, n.Size / 512})
		}
	}
	slices.SortFunc(list, func(a, b [3]int64) int { return int(a[0] - b[0]) })
	return list, nodes[0]
}

func TestPartitionsAreThoseOfTheKernel(t *testing.T) {
	files := tables(t)
	var names, images []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		images = append(images, files[name])
	}
	kernel := ofKernel(t, images...)
	notes := map[string]string{
		"loop": "does not end", "self": "does not end", "leaves": "leaves the extended partition", "breaks": "breaks at sector 12048",
		"nothing": "breaks at sector 2048", "overlap": "Partitions 1 and 2 overlap.", "long": "leaves the extended partition", "hybrid": "a hybrid",
	}
	for i, name := range names {
		got, disk := partitions(t, images[i])
		extended := map[int64]bool{}
		for _, n := range disk.Children {
			extended[int64(n.Partition.Number)] = n.Volume == nil
		}
		want := slices.DeleteFunc(kernel[i], func(p [3]int64) bool { return extended[p[0]] })
		if name == "loop" || name == "self" { // it goes around until it has as many as it may
			want = want[:min(len(want), len(got))]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, the kernel has %v", name, got, want)
		}
		if text := strings.Join(disk.Notes, " "); !strings.Contains(text, notes[name]) || notes[name] == "" && text != "" {
			t.Errorf("%s: got notes %q, want %q", name, text, notes[name])
		}
	}
}
