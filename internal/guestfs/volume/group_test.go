package volume_test

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

//go:embed testdata/data.vg
var storageGroup string

// three are the disks of a group of three physical volumes with the same metadata.
func three(text string) []volume.Disk {
	var list []volume.Disk
	for i := range 3 {
		list = append(list, lvmDisk(i, text, 128<<20))
	}
	return list
}

func TestMetadataThatBeginsAnywhereInItsRing(t *testing.T) {
	// The text of the storage of the other test, around every place at which it wraps
	// differently: at the end of the ring, and one byte before and behind.
	ring := 1<<20 - 4096 - 512
	for _, at := range []int{0, 1, ring - len(storageGroup) - 1, ring - len(storageGroup), ring - len(storageGroup) + 1, ring - 512, ring - 1} {
		d := lvmDisk(0, "", 128<<20)
		d.Volume.(memory).parts[0] = lvmHead(pvID(0), storageGroup, at)
		nodes := checkScan(t, []volume.Disk{d})
		if vg := find(nodes, "data"); vg == nil || len(vg.Children) < 15 || strings.Contains(said(nodes), "metadata of LVM") {
			t.Errorf("text at byte %d of its ring: got %s", at, show(nodes))
		}
	}
}

func TestMetadataThatMakesNoSense(t *testing.T) {
	sound := func(volumes string) string {
		return fmt.Sprintf(`vg { id = "gggggg-gggg-gggg-gggg-gggg-gggg-gggggg" seqno = 1 extent_size = 8192
physical_volumes { pv0 { id = %q pe_start = 2048 pe_count = 16 } }
logical_volumes { %s } }
contents = "Text Format Volume Group" version = 1`, pvID(0), volumes)
	}
	lv := func(segments string) string { return `a { id = "a" status = ["VISIBLE"] ` + segments + ` }` }
	seg := func(start, count int64, rest string) string {
		return fmt.Sprintf("segment%d { start_extent = %d extent_count = %d %s }", start, start, count, rest)
	}
	linear := func(at int64) string {
		return fmt.Sprintf(`type = "striped" stripe_count = 1 stripes = ["pv0", %d]`, at)
	}
	for name, x := range map[string]struct{ text, says string }{
		"a segment past the end":      {sound(lv(seg(0, 4, linear(13)))), "lies past the end of physical volume"},
		"a start past all bounds":     {sound(lv(seg(0, 4, linear(1<<62)))), "past the end"},
		"a gap between segments":      {sound(lv(seg(0, 4, linear(0)) + seg(5, 1, linear(4)))), "no segment at extent 4"},
		"segments over one another":   {sound(lv(seg(0, 4, linear(0)) + seg(3, 1, linear(4)))), "no segment at extent 4"},
		"no extents":                  {sound(lv(seg(0, 0, linear(0)))), "has no valid extents"},
		"more extents than are":       {sound(lv(seg(0, 1<<61, linear(0)))), "has no valid extents"},
		"no segments":                 {sound(lv("")), "it has no segments"},
		"a volume of itself":          {sound(lv(seg(0, 1, `type = "striped" stripe_count = 1 stripes = ["a", 0]`))), "it is made of itself"},
		"two of one another":          {sound(lv(seg(0, 1, `type = "striped" stripe_count = 1 stripes = ["b", 0]`)) + `b { id = "b" ` + seg(0, 1, `type = "striped" stripe_count = 1 stripes = ["a", 0]`) + "}"), "it is made of itself"},
		"a volume that is not there":  {sound(lv(seg(0, 1, `type = "striped" stripe_count = 1 stripes = ["c", 0]`))), "there is no logical volume"},
		"no stripes":                  {sound(lv(seg(0, 1, `type = "striped" stripe_count = 1 stripes = []`))), "list of stripes is not valid"},
		"stripes of nothing":          {sound(lv(seg(0, 2, `type = "striped" stripe_count = 2 stripe_size = 0 stripes = ["pv0", 0, "pv0", 4]`))), "stripes of 0 sectors"},
		"a type of another version":   {sound(lv(seg(0, 1, `type = "writecache"`))), "segments of type writecache are not read"},
		"an unknown type with escape": {sound(lv(seg(0, 1, "type = \"\x1b[2J\""))), "segments of type"},
		"a name that leads up":        {sound(`.. { id = "a" status = ["VISIBLE"] ` + seg(0, 1, linear(0)) + "}"), "has no valid name"},
		"a name with a slash":         {sound(`"a/b" { id = "a" status = ["VISIBLE"] ` + seg(0, 1, linear(0)) + "}"), "has no valid name"},
		"the same name twice":         {sound(lv(seg(0, 1, linear(0))) + lv(seg(0, 1, linear(1)))), "has no valid name"},
		"a group without a name":      {strings.Replace(sound(""), "vg {", `"" {`, 1), "has no valid name"},
		"extents of no size":          {strings.Replace(sound(""), "= 8192", "= 0", 1), "extents of 0 sectors"},
		"extents past all bounds":     {strings.Replace(sound(""), "= 8192", "= 9223372036854775807", 1), "extents of"},
		"a text that does not end":    {sound(lv("x {")), "does not end"},
		"a string that does not end":  {sound(`a = "`), "no value"},
		"sections without end":        {strings.Repeat("a {", 100), "too many sections within one another"},
		"another version":             {strings.Replace(sound(""), "version = 1", "version = 2", 1), "version 2"},
		"no group":                    {`contents = "Text Format Volume Group" version = 1`, "no volume group"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := checkScan(t, []volume.Disk{lvmDisk(0, x.text, 80<<20)})
			if text := said(nodes); !strings.Contains(text, x.says) || strings.Contains(text, "\x1b") {
				t.Errorf("got %q, want %q in it", text, x.says)
			}
		})
	}
}

// FuzzGroup has any text as the metadata of three physical volumes. Nothing that is
// found reaches outside of them, and what is located is what is read.
func FuzzGroup(f *testing.F) {
	f.Add(storageGroup)
	// Parts of it, so that less has to change for another meaning.
	before, rest, _ := strings.Cut(storageGroup, "logical_volumes {")
	for _, names := range [][]string{{"lin"}, {"str"}, {"r1", "r1_rimage_0", "r1_rimage_1", "r1_rmeta_0", "r1_rmeta_1"}, {"r0", "r0_rimage_0", "r0_rimage_1"},
		{"pool", "pool_tmeta", "pool_tdata", "thin1"}, {"old", "oldsnap", "snapshot0"}, {"mir", "mir_mimage_0", "mir_mimage_1"}} {
		text := before + "logical_volumes {"
		for _, name := range names {
			if _, lv, ok := strings.Cut(rest, "\n"+name+" {"); ok {
				lv, _, _ = strings.Cut(lv, "\n}\n}\n\n")
				text += "\n" + name + " {" + lv + "\n}\n}\n"
			}
		}
		f.Add(text + "}\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\n")
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 64<<10 {
			return
		}
		checkScan(t, three(text))
	})
}
