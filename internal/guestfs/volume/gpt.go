package volume

import (
	"errors"
	"fmt"
	"hash/crc32"
)

// Limits of what a GUID partition table may ask for: the specification's entries
// have 128 bytes times a power of two, and 16 KiB of them is usual.
const (
	maxEntrySize  = 4096
	maxEntryArray = 4 << 20 // bytes
)

// gptHeader is a header of a GUID partition table (UEFI specification, 5.3.2).
type gptHeader struct {
	alternate uint64 // LBA of the other header
	first     uint64 // LBA of the entries
	count     uint32
	entrySize uint32
	sum       uint32 // of the entries
	guid      string
}

// parseGPT parses the header that was read from LBA lba.
func parseGPT(b []byte, lba uint64) (gptHeader, error) {
	if len(b) < 92 || string(b[:8]) != "EFI PART" {
		return gptHeader{}, errors.New("no header")
	}
	size := le.Uint32(b[12:])
	if size < 92 || int(size) > len(b) {
		return gptHeader{}, fmt.Errorf("header of %d bytes", size)
	}
	summed := append([]byte(nil), b[:size]...)
	clear(summed[16:20])
	if crc32.ChecksumIEEE(summed) != le.Uint32(b[16:]) {
		return gptHeader{}, errors.New("wrong checksum of the header")
	}
	if le.Uint32(b[8:])>>16 != 1 {
		return gptHeader{}, fmt.Errorf("revision %#x", le.Uint32(b[8:]))
	}
	if at := le.Uint64(b[24:]); at != lba {
		return gptHeader{}, fmt.Errorf("header of sector %d in sector %d", at, lba)
	}
	h := gptHeader{le.Uint64(b[32:]), le.Uint64(b[72:]), le.Uint32(b[80:]), le.Uint32(b[84:]), le.Uint32(b[88:]), guid(b[56:72])}
	if h.entrySize < 128 || h.entrySize > maxEntrySize || h.entrySize%8 != 0 {
		return gptHeader{}, fmt.Errorf("entries of %d bytes", h.entrySize)
	}
	if uint64(h.count)*uint64(h.entrySize) > maxEntryArray {
		return gptHeader{}, fmt.Errorf("%d entries", h.count)
	}
	return h, nil
}

// gptAt reads the table whose header is in LBA lba.
func gptAt(w *window, lba uint64, sector int64) (gptHeader, []byte, error) {
	if lba >= maxBytes/uint64(sector) {
		return gptHeader{}, nil, errors.New("past the end of the disk")
	}
	b := w.bytes(int64(lba)*sector, int(sector))
	h, err := parseGPT(b, lba)
	if err != nil {
		return h, nil, err
	}
	if h.first >= maxBytes/uint64(sector) {
		return h, nil, errors.New("entries past the end of the disk")
	}
	entries := w.bytes(int64(h.first)*sector, int(h.count*h.entrySize))
	if entries == nil {
		return h, nil, errors.New("entries past the end of the disk")
	}
	if crc32.ChecksumIEEE(entries) != h.sum {
		return h, nil, errors.New("wrong checksum of the entries")
	}
	return h, entries, nil
}

// readGPT returns the GUID partition table of a disk, nil if there is no sound
// one. Without a protective record m only the primary table counts: what is at
// the end of a disk may be left from long ago.
func readGPT(w *window, m *mbr) *table {
	for _, sector := range sectorSizes {
		h, entries, err := gptAt(w, 1, sector)
		if err != nil {
			continue
		}
		t := gptTable(h, entries, sector, w.size())
		if _, _, err := gptAt(w, h.alternate, sector); err != nil {
			t.notes = append(t.notes, fmt.Sprintf("The backup of the partition table is damaged: %v.", err))
		}
		switch {
		case m == nil:
			t.notes = append(t.notes, "The disk lacks the protective master boot record.")
		case m.hybrid():
			t.notes = append(t.notes, "The master boot record lists partitions of its own (a hybrid); the GUID partition table is used.")
		}
		return t
	}
	if m == nil {
		return nil
	}
	for _, sector := range sectorSizes {
		primary, _, damage := gptAt(w, 1, sector)
		// Where the disk was enlarged, the backup is where the header says, if that is
		// sound and only its entries are not.
		for _, lba := range []uint64{primary.alternate, uint64(w.size()/sector) - 1} {
			h, entries, err := gptAt(w, lba, sector)
			if err != nil {
				continue
			}
			t := gptTable(h, entries, sector, w.size())
			t.notes = append(t.notes, fmt.Sprintf("The partition table is damaged (%v); its backup is used.", damage))
			return t
		}
	}
	return nil
}

