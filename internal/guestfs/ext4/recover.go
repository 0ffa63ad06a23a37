package ext4

import (
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// What is kept of a journal in memory, at most.
const (
	maxLogged  = 2 << 20 // blocks
	maxRevoked = 1 << 20
)

// recovery is what a journal holds.
type recovery struct {
	replayed     bool // there was something
	blocks       []logged
	transactions int
	cut          uint32 // first transaction that does not match its checksum; 0: all do
	fast         int    // commits that were not replayed
	errno        int32
}

// recover goes through the log as the kernel does: it looks for the end, gathers
// which blocks are revoked, and then where the last content of each block lies.
func (j *journal) recover() (recovery, error) {
	r := recovery{errno: j.errno}
	if j.start == 0 {
		return r, nil
	}
	r.replayed = true
	end, err := j.scan(&r)
	if err != nil {
		return r, err
	}
	r.transactions = int(end - j.sequence)
	revoked, err := j.revocations(end)
	if err != nil {
		return r, err
	}
	if r.blocks, err = j.replay(end, revoked); err != nil {
		return r, err
	}
	r.fast, err = j.fastCommits(end)
	return r, err
}

// scan returns the number of the transaction that is not complete.
func (j *journal) scan(r *recovery) (end uint32, err error) {
	sum := ^uint32(0)        // of the transaction so far
	var last uint64          // time of the last commit, in seconds
	doubtful := false        // a block does not match its checksum
	left := j.last - j.first // blocks of the ring not yet seen
	sequence, at := j.sequence, j.start
	for left > 0 {
		b, err := j.read(at)
		if err != nil {
			return 0, err
		}
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != sequence {
			break
		}
		at, left = j.advance(at, 1), left-1
		switch be.Uint32(b[4:]) {
		case kindDescriptor:
			n := uint64(len(j.tags(b)))
			doubtful = doubtful || !j.tailSum(b)
			if sum, err = j.sumUp(sum, b, at, min(n, left)); err != nil {
				return 0, err
			}
			at, left = j.advance(at, n), left-min(n, left)
		case kindRevoke:
			doubtful = doubtful || !j.tailSum(b)
		case kindCommit:
			now := be.Uint64(b[0x30:])
			switch {
			case now < last && (doubtful || !j.committed(b, sum)):
				return sequence, nil // what is left of older times
			case doubtful:
				return 0, corruptf("transaction %d does not match its checksums; open without the journal to see the state before", sequence)
			case !j.committed(b, sum):
				r.cut = sequence
				return sequence, nil
			}
			sequence, last, sum = sequence+1, now, ^uint32(0)
		default:
			return sequence, nil
		}
	}
	return sequence, nil
}

// sumUp goes on with the checksum of a transaction over a descriptor, and the n
// blocks that follow it from at.
func (j *journal) sumUp(sum uint32, descriptor []byte, at, n uint64) (uint32, error) {
	if !j.v1 {
		return sum, nil
	}
	sum = crc32be(sum, descriptor)
	for i := range n {
		b, err := j.read(j.advance(at, i))
		if err != nil {
			return 0, err
		}
		sum = crc32be(sum, b)
	}
	return sum, nil
}

// committed says whether a commit matches its checksum, or that of its transaction.
func (j *journal) committed(b []byte, sum uint32) bool {
	switch {
	case j.sums:
		return j.commitSum(b)
	case j.v1:
		const crc32Type, crc32Size = 1, 4
		kind, size, found := b[12], b[13], be.Uint32(b[16:])
		return kind == crc32Type && size == crc32Size && found == sum || kind == 0 && size == 0 && found == 0
	}
	return true
}

// each calls visit for the blocks of all transactions up to end but commits and what
// descriptors tell of, with the place after the block.
func (j *journal) each(end uint32, visit func(kind, sequence uint32, b []byte, after uint64) error) error {
	left := j.last - j.first
	for sequence, at := j.sequence, j.start; sequence != end; {
		b, err := j.read(at)
		if err != nil {
			return err
		}
		if left == 0 || be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != sequence {
			return corruptf("it ends in transaction %d instead of %d", sequence, end)
		}
		at, left = j.advance(at, 1), left-1
		kind := be.Uint32(b[4:])
		if kind == kindCommit {
			sequence++
			continue
		}
		if err := visit(kind, sequence, b, at); err != nil {
			return err
		}
		if kind == kindDescriptor {
			n := uint64(len(j.tags(b)))
			at, left = j.advance(at, n), left-min(n, left)
		}
	}
	return nil
}

// revocations returns for each revoked block the last transaction that did so: what
// that one and those before it have of the block is not replayed.
func (j *journal) revocations(end uint32) (map[uint64]uint32, error) {
	revoked := map[uint64]uint32{}
	size := 4
	if j.incompat&journal64Bit != 0 {
		size = 8
	}
	err := j.each(end, func(kind, sequence uint32, b []byte, _ uint64) error {
		if kind != kindRevoke {
			return nil
		}
		used, room := uint64(be.Uint32(b[12:])), uint64(len(b))
		if j.sums {
			room -= 4
		}
		if used > room {
			return corruptf("transaction %d revokes %d bytes of blocks", sequence, used)
		}
		for at := 16; uint64(at+size) <= used; at += size {
			block := uint64(be.Uint32(b[at:]))
			if size == 8 {
				block = be.Uint64(b[at:])
			}
			revoked[block] = sequence
		}
		if len(revoked) > maxRevoked {
			return unsupportedf("it revokes more than %d blocks", maxRevoked)
		}
		return nil
	})
	return revoked, err
}

// replay returns where the last content of each block lies.
func (j *journal) replay(end uint32, revoked map[uint64]uint32) (blocks []logged, err error) {
	err = j.each(end, func(kind, sequence uint32, b []byte, after uint64) error {
		if kind != kindDescriptor {
			return nil
		}
		for i, t := range j.tags(b) {
			if last, ok := revoked[t.block]; ok && int32(sequence-last) <= 0 {
				continue
			}
			at := j.advance(after, uint64(i))
			if err := j.checkData(t, sequence, at); err != nil {
				return err
			}
			blocks = append(blocks, logged{block: t.block, at: j.at(at), escaped: t.flags&tagEscaped != 0})
		}
		if len(blocks) > maxLogged {
			if blocks = latest(blocks); len(blocks) > maxLogged/2 {
				return unsupportedf("it holds more than %d blocks", maxLogged/2)
			}
		}
		return nil
	})
	return latest(blocks), err
}

// checkData checks a block that is to be replayed.
func (j *journal) checkData(t tag, sequence uint32, at uint64) error {
	if t.block >= j.f.super.blocks {
		return corruptf("transaction %d has block %d of %d", sequence, t.block, j.f.super.blocks)
	}
	if !j.sums {
		return nil
	}
	b, err := j.read(at)
	if err != nil {
		return err
	}
	if !j.dataSum(t, sequence, b) {
		return corruptf("block %d in transaction %d does not match its checksum", t.block, sequence)
	}
	return nil
}

// Tags of fast commits.
const (
	fastTail = 8
	fastHead = 9
)

// fastCommits counts those that go on from the transactions of the log ("Fast
// commits" in the kernel's documentation).
func (j *journal) fastCommits(transaction uint32) (n int, err error) {
	if j.incompat&journalFast == 0 {
		return 0, nil
	}
	sum := uint32(0)
	for at := j.last + 1; at < j.end; at++ {
		b, err := j.read(at)
		if err != nil {
			return n, err
		}
		if at == j.last+1 && le.Uint16(b) != fastHead {
			return 0, nil
		}
		for len(b) >= 4 {
			kind, size := le.Uint16(b), int(le.Uint16(b[2:]))
			if kind == 0 || kind > fastHead || size+4 > len(b) || (kind == fastHead || kind == fastTail) && size < 8 {
				return n, nil
			}
			value := b[4 : 4+size]
			switch kind {
			case fastHead:
				if le.Uint32(value[4:]) != transaction {
					return n, nil
				}
				fallthrough
			default:
				sum = crc32c(sum, b[:4+size])
			case fastTail:
				sum = crc32c(sum, b[:8])
				if le.Uint32(value) != transaction || le.Uint32(value[4:]) != sum {
					return n, nil
				}
				n, sum = n+1, 0
			}
			b = b[4+size:]
		}
	}
	return n, nil
}

var _ fsys.Volume = (*overlay)(nil)
