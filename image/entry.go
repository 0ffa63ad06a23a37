package image

import "math/bits"

// L1, L2 and refcount table entries (qcow2.txt, "Cluster mapping" and "Host
// cluster management").
const (
	entryOffset     = 0x00fffffffffffe00 // host offset in L1, L2 and refcount table entries
	entryCopied     = 1 << 63            // refcount is exactly one
	entryCompressed = 1 << 62            // L2: compressed cluster descriptor
	entryZero       = 1 << 0             // L2, version 3, standard clusters: reads as zeroes
)

// clusterKind is what an L2 entry says of its cluster or subcluster.
type clusterKind uint8

const (
	unallocated  clusterKind = iota // the backing file's content, or zeroes without one
	zeroPlain                       // zeroes, nothing allocated
	zeroAlloc                       // zeroes, a host cluster is kept
	normal                          // data at a host offset
	compressed                      // data in a compressed stream
	invalidEntry                    // bits that the format forbids
)

// decodeEntry classifies a standard (not extended) L2 entry of a file of the
// given version. host is the host offset, for normal and zeroAlloc. With an
// external data file host offset 0 is valid and marked by entryCopied: see
// [File.piece].
func decodeEntry(e uint64, version uint32) (kind clusterKind, host int64) {
	if e&entryCompressed != 0 {
		return compressed, 0
	}
	host = int64(e & entryOffset)
	switch {
	case e&entryZero != 0 && version < 3:
		return invalidEntry, host
	case e&entryZero != 0 && host == 0:
		return zeroPlain, 0
	case e&entryZero != 0:
		return zeroAlloc, host
	case host == 0:
		return unallocated, 0
	}
	return normal, host
}

// decodeCompressed splits a compressed cluster descriptor: the stream begins at
// byte host of the file and ends at or before byte host+size.
func decodeCompressed(e uint64, clusterBits uint32) (host, size int64) {
	x := 62 - (clusterBits - 8) // bits of the offset
	host = int64(e & (1<<x - 1))
	sectors := int64(e>>x) & (1<<(clusterBits-8) - 1)
	return host, (sectors+1)*512 - host%512
}

// encodeCompressed is the inverse of decodeCompressed for a stream of n bytes.
func encodeCompressed(host, n int64, clusterBits uint32) uint64 {
	x := 62 - (clusterBits - 8)
	sectors := (host+n-1)/512 - host/512
	return entryCompressed | uint64(sectors)<<x | uint64(host)
}

// subclusters is the number of subclusters in a cluster with extended L2 entries.
const subclusters = 32

// decodeSubclusters classifies the subclusters of an extended L2 entry from
// index first on: kind holds for n of them. bitmap is the entry's second word.
// QEMU ignores a set zero flag of the first word here; the format forbids it.
func decodeSubclusters(e, bitmap uint64, first int) (kind clusterKind, n int) {
	if e&entryCompressed != 0 {
		return compressed, subclusters - first
	}
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	host := int64(e & entryOffset)
	noHost := host == 0 && e&entryCopied == 0 // offset 0 is valid in an external data file
	if alloc&zero != 0 || e&entryZero != 0 || alloc != 0 && noHost {
		return invalidEntry, subclusters - first
	}
	a, z := alloc>>first, zero>>first
	left := subclusters - first
	switch {
	case a&1 != 0:
		return normal, min(left, bits.TrailingZeros32(^a))
	case z&1 != 0:
		if host != 0 {
			return zeroAlloc, min(left, bits.TrailingZeros32(^z))
		}
		return zeroPlain, min(left, bits.TrailingZeros32(^z))
	}
	return unallocated, min(left, bits.TrailingZeros32(a|z))
}
