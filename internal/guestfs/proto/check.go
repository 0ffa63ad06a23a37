package proto

import (
	"encoding/binary"
	"fmt"
)

// Limits of what a message has. A message of single bytes would make some three
// hundred times as many of the largest things that there are arrays of.
const (
	maxArray    = 1 << 15 // elements of one array: whoever has more sends several messages
	maxPairs    = 1 << 6  // of a map, which is a structure
	maxElements = 1 << 18 // of all arrays together
)

// CBOR's major types that matter here.
const (
	byteString = 2
	textString = 3
	arrayType  = 4
)

// check refuses a message that has more elements than may be, before any of them takes
// memory. It looks for nothing else that may be wrong with it.
func check(b []byte) error {
	elements := uint64(0)
	for len(b) > 0 {
		major, n, size := head(b)
		if size == 0 {
			return fmt.Errorf("%w: it breaks off, or has no length", ErrMessage)
		}
		b = b[size:]
		switch major {
		case byteString, textString:
			if n > uint64(len(b)) {
				return fmt.Errorf("%w: it breaks off", ErrMessage)
			}
			b = b[n:]
		case arrayType:
			if n > maxArray {
				return fmt.Errorf("%w: it has %d of one kind", ErrMessage, n)
			}
			if elements += n; elements > maxElements {
				return fmt.Errorf("%w: it has more than %d elements", ErrMessage, maxElements)
			}
		}
	}
	return nil
}

// head returns the type at the beginning of b with its argument, and how many bytes both
// take; none if they are not all there, or the length is to be told later.
func head(b []byte) (major byte, n uint64, size int) {
	major, n = b[0]>>5, uint64(b[0]&31)
	if n < 24 {
		return major, n, 1
	}
	if n > 27 {
		return major, 0, 0
	}
	size = 1 << (n - 24)
	if len(b) <= size {
		return major, 0, 0
	}
	var whole [8]byte
	copy(whole[8-size:], b[1:1+size])
	return major, binary.BigEndian.Uint64(whole[:]), 1 + size
}
