package volume

import (
	"fmt"
	"math/bits"
	"strings"
)

// probeFAT: Microsoft's FAT specification, section 3. There is no magic number to
// rely on, so the numbers have to make sense.
func probeFAT(w *window) (finding, bool) {
	b := w.bytes(0, 512)
	if b == nil || (b[0] != 0xeb && b[0] != 0xe9) || string(b[3:11]) == "NTFS    " || string(b[3:11]) == "EXFAT   " || bitLocker(b) {
		return finding{}, false
	}
	sector, cluster, fats := int64(le.Uint16(b[11:])), int64(b[13]), int64(b[16])
	reserved, rootEntries := int64(le.Uint16(b[14:])), int64(le.Uint16(b[17:]))
	media := b[21]
	if bits.OnesCount16(uint16(sector)) != 1 || sector < 512 || sector > 4096 || bits.OnesCount8(b[13]) != 1 || reserved == 0 ||
		fats < 1 || fats > 2 || (media != 0xf0 && media < 0xf8) {
		return finding{}, false
	}
	f := finding{Type: "vfat"}
	tail, root, rootLen := b[36:], int64(0), rootEntries*32
	if n := int64(le.Uint16(b[22:])); n != 0 {
		root = (reserved + fats*n) * sector
	} else {
		tail = b[64:]
		n := int64(le.Uint32(b[36:]))
		if n == 0 {
			return finding{}, false
		}
		first := int64(le.Uint32(b[44:]))
		root, rootLen = (reserved+fats*n+(first-2)*cluster)*sector, cluster*sector
	}
	if tail[2] == 0x29 {
		f.UUID = fatSerial(tail[3:])
		f.Label = fatLabel(tail[7:18])
	}
	if label, ok := fatRootLabel(w.bytes(root, int(rootLen))); ok {
		f.Label = label
	}
	return f, true
}

func fatSerial(b []byte) string {
	n := le.Uint32(b)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)
}

func fatLabel(b []byte) string {
	if l := text(b); l != "NO NAME" {
		return l
	}
	return ""
}

// fatRootLabel returns the label that is an entry of a root directory.
func fatRootLabel(dir []byte) (string, bool) {
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		const volumeID, directory = 0x08, 0x10
		if dir[0] != 0xe5 && dir[11]&0x3f != 0x0f && dir[11]&(volumeID|directory) == volumeID {
			return fatLabel(dir[:11]), true
		}
	}
	return "", false
}

// probeNTFS: libyal/libfsntfs documentation, volume header; the label is the
// content of an attribute of $Volume, the fourth record of the master file table.
func probeNTFS(w *window) (finding, bool) {
	b := w.bytes(0, 512)
	if b == nil || string(b[3:11]) != "NTFS    " {
		return finding{}, false
	}
	f := finding{Type: "ntfs", UUID: fmt.Sprintf("%016X", le.Uint64(b[0x48:]))}
	cluster, mft, record := int64(b[13]), le.Uint64(b[0x30:]), int64(int8(b[0x40]))
	if cluster > 128 {
		cluster = 1 << min(256-cluster, 16) // the exponent, negative
	}
	cluster *= int64(le.Uint16(b[11:]))
	if record < 0 {
		record = 1 << min(-record, 16)
	} else {
		record *= cluster
	}
	if cluster > 0 && cluster <= 2<<20 && record >= 256 && record <= 64<<10 && mft < maxBytes/(2<<20) {
		f.Label = ntfsLabel(w.bytes(int64(mft)*cluster+3*record, int(record)))
	}
	return f, true
}

// ntfsLabel returns the value of the resident attribute $VOLUME_NAME of a record.
func ntfsLabel(b []byte) string {
	if len(b) < 48 || string(b[:4]) != "FILE" {
		return ""
	}
	// The last two bytes of each sector are kept in the update sequence.
	sequence, n := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	for i := 1; i < n && i*512 <= len(b) && sequence+2*i+2 <= len(b); i++ {
		copy(b[i*512-2:i*512], b[sequence+2*i:])
	}
	for at := int(le.Uint16(b[20:])); at+24 <= len(b); {
		kind, n := le.Uint32(b[at:]), int(le.Uint32(b[at+4:]))
		if kind == 0xffffffff || n < 24 || n > len(b)-at {
			break
		}
		if kind == 0x60 && b[at+8] == 0 {
			size, off := int(le.Uint32(b[at+16:])), int(le.Uint16(b[at+20:]))
			if size < 0 || off > n || size > n-off {
				break
			}
			return text16(b[at+off:at+off+size], le)
		}
		at += n
	}
	return ""
}

// probeExFAT: Microsoft's exFAT specification, sections 3.1 and 7.3.
func probeExFAT(w *window) (finding, bool) {
	b := w.bytes(0, 512)
	if b == nil || string(b[3:11]) != "EXFAT   " {
		return finding{}, false
	}
	f := finding{Type: "exfat", UUID: fatSerial(b[100:])}
	sector, cluster := b[108], b[109]
	if sector < 9 || sector > 12 || cluster > 25-sector {
		return f, true
	}
	heap, first := int64(le.Uint32(b[88:])), int64(le.Uint32(b[96:]))
	dir := w.bytes((heap+(first-2)<<cluster)<<sector, 1<<(sector+min(cluster, 4)))
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		if dir[0] == 0x83 {
			f.Label = text16(dir[2:2+2*min(dir[1], 11)], le)
			break
		}
	}
	return f, true
}