// gptTable makes a table of entries (UEFI specification, 5.3.3).
func gptTable(h gptHeader, entries []byte, sector, size int64) *table {
	t := &table{kind: "gpt", uuid: h.guid, sector: sector}
	for i := range int(h.count) {
		b := entries[i*int(h.entrySize):][:h.entrySize]
		if allZero(b[:16]) {
			continue
		}
		if len(t.parts) == maxPartitions {
			t.notes = append(t.notes, fmt.Sprintf("The partition table has more than %d partitions; the others are left out.", maxPartitions))
			break
		}
		e := entry{Partition: Partition{Number: i + 1, TypeID: guid(b[:16]), UUID: guid(b[16:32]), Label: text16(b[56:128], le)}}
		e.TypeName, e.refusal = gptType(e.TypeID)
		first, last := le.Uint64(b[32:]), le.Uint64(b[40:])
		if last < first {
			e.refusal = "The partition ends before it starts."
		} else {
			e.place(first, last-first+1, sector, size)
		}
		t.parts = append(t.parts, e)
	}
	return t
}

// gptType names a type, and says why partitions of it are refused.
func gptType(id string) (name, refusal string) {
	switch name = gptTypes[id]; name {
	case "LDM metadata", "LDM data":
		refusal = "The partition belongs to a dynamic disk of Windows, which is not read."
	case "Storage Spaces":
		refusal = "The partition belongs to a storage pool of Windows (Storage Spaces), which is not read."
	}
	return name, refusal
}

// gptTypes are partition types of the UEFI specification, of the Discoverable
// Partitions Specification and of makers of operating systems.
var gptTypes = map[string]string{
	"c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI System",
	"21686148-6449-6e6f-744e-656564454649": "BIOS boot",
	"024dee41-33e7-11d3-9d69-0008c781f39f": "MBR partition scheme",
	"e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
	"ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
	"5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "LDM metadata",
	"af9b60a0-1431-4f62-bc68-3311714a69ad": "LDM data",
	"de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery environment",
	"e75caf8f-f680-4cee-afa3-b001e56efc2d": "Storage Spaces",
	"0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
	"a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
	"0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
	"e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
	"933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
	"3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "Linux server data",
	"4d21b016-b534-45c2-a9fb-5c16e091fd2d": "Linux variable data",
	"8484680c-9521-48c6-9c11-b0720656f69e": "Linux /usr (x86-64)",
	"44479540-f297-41b2-9af7-d131d5f0458a": "Linux root (x86)",
	"4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
	"b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM-64)",
	"bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
	"ca7d7ccb-63ed-4c53-861c-1742536059cc": "Linux LUKS",
	"83bd6b9d-7f41-11dc-be0b-001560b84f0f": "FreeBSD boot",
	"516e7cb5-6ecf-11d6-8ff8-00022d09712b": "FreeBSD swap",
	"516e7cb6-6ecf-11d6-8ff8-00022d09712b": "FreeBSD UFS",
	"516e7cba-6ecf-11d6-8ff8-00022d09712b": "FreeBSD ZFS",
	"6a898cc3-1dd2-11b2-99a6-080020736631": "Solaris /usr & Apple ZFS",
	"48465300-0000-11aa-aa11-00306543ecac": "Apple HFS/HFS+",
	"7c3457ef-0000-11aa-aa11-00306543ecac": "Apple APFS",
	"aa31e02a-400f-11db-9590-000c2911d1b8": "VMware VMFS",
	"9d275380-40ad-11db-bf97-000c2911d1b8": "VMware diagnostic",
}
