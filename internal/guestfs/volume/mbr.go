package volume

import "fmt"

// mbr is a master or extended boot record.
type mbr struct {
	id      uint32
	entries [4]mbrEntry
}

type mbrEntry struct {
	active bool
	kind   byte
	start  uint32 // sectors
	count  uint32
}

// extended says whether the partition holds logical ones.
func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// parseMBR parses a sector, and returns nil if it is no master boot record.
func parseMBR(b []byte) *mbr {
	for i := range 4 {
		if len(b) >= 512 && b[446+16*i]&0x7f != 0 {
			return nil // no flag, but code
		}
	}
	return parseEBR(b)
}

// parseEBR parses a sector, and returns nil if it is no extended boot record.
func parseEBR(b []byte) *mbr {
	if len(b) < 512 || b[510] != 0x55 || b[511] != 0xaa {
		return nil
	}
	m := &mbr{id: le.Uint32(b[440:])}
	for i := range m.entries {
		e := b[446+16*i:]
		m.entries[i] = mbrEntry{e[0] == 0x80, e[4], le.Uint32(e[8:]), le.Uint32(e[12:])}
	}
	return m
}

// protective says whether the record only keeps others off a GUID partition table
// (UEFI specification, 5.2.3), or does so among other things.
func (m *mbr) protective() bool {
	for _, e := range m.entries {
		if e.kind == 0xee {
			return true
		}
	}
	return false
}

func (m *mbr) hybrid() bool {
	for _, e := range m.entries {
		if e.kind != 0xee && e.kind != 0 && e.count != 0 {
			return true
		}
	}
	return false
}

// bootSector says whether the sector is that of a file system, which has the same
// signature as a boot record.
func bootSector(b []byte) bool {
	for _, s := range []struct {
		at   int
		text string
	}{{3, "NTFS    "}, {3, "EXFAT   "}, {3, "-FVE-FS-"}, {3, "ReFS\x00"}, {54, "FAT12   "}, {54, "FAT16   "}, {82, "FAT32   "}} {
		if string(b[s.at:s.at+len(s.text)]) == s.text {
			return true
		}
	}
	return false
}

// readDOS returns the table of a master boot record. Its sectors have 512 bytes
// unless that makes no sense and 4096 do.
func readDOS(w *window, m *mbr) *table {
	t := dosTable(w, m, 512)
	if !recognised(w, t) {
		if other := dosTable(w, m, 4096); recognised(w, other) {
			return other
		}
	}
	return t
}

// recognised says whether a partition of the table that is all on the disk holds
// something known.
func recognised(w *window, t *table) bool {
	for i, e := range t.parts {
		if i == 8 {
			break
		}
		if e.extended && e.Start+512 <= w.size() && parseEBR(w.bytes(e.Start, 512)) != nil {
			return true
		}
		if e.refusal == "" && !e.extended && e.Start > 0 && e.Start <= w.size()-e.Size &&
			len(probe(&window{vol: slice(w.vol, e.Start, e.Size)})) > 0 {
			return true
		}
	}
	return false
}

func dosTable(w *window, m *mbr, sector int64) *table {
	t := &table{kind: "dos", sector: sector, uuid: fmt.Sprintf("%08x", m.id)}
	logical := 5
	for i, e := range m.entries {
		if e.count != 0 {
			t.add(w, m.id, i+1, e, uint64(e.start))
		}
	}
	for _, e := range m.entries {
		if e.extended() && e.count != 0 {
			t.logical(w, m.id, uint64(e.start), uint64(e.count), &logical)
		}
	}
	return t
}

// add adds an entry that starts at a sector of the disk.
func (t *table) add(w *window, id uint32, number int, m mbrEntry, start uint64) {
	e := entry{
		Partition: Partition{
			Number: number, TypeID: fmt.Sprintf("0x%02x", m.kind), TypeName: dosTypes[m.kind],
			UUID: fmt.Sprintf("%08x-%02x", id, number), Active: m.active,
		},
		extended: m.extended(),
	}
	if m.kind == 0x42 {
		e.refusal = "The partition belongs to a dynamic disk of Windows, which is not read."
	}
	e.place(start, uint64(m.count), t.sector, w.size())
	if e.refusal == "" && (m.kind == 0xa5 || m.kind == 0xa6 || m.kind == 0xa9) && hasBSDLabel(w, e.Start) {
		e.refusal = "The partition holds a BSD disklabel, which is not read."
	}
	t.parts = append(t.parts, e)
}

// logical adds the partitions of the chain of extended boot records that starts at
// sector base. The first entries of each are relative to it, the link to base. What
// counts is what the kernel takes (torvalds/linux block/partitions/msdos.c,
// parse_extended).
func (t *table) logical(w *window, id uint32, base, count uint64, number *int) {
	seen := map[uint64]bool{}
	size := count // of what the record at hand describes
	for at := base; ; {
		if seen[at] || len(t.parts) >= maxPartitions {
			t.notes = append(t.notes, "The chain of logical partitions does not end; what was seen twice is left out.")
			return
		}
		seen[at] = true
		m := parseEBR(w.bytes(int64(at)*t.sector, 512))
		if m == nil {
			t.notes = append(t.notes, fmt.Sprintf("The chain of logical partitions breaks at sector %d; there may be more.", at))
			return
		}
		var link *mbrEntry
		for i, e := range m.entries {
			off, n := uint64(e.start), uint64(e.count)
			switch {
			case n == 0:
			case e.extended():
				if link == nil {
					link = &m.entries[i]
				}
			case i >= 2 && (off+n > size || at+off < base || at+off+n > base+count):
				// The last two are not used, and hold anything.
			default:
				t.add(w, id, *number, e, at+off)
				*number++
			}
		}
		if link == nil {
			return
		}
		if uint64(link.start) >= count {
			t.notes = append(t.notes, "The chain of logical partitions leaves the extended partition; there may be more.")
			return
		}
		at, size = base+uint64(link.start), uint64(link.count)
	}
}

// dosTypes are types of partitions that are met in practice.
var dosTypes = map[byte]string{
	0x01: "FAT12", 0x04: "FAT16 <32M", 0x05: "Extended", 0x06: "FAT16", 0x07: "HPFS/NTFS/exFAT", 0x0b: "W95 FAT32",
	0x0c: "W95 FAT32 (LBA)", 0x0e: "W95 FAT16 (LBA)", 0x0f: "W95 Ext'd (LBA)", 0x11: "Hidden FAT12", 0x14: "Hidden FAT16 <32M",
	0x16: "Hidden FAT16", 0x17: "Hidden HPFS/NTFS", 0x1b: "Hidden W95 FAT32", 0x1c: "Hidden W95 FAT32 (LBA)",
	0x1e: "Hidden W95 FAT16 (LBA)", 0x27: "Hidden NTFS WinRE", 0x42: "SFS", 0x82: "Linux swap / Solaris", 0x83: "Linux",
	0x85: "Linux extended", 0x8e: "Linux LVM", 0xa5: "FreeBSD", 0xa6: "OpenBSD", 0xa8: "Darwin UFS", 0xa9: "NetBSD",
	0xab: "Darwin boot", 0xaf: "HFS / HFS+", 0xbf: "Solaris", 0xee: "GPT", 0xef: "EFI (FAT-12/16/32)", 0xfb: "VMware VMFS",
	0xfc: "VMware VMKCORE", 0xfd: "Linux raid autodetect",
}
