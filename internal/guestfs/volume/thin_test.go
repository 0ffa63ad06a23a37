package volume_test

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// The pool of these tests: where its metadata and its data lie on the disk, and how
// many blocks of 64 KiB it has.
const (
	thinMeta   = 1 << 20
	thinBlock  = 64 << 10
	thinData   = thinMeta + 64*thinBlock
	thinBlocks = 4000
)

// thinDisk is a disk with a thin pool, and volumes thin1, thin2 and so on in it.
func thinDisk(metadata []byte, volumes int) (volume.Disk, []*volume.Node) {
	var b strings.Builder
	fmt.Fprintf(&b, `vg {
id = "gggggg-gggg-gggg-gggg-gggg-gggg-gggggg"
seqno = 1
extent_size = 128
physical_volumes { pv0 { id = "%s" pe_start = 2048 pe_count = 5000 } }
logical_volumes {
pool { id = "1" status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = %d type = "thin-pool"
 metadata = "meta" pool = "data" transaction_id = 1 chunk_size = 128 } }
meta { id = "2" segment1 { start_extent = 0 extent_count = 64 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } }
data { id = "3" segment1 { start_extent = 0 extent_count = %d type = "striped" stripe_count = 1 stripes = ["pv0", 64] } }
`, pvID(0), thinBlocks, thinBlocks)
	for i := range volumes {
		fmt.Fprintf(&b, `thin%d { id = "t%d" status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 10000 type = "thin" thin_pool = "pool" device_id = %d } }
`, i+1, i, i+1)
	}
	b.WriteString("} }\ncontents = \"Text Format Volume Group\"\nversion = 1\n")
	d := lvmDisk(0, b.String(), thinData+(thinBlocks+1)*thinBlock)
	d.Volume.(memory).parts[thinMeta] = metadata
	return d, volume.Scan([]volume.Disk{d}, volume.Options{})
}

// thinMapping is where the blocks of a volume are in the pool.
type thinMapping map[int64]int64

// restored makes metadata of mappings with thin_restore.
func restored(t testing.TB, volumes []thinMapping) []byte {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `<superblock uuid="" time="1" transaction="1" data_block_size="128" nr_data_blocks="%d">`, thinBlocks)
	for i, m := range volumes {
		fmt.Fprintf(&b, `<device dev_id="%d" mapped_blocks="%d" transaction="0" creation_time="0" snap_time="0">`, i+1, len(m))
		var keys []int64
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			fmt.Fprintf(&b, `<single_mapping origin_block="%d" data_block="%d" time="%d"/>`, k, m[k], k%3)
		}
		b.WriteString("</device>")
	}
	b.WriteString("</superblock>")
	dir := t.TempDir()
	xml, meta := filepath.Join(dir, "xml"), filepath.Join(dir, "meta")
	if err := os.WriteFile(xml, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(meta, make([]byte, thinData-thinMeta), 0o600); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "thin_restore", "-i", xml, "-o", meta)
	out, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mappings makes some at random, in runs as they are and scattered.
func mappings() []thinMapping {
	rng := rand.New(rand.NewPCG(9, 9))
	var list []thinMapping
	next := int64(0)
	for _, runs := range []int{1, 40, 600} {
		m := thinMapping{}
		for range runs {
			at := rng.Int64N(9900)
			for range 1 + rng.Int64N(1600/int64(runs)) {
				if _, ok := m[at]; !ok && at < 10000 {
					m[at] = next
					next++
				}
				at++
			}
			if rng.IntN(3) == 0 {
				next += rng.Int64N(2)
			}
		}
		list = append(list, m)
	}
	return append(list, thinMapping{})
}

// located returns where the blocks of a thin volume are, as far as they can be read.
func located(t testing.TB, n *volume.Node) (thinMapping, error) {
	t.Helper()
	m := thinMapping{}
	for off := int64(0); off < n.Size; {
		pieces, err := n.Volume.(volume.Located).Locate(off, n.Size-off)
		if err != nil {
			return m, err
		}
		for _, p := range pieces {
			for at := p.Off; p.Disk != volume.Zeroes && at < p.Off+p.Len; at += thinBlock {
				if at < thinData || at+thinBlock > thinData+thinBlocks*thinBlock || (at-thinData)%thinBlock != 0 {
					t.Fatalf("%s at %d: %+v lies outside of the pool", n.Path, off, p)
				}
				m[(off+at-p.Off)/thinBlock] = (at - thinData) / thinBlock
			}
			off += p.Len
		}
	}
	return m, nil
}

