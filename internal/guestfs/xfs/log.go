package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// The log is a ring of sectors of 512 bytes, whatever those of the device are
// (Journaling Log). Each time around is a cycle, which every sector begins with.
const (
	logSector     = 512
	magicRecord   = 0xfeedbabe
	maxLogSectors = 1 << 31 / logSector
	// maxRecord and maxInFlight bound a record, in sectors, and how many may not
	// have been written completely.
	maxRecord   = (256<<10 + 8<<9) / logSector
	maxInFlight = 8
	window      = maxInFlight * maxRecord
	// headerCovers is how many sectors one header saves the beginnings of.
	headerCovers = 64
)

// Flags of operations in a record (Log Operations).
const (
	opStart     = 0x01
	opCommit    = 0x02
	opContinue  = 0x04
	opContinued = 0x08
	opEnd       = 0x10
	opUnmount   = 0x20
)

// errLog is wrapped by what is wrong with a log.
var errLog = errors.New("the log is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errLog, fmt.Sprintf(format, args...))
}

// journal reads the log.
type journal struct {
	*super
	vol     fsys.Volume
	at      int64 // of its first sector on the volume, in bytes
	sectors int64
	head    int64 // sector after the last record
	cycle   uint32
}

// openJournal finds the log.
func openJournal(s *super, v fsys.Volume) (*journal, error) {
	if s.logStart == 0 {
		return nil, errors.New("the log is on another device")
	}
	at, ok := s.blockAt(s.logStart, s.logBlocks)
	j := &journal{super: s, vol: v, at: at, sectors: int64(s.logBlocks) << s.blockLog / logSector}
	if !ok || j.sectors < 2 || j.sectors > maxLogSectors {
		return nil, damaged("%d blocks at block %d", s.logBlocks, s.logStart)
	}
	return j, nil
}

// read returns n sectors from one, around the end.
func (j *journal) read(sector, n int64) (raw, error) {
	if n > j.sectors || sector < 0 || sector >= j.sectors {
		return nil, damaged("%d sectors at %d of %d", n, sector, j.sectors)
	}
	b := make(raw, n*logSector)
	first := min(n, j.sectors-sector) * logSector
	if err := j.vol.ReadAt(b[:first], j.at+sector*logSector); err != nil {
		return nil, err
	}
	return b, j.vol.ReadAt(b[first:], j.at)
}

// cycleOf returns the cycle that a sector was written in.
func cycleOf(b raw) uint32 {
	if c := b.u32(0); c != magicRecord {
		return c
	}
	return b.u32(4)
}

func (j *journal) cycleAt(sector int64) (uint32, error) {
	b, err := j.read(sector, 1)
	if err != nil {
		return 0, err
	}
	return cycleOf(b), nil
}

// back returns the sector n before another.
func (j *journal) back(sector, n int64) int64 { return ((sector-n)%j.sectors + j.sectors) % j.sectors }

// findHead finds where the newest cycle ends and the one before it begins. It
// returns false for a log that was never written.
func (j *journal) findHead() (bool, error) {
	first, err := j.cycleAt(0)
	if err != nil {
		return false, err
	}
	last, err := j.cycleAt(j.sectors - 1)
	if err != nil || first == 0 && last == 0 {
		return false, err
	}
	// The sector before low is of a newer cycle than the last sector; that at high is not.
	low, high := int64(1), j.sectors-1
	if first == last {
		low = j.sectors
	}
	for low < high {
		mid := (low + high) / 2
		c, err := j.cycleAt(mid)
		if err != nil {
			return false, err
		}
		if c == last {
			high = mid
		} else {
			low = mid + 1
		}
	}
	j.head = low % j.sectors
	j.cycle, err = j.cycleAt(j.back(j.head, 1))
	return true, err
}

// record is the header of a record (Log Records), and where it lies.
type record struct {
	sector      int64
	cycle       uint32
	headers     int64 // sectors
	data        int64 // bytes
	lsn, tail   uint64
	crc         uint32
	operations  uint32
	hostOrder   uint32
	fsID        [16]byte
	dataSectors int64
}

func (r *record) sectors() int64 { return r.headers + r.dataSectors }

// parseRecord decodes the header that begins with a sector, if there is one.
func (j *journal) parseRecord(b raw, sector int64) (*record, bool) {
	if b.u32(0) != magicRecord {
		return nil, false
	}
	r := &record{
		sector: sector, cycle: b.u32(4), data: int64(b.u32(12)), lsn: b.u64(16), tail: b.u64(24), crc: binary.LittleEndian.Uint32(b[32:]),
		operations: b.u32(40), hostOrder: b.u32(300), fsID: [16]byte(b[304:]), headers: 1,
	}
	r.dataSectors = (r.data + logSector - 1) / logSector
	switch version, size := b.u32(8), int64(b.u32(320)); {
	case version != 1 && version != 2, r.lsn != uint64(r.cycle)<<32|uint64(sector):
		return nil, false
	case version == 2 && size > headerCovers*logSector:
		r.headers = (size + headerCovers*logSector - 1) / (headerCovers * logSector)
	}
	if r.headers > 8 || r.dataSectors == 0 || r.sectors() > maxRecord || r.dataSectors > r.headers*headerCovers || r.sectors() > j.sectors {
		return nil, false
	}
	return r, true
}

