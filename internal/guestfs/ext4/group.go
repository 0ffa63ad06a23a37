package ext4

// maxCounted is of how many groups what is free is added up.
const maxCounted = 16 << 10

// groupDesc returns the descriptor of a group ("Block Group Descriptors" in the
// kernel's documentation).
func (f *fileSystem) groupDesc(group uint64) ([]byte, error) {
	s := f.super
	d := make([]byte, s.descSize)
	if err := f.meta.ReadAt(d, f.descriptor(group)); err != nil {
		return nil, err
	}
	if got, want := s.descChecksum(group, d), le.Uint16(d[0x1e:]); got != want && (s.checksums() || s.ro&roGDTCSum != 0) {
		return nil, corruptf("the checksum of group %d is 0x%x instead of 0x%x", group, got, want)
	}
	return d, nil
}

// maxTables is of how many groups it is remembered where their inodes begin.
const maxTables = 64 << 10

// inodeTable returns the block where the inodes of a group begin.
func (f *fileSystem) inodeTable(group uint64) (block uint64, err error) {
	if group >= uint64(len(f.tables)) {
		return f.readInodeTable(group)
	}
	if block = f.tables[group].Load(); block != 0 {
		return block, nil
	}
	if block, err = f.readInodeTable(group); err == nil {
		f.tables[group].Store(block) // never 0: there is the superblock
	}
	return block, err
}

func (f *fileSystem) readInodeTable(group uint64) (block uint64, err error) {
	s := f.super
	d, err := f.groupDesc(group)
	if err != nil {
		return 0, err
	}
	block = uint64(le.Uint32(d[0x8:]))
	if s.descSize >= 64 {
		block |= uint64(le.Uint32(d[0x28:])) << 32
	}
	n := uint64(s.inodesPerGroup) * uint64(s.inodeSize) / uint64(s.blockSize)
	if !s.holds(block, n) {
		return 0, corruptf("the inodes of group %d are said to be in block %d", group, block)
	}
	return block, nil
}

// free returns the bytes that are not in use, or -1 if that is not known. The
// superblock tells right only after an unmount; until then groups do.
func (f *fileSystem) free() int64 {
	s := f.super
	if s.state&stateValid != 0 && !s.has(incompatRecover) {
		return int64(min(s.free, s.blocks)) * s.blockSize
	}
	if s.groups > maxCounted {
		return -1
	}
	clusters := int64(0)
	for group := range s.groups {
		d, err := f.groupDesc(group)
		if err != nil {
			return -1
		}
		clusters += int64(le.Uint16(d[0xc:]))
		if s.descSize >= 64 {
			clusters += int64(le.Uint16(d[0x2c:])) << 16
		}
	}
	return min(clusters*s.clusterSize, int64(s.blocks)*s.blockSize)
}

// descriptor returns where that of a group lies, in bytes. With meta_bg each block
// of descriptors lies in the first of the groups that it describes.
func (f *fileSystem) descriptor(group uint64) int64 {
	s := f.super
	perBlock := uint64(s.blockSize / s.descSize)
	nth := group / perBlock
	block := superOffset/uint64(s.blockSize) + 1 + nth
	if s.has(incompatMetaBG) && nth >= s.firstMetaBG {
		first := nth * perBlock
		block = s.firstData + first*s.blocksPerGroup
		if s.hasSuper(first) {
			block++
		}
		if nth == 0 && s.blockSize == 1024 && s.firstData == 0 {
			block++ // bigalloc: block 0 belongs to the group, the superblock is in block 1
		}
	}
	return int64(block)*s.blockSize + int64(group%perBlock)*s.descSize
}

// hasSuper says whether a group has a copy of the superblock.
func (s *superblock) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparse2 != 0:
		return group == uint64(le.Uint32(s.raw[0x24c:])) || group == uint64(le.Uint32(s.raw[0x250:]))
	case group == 1 || s.ro&roSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := group
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// descChecksum returns what a descriptor's checksum has to be.
func (s *superblock) descChecksum(group uint64, d []byte) uint16 {
	number := le.AppendUint32(nil, uint32(group))
	if s.checksums() {
		crc := crc32c(crc32c(s.seed, number), d[:0x1e])
		return uint16(crc32c(crc32c(crc, []byte{0, 0}), d[0x20:]))
	}
	crc := crc16(crc16(crc16(^uint16(0), s.raw[0x68:0x78]), number), d[:0x1e])
	return crc16(crc, d[0x20:])
}
