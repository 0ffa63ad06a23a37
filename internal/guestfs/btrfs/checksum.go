package btrfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"
)

// checksum is the algorithm that a file system uses for tree blocks and for data.
type checksum struct {
	name string
	size int // bytes
	sum  func(b []byte) []byte
}

// checksums are the algorithms by their number in the superblock.
var checksums = []checksum{
	{"crc32c", 4, func(b []byte) []byte {
		return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
	}},
	{"xxhash64", 8, func(b []byte) []byte { return binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(b)) }},
	{"sha256", 32, func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }},
	{"blake2b", 32, func(b []byte) []byte { s := blake2b.Sum256(b); return s[:] }},
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// matches says whether want, of which there may be more than the algorithm gives,
// is the checksum of b.
func (c checksum) matches(b, want []byte) bool { return bytes.Equal(c.sum(b), want[:c.size]) }

// rawCRC is CRC-32C without the inversions at its beginning and end.
func rawCRC(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// nameHash is the offset of the key of a directory item or an extended attribute.
func nameHash(name []byte) uint64 { return uint64(rawCRC(^uint32(1), name)) }

// refHash is the offset of the key of an extended inode reference.
func refHash(parent uint64, name []byte) uint64 { return uint64(rawCRC(uint32(parent), name)) }
