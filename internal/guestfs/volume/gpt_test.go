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

// flip changes a byte of a disk.
func flip(t testing.TB, path string, off int64) {
	t.Helper()
	b := make([]byte, 1)
	f := fstest.Open(t, path)
	if off < 0 {
		off += f.Size()
	}
	if err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	put(t, path, off, []byte{b[0] ^ 0x10})
}

// ofPartx returns the partitions that partx finds: numbers, first sectors and counts
// of sectors.
func ofPartx(t testing.TB, path, sector string) [][3]int64 {
	t.Helper()
	requires.Tool(t, "partx")
	out, err := exec.Command("partx", "-gr", "-o", "NR,START,SECTORS", "--sector-size", sector, path).Output()
	if err != nil {
		return nil // it says so of a disk without a table
	}
	var list [][3]int64
	for line := range strings.Lines(string(out)) {
		var p [3]int64
		if _, err := fmt.Sscan(line, &p[0], &p[1], &p[2]); err != nil {
			t.Fatalf("partx: %q: %v", out, err)
		}
		list = append(list, p)
	}
	return list
}

func TestGPTWithOneDamagedCopy(t *testing.T) {
	resize := func(size int64) func(string) {
		return func(path string) {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	flips := func(at ...int64) func(string) {
		return func(path string) {
			for _, off := range at {
				flip(t, path, off)
			}
		}
	}
	zero := func(off, n int64) func(string) {
		return func(path string) { put(t, path, off, make([]byte, n)) }
	}
	both := func(list ...func(string)) func(string) {
		return func(path string) {
			for _, f := range list {
				f(path)
			}
		}
	}
	const entries, header = 1024 + 40, 512 + 60
	sound := sgdisk(t, "disk", "-n1:2048:+8M", "-n2:40000:+16M", "-n9:120000:0")
	for name, x := range map[string]struct {
		harm  func(string)
		note  string
		alone bool // nobody else finds what is found here
		n     int
	}{
		"sound":                              {func(string) {}, "", false, 3},
		"the primary header":                 {flips(header), "is damaged (wrong checksum of the header); its backup is used", false, 3},
		"no primary table at all":            {zero(512, 34*512), "is damaged (no header); its backup is used", false, 3},
		"the primary entries":                {flips(entries), "is damaged (wrong checksum of the entries); its backup is used", false, 3},
		"the backup header":                  {flips(-512 + 60), "The backup of the partition table is damaged: wrong checksum of the header", false, 3},
		"the backup entries":                 {flips(-33*512 + 40), "The backup of the partition table is damaged: wrong checksum of the entries", false, 3},
		"both":                               {flips(header, -512+60), "", false, 0},
		"the entries of both":                {flips(entries, -33*512+40), "", false, 0},
		"enlarged":                           {resize(80 << 20), "", false, 3},
		"enlarged, and the primary entries":  {both(flips(entries), resize(80<<20)), "is damaged (wrong checksum of the entries); its backup is used", true, 3},
		"enlarged, and the primary header":   {both(flips(header), resize(80<<20)), "", false, 0},
		"cut":                                {resize(48 << 20), "The backup of the partition table is damaged: no header", true, 2},
		"no protective record":               {zero(0, 512), "lacks the protective master boot record", true, 3},
		"something else in the first sector": {func(path string) { put(t, path, 0, slices.Repeat([]byte("text"), 128)) }, "", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			fstest.Run(t, "cp", "--sparse=always", sound, path)
			x.harm(path)
			got, disk := partitions(t, path)
			if want := ofPartx(t, path, "512"); len(got) != x.n || !x.alone && !slices.Equal(got, want) {
				t.Errorf("got %v, partx has %v, want %d", got, want, x.n)
			}
			if text := strings.Join(disk.Notes, " "); !strings.Contains(text, x.note) || x.note == "" && text != "" {
				t.Errorf("notes: got %q, want %q", text, x.note)
			}
			if damaged := disk.Table == "gpt" && x.n == 0; damaged != (disk.Refusal != "") {
				t.Errorf("table %q: got refusal %q", disk.Table, disk.Refusal)
			}
		})
	}
}

func TestGPTOfLargeSectors(t *testing.T) {
	path := blank(t, "disk")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writeGPTOf(f, tableSize/4096, 4096, []partition{{mib: 8}, {mib: 16}, {}}); err != nil {
		t.Fatal(err)
	}
	for _, harm := range []func(){func() {}, func() { flip(t, path, 4096+60) }} {
		harm()
		got, _ := partitions(t, path)
		want := ofPartx(t, path, "4096")
		if len(got) != 3 || !slices.Equal(got, want) {
			t.Errorf("got %v, partx has %v", got, want)
		}
	}
}

// FuzzPartitions has anything in the first and last sectors of a disk. Whatever is
// found lies on the disk, and reads as what lies there.
func FuzzPartitions(f *testing.F) {
	for _, path := range tables(f) {
		image := fstest.Open(f, path)
		head, tail := make([]byte, 8<<10), make([]byte, 17<<10)
		for off, b := range map[int64][]byte{0: head, image.Size() - int64(len(tail)): tail} {
			if err := image.ReadAt(b, off); err != nil {
				f.Fatal(err)
			}
		}
		// Chains begin at sector 2048, which lies in the second half of the head.
		chain := make([]byte, 4<<10)
		if err := image.ReadAt(chain, 2048*512); err != nil {
			f.Fatal(err)
		}
		f.Add(append(head[:4<<10:4<<10], chain...), tail)
	}
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		d := memory{size: 4 << 20, parts: map[int64][]byte{}}
		head, tail = head[:min(len(head), 64<<10)], tail[:min(len(tail), 64<<10)]
		d.parts[0] = head[:min(len(head), 4<<10)]
		d.parts[1<<20] = head[len(d.parts[0]):]
		d.parts[d.size-int64(len(tail))] = tail
		checkScan(t, []volume.Disk{{Index: 0, Key: "vda", Volume: d}})
	})
}
