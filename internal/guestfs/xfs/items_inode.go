package xfs

import "encoding/binary"

// Bits of an inode item's fields: what was logged (Inode Log Item).
const (
	loggedData    = 0x02 | 0x04
	loggedRoot    = 0x08
	loggedDevice  = 0x10
	loggedAttrs   = 0x40 | 0x80
	loggedAttrTop = 0x100
	loggedOwners  = 0x200 | 0x400
)

// inodeItem is what the first region of an inode item says.
type inodeItem struct {
	fields uint32
	ino    uint64
	device uint32
	sector int64 // of the buffer that has the inode
	length uint16
	offset int64 // there, in bytes
}

// parseInodeItem decodes it as 64-bit kernels log it, or 32-bit ones, which left
// out the padding.
func parseInodeItem(f raw) (inodeItem, error) {
	at := 16
	switch len(f) {
	case 56:
	case 52:
		at = 12
	default:
		return inodeItem{}, damaged("an inode item of %d bytes", len(f))
	}
	return inodeItem{
		fields: host.Uint32(f[4:]), ino: host.Uint64(f[at:]), device: host.Uint32(f[at+8:]), sector: int64(host.Uint64(f[at+24:])),
		length: uint16(host.Uint32(f[at+32:])), offset: int64(host.Uint32(f[at+36:])),
	}, nil
}

// inode writes an inode, and the forks that were logged with it.
func (r *replay) inode(t *transaction, it *item) error {
	f, err := parseInodeItem(it.regions[0])
	if err != nil {
		return err
	}
	if r.cancelled[f.sector][f.length] > 0 {
		return nil
	}
	at, ok := r.inodeAt(f.ino)
	if !ok || at != f.sector*logSector+f.offset || len(it.regions) < 2 {
		return damaged("inode %d at sector %d, byte %d", f.ino, f.sector, f.offset)
	}
	b := make(raw, r.inodeSize())
	if err := r.over.ReadAt(b, at); err != nil {
		return err
	}
	if b.u16(0) != magicInode {
		return damaged("inode %d is not in its place", f.ino)
	}
	if f.fields&loggedOwners != 0 {
		r.pending.reowned[f.ino] = true
	}
	core := it.regions[1]
	if len(core) < r.coreSize() || host.Uint16(core) != magicInode {
		return damaged("inode %d was logged with %d bytes", f.ino, len(core))
	}
	if r.newerInode(b, core, t.lsn) {
		return nil
	}
	r.core(b, core, t.lsn)
	if err := r.forks(f, b, it.regions[2:]); err != nil {
		return err
	}
	if r.v5 {
		seal(b)
	}
	r.over.inodes[f.ino] = true
	return r.over.write(b, at)
}

// coreSize is how much of an inode is logged without its forks, in bytes.
func (r *replay) coreSize() int {
	if r.v5 {
		return 176
	}
	return 96
}

// newerInode returns whether an inode was written back after it was logged.
func (r *replay) newerInode(b, core raw, lsn uint64) bool {
	if r.v5 {
		return b.u64(112) > lsn
	}
	// A count of flushes, which begins anew after the highest.
	const highest = 0xffff
	disk, logged := b.u16(30), host.Uint16(core[30:])
	return logged < disk && (disk != highest || logged >= highest>>1)
}

// core converts what was logged of an inode, in the order of the host's numbers.
func (r *replay) core(b, core raw, lsn uint64) {
	stamp := []int{4, 4}
	if r.v5 && host.Uint64(core[120:])&flag2BigTime != 0 {
		stamp = []int{8}
	}
	swapped(b, core, 0, 2, 2, 1, 1) // to the format
	clear(b[6:8])
	swapped(b, core, 8, 4, 4, 4, 2, 2) // owners, links, project
	for at := 32; at < 56; at += 8 {
		swapped(b, core, at, stamp...)
	}
	swapped(b, core, 56, 8, 8, 4, 4, 2, 1, 1, 4, 2, 2, 4) // size to generation
	if !r.v5 {
		clear(b[24:32])
		return
	}
	swapped(b, core, 24, 8)     // extents, if there may be many
	swapped(b, core, 104, 8)    // changes
	swapped(b, core, 120, 8, 4) // flags, size of copied extents
	clear(b[132:144])
	swapped(b, core, 144, stamp...)
	swapped(b, core, 152, 8)
	copy(b[160:176], core[160:176])
	binary.BigEndian.PutUint64(b[112:], lsn)
}

