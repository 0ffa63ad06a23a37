package volume

// probeExt: torvalds/linux Documentation/filesystems/ext4/super.rst. Which of the
// three it is follows from the features, as blkid tells them apart.
func probeExt(w *window) (finding, bool) {
	const (
		at                              = 1024
		hasJournal                      = 0x4
		filetype, recover, journal, mbg = 0x2, 0x4, 0x8, 0x10
		sparse, large, btree            = 0x1, 0x2, 0x4
	)
	b := w.bytes(at, 256)
	if b == nil || le.Uint16(b[56:]) != 0xef53 {
		return finding{}, false
	}
	compat, incompat, ro := le.Uint32(b[92:]), le.Uint32(b[96:]), le.Uint32(b[100:])
	f := finding{Type: "ext2", Label: text(b[120:136]), UUID: uuid(b[104:120]), at: at}
	switch {
	case incompat&journal != 0:
		f.Type = "jbd"
	case incompat&^(filetype|recover|mbg) != 0 || ro&^(sparse|large|btree) != 0:
		f.Type = "ext4"
	case compat&hasJournal != 0:
		f.Type = "ext3"
	}
	return f, true
}

// probeXFS: XFS Algorithms and Data Structures, superblocks.
func probeXFS(w *window) (finding, bool) {
	b := w.bytes(0, 120)
	if b == nil || string(b[:4]) != "XFSB" {
		return finding{}, false
	}
	return finding{Type: "xfs", Label: text(b[108:120]), UUID: uuid(b[32:48])}, true
}

// probeBtrfs: kdave/btrfs-progs Documentation/dev/On-disk-format.rst, superblock.
func probeBtrfs(w *window) (finding, bool) {
	const at = 64 << 10
	b := w.bytes(at, 0x22b)
	if b == nil || string(b[64:72]) != "_BHRfS_M" {
		return finding{}, false
	}
	f := finding{Type: "btrfs", Label: text(b[0x12b:0x22b]), UUID: uuid(b[32:48]), at: at}
	if n := le.Uint64(b[0x88:]); n > 1 {
		f.span = &Span{UUID: uuid(b[0x10b:0x11b]), Number: le.Uint64(b[0xc9:]), Count: n}
	}
	return f, true
}

// probeF2FS: torvalds/linux include/linux/f2fs_fs.h, struct f2fs_super_block.
func probeF2FS(w *window) (finding, bool) {
	b := w.bytes(1024, 124+1024)
	if b == nil || le.Uint32(b) != 0xf2f52010 {
		return finding{}, false
	}
	return finding{Type: "f2fs", Label: text16(b[124:], le), UUID: uuid(b[108:124]), at: 1024}, true
}

func probeReiser(w *window) (finding, bool) {
	for _, at := range []int64{64 << 10, 8 << 10} {
		b := w.bytes(at, 128)
		if b == nil {
			continue
		}
		switch string(b[52:60]) {
		case "ReIsErFs":
			return finding{Type: "reiserfs", at: at}, true
		case "ReIsEr2F", "ReIsEr3F":
			return finding{Type: "reiserfs", Label: text(b[100:116]), UUID: uuid(b[84:100]), at: at}, true
		}
		if string(b[:7]) == "ReIsEr4" {
			return finding{Type: "reiser4", Label: text(b[36:52]), UUID: uuid(b[20:36]), at: at}, true
		}
	}
	return finding{}, false
}

func probeJFS(w *window) (finding, bool) {
	const at = 32 << 10
	b := w.bytes(at, 168)
	if b == nil || string(b[:4]) != "JFS1" {
		return finding{}, false
	}
	return finding{Type: "jfs", Label: text(b[152:168]), UUID: uuid(b[136:152]), at: at}, true
}

// probeNILFS: torvalds/linux include/uapi/linux/nilfs2_ondisk.h.
func probeNILFS(w *window) (finding, bool) {
	b := w.bytes(1024, 232)
	if b == nil || le.Uint16(b[6:]) != 0x3434 || le.Uint32(b) > 2 {
		return finding{}, false
	}
	return finding{Type: "nilfs2", Label: text(b[168:232]), UUID: uuid(b[152:168]), at: 1024}, true
}

// probeEROFS: torvalds/linux fs/erofs/erofs_fs.h.
func probeEROFS(w *window) (finding, bool) {
	b := w.bytes(1024, 80)
	if b == nil || le.Uint32(b) != 0xe0f5e1e2 {
		return finding{}, false
	}
	return finding{Type: "erofs", Label: text(b[64:80]), UUID: uuid(b[48:64]), at: 1024}, true
}

// probeSwap: the signature ends the first page, whose size is the guest's. A
// machine that hibernated has another one.
func probeSwap(w *window) (finding, bool) {
	for page := int64(4 << 10); page <= 64<<10; page *= 2 {
		b := w.bytes(page-10, 10)
		if b == nil {
			break
		}
		f := finding{Type: "swap", at: page - 10}
		switch {
		case string(b) == "SWAPSPACE2":
		case string(b) == "SWAP-SPACE":
			return f, true
		case string(b[:9]) == "S1SUSPEND", string(b[:9]) == "S2SUSPEND", string(b[:9]) == "ULSUSPEND":
			f.Type = "swsuspend"
		default:
			continue
		}
		if h := w.bytes(1024, 44); h != nil && le.Uint32(h) == 1 {
			f.UUID, f.Label = uuid(h[12:28]), text(h[28:44])
		}
		return f, true
	}
	return finding{}, false
}

// probeUFS finds the file systems of the BSDs and Solaris, by their magic number
// at the places and in the byte orders that these use.
func probeUFS(w *window) (finding, bool) {
	for _, at := range []int64{8 << 10, 64 << 10, 256 << 10, 0} {
		b := w.bytes(at+1372, 4)
		if b == nil {
			continue
		}
		switch {
		case le.Uint32(b) == 0x00011954, be.Uint32(b) == 0x00011954, le.Uint32(b) == 0x19540119, be.Uint32(b) == 0x19540119:
			return finding{Type: "ufs", at: at}, true
		}
	}
	return finding{}, false
}
