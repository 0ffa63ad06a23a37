package ntfs

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// bootBytes is what of the boot sector tells of the volume.
const bootBytes = 512

// geometry is what the boot sector tells.
type geometry struct {
	clusterBytes int64 // 512 to 2 MiB
	recordBytes  int64 // of an MFT record
	clusters     int64 // that the volume has
	mftCluster   int64
	serial       uint64
}

// parseBoot reads the boot sector of a volume of size bytes.
func parseBoot(b []byte, size int64) (geometry, error) {
	if string(b[3:11]) != "NTFS    " {
		return geometry{}, fmt.Errorf("read the boot sector: it is not one of NTFS: %w", fsys.ErrNotFound)
	}
	sector := int64(binary.LittleEndian.Uint16(b[0x0b:]))
	if sector < 512 || sector > 4096 || !powerOf2(sector) {
		return geometry{}, corruptf("read the boot sector: sectors of %d bytes", sector)
	}
	g := geometry{mftCluster: int64(binary.LittleEndian.Uint64(b[0x30:])), serial: binary.LittleEndian.Uint64(b[0x48:])}
	// Above 128, the number is that of times to double, below zero.
	perCluster := int64(b[0x0d])
	if perCluster > 128 {
		perCluster = 1 << min(256-perCluster, 31)
	}
	if g.clusterBytes = sector * perCluster; !powerOf2(g.clusterBytes) || g.clusterBytes > 2<<20 {
		return geometry{}, corruptf("read the boot sector: clusters of %d bytes", g.clusterBytes)
	}
	if perRecord := int64(int8(b[0x40])); perRecord < 0 {
		g.recordBytes = 1 << min(-perRecord, 31)
	} else {
		g.recordBytes = perRecord * g.clusterBytes
	}
	if g.recordBytes < 512 || g.recordBytes > 64<<10 || !powerOf2(g.recordBytes) {
		return geometry{}, corruptf("read the boot sector: MFT records of %d bytes", g.recordBytes)
	}
	sectors := int64(binary.LittleEndian.Uint64(b[0x28:]))
	if sectors <= 0 || sectors > size/sector {
		return geometry{}, corruptf("read the boot sector: a file system of %d sectors of %d bytes on a volume of %d bytes", sectors, sector, size)
	}
	g.clusters = sectors / perCluster
	if g.mftCluster <= 0 || g.mftCluster > g.clusters-(g.recordBytes+g.clusterBytes-1)/g.clusterBytes {
		return geometry{}, corruptf("read the boot sector: the MFT is at cluster %d of %d", g.mftCluster, g.clusters)
	}
	return g, nil
}

func powerOf2(n int64) bool { return n > 0 && bits.OnesCount64(uint64(n)) == 1 }
