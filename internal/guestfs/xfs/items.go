package xfs

import "encoding/binary"

// Kinds of log items (Log Items).
const (
	itemFree          = 0x1236 // intents to free extents, and that it was done
	itemFreed         = 0x1237
	itemInode         = 0x123b
	itemBuffer        = 0x123c
	itemQuota         = 0x123d
	itemQuotaOff      = 0x123e
	itemCreate        = 0x123f
	itemReverse       = 0x1240 // intents to change what other trees say of blocks
	itemReversed      = 0x1241
	itemCount         = 0x1242
	itemCounted       = 0x1243
	itemMap           = 0x1244 // intents to change extents of a file
	itemMapped        = 0x1245
	itemAttribute     = 0x1246
	itemAttributeDone = 0x1247
	itemExchange      = 0x1248
	itemExchanged     = 0x1249
	itemFirstRealtime = 0x124a
	itemLastRealtime  = 0x124f
)

// Parts of a buffer item, and bits of its flags (Buffer Log Item).
const (
	bufferInodes = 1 << 0
	bufferCancel = 1 << 1
	bufferQuota  = 1<<2 | 1<<3 | 1<<4
	bufferMapAt  = 20
	bufferChunk  = 128 // bytes for each bit of the map
)

// Stages of a commit.
const (
	stageBuffers = iota
	stageItems
	stageCancel
	stages
)

func stageOf(it *item) int {
	switch {
	case it.kind == itemBuffer && it.flags()&bufferCancel != 0:
		return stageCancel
	case it.kind == itemBuffer || it.kind == itemCreate:
		return stageBuffers
	}
	return stageItems
}

// host is how the machine that wrote the log has its numbers.
var host = binary.LittleEndian

// flags are those of a buffer; none if it is too short.
func (it *item) flags() uint16 {
	if len(it.regions[0]) < bufferMapAt {
		return 0
	}
	return host.Uint16(it.regions[0][4:])
}

// note counts, in the first pass, which buffers a transaction frees.
func (r *replay) note(t *transaction) error {
	for _, it := range t.items {
		if it.kind != itemBuffer || it.flags()&bufferCancel == 0 {
			continue
		}
		sector, length := bufferPlace(it)
		if r.cancelled[sector] == nil {
			r.cancelled[sector] = map[uint16]int{}
			r.bytes += regionOverhead
		}
		r.cancelled[sector][length]++
	}
	return r.bounded()
}

// bufferPlace returns where a buffer begins, and its length, in sectors of 512
// bytes.
func bufferPlace(it *item) (sector int64, length uint16) {
	return int64(host.Uint64(it.regions[0][8:])), host.Uint16(it.regions[0][6:])
}

func (r *replay) apply(t *transaction, it *item) error {
	switch it.kind {
	case itemBuffer:
		return r.buffer(t, it)
	case itemInode:
		return r.inode(t, it)
	case itemCreate:
		return r.create(it)
	case itemMap, itemAttribute, itemExchange:
		return r.intend(it)
	case itemMapped, itemAttributeDone, itemExchanged:
		return r.done(it)
	case itemFree, itemFreed, itemReverse, itemReversed, itemCount, itemCounted, itemQuota, itemQuotaOff:
		// No file shows any of this.
		return nil
	}
	if it.kind >= itemFirstRealtime && it.kind <= itemLastRealtime {
		return nil
	}
	return damaged("log items of kind %#x are not known", it.kind)
}

// intend takes down the inodes that something begun is about.
func (r *replay) intend(it *item) error {
	f := it.regions[0]
	at := []int{16} // of the inodes' numbers
	if it.kind == itemExchange {
		at = []int{16, 24}
	} else if it.kind == itemMap && len(f) >= 8 {
		at = nil
		for i := range min(uint64(host.Uint32(f[4:])), uint64(len(f))) {
			at = append(at, 16+int(i)*32)
		}
	}
	var inodes []uint64
	for _, a := range at {
		if len(f) < a+8 {
			return damaged("a log item of kind %#x has %d bytes", it.kind, len(f))
		}
		inodes = append(inodes, host.Uint64(f[a:]))
	}
	if len(inodes) == 0 {
		return damaged("a log item of kind %#x is about no inode", it.kind)
	}
	r.pending.intents[intent{it.kind, host.Uint64(f[8:])}] = inodes
	r.bytes += cost(inodes)
	return r.bounded()
}