// Sizes of headers as far as checksums cover them: the first one as 64-bit and as
// 32-bit kernels have it, and further ones.
const (
	headerSize64  = 328
	headerSize32  = 324
	headerSizeExt = 260
)

// whole returns whether a record was written completely. The one that mkfs writes
// has no checksum.
func (j *journal) whole(r *record, b raw) bool { return r.crc == 0 || j.intact(r, b) }

// intact returns whether the checksum of a record is right; b are its sectors.
// Version 4 may have none.
func (j *journal) intact(r *record, b raw) bool {
	if r.crc == 0 && !j.v5 {
		return true
	}
	for _, size := range []int{headerSize64, headerSize32} {
		crc := crc32.Update(0, castagnoli, b[:32])
		crc = crc32.Update(crc, castagnoli, make([]byte, 4))
		crc = crc32.Update(crc, castagnoli, b[36:size])
		for i := int64(1); i < (r.data+headerCovers*logSector-1)/(headerCovers*logSector); i++ {
			crc = crc32.Update(crc, castagnoli, b[i*logSector:i*logSector+headerSizeExt])
		}
		if crc32.Update(crc, castagnoli, b[r.headers*logSector:r.headers*logSector+r.data]) == r.crc {
			return true
		}
	}
	return false
}

// unpack puts back the beginnings of sectors, which the cycle took the place of,
// and returns the data of a record.
func (r *record) unpack(b raw) raw {
	data := b[r.headers*logSector:]
	for i := range r.dataSectors {
		saved := b[44+4*i:]
		if i >= headerCovers {
			saved = b[i/headerCovers*logSector+4+4*(i%headerCovers):]
		}
		copy(data[i*logSector:i*logSector+4], saved[:4])
	}
	return data[:r.data]
}

// clean returns whether the last record says that the file system was unmounted.
func (j *journal) clean(r *record) (bool, error) {
	if r.operations != 1 || (r.sector+r.sectors())%j.sectors != j.head {
		return false, nil
	}
	b, err := j.read(r.sector, r.sectors())
	if err != nil || !j.whole(r, b) {
		return false, err
	}
	data := r.unpack(b)
	return len(data) >= 12 && data[9]&opUnmount != 0, nil
}

// lastRecord looks for the last record that begins before the head, at most n
// sectors back.
func (j *journal) lastRecord(n int64) (*record, error) {
	const step = 64
	for done := int64(0); done < n; done += step {
		count := min(step, n-done)
		from := j.back(j.head, done+count)
		b, err := j.read(from, count)
		if err != nil {
			return nil, err
		}
		for i := count - 1; i >= 0; i-- {
			if r, ok := j.parseRecord(b[i*logSector:], (from+i)%j.sectors); ok {
				return r, nil
			}
		}
	}
	return nil, nil
}

// trim moves the head back to before what was not written completely when power
// was lost, and returns the last record that was (Log Recovery).
func (j *journal) trim() (*record, error) {
	n := min(window, j.sectors-1)
	from := j.back(j.head, n)
	b, err := j.read(from, n)
	if err != nil {
		return nil, err
	}
	// A sector of the cycle before is one that was not written any more.
	for i := range n {
		sector := (from + i) % j.sectors
		stale := j.cycle - 1
		if j.head != 0 && sector >= j.head {
			stale--
		}
		if cycleOf(b[i*logSector:]) == stale {
			j.head, n = sector, i
			break
		}
	}
	// Only so many records are in flight at a time: one before them that is damaged
	// was written once.
	first := n
	for i, found := n-1, 0; i >= 0 && found < maxInFlight; i-- {
		if b[i*logSector:].u32(0) == magicRecord {
			first, found = i, found+1
		}
	}
	var last *record
	for i := first; i < n; i++ {
		r, ok := j.parseRecord(b[i*logSector:], (from+i)%j.sectors)
		if !ok && b[i*logSector:].u32(0) != magicRecord {
			continue
		}
		if !ok || i+r.sectors() > n || !j.whole(r, b[i*logSector:(i+r.sectors())*logSector]) {
			j.head = (from + i) % j.sectors
			if last == nil {
				return j.lastBefore(b, from, i)
			}
			break
		}
		last = r
		i += r.sectors() - 1
	}
	if last == nil {
		return nil, damaged("no record in front of sector %d", j.head)
	}
	return last, nil
}

// lastBefore returns the last record of those that begin before the n-th sector of b,
// which begins with sector from.
func (j *journal) lastBefore(b raw, from, n int64) (*record, error) {
	for i := n - 1; i >= 0; i-- {
		if r, ok := j.parseRecord(b[i*logSector:], (from+i)%j.sectors); ok && i+r.sectors() == n {
			return r, nil
		}
	}
	return nil, damaged("no record in front of sector %d", j.head)
}
