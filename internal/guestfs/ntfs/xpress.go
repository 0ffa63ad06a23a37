package ntfs

import "encoding/binary"

// decompressXpress fills dst from src, which is compressed by LZ77 and Huffman
// ([MS-XCA] 2.2). There is one table, for dst has no more than 64 KiB.
func decompressXpress(dst, src []byte) error {
	const symbols = 512
	if len(src) < symbols/2 {
		return corruptf("read the table of codes: there are %d bytes", len(src))
	}
	var lengths [symbols]byte
	for i, b := range src[:symbols/2] {
		lengths[2*i], lengths[2*i+1] = b&15, b>>4
	}
	var h huffman
	if !h.build(lengths[:]) || h.empty {
		return corruptf("read the table of codes: it makes no code")
	}
	r := bitReader{src: src, at: symbols / 2}
	r.fill()
	r.fill()
	for at := 0; at < len(dst); {
		s, ok := h.decode(&r)
		if !ok {
			return corruptf("decode at %d: no such code", at)
		}
		if s < 256 {
			dst[at] = byte(s)
			at++
			continue
		}
		n, ok := xpressLength(&r, s&15)
		bits := s >> 4 & 15
		distance := 1<<bits + r.take(bits)
		if !ok || distance > at || n > len(dst)-at || r.short() {
			return corruptf("decode at %d: a copy of %d bytes from %d before", at, n, distance)
		}
		repeat(dst, at, distance, n)
		at += n
	}
	if r.short() {
		return corruptf("decode: it ends too early")
	}
	return nil
}

// xpressLength returns the length of a copy whose symbol holds n. The largest of
// these says that a byte follows, and so on.
func xpressLength(r *bitReader, n int) (int, bool) {
	if n == 15 {
		b := r.bytes(1)
		if b == nil {
			return 0, false
		}
		if n += int(b[0]); b[0] == 255 {
			if b = r.bytes(2); b == nil {
				return 0, false
			}
			if n = int(binary.LittleEndian.Uint16(b)); n < 15 {
				return 0, false
			}
		}
	}
	return n + 3, true
}