// cost is what an intent takes in memory, in bytes.
func cost(inodes []uint64) int {
	if inodes == nil {
		return 0
	}
	return regionOverhead + 8*len(inodes)
}

// done strikes out something begun: the kind of what is done follows that of what
// was intended.
func (r *replay) done(it *item) error {
	f := it.regions[0]
	if len(f) < 16 {
		return damaged("a log item of kind %#x has %d bytes", it.kind, len(f))
	}
	begun := intent{it.kind - 1, host.Uint64(f[8:])}
	r.bytes -= cost(r.pending.intents[begun])
	delete(r.pending.intents, begun)
	return nil
}

// buffer writes the parts of a buffer that were logged (Buffer Log Item).
func (r *replay) buffer(t *transaction, it *item) error {
	f := it.regions[0]
	if len(f) < bufferMapAt {
		return damaged("a buffer item of %d bytes", len(f))
	}
	sector, length := bufferPlace(it)
	if it.flags()&bufferCancel != 0 {
		if n := r.cancelled[sector][length]; n > 1 {
			r.cancelled[sector][length] = n - 1
		} else {
			delete(r.cancelled[sector], length)
		}
		return nil
	}
	size := int64(length) * logSector
	words := int64(host.Uint32(f[16:]))
	if r.cancelled[sector][length] > 0 || it.flags()&(bufferQuota|bufferInodes) != 0 {
		// Of inodes, this is about lists of deleted ones only.
		return nil
	}
	if sector < 0 || size == 0 || sector > (int64(r.blocks)<<r.blockLog-size)/logSector || words > int64(len(f)-bufferMapAt)/4 {
		return damaged("a buffer of %d bytes at sector %d", size, sector)
	}
	if newer, err := r.newer(sector*logSector, size, t.lsn); err != nil || newer {
		return err
	}
	return r.chunks(it, sector*logSector, size, words)
}

// chunks writes the regions of a buffer to where its bitmap says that they are.
func (r *replay) chunks(it *item, at, size, words int64) error {
	logged := func(i int64) bool {
		return i < words*32 && host.Uint32(it.regions[0][bufferMapAt+i/32*4:])&(1<<(i%32)) != 0
	}
	next := 1
	for i := int64(0); i < words*32; {
		if !logged(i) {
			i++
			continue
		}
		n := int64(1)
		for logged(i + n) {
			n++
		}
		if next == len(it.regions) {
			return damaged("a buffer of %d regions has more", len(it.regions))
		}
		// A run of chunks may be logged in several regions.
		n = min(n, int64(len(it.regions[next]))/bufferChunk)
		if n == 0 || (i+n)*bufferChunk > size {
			return damaged("%d bytes at %d of a buffer of %d", n*bufferChunk, i*bufferChunk, size)
		}
		if err := r.over.write(it.regions[next][:n*bufferChunk], at+i*bufferChunk); err != nil {
			return err
		}
		next, i = next+1, i+n
	}
	return nil
}

// newer returns whether a buffer was written back after a transaction began, as
// those of version 5 tell by the number of the record that changed them last.
func (r *replay) newer(at, size int64, lsn uint64) (bool, error) {
	if !r.v5 || size < 512 {
		return false, nil
	}
	b := make(raw, 512)
	if err := r.over.ReadAt(b, at); err != nil {
		return false, err
	}
	where, id := 0, 0
	switch b.u32(0) {
	case magicBtreeV5:
		where, id = 32, 40
	case magicSymlink:
		where, id = 48, 16
	case magicDirBlockV5, magicDirDataV5, 0x58444633: // XDF3
		where, id = 16, 24
	case magicAGF:
		where, id = 208, 64
	default:
		switch b.u16(8) {
		case magicDirLeafV5, magicDirLeafNV5, magicNodeV5, magicAttrV5:
			where, id = 24, 32
		}
	}
	return where != 0 && [16]byte(b[id:]) == r.metaUUID && b.u64(where) > lsn, nil
}
