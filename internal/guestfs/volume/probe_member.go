package volume

// BitLocker's volume headers: libyal/libbde documentation, volume header.
func bitLocker(b []byte) bool {
	const toGo = "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01"
	return string(b[3:11]) == "-FVE-FS-" || string(b[424:440]) == toGo
}

func probeBitLocker(w *window) (finding, bool) {
	b := w.bytes(0, 512)
	if b == nil || !bitLocker(b) {
		return finding{}, false
	}
	return finding{Type: "BitLocker", refusal: "It is encrypted with BitLocker, which cannot be unlocked here."}, true
}

// probeBcache: torvalds/linux drivers/md/bcache/bcache_ondisk.h, struct cache_sb_disk;
// bcachefs has the same magic number, or one of its own, at the same place.
func probeBcache(w *window) (finding, bool) {
	const (
		at       = 4096
		bcache   = "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"
		bcachefs = "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"
	)
	b := w.bytes(at, 104)
	if b == nil {
		return finding{}, false
	}
	switch string(b[24:40]) {
	case bcachefs:
		return finding{Type: "bcachefs", UUID: uuid(b[56:72]), Label: text(b[72:104]), at: at}, true
	case bcache:
		if le.Uint64(b[8:]) != at/512 {
			return finding{Type: "bcachefs", UUID: uuid(b[56:72]), Label: text(b[72:104]), at: at}, true
		}
		return finding{Type: "bcache", UUID: uuid(b[40:56]), Label: text(b[72:104]), at: at,
			refusal: "It belongs to a bcache device, which is not read."}, true
	}
	return finding{}, false
}

func probeStratis(w *window) (finding, bool) {
	const magic = "!Stra0tis\x86\xff\x02^\x41rh"
	if !w.has(512+4, magic) && !w.has(9*512+4, magic) {
		return finding{}, false
	}
	return finding{Type: "stratis", at: 512, refusal: "It belongs to a Stratis pool, which is not read."}, true
}

func probeVMFS(w *window) (finding, bool) {
	const refusal = "It belongs to a datastore of VMware (VMFS), which is not read."
	switch {
	case w.has(1<<20, "\x0d\xd0\x01\xc0"):
		return finding{Type: "VMFS_volume_member", at: 1 << 20, refusal: refusal}, true
	case w.has(2<<20, "\x5e\xf1\xab\x2f"):
		return finding{Type: "VMFS", at: 2 << 20, refusal: refusal}, true
	}
	return finding{}, false
}

// probeZFS: openzfs/zfs include/sys/vdev_impl.h; a label has pairs of names and
// values after 16 KiB, and uberblocks after 128. Labels of a pool that is long gone
// are often left at the end of a volume, which is why this comes last.
func probeZFS(w *window) (finding, bool) {
	const (
		label   = 256 << 10
		nvlist  = "\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
		ubMagic = 0x00bab10c
	)
	end := w.size() &^ (label - 1)
	for _, at := range []int64{0, label, end - 2*label, end - label} {
		if !w.has(at+16<<10, nvlist) {
			continue
		}
		ring := w.bytes(at+label/2, label/2)
		for i := 0; i < len(ring); i += 1024 {
			if le.Uint64(ring[i:]) == ubMagic || be.Uint64(ring[i:]) == ubMagic {
				return finding{Type: "zfs_member", at: at, refusal: "It belongs to a ZFS pool, which is not read."}, true
			}
		}
	}
	return finding{}, false
}

// probeLVM1 finds a physical volume of LVM's first format.
func probeLVM1(w *window) (finding, bool) {
	b := w.bytes(0, 4)
	if b == nil || string(b[:2]) != "HM" || le.Uint16(b[2:]) == 0 || le.Uint16(b[2:]) > 2 {
		return finding{}, false
	}
	return finding{Type: "LVM1_member", refusal: "It belongs to a volume group of LVM's first format, which is not read."}, true
}

// probeDDF: SNIA Common RAID Disk Data Format, anchor header in the last sector.
func probeDDF(w *window) (finding, bool) {
	for _, back := range []int64{1, 257} {
		at := w.size()&^511 - back*512
		if b := w.bytes(at, 4); b != nil && be.Uint32(b) == 0xde11de11 {
			return finding{Type: "ddf_raid_member", at: at, refusal: "It belongs to a RAID array of format DDF, which is not read."}, true
		}
	}
	return finding{}, false
}

func probeIntel(w *window) (finding, bool) {
	at := w.size()&^511 - 1024
	return finding{Type: "isw_raid_member", at: at, refusal: "It belongs to a RAID array of Intel's format, which is not read."},
		w.has(at, "Intel Raid ISM Cfg Sig. ")
}

func probeRaid(w *window) (finding, bool) {
	s := readMDSuper(w)
	if s == nil {
		return finding{}, false
	}
	return finding{Type: "linux_raid_member", Label: s.name, UUID: s.uuid, at: s.at, md: s}, true
}

func probeLVM2(w *window) (finding, bool) {
	l := readPVLabel(w)
	if l == nil {
		return finding{}, false
	}
	return finding{Type: "LVM2_member", UUID: l.id, at: l.at, pv: l}, true
}

func probeLUKS(w *window) (finding, bool) {
	h := readLUKS(w)
	if h == nil {
		return finding{}, false
	}
	return finding{Type: "crypto_LUKS", UUID: h.uuid, Label: h.label, luks: h}, true
}
