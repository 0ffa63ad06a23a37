package volume_test

import (
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// lvmSum is LVM's checksum.
func lvmSum(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

// lvmHead returns the first bytes of a physical volume: its label, and an area with
// metadata that begins at some byte of its ring.
func lvmHead(id, text string, at int) []byte {
	const area, areaSize, header = 4096, 1<<20 - 4096, 512
	b := make([]byte, 1<<20)
	label := b[512:1024]
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	copy(label[32:], strings.ReplaceAll(id, "-", ""))
	le.PutUint64(label[72:], 1<<20) // where data begins, up to the end
	le.PutUint64(label[104:], area)
	le.PutUint64(label[112:], areaSize)
	le.PutUint32(label[16:], lvmSum(label[20:]))
	ring := b[area+header : area+areaSize]
	for i := range len(text) {
		ring[(at+i)%len(ring)] = text[i]
	}
	h := b[area : area+header]
	copy(h[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], area)
	le.PutUint64(h[32:], areaSize)
	le.PutUint64(h[40:], uint64(header+at%len(ring)))
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], lvmSum([]byte(text)))
	le.PutUint32(h, lvmSum(h[4:]))
	return b
}

// pvID is the identifier of the n-th physical volume of a test.
func pvID(n int) string { return fmt.Sprintf("aaaaaa-bbbb-cccc-dddd-eeee-ffff-pv000%d", n) }

// lvmDisk is a disk that is the n-th physical volume, of size bytes.
func lvmDisk(n int, text string, size int64) volume.Disk {
	return volume.Disk{Index: n, Key: fmt.Sprintf("vd%c", 'a'+n), Volume: memory{size, map[int64][]byte{0: lvmHead(pvID(n), text, 0)}}}
}