func probeReFS(w *window) (finding, bool) {
	return finding{Type: "ReFS"}, w.has(0, "\x00\x00\x00ReFS\x00")
}

// probeAPFS: Apple File System Reference, nx_superblock_t.
func probeAPFS(w *window) (finding, bool) {
	b := w.bytes(0, 88)
	if b == nil || string(b[32:36]) != "NXSB" {
		return finding{}, false
	}
	return finding{Type: "apfs", UUID: uuid(b[72:88])}, true
}

// probeHFS: Technical Note TN1150.
func probeHFS(w *window) (finding, bool) {
	b := w.bytes(1024, 162)
	if b == nil {
		return finding{}, false
	}
	switch {
	case string(b[:2]) == "H+" && be.Uint16(b[2:]) == 4, string(b[:2]) == "HX" && be.Uint16(b[2:]) == 5:
		return finding{Type: "hfsplus", at: 1024}, true
	case string(b[:2]) == "BD" && be.Uint32(b[20:]) != 0 && be.Uint32(b[20:])%512 == 0:
		if string(b[124:126]) == "H+" {
			return finding{Type: "hfsplus", at: 1024}, true
		}
		return finding{Type: "hfs", Label: text(b[37 : 37+min(b[36], 27)]), at: 1024}, true
	}
	return finding{}, false
}

// isoSector is the sector size of optical discs, where the system area ends after
// 16 sectors.
const isoSector = 2048

// probeISO: ECMA-119, 8.4. The UUID is the time of the last change, as blkid
// makes it up. What the descriptors follow is the disc's own, boot record and
// partition table included.
func probeISO(w *window) (finding, bool) {
	if w.has(16*isoSector+9, "CDROM") { // High Sierra, what it was made of
		return finding{Type: "iso9660"}, true
	}
	for i := range int64(16) {
		at := 16*isoSector + i*isoSector
		b := w.bytes(at, isoSector)
		if b == nil || string(b[1:6]) != "CD001" || b[0] == 255 {
			break
		}
		if b[0] != 1 {
			continue
		}
		f := finding{Type: "iso9660", Label: text(b[40:72]), end: int64(le.Uint32(b[80:])) * int64(le.Uint16(b[128:]))}
		if label := jolietLabel(w, at); !strings.HasPrefix(f.Label, label) {
			f.Label = label
		}
		for _, d := range [][]byte{b[830:847], b[813:830]} {
			if digits := string(d[:16]); strings.Trim(digits, "0123456789") == "" && strings.Trim(digits, "0") != "" {
				f.UUID = fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", d[:4], d[4:6], d[6:8], d[8:10], d[10:12], d[12:14], d[14:16])
				break
			}
		}
		return f, true
	}
	return finding{}, false
}

// jolietLabel returns the identifier of the volume that a descriptor of Joliet behind
// the primary one at a byte has; that of the primary one may be longer.
func jolietLabel(w *window, at int64) string {
	for range 16 {
		at += isoSector
		b := w.bytes(at, isoSector)
		if b == nil || string(b[1:6]) != "CD001" || b[0] == 255 {
			break
		}
		if b[0] == 2 && string(b[88:90]) == "%/" && strings.IndexByte("@CE", b[90]) >= 0 {
			return text16(b[40:72], be)
		}
	}
	return ""
}

// probeUDF: ECMA-167, parts 2 and 3; OSTA UDF 2.1.12.
func probeUDF(w *window) (finding, bool) {
	nsr := false
	for i := range int64(32) {
		b := w.bytes((16+i)*isoSector, 6)
		if b == nil {
			break
		}
		id := string(b[1:6])
		if nsr = id == "NSR02" || id == "NSR03"; nsr || (id != "CD001" && id != "BEA01") {
			break
		}
	}
	if !nsr {
		return finding{}, false
	}
	f := finding{Type: "udf"}
	for _, sector := range []int64{512, 1024, 2048, 4096} {
		anchor := w.bytes(256*sector, 512)
		if anchor == nil || le.Uint16(anchor) != 2 || le.Uint32(anchor[12:]) != 256 {
			continue
		}
		f.describe(w, sector, min(int64(le.Uint32(anchor[16:]))/sector, 64), int64(le.Uint32(anchor[20:])))
		break
	}
	return f, true
}

// describe reads count descriptors of a UDF volume from sector first.
func (f *finding) describe(w *window, sector, count, first int64) {
	for i := range count {
		b := w.bytes((first+i)*sector, 512)
		if b == nil {
			return
		}
		switch le.Uint16(b) {
		case 1: // primary: the volume set identifier starts with a unique number
			if set := dstring(b[72:200]); len(set) >= 16 && strings.Trim(strings.ToLower(set[:16]), hexDigits) == "" {
				f.UUID = strings.ToLower(set[:16])
			}
		case 6: // logical
			f.Label = dstring(b[84:212])
		case 8:
			return
		}
	}
}

// dstring decodes a string whose last byte is its length (OSTA UDF 2.1.3).
func dstring(b []byte) string {
	n := int(b[len(b)-1])
	if n < 2 || n > len(b)-1 {
		return ""
	}
	if b[0] == 16 {
		return text16(b[1:n], be)
	}
	runes := make([]rune, 0, n)
	for _, c := range b[1:n] { // of 8 bits each
		if c == 0 {
			break
		}
		runes = append(runes, rune(c))
	}
	return strings.TrimSpace(string(runes))
}
