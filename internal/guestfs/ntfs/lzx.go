package ntfs

import "encoding/binary"

// LZX as it is in WIM files and WOF: each chunk on its own, a window of 32 KiB,
// and blocks whose size is told by a bit, or 16 more ([MS-PATCH] 2 has the method
// with other sizes).
const (
	lzxWindow    = 32 << 10
	lzxSlots     = 30 // of distances
	lzxMain      = 256 + 8*lzxSlots
	lzxLengths   = 249
	lzxPre       = 20
	lzxAligned   = 8
	lzxVerbatim  = 1
	lzxAlignedAs = 2
	lzxRaw       = 3
)

// lzx decompresses a chunk.
type lzx struct {
	r       bitReader
	dst     []byte
	at      int
	recent  [3]int // distances
	main    [lzxMain]byte
	lengths [lzxLengths]byte

	mainCode, lengthCode, alignedCode, preCode huffman
}

// decompressLZX fills dst, of 32 KiB at most, from src.
func decompressLZX(dst, src []byte) error {
	d := &lzx{r: bitReader{src: src}, dst: dst, recent: [3]int{1, 1, 1}}
	d.r.fill()
	for d.at < len(dst) {
		at := d.at
		if !d.block() || d.r.short() {
			return corruptf("decode the block at %d: it went wrong at %d", at, d.at)
		}
	}
	undoCalls(dst)
	return nil
}

// block decodes a block.
func (d *lzx) block() bool {
	kind, size := d.r.take(3), lzxWindow
	if d.r.take(1) == 0 {
		size = d.r.take(16)
	}
	if size == 0 || size > len(d.dst)-d.at {
		return false
	}
	end := d.at + size
	switch kind {
	case lzxRaw:
		return d.raw(end)
	case lzxAlignedAs:
		var lengths [lzxAligned]byte
		for i := range lengths {
			lengths[i] = byte(d.r.take(3))
		}
		if !d.alignedCode.build(lengths[:]) {
			return false
		}
	case lzxVerbatim:
	default:
		return false
	}
	if !d.readLengths(d.main[:256]) || !d.readLengths(d.main[256:]) || !d.mainCode.build(d.main[:]) ||
		!d.readLengths(d.lengths[:]) || !d.lengthCode.build(d.lengths[:]) {
		return false
	}
	for d.at < end {
		if !d.symbol(end, kind == lzxAlignedAs) {
			return false
		}
	}
	return true
}

// raw copies a block that is not compressed. It starts at the next word, and the
// next block at an even byte.
func (d *lzx) raw(end int) bool {
	r := &d.r
	if r.fake > 0 {
		return false
	}
	// At least a bit is skipped; words that were read in advance are put back.
	if r.n%16 == 0 {
		r.n -= 16
	}
	r.at -= r.n / 16 * 2
	head := r.bytes(12)
	if head == nil {
		return false
	}
	for i := range d.recent {
		d.recent[i] = int(binary.LittleEndian.Uint32(head[4*i:]) & (1<<31 - 1))
	}
	b := r.bytes(end - d.at)
	if b == nil {
		return false
	}
	d.at += copy(d.dst[d.at:end], b)
	if len(b)%2 == 1 {
		r.bytes(1)
	}
	r.buf, r.n = 0, 0
	r.fill()
	return true
}

// readLengths brings the lengths of codes up to date, which are told by what they
// differ from those of the block before.
func (d *lzx) readLengths(lengths []byte) bool {
	var pre [lzxPre]byte
	for i := range pre {
		pre[i] = byte(d.r.take(4))
	}
	if !d.preCode.build(pre[:]) {
		return false
	}
	for i := 0; i < len(lengths); {
		s, ok := d.preCode.decode(&d.r)
		if !ok {
			return false
		}
		run, value := 1, byte(0)
		switch s {
		case 17:
			run = 4 + d.r.take(4)
		case 18:
			run = 20 + d.r.take(5)
		case 19:
			run = 4 + d.r.take(1)
			if s, ok = d.preCode.decode(&d.r); !ok || s > 16 {
				return false
			}
		}
		if run > len(lengths)-i {
			return false
		}
		if s <= 16 {
			value = (lengths[i] + 17 - byte(s)) % 17
		}
		for range run {
			lengths[i] = value
			i++
		}
	}
	return true
}

// symbol decodes a literal or a copy.
func (d *lzx) symbol(end int, aligned bool) bool {
	s, ok := d.mainCode.decode(&d.r)
	if !ok {
		return false
	}
	if s < 256 {
		d.dst[d.at] = byte(s)
		d.at++
		return true
	}
	n, slot := s&7, (s-256)>>3
	if n == 7 {
		more, ok := d.lengthCode.decode(&d.r)
		if !ok {
			return false
		}
		n += more
	}
	n += 2
	distance, ok := d.distance(slot, aligned)
	if !ok || distance <= 0 || distance > d.at || n > end-d.at || d.r.short() {
		return false
	}
	repeat(d.dst, d.at, distance, n)
	d.at += n
	return true
}

// distance decodes a distance: one of the last three, or a slot and some bits, the
// lowest three of which may have a code of their own.
func (d *lzx) distance(slot int, aligned bool) (int, bool) {
	if slot < 3 {
		d.recent[0], d.recent[slot] = d.recent[slot], d.recent[0]
		return d.recent[0], true
	}
	base, bits := slot, 0
	if slot >= 4 {
		bits = slot/2 - 1
		base = (2 + slot%2) << bits
	}
	v := 0
	if aligned && bits >= 3 {
		v = d.r.take(bits-3) << 3
		low, ok := d.alignedCode.decode(&d.r)
		if !ok {
			return 0, false
		}
		v += low
	} else {
		v = d.r.take(bits)
	}
	d.recent[2], d.recent[1] = d.recent[1], d.recent[0]
	d.recent[0] = base + v - 2
	return d.recent[0], true
}

// undoCalls turns the targets of what may be x86 calls back from absolute to
// relative, which was done so that they compress better.
func undoCalls(b []byte) {
	const fileSize = 12000000
	for i := 0; i < len(b)-10; i++ {
		if b[i] != 0xe8 {
			continue
		}
		operand := b[i+1 : i+5]
		if v := int32(binary.LittleEndian.Uint32(operand)); v >= -int32(i) && v < fileSize {
			if v >= 0 {
				v -= int32(i)
			} else {
				v += fileSize
			}
			binary.LittleEndian.PutUint32(operand, uint32(v))
		}
		i += 4
	}
}