// swapped converts numbers of the host, of the sizes given, from one byte on.
func swapped(dst, src raw, at int, sizes ...int) {
	for _, n := range sizes {
		switch n {
		case 1:
			dst[at] = src[at]
		case 2:
			binary.BigEndian.PutUint16(dst[at:], host.Uint16(src[at:]))
		case 4:
			binary.BigEndian.PutUint32(dst[at:], host.Uint32(src[at:]))
		case 8:
			binary.BigEndian.PutUint64(dst[at:], host.Uint64(src[at:]))
		}
		at += n
	}
}

// forks writes the forks that were logged into an inode.
func (r *replay) forks(f inodeItem, b raw, regions []raw) error {
	area := b[100:]
	if r.v5 {
		area = b[176:]
	}
	data, attr := area, raw(nil)
	if off := int(b[82]) * 8; off > len(area) {
		return damaged("inode %d: attributes at %d of %d", f.ino, off, len(area))
	} else if off != 0 {
		data, attr = area[:off], area[off:]
	}
	if f.fields&loggedDevice != 0 {
		binary.BigEndian.PutUint32(data, f.device)
	}
	for _, part := range []struct {
		plain, root uint32
		dst         raw
	}{{loggedData, loggedRoot, data}, {loggedAttrs, loggedAttrTop, attr}} {
		if f.fields&(part.plain|part.root) == 0 {
			continue
		}
		if len(regions) == 0 {
			return damaged("inode %d: a fork is missing", f.ino)
		}
		src := regions[0]
		regions = regions[1:]
		if f.fields&part.root != 0 {
			if err := r.treeRoot(f.ino, part.dst, src); err != nil {
				return err
			}
			continue
		}
		if len(src) > len(part.dst) {
			return damaged("inode %d: a fork of %d bytes in a place for %d", f.ino, len(src), len(part.dst))
		}
		copy(part.dst, src)
	}
	return nil
}

// treeRoot converts the root of an extent tree, which is logged like a block, to
// how it lies in an inode.
func (r *replay) treeRoot(ino uint64, dst, src raw) error {
	head := 24
	if r.v5 {
		head = 72
	}
	if len(src) < head || len(dst) < 4 {
		return damaged("inode %d: root of an extent tree of %d bytes", ino, len(src))
	}
	count, room, width := int(src.u16(6)), (len(src)-head)/16, (len(dst)-4)/16
	if count > room || count > width {
		return damaged("inode %d: root of an extent tree with %d entries, in places for %d and %d", ino, count, room, width)
	}
	copy(dst[:4], src[4:8])
	copy(dst[4:], src[head:head+8*count])
	copy(dst[4+8*width:], src[head+8*room:head+8*(room+count)])
	return nil
}

// create makes inodes that are not in use (Inode Create Log Item). Its numbers are
// in the order of the volume.
func (r *replay) create(it *item) error {
	f := it.regions[0]
	if len(f) < 28 {
		return damaged("an inode creation item of %d bytes", len(f))
	}
	group, block, count, size, length := uint64(f.u32(4)), uint64(f.u32(8)), uint64(f.u32(12)), f.u32(16), uint64(f.u32(20))
	if group >= r.groups || block>>r.groupLog != 0 || int64(size) != int64(r.inodeSize()) || length == 0 || count > 1<<12 ||
		count<<r.inodeLog != length<<r.blockLog {
		return damaged("%d new inodes of %d bytes in %d blocks from %d of group %d", count, size, length, block, group)
	}
	at, ok := r.blockAt(group<<r.groupLog|block, length)
	if !ok {
		return damaged("new inodes in block %d of group %d", block, group)
	}
	for i := range int64(length) {
		if len(r.cancelled[(at+i<<r.blockLog)/logSector]) != 0 {
			return nil // and freed again
		}
	}
	for i := range count {
		b := make(raw, size)
		binary.BigEndian.PutUint16(b, magicInode)
		b[4] = 2
		copy(b[92:96], f[24:28])
		binary.BigEndian.PutUint32(b[96:], ^uint32(0))
		if r.v5 {
			b[4] = 3
			binary.BigEndian.PutUint64(b[152:], (group<<r.groupLog|block)<<r.perBlockLog+i)
			copy(b[160:], r.metaUUID[:])
			seal(b)
		}
		if err := r.over.write(b, at+int64(i)<<r.inodeLog); err != nil {
			return err
		}
	}
	return nil
}

// seal puts the checksum into an inode.
func seal(b raw) {
	sum, _ := checksum(b, 100)
	binary.LittleEndian.PutUint32(b[100:], sum)
}
