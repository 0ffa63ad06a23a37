package ext4

import (
	"bytes"
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

const (
	journalMagic = 0xc03b3998

	// Kinds of blocks.
	kindDescriptor = 1
	kindCommit     = 2
	kindSuperV1    = 3
	kindSuperV2    = 4
	kindRevoke     = 5

	// Features.
	journalChecksumV1 = 0x1 // compatible; the others are not
	journalRevoke     = 0x1
	journal64Bit      = 0x2
	journalAsync      = 0x4
	journalChecksumV2 = 0x8
	journalChecksumV3 = 0x10
	journalFast       = 0x20
	journalKnown      = journalRevoke | journal64Bit | journalAsync | journalChecksumV2 | journalChecksumV3 | journalFast

	// Flags of tags.
	tagEscaped  = 0x1
	tagSameUUID = 0x2
	tagLast     = 0x8

	maxJournalRuns = 1 << 16 // of its inode
	minLogBlocks   = 1024    // below which there is no room for fast commits
	fastBlocks     = 256     // for fast commits, where the journal does not tell
)

// journal is the log of a file system in an inode of its own ("Journal (jbd2)" in
// the kernel's documentation).
type journal struct {
	f           *fileSystem
	runs        []run  // of its inode
	first, last uint64 // the blocks of the log: [first, last)
	end         uint64 // of all blocks, fast commits included
	start       uint64 // where the oldest transaction begins; 0: there is none
	sequence    uint32 // its number
	errno       int32
	v1, sums    bool   // which checksums there are: of transactions, of blocks
	incompat    uint32 // features
	seed        uint32 // of checksums
	tagSize     int    // bytes
}

// openJournal opens the journal, which needs not hold anything.
func (f *fileSystem) openJournal() (*journal, error) {
	in, err := f.inode(fsys.ID(f.super.journalInode))
	if err != nil {
		return nil, err
	}
	if !in.is(typeFile) || in.has(flagInlineData|flagEncrypt) {
		return nil, corruptf("inode %d cannot be a journal", in.number)
	}
	j := &journal{f: f, end: f.blocks(in)}
	b, err := j.super(in)
	if err != nil {
		return nil, err
	}
	if err := j.parseSuper(b); err != nil {
		return nil, err
	}
	if j.start == 0 {
		return j, nil
	}
	return j, j.locate(in)
}

// super reads the superblock of the journal.
func (j *journal) super(in *inode) ([]byte, error) {
	if in.size < j.f.super.blockSize {
		return nil, corruptf("a journal of %d bytes", in.size)
	}
	b := make([]byte, superSize)
	_, err := j.f.readAt(in, b, 0)
	return b, err
}

func (j *journal) parseSuper(b []byte) error {
	kind := be.Uint32(b[4:])
	if be.Uint32(b) != journalMagic || kind != kindSuperV1 && kind != kindSuperV2 {
		return corruptf("its superblock begins with %x", b[:12])
	}
	blocks := uint64(be.Uint32(b[0x10:]))
	j.first, j.last = uint64(be.Uint32(b[0x14:])), blocks
	j.sequence, j.start, j.errno = be.Uint32(b[0x18:]), uint64(be.Uint32(b[0x1c:])), int32(be.Uint32(b[0x20:]))
	if size := int64(be.Uint32(b[0xc:])); size != j.f.super.blockSize {
		return corruptf("its blocks are said to have %d bytes", size)
	}
	if blocks > j.end || j.first == 0 || j.first >= blocks {
		return corruptf("it is said to have %d blocks of %d, from %d", blocks, j.end, j.first)
	}
	j.end = blocks
	j.tagSize = 8
	if kind == kindSuperV2 {
		if err := j.parseFeatures(b); err != nil {
			return err
		}
	}
	if j.start != 0 && (j.start < j.first || j.start >= j.last) {
		return corruptf("it is said to begin at block %d of %d", j.start, j.last)
	}
	return nil
}

func (j *journal) parseFeatures(b []byte) error {
	j.incompat = be.Uint32(b[0x28:])
	if unknown := j.incompat &^ journalKnown; unknown != 0 {
		return unsupportedf("features 0x%x", unknown)
	}
	j.v1 = be.Uint32(b[0x24:])&journalChecksumV1 != 0
	v2, v3 := j.incompat&journalChecksumV2 != 0, j.incompat&journalChecksumV3 != 0
	j.sums = v2 || v3
	switch {
	case j.sums && (v2 && v3 || j.v1):
		return corruptf("it has checksums of more than one kind")
	case v3:
		j.tagSize = 16
	case v2:
		j.tagSize += 2
	}
	if j.incompat&journal64Bit != 0 && !v3 {
		j.tagSize += 4
	}
	if j.sums {
		const crc32cType = 4
		if b[0x50] != crc32cType {
			return unsupportedf("checksums of type %d", b[0x50])
		}
		j.seed = crc32c(^uint32(0), b[0x30:0x40])
		c := bytes.Clone(b)
		clear(c[0xfc:0x100])
		if got, want := crc32c(^uint32(0), c), be.Uint32(b[0xfc:]); got != want {
			return corruptf("the checksum of its superblock is 0x%x instead of 0x%x", got, want)
		}
	}
	if j.incompat&journalFast != 0 {
		n := uint64(be.Uint32(b[0x54:]))
		if n == 0 {
			n = fastBlocks
		}
		if n+minLogBlocks <= j.last {
			j.last -= n
		}
	}
	return nil
}

// locate works out where the blocks of the journal lie.
func (j *journal) locate(in *inode) error {
	var bad error
	err := j.f.eachRun(in, 0, j.end, func(r run) bool {
		if r.at == 0 {
			bad = corruptf("it has no block %d", r.first)
		} else if j.runs = appendRun(j.runs, r); len(j.runs) > maxJournalRuns {
			bad = unsupportedf("it lies in more than %d pieces", maxJournalRuns)
		}
		return bad == nil
	})
	if bad != nil {
		return bad
	}
	return err
}

// at returns where a block of the journal lies, in blocks of the volume.
func (j *journal) at(n uint64) uint64 {
	low, high := 0, len(j.runs)
	for high-low > 1 {
		if mid := (low + high) / 2; j.runs[mid].first > n {
			high = mid
		} else {
			low = mid
		}
	}
	return j.runs[low].at + n - j.runs[low].first
}

func (j *journal) read(n uint64) ([]byte, error) {
	b, err := j.f.readBlock(j.at(n))
	if err != nil {
		return nil, fmt.Errorf("read block %d: %w", n, err)
	}
	return b, nil
}

// advance returns the block n blocks after another of the log, which is a ring.
func (j *journal) advance(block, n uint64) uint64 {
	return j.first + (block-j.first+n)%(j.last-j.first)
}

// tag says to which block of the file system one of the journal belongs.
type tag struct {
	block    uint64
	flags    uint32
	checksum uint32 // lower bits only, in the second kind
}

// tags returns those of a descriptor.
func (j *journal) tags(b []byte) (tags []tag) {
	end := len(b)
	if j.sums {
		end -= 4
	}
	for at := 12; at+j.tagSize <= end; {
		t, p := tag{block: uint64(be.Uint32(b[at:]))}, b[at:at+j.tagSize]
		if j.incompat&journalChecksumV3 != 0 {
			t.flags, t.checksum = be.Uint32(p[4:]), be.Uint32(p[12:])
		} else {
			t.flags, t.checksum = uint32(be.Uint16(p[6:])), uint32(be.Uint16(p[4:]))
		}
		if j.incompat&journal64Bit != 0 {
			t.block |= uint64(be.Uint32(p[8:])) << 32
		}
		tags = append(tags, t)
		if at += j.tagSize; t.flags&tagSameUUID == 0 {
			at += 16
		}
		if t.flags&tagLast != 0 {
			break
		}
	}
	return tags
}

// tailSum says whether a descriptor or a block of revocations matches the checksum
// at its end.
func (j *journal) tailSum(b []byte) bool {
	if !j.sums {
		return true
	}
	n := len(b) - 4
	return crc32c(crc32c(j.seed, b[:n]), make([]byte, 4)) == be.Uint32(b[n:])
}

// commitSum says whether a commit matches its own checksum, or would if all that
// follows its fields were zeroes.
func (j *journal) commitSum(b []byte) bool {
	const fields, sum = 60, 16
	c := bytes.Clone(b)
	clear(c[sum : sum+4])
	want := be.Uint32(b[sum:])
	if crc32c(j.seed, c) == want {
		return true
	}
	clear(c[fields:])
	return crc32c(j.seed, c) == want
}

// dataSum says whether a block as it lies in the journal matches the checksum of its
// tag.
func (j *journal) dataSum(t tag, sequence uint32, b []byte) bool {
	sum := crc32c(crc32c(j.seed, be.AppendUint32(nil, sequence)), b)
	if j.incompat&journalChecksumV3 == 0 {
		sum &= 0xffff
	}
	return sum == t.checksum
}
