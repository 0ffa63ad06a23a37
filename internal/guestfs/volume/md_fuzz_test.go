package volume_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// mdDisk is the size of the members of these tests, in bytes.
const mdDisk = 4 << 20

// mdSuper1 is a superblock of version 1.2 (torvalds/linux
// include/uapi/linux/raid/md_p.h, struct mdp_superblock_1) of a member of two.
func mdSuper1(level int32, number uint32, events uint64, dataSectors uint64) []byte {
	b := make([]byte, 512)
	copy(b[16:], "an array's ident")
	copy(b[32:], "host:name")
	le.PutUint32(b[72:], uint32(level))
	le.PutUint32(b[76:], 1)     // layout
	le.PutUint64(b[80:], 4096)  // sectors of each that are used
	le.PutUint32(b[88:], 16)    // chunk
	le.PutUint32(b[92:], 2)     // disks
	le.PutUint64(b[128:], 2048) // where data begins
	le.PutUint64(b[136:], dataSectors)
	le.PutUint32(b[160:], number)
	le.PutUint64(b[200:], events)
	le.PutUint64(b[208:], math.MaxUint64) // in step
	le.PutUint32(b[220:], 2)
	le.PutUint16(b[256:], 0)
	le.PutUint16(b[258:], 1)
	return b
}

// mdSuper0 is a superblock of version 0.90 (mdp_superblock_s) of a member of two.
func mdSuper0(level int32, number uint32, events uint64) []byte {
	b := make([]byte, 4096)
	word := func(n int, v uint32) { le.PutUint32(b[4*n:], v) }
	word(2, 90)
	word(5, 0x12345678)
	word(7, uint32(level))
	word(8, 2048) // KiB of each that are used
	word(10, 2)
	word(39, uint32(events))
	word(65, 8192) // chunk
	for i := range uint32(2) {
		word(128+32*int(i)+3, i)
		word(128+32*int(i)+4, 6) // active, in step
	}
	word(992, number)
	word(992+3, number)
	word(992+4, 6)
	return b
}

// mdMember is a disk with a superblock that may hold anything, whose magic number and
// checksum are right.
func mdMember(index int, super []byte) volume.Disk {
	parts := map[int64][]byte{}
	sum := func(b []byte, at int) {
		le.PutUint32(b[at:], 0)
		total := uint64(0)
		for i := 0; i < len(b); i += 4 {
			total += uint64(le.Uint32(b[i:]))
		}
		le.PutUint32(b[at:], uint32(total)+uint32(total>>32))
	}
	b := make([]byte, 4096)
	copy(b, super)
	le.PutUint32(b, 0xa92b4efc)
	if len(super) > 2048 {
		le.PutUint32(b[4:], 0)
		sum(b, 4*38)
		parts[mdDisk-64<<10] = b
	} else {
		le.PutUint32(b[4:], 1)
		le.PutUint64(b[144:], 8)
		members := min(le.Uint32(b[220:]), (4096-256)/2) &^ 1
		le.PutUint32(b[220:], members)
		sum(b[:256+2*members], 216)
		parts[4096] = b
	}
	parts[1<<20] = []byte(fmt.Sprintf("the data of member %d", index))
	return volume.Disk{Index: index, Key: fmt.Sprintf("vd%c", 'a'+index), Volume: memory{mdDisk, parts}}
}

func TestArraysThatMakeNoSense(t *testing.T) {
	change := func(at int, v uint64, n int) func([]byte) {
		return func(b []byte) {
			for i := range n {
				b[at+i] = byte(v >> (8 * i))
			}
		}
	}
	for name, x := range map[string]struct {
		level int32
		harm  func([]byte)
		says  string
	}{
		"no members":                  {1, change(92, 0, 4), "has 0 members"},
		"more members than may be":    {1, change(92, 1<<31, 4), "members"},
		"chunks of no size":           {0, change(88, 0, 4), "has chunks of 0 bytes"},
		"chunks larger than a member": {0, change(88, 1<<30, 4), "without room"},
		"data past the end":           {1, change(128, 1<<40, 8), "shorter than it was"},
		"data of all sizes":           {1, change(136, 1<<62, 8), ""},
		"more used than there is":     {1, change(80, 1<<40, 8), "no member that is in step"},
		"a role that is not there":    {1, change(256, 7, 2), ""},
		"a number past the table":     {1, change(160, 1<<31, 4), ""},
		"an unknown feature":          {1, change(8, 1<<20, 4), "has features 0x100000"},
		"a reshape":                   {1, change(8, 4, 4), "is being reshaped"},
		"raid5":                       {5, func([]byte) {}, "is of level raid5, which is not read"},
		"a level that is none":        {99, func([]byte) {}, "is of level raid99"},
		"sizes that overflow":         {-1, change(136, 1<<61, 8), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var list []volume.Disk
			for i := range 2 {
				b := mdSuper1(x.level, uint32(i), 5, 6000)
				x.harm(b)
				list = append(list, mdMember(i, b))
			}
			if text := said(checkScan(t, list)); !strings.Contains(text, x.says) {
				t.Errorf("got %q, want %q in it", text, x.says)
			}
		})
	}
	for _, level := range []int32{0, 1, -1} { // and sound ones are read
		for _, b := range [][2][]byte{{mdSuper1(level, 0, 5, 6000), mdSuper1(level, 1, 5, 5000)}, {mdSuper0(level, 0, 5), mdSuper0(level, 1, 5)}} {
			nodes := checkScan(t, []volume.Disk{mdMember(0, b[0]), mdMember(1, b[1])})
			if a := nodes[len(nodes)-1]; a.Kind != volume.KindArray || a.Volume == nil {
				t.Errorf("level %d: got %s", level, show(nodes))
			}
		}
	}
}

// FuzzArrays has anything in the superblocks of three members.
func FuzzArrays(f *testing.F) {
	for _, level := range []int32{0, 1, -1, 10} {
		f.Add(mdSuper1(level, 0, 5, 6000), mdSuper1(level, 1, 5, 5000), mdSuper1(level, 1, 3, 6000))
		f.Add(mdSuper0(level, 0, 5), mdSuper0(level, 1, 6), mdSuper0(level, 1, 1))
	}
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		if max(len(a), len(b), len(c)) > 4096 {
			return
		}
		checkScan(t, []volume.Disk{mdMember(0, a), mdMember(1, b), mdMember(2, c)})
	})
}
