package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// boot is what the first sector says: Microsoft's "FAT32 File System
// Specification" 1.03, "Boot Sector and BPB".
type boot struct {
	bits        int   // of an entry of the table: 12, 16, 32
	sector      int64 // bytes
	cluster     int64 // bytes
	table       int64 // byte at which the table in use begins
	root        int64 // byte at which the root directory begins, unless it has clusters
	rootLen     int64 // bytes of it
	rootCluster uint32
	heap        int64 // byte at which the first cluster begins
	clusters    uint32
	end         int64  // byte at which the volume ends
	info        int64  // byte at which FSInfo lies; 0: nowhere
	serial      uint32 // 0: none
	label       []byte // 11 bytes in the code page; nil: none
	state       byte   // bit 0: not unmounted, bit 1: hard errors
}

// Most clusters that each type of table can have.
const (
	maxClusters12 = 4084
	maxClusters16 = 65524
	maxClusters32 = 0x0fffffff - 10
)

// parseBoot reads the first sector. There is no checksum, and the magic at its end
// is that of any boot sector: what makes it FAT is that every number makes sense.
func parseBoot(b []byte) (boot, error) {
	le := binary.LittleEndian
	h := boot{sector: int64(le.Uint16(b[11:]))}
	perCluster, reserved, tables := int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	entries, media := int64(le.Uint16(b[17:])), b[21]
	total, perTable := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	wide := perTable == 0
	if wide {
		perTable = int64(le.Uint32(b[36:]))
	}
	jump := b[0] == 0xeb || b[0] == 0xe9 || b[510] == 0x55 && b[511] == 0xaa
	if !jump || !powerOf2(h.sector, 512, 4096) || !powerOf2(perCluster, 1, 128) || reserved == 0 || tables == 0 || tables > 15 ||
		media != 0xf0 && media < 0xf8 || perTable == 0 || total == 0 || entries*32%h.sector != 0 {
		return boot{}, fsys.ErrNotFound
	}
	h.cluster = perCluster * h.sector
	h.table = reserved * h.sector
	h.root, h.rootLen = h.table+tables*perTable*h.sector, entries*32
	h.heap = h.root + h.rootLen
	h.end = total * h.sector
	if h.heap >= h.end {
		return boot{}, fsys.ErrNotFound
	}
	n := (h.end - h.heap) / h.cluster
	ext := b[36:]
	switch {
	case wide:
		h.bits, ext = 32, b[64:]
		if err := h.parseWide(b, perTable, tables); err != nil {
			return boot{}, err
		}
		n = min(n, maxClusters32)
	case n > maxClusters12:
		h.bits = 16
		n = min(n, maxClusters16)
	default:
		h.bits = 12
	}
	h.parseExtended(ext)
	// A table that is too short ends the volume, as Linux has it.
	h.clusters = uint32(max(0, min(n, perTable*h.sector*8/int64(h.bits)-2)))
	if h.clusters == 0 {
		return boot{}, fsys.ErrNotFound
	}
	return h, nil
}

// parseWide reads what only FAT32 has.
func (h *boot) parseWide(b []byte, perTable, tables int64) error {
	le := binary.LittleEndian
	if v := le.Uint16(b[42:]); v != 0 {
		return fmt.Errorf("FAT32 of version %d.%d: %w", v>>8, v&0xff, fsys.ErrUnsupported)
	}
	// Tables are copies of each other, unless one alone is in use.
	if flags := le.Uint16(b[40:]); flags&0x80 != 0 {
		active := int64(flags & 0xf)
		if active >= tables {
			return fmt.Errorf("allocation table %d of %d is in use: %w", active, tables, fsys.ErrCorrupt)
		}
		h.table += active * perTable * h.sector
	}
	h.rootLen, h.rootCluster = 0, le.Uint32(b[44:])&0x0fffffff
	if s := int64(le.Uint16(b[48:])); s != 0xffff && s*h.sector < h.root {
		h.info = s * h.sector
	}
	return nil
}

// parseExtended reads what follows where its signature says that it does.
func (h *boot) parseExtended(b []byte) {
	h.state = b[1]
	if b[2] == 0x28 || b[2] == 0x29 || h.bits == 32 {
		h.serial = binary.LittleEndian.Uint32(b[3:])
	}
	if label := b[7:18]; b[2] == 0x29 && !bytes.Equal(label, []byte("NO NAME    ")) {
		h.label = label
	}
}

// powerOf2 reports whether n is a power of two from low to high, which are ones.
func powerOf2(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }
