package exfat

import (
	"encoding/binary"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fat/cluster"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// boot is what the boot region says (section 3.1 of the specification).
type boot struct {
	sector      int64 // bytes
	cluster     int64 // bytes
	table       int64 // byte at which the allocation table begins
	heap        int64 // byte at which the first cluster begins
	clusters    uint32
	root        uint32 // first cluster of the root directory
	end         int64  // byte at which the volume ends
	serial      uint32
	flags       uint16
	fromBackup  bool
	fromBackups error // why the first region is not used
}

// Bits of the volume flags (section 3.1.13).
const (
	volumeDirty  = 0x0002
	mediaFailure = 0x0004
)

// regionSectors is the length of the boot region; its backup follows.
const regionSectors = 12

// magic is how the first sector begins (sections 3.1.1 and 3.1.2).
const magic = "\xeb\x76\x90EXFAT   "

// readBoot reads the boot region, or its backup if it is damaged.
func readBoot(v fsys.Volume) (boot, error) {
	b := make([]byte, 512)
	if v.Size() < int64(len(b)) {
		return boot{}, fsys.ErrNotFound
	}
	if err := v.ReadAt(b, 0); err != nil {
		return boot{}, fmt.Errorf("read boot sector: %w", err)
	}
	if string(b[:len(magic)]) != magic {
		return boot{}, fsys.ErrNotFound
	}
	h, err := readRegion(v, 0, uint(b[108]))
	if err == nil {
		return h, nil
	}
	// The size of a sector is among what may be damaged.
	for shift := uint(9); shift <= 12; shift++ {
		if h, backupErr := readRegion(v, regionSectors<<shift, shift); backupErr == nil {
			h.fromBackup, h.fromBackups = true, err
			return h, nil
		}
	}
	return boot{}, err
}

// readRegion reads the boot region at a byte of the volume, with sectors of 1<<shift
// bytes.
func readRegion(v fsys.Volume, at int64, shift uint) (boot, error) {
	if shift < 9 || shift > 12 {
		return boot{}, fmt.Errorf("sectors of 1<<%d bytes: %w", shift, fsys.ErrCorrupt)
	}
	b := make([]byte, regionSectors<<shift)
	if err := v.ReadAt(b, at); err != nil {
		return boot{}, fmt.Errorf("read boot region: %w", err)
	}
	last := b[(regionSectors-1)<<shift:]
	sum := bootChecksum(b[:(regionSectors-1)<<shift])
	for ; len(last) > 0; last = last[4:] {
		if got := binary.LittleEndian.Uint32(last); got != sum {
			return boot{}, fmt.Errorf("boot region has the checksum %#x, not %#x: %w", got, sum, fsys.ErrCorrupt)
		}
	}
	if string(b[:len(magic)]) != magic || uint(b[108]) != shift {
		return boot{}, fmt.Errorf("boot region begins with %q: %w", b[:len(magic)], fsys.ErrCorrupt)
	}
	return parseBoot(b)
}

// bootChecksum is of all but the flags and the percentage in use (section 3.4).
func bootChecksum(b []byte) uint32 {
	var sum uint32
	for i, c := range b {
		if i != 106 && i != 107 && i != 112 {
			sum = (sum>>1 | sum<<31) + uint32(c)
		}
	}
	return sum
}

// parseBoot reads a boot sector whose checksum is right.
func parseBoot(b []byte) (boot, error) {
	le := binary.LittleEndian
	shift, perCluster, tables := uint(b[108]), uint(b[109]), b[110]
	if major := b[105]; major != 1 {
		return boot{}, fmt.Errorf("exFAT of version %d.%02d: %w", major, b[104], fsys.ErrUnsupported)
	}
	if tables == 2 {
		return boot{}, fmt.Errorf("TexFAT, with two allocation tables: %w", fsys.ErrUnsupported)
	}
	length, table, tableLen := le.Uint64(b[72:]), le.Uint32(b[80:]), le.Uint32(b[84:])
	heap, clusters := le.Uint32(b[88:]), le.Uint32(b[92:])
	h := boot{clusters: clusters, root: le.Uint32(b[96:]), serial: le.Uint32(b[100:]), flags: le.Uint16(b[106:])}
	if tables != 1 || perCluster > 25-shift || length > 1<<62>>shift || table < 2*regionSectors ||
		clusters == 0 || clusters > 1<<32-11 || uint64(table)+uint64(tableLen) > uint64(heap) ||
		uint64(tableLen)<<shift < (uint64(clusters)+cluster.First)*4 || uint64(heap)+uint64(clusters)<<perCluster > length {
		return boot{}, fmt.Errorf("the boot sector contradicts itself: %w", fsys.ErrCorrupt)
	}
	h.sector = 1 << shift
	h.cluster = h.sector << perCluster
	h.table, h.heap, h.end = int64(table)<<shift, int64(heap)<<shift, int64(length)<<shift
	return h, nil
}