func TestThinVolumesAreThoseOfThinRestore(t *testing.T) {
	want := mappings()
	_, nodes := thinDisk(restored(t, want), len(want)+1)
	for i, m := range want {
		n := find(nodes, fmt.Sprintf("vg/thin%d", i+1))
		if n == nil || n.Volume == nil {
			t.Fatalf("thin%d: got %s", i+1, show(nodes))
		}
		got, err := located(t, n)
		if err != nil || len(got) != len(m) {
			t.Errorf("thin%d: got %d blocks, %v, want %d", i+1, len(got), err, len(m))
		}
		for k, v := range m {
			if got[k] != v {
				t.Errorf("thin%d: block %d is at %d, want %d", i+1, k, got[k], v)
				break
			}
		}
	}
	if n := find(nodes, fmt.Sprintf("vg/thin%d", len(want)+1)); n == nil || n.Volume != nil || !strings.Contains(n.Refusal, "does not have device") {
		t.Errorf("a volume that the pool does not have: got %s", show(nodes))
	}
}

func TestDamagedNodesOfThinPools(t *testing.T) {
	want := mappings()
	sound := restored(t, want)
	failed := 0
	for block := range len(sound) / 4096 {
		if !slices.ContainsFunc(sound[block*4096:][:4096], func(b byte) bool { return b != 0 }) {
			continue
		}
		damaged := slices.Clone(sound)
		damaged[block*4096+700] ^= 4
		_, nodes := thinDisk(damaged, len(want))
		bad := false
		for i, m := range want {
			n := find(nodes, fmt.Sprintf("vg/thin%d", i+1))
			if n.Volume == nil {
				bad = true
				continue
			}
			got, err := located(t, n)
			bad = bad || err != nil
			for k, v := range got {
				if w, ok := m[k]; !ok || w != v {
					t.Fatalf("block %d damaged: block %d of thin%d is said to be at %d, and is at %d", block, k, i+1, v, w)
				}
			}
			if err == nil && len(got) != len(m) {
				t.Fatalf("block %d damaged: thin%d has %d blocks of %d, and no error", block, i+1, len(got), len(m))
			}
		}
		if bad {
			failed++
		}
	}
	if failed < 4 {
		t.Errorf("damage of %d blocks was noticed, want more", failed)
	}
}

// seal puts the checksums of a pool's metadata right, and the numbers of its blocks,
// whatever it holds.
func seal(b []byte) []byte {
	b = slices.Clone(b[:min(len(b), 16*4096)&^4095])
	sum := func(b []byte, salt uint32) {
		le.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
	}
	for i := 0; i < len(b); i += 4096 {
		block := b[i : i+4096]
		le.PutUint64(block[8:], uint64(i/4096))
		if i == 0 {
			le.PutUint64(block[32:], 27022010)
			sum(block, 160774)
		} else {
			sum(block, 121107)
		}
	}
	return b
}

// FuzzThin has any nodes in the metadata of a pool. What is located lies in the pool,
// and is what is read.
func FuzzThin(f *testing.F) {
	for _, volumes := range [][]thinMapping{{}, {{0: 1}}, {{0: 1, 1: 2, 5: 9}, {7: 0}}, mappings()[:2]} {
		b := restored(f, volumes)
		used := len(b)
		for used > 4096 && !slices.ContainsFunc(b[used-4096:used], func(x byte) bool { return x != 0 }) {
			used -= 4096
		}
		f.Add(b[:min(used, 16*4096)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4096 {
			return
		}
		d, _ := thinDisk(seal(b), 2)
		for _, n := range checkScan(t, []volume.Disk{d}) {
			for _, c := range n.Children {
				if c.Volume != nil {
					_, _ = located(t, c) // it is checked there
				}
			}
		}
	})
}
