package ntfs

import "encoding/binary"

// chunk is what LZNT1 compresses at a time, in bytes.
const chunk = 4096

// decompressLZNT1 fills dst from src ([MS-XCA] 2.5). What src does not go up to is
// zero, as is the rest of a chunk that holds less than its 4 KiB.
func decompressLZNT1(dst, src []byte) error {
	for at := 0; at < len(dst) && len(src) >= 2; at += chunk {
		head := binary.LittleEndian.Uint16(src)
		if head == 0 {
			return nil
		}
		n := int(head&0xfff) + 1
		if head>>12&7 != 3 || n > len(src)-2 {
			return corruptf("decompress the chunk at %d: its head is %#x, and %d bytes follow", at, head, len(src)-2)
		}
		to, from := dst[at:min(len(dst), at+chunk)], src[2:2+n]
		src = src[2+n:]
		if head&0x8000 == 0 {
			if n > len(to) {
				return corruptf("copy the chunk at %d: it has %d bytes", at, n)
			}
			copy(to, from)
		} else if !decompressChunk(to, from) {
			return corruptf("decompress the chunk at %d: it refers to what is not there", at)
		}
	}
	return nil
}

// decompressChunk fills dst, of zeroes, from a compressed chunk. Each bit of a
// flag byte tells whether a literal or a copy follows; the further on in the
// chunk, the more bits of a copy are its distance, the fewer its length.
func decompressChunk(dst, src []byte) bool {
	at, distanceBits := 0, 4
	for len(src) > 0 {
		flags := src[0]
		src = src[1:]
		for bit := 0; bit < 8 && len(src) > 0; bit++ {
			if flags>>bit&1 == 0 {
				if at == len(dst) {
					return false
				}
				dst[at] = src[0]
				at, src = at+1, src[1:]
				continue
			}
			if len(src) < 2 {
				return false
			}
			for ; distanceBits < 12 && at > 1<<distanceBits; distanceBits++ {
			}
			v := int(binary.LittleEndian.Uint16(src))
			src = src[2:]
			distance, n := v>>(16-distanceBits)+1, v&(1<<(16-distanceBits)-1)+3
			if distance > at || n > len(dst)-at {
				return false
			}
			repeat(dst, at, distance, n)
			at += n
		}
	}
	return true
}

// repeat copies n bytes to dst[at:] from distance before, where they may overlap.
func repeat(dst []byte, at, distance, n int) {
	if distance >= n {
		copy(dst[at:at+n], dst[at-distance:])
		return
	}
	for i := at; i < at+n; i++ {
		dst[i] = dst[i-distance]
	}
}
