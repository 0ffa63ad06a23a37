package xfs

import (
	"encoding/binary"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// maxUncommitted bounds what is kept of transactions until they are committed, in
// bytes.
const maxUncommitted = 128 << 20

// regionOverhead is what a region costs beside its bytes.
const regionOverhead = 64

// replay applies a log to an overlay. It goes through the log twice: what the
// first pass finds freed, the second does not write to (Log Recovery).
type replay struct {
	*super
	journal   *journal
	over      *overlay
	pending   pending
	committed int
	second    bool // pass
	open      map[uint32]*transaction
	bytes     int
	cancelled map[int64]map[uint16]int // by sector and length: how often a buffer was freed
}

// transaction is what was logged and not yet committed.
type transaction struct {
	lsn    uint64
	header raw
	items  []*item
	bytes  int
}

// item is a log item: regions, the first of which says what it is.
type item struct {
	kind    uint16
	total   int // regions
	regions []raw
}

// replayLog reads the log and replays it, unless the file system was unmounted
// or the log never used: then it returns nil.
func replayLog(s *super, v fsys.Volume) (*replay, error) {
	j, err := openJournal(s, v)
	if err != nil {
		return nil, err
	}
	used, err := j.findHead()
	if err != nil || !used {
		return nil, err
	}
	last, err := j.lastRecord(min(maxRecord, j.sectors-1))
	if err != nil {
		return nil, err
	}
	if last != nil {
		if clean, err := j.clean(last); err != nil || clean {
			return nil, err
		}
	}
	if last, err = j.trim(); err != nil {
		return nil, err
	}
	if clean, err := j.clean(last); err != nil || clean {
		return nil, err
	}
	r := &replay{super: s, journal: j, over: newOverlay(v, s.blockLog), cancelled: map[int64]map[uint16]int{}}
	r.pending = pending{intents: map[intent][]uint64{}, reowned: map[uint64]bool{}}
	return r, r.run(last)
}

// run goes through the log twice, from the oldest record that matters to the head.
func (r *replay) run(last *record) error {
	if r.logIncompat&^logKnown != 0 {
		return damaged("log features %#x are not known", r.logIncompat)
	}
	for _, second := range []bool{false, true} {
		r.second, r.open, r.bytes = second, map[uint32]*transaction{}, 0
		if err := r.pass(last); err != nil {
			return err
		}
	}
	r.pending.finish()
	if !r.over.touches(0, logSector) {
		return nil
	}
	// Labels and features may have been changed; sizes were not, or there would
	// be buffers beyond the end.
	s, err := parseSuper(r.over, false)
	if err != nil {
		return damaged("the superblock in it: %v", err)
	}
	r.super = s
	return nil
}

func (r *replay) pass(last *record) error {
	j := r.journal
	sector, cycle := int64(uint32(last.tail)), uint32(last.tail>>32)
	if sector >= j.sectors || cycle != last.cycle && (cycle != last.cycle-1 || sector <= last.sector) || cycle == last.cycle && sector > last.sector {
		return damaged("the oldest record is said to be at %d of cycle %d", sector, cycle)
	}
	for left := (last.sector + last.sectors() - sector + j.sectors - 1) % j.sectors; left >= 0; {
		rec, b, err := j.record(sector, cycle)
		if err != nil {
			return err
		}
		if err := r.record(rec, rec.unpack(b)); err != nil {
			return err
		}
		left -= rec.sectors()
		if sector += rec.sectors(); sector >= j.sectors {
			sector, cycle = sector-j.sectors, cycle+1
		}
	}
	return nil
}

// record reads the record at a sector.
func (j *journal) record(sector int64, cycle uint32) (*record, raw, error) {
	b, err := j.read(sector, 1)
	if err != nil {
		return nil, nil, err
	}
	rec, ok := j.parseRecord(b, sector)
	if !ok || rec.cycle != cycle {
		return nil, nil, damaged("no record at sector %d of cycle %d", sector, cycle)
	}
	if rec.hostOrder != 1 || rec.fsID != j.uuid {
		return nil, nil, damaged("the record at sector %d is of another file system, or another kind of machine", sector)
	}
	if b, err = j.read(sector, rec.sectors()); err != nil {
		return nil, nil, err
	}
	if !j.intact(rec, b) {
		return nil, nil, damaged("the record at sector %d has another checksum", sector)
	}
	return rec, b, nil
}

// record takes the operations of a record (Log Operations).
func (r *replay) record(rec *record, data raw) error {
	for range rec.operations {
		if len(data) < 12 {
			return damaged("operations of the record at sector %d", rec.sector)
		}
		id, n, client, flags := data.u32(0), uint64(data.u32(4)), data[8], data[9]
		data = data[12:]
		if n > uint64(len(data)) || client != 0x69 && client != 0xaa {
			return damaged("an operation of %d bytes in the record at sector %d", n, rec.sector)
		}
		if err := r.operation(rec, id, flags, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (r *replay) operation(rec *record, id uint32, flags uint8, region raw) error {
	t := r.open[id]
	if t == nil {
		// What began before the oldest record is written back.
		if flags&opStart != 0 {
			r.open[id] = &transaction{lsn: rec.lsn}
			r.bytes += regionOverhead
		}
		return r.bounded()
	}
	if flags &^= opEnd; flags&opContinued != 0 {
		flags &^= opContinue
	}
	switch flags {
	case opCommit:
		delete(r.open, id)
		r.bytes -= t.bytes + regionOverhead
		return r.commit(t)
	case opUnmount:
		delete(r.open, id)
		r.bytes -= t.bytes + regionOverhead
		return nil
	case 0, opContinue:
		return r.add(t, region)
	case opContinued:
		return r.extend(t, region)
	}
	return damaged("an operation with flags %#x", flags)
}

func (r *replay) bounded() error {
	if r.bytes > maxUncommitted {
		return errTooLarge
	}
	return nil
}

// take accounts for bytes that a transaction keeps.
func (r *replay) take(t *transaction, n int) error {
	t.bytes += n + regionOverhead
	r.bytes += n + regionOverhead
	return r.bounded()
}

const (
	magicTransaction = 0x5452414e // TRAN
	transactionHead  = 16
	maxRegions       = 4096
)

// add takes a region: the header of the transaction, or one of an item.
func (r *replay) add(t *transaction, region raw) error {
	if len(region) == 0 {
		return nil
	}
	if err := r.take(t, len(region)); err != nil {
		return err
	}
	if len(t.header) < transactionHead {
		if len(t.header) != 0 || len(region) > transactionHead || len(region) < 4 || binary.LittleEndian.Uint32(region) != magicTransaction {
			return damaged("a transaction begins with %d bytes", len(region))
		}
		t.header = slices.Clone(region)
		return nil
	}
	region = slices.Clone(region)
	if n := len(t.items); n > 0 && len(t.items[n-1].regions) < t.items[n-1].total {
		t.items[n-1].regions = append(t.items[n-1].regions, region)
		return nil
	}
	if len(region) < 4 {
		return damaged("a log item of %d bytes", len(region))
	}
	it := &item{kind: binary.LittleEndian.Uint16(region), total: int(binary.LittleEndian.Uint16(region[2:])), regions: []raw{region}}
	if it.total == 0 || it.total > maxRegions {
		return damaged("a log item of %d regions", it.total)
	}
	t.items = append(t.items, it)
	return nil
}

// extend takes the rest of a region that began in an earlier record.
func (r *replay) extend(t *transaction, region raw) error {
	if err := r.take(t, len(region)); err != nil {
		return err
	}
	if len(t.items) == 0 {
		if len(t.header)+len(region) > transactionHead {
			return damaged("a transaction begins with %d bytes", len(t.header)+len(region))
		}
		t.header = append(t.header, region...)
		return nil
	}
	it := t.items[len(t.items)-1]
	last := &it.regions[len(it.regions)-1]
	*last = append(*last, region...)
	return nil
}

// commit does what a transaction says, in the order of dependence: buffers,
// inodes and intents, then what was freed.
func (r *replay) commit(t *transaction) error {
	for _, it := range t.items {
		if len(it.regions) != it.total {
			return damaged("a log item of %d regions has %d", it.total, len(it.regions))
		}
	}
	if !r.second {
		return r.note(t)
	}
	r.committed++
	for stage := range stages {
		for _, it := range t.items {
			if stageOf(it) != stage {
				continue
			}
			if err := r.apply(t, it); err != nil {
				return err
			}
		}
	}
	return nil
}
