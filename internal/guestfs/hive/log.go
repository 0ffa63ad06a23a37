package hive

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Types of files, as base blocks have them.
const (
	kindOldLog  = 1
	kindOldLog2 = 2
	kindLog     = 6
)

// page is the unit in which a log replaces what is in a hive, in bytes.
const page = 512

// maxLog is how long a log may be that is read, in bytes: Windows writes it back to
// the hive long before.
const maxLog = 256 << 20

// dirtyLog is a log of a hive.
type dirtyLog struct {
	file   fsys.Volume
	number int // in the overlay
	base   base
}

// recover replays the logs of a hive whose base block says that it is dirty. What
// cannot be replayed is noted.
func (h *Hive) recover(b base, file fsys.Volume, logs []fsys.Volume) error {
	o := &overlay{files: append([]fsys.Volume{file}, logs...), size: file.Size(), pages: map[int64]source{}}
	var list []dirtyLog
	for i, f := range logs {
		if f.Size() > maxLog {
			h.notes = append(h.notes, fmt.Sprintf("A log of %d bytes is too large to be replayed.", f.Size()))
			continue
		}
		l, err := readBase(f)
		if err == nil && l.sound {
			list = append(list, dirtyLog{f, i + 1, l})
		}
	}
	if !b.sound {
		// Its copy in the log that was written last takes its place.
		last := slices.MaxFunc(append(list, dirtyLog{}), func(x, y dirtyLog) int { return cmp.Compare(x.base.primary, y.base.primary) })
		if last.file == nil {
			return fmt.Errorf("base block with a wrong checksum, and no log that has a copy: %w", fsys.ErrCorrupt)
		}
		h.root, h.size = last.base.root, last.base.size
		b.primary, b.written = last.base.primary, 0
		if last.base.kind != kindLog {
			b.written = last.base.written
		}
	}
	applied, err := h.replay(b, list, o)
	if err != nil {
		return err
	}
	if !applied {
		h.notes = append(h.notes, "It was being written, and has no log that applies: its last changes may be missing, or be there in part.")
		return nil
	}
	h.vol = o
	return nil
}

// replay puts what the logs that apply hold into o.
func (h *Hive) replay(b base, logs []dirtyLog, o *overlay) (applied bool, err error) {
	var entries []logEntry
	for _, l := range logs {
		switch l.base.kind {
		case kindLog:
			list, err := readEntries(l)
			if err != nil {
				return false, err
			}
			entries = append(entries, list...)
		case kindOldLog, kindOldLog2:
			// Of these one applies as a whole ("Multiple transaction log files").
			if l.base.primary == l.base.secondary && l.base.written == b.written && !applied {
				if applied, err = h.replayOld(l, o); err != nil {
					return false, err
				}
			}
		}
	}
	// Those that the hive has already are left out, and those behind a gap.
	entries = slices.DeleteFunc(entries, func(e logEntry) bool { return int32(e.sequence-b.primary) < 0 })
	slices.SortStableFunc(entries, func(x, y logEntry) int { return cmp.Compare(int32(x.sequence-b.primary), int32(y.sequence-b.primary)) })
	for i, e := range entries {
		if i > 0 && e.sequence == entries[i-1].sequence {
			continue
		}
		if i > 0 && e.sequence != entries[i-1].sequence+1 {
			h.notes = append(h.notes, "Its logs have a gap; what they hold behind that is left out.")
			break
		}
		for _, d := range e.pages {
			o.put(baseBytes+d.to, source{e.log, d.from}, d.n)
		}
		h.size, applied = e.size, true
	}
	o.size = max(o.size, baseBytes+h.size)
	return applied, nil
}

// logEntry is one transaction of a log.
type logEntry struct {
	log      int
	sequence uint32
	size     int64 // of the hive's bins, when it has been applied
	pages    []dirty
}

// dirty is a run of bytes of a log that belongs into the hive.
type dirty struct{ from, to, n int64 }

// readEntries reads the entries of a log ("Log entries"), up to the first that is not
// sound or does not follow the one before: what comes then is of an earlier round.
func readEntries(l dirtyLog) ([]logEntry, error) {
	var list []logEntry
	for at := int64(page); at+40 <= l.file.Size(); {
		e, n, err := readEntry(l.file, at)
		e.log = l.number
		if errors.Is(err, fsys.ErrCorrupt) || err == nil && len(list) > 0 && e.sequence != list[len(list)-1].sequence+1 {
			break
		}
		if err != nil {
			return nil, err
		}
		list = append(list, e)
		at += n
	}
	return list, nil
}

// readEntry reads the entry at a byte of a log, and returns its length.
func readEntry(f fsys.Volume, at int64) (logEntry, int64, error) {
	corrupt := fmt.Errorf("log entry at %d: %w", at, fsys.ErrCorrupt)
	head := make([]byte, 40)
	if err := f.ReadAt(head, at); err != nil {
		return logEntry{}, 0, err
	}
	n, count := int64(le.Uint32(head[4:])), int64(le.Uint32(head[20:]))
	e := logEntry{sequence: le.Uint32(head[12:]), size: int64(le.Uint32(head[16:]))}
	if string(head[:4]) != "HvLE" || n%page != 0 || n > f.Size()-at || count*(8+page) > n-40 || e.size%baseBytes != 0 {
		return e, 0, corrupt
	}
	first := newMarvin(marvinSeed)
	first.add(head[:32])
	if first.sum() != le.Uint64(head[32:]) {
		return e, 0, corrupt
	}
	whole := newMarvin(marvinSeed)
	buf := make([]byte, 64<<10)
	for off := int64(40); off < n; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n-off)]
		if err := f.ReadAt(buf, at+off); err != nil {
			return e, 0, err
		}
		whole.add(buf)
	}
	if whole.sum() != le.Uint64(head[24:]) {
		return e, 0, corrupt
	}
	refs := make([]byte, count*8)
	if err := f.ReadAt(refs, at+40); err != nil {
		return e, 0, err
	}
	from := 40 + count*8
	for ; len(refs) > 0; refs = refs[8:] {
		d := dirty{from: at + from, to: int64(le.Uint32(refs)), n: int64(le.Uint32(refs[4:]))}
		if d.to%page != 0 || d.n%page != 0 || d.n == 0 || d.n > n-from || d.to > e.size-d.n {
			return e, 0, corrupt
		}
		from += d.n
		e.pages = append(e.pages, d)
	}
	return e, n, nil
}

// replayOld applies a log of the format before Windows 8.1 ("Dirty vector", "Dirty
// pages").
func (h *Hive) replayOld(l dirtyLog, o *overlay) (applied bool, err error) {
	size := l.base.size
	if size%baseBytes != 0 || size > 1<<31 {
		return false, nil
	}
	vector := make([]byte, 4+size/page/8)
	if page+int64(len(vector)) > l.file.Size() {
		return false, nil
	}
	if err := l.file.ReadAt(vector, page); err != nil || string(vector[:4]) != "DIRT" {
		return false, err
	}
	pages := map[int64]source{}
	from := (page + int64(len(vector)) + page - 1) / page * page
	for i, bits := range vector[4:] {
		for bit := range 8 {
			if bits&(1<<bit) == 0 {
				continue
			}
			if from > l.file.Size()-page {
				return false, nil
			}
			pages[baseBytes/page+int64(i*8+bit)] = source{l.number, from}
			from += page
		}
	}
	maps.Copy(o.pages, pages)
	h.size = size
	return true, nil
}

// overlay is a hive with pages that a log has instead.
type overlay struct {
	files []fsys.Volume // the hive, and its logs
	size  int64
	pages map[int64]source // by number
}

// source is where a page is.
type source struct {
	file int // its number among files
	at   int64
}

// put has n bytes from off come from elsewhere, all of these being multiples of pages.
func (o *overlay) put(off int64, s source, n int64) {
	for ; n > 0; n -= page {
		o.pages[off/page] = s
		off, s.at = off+page, s.at+page
	}
}

// Size implements fsys.Volume.
func (o *overlay) Size() int64 { return o.size }

// ReadAt implements fsys.Volume. Where the file ends before the hive does, what no log
// has are zeroes.
func (o *overlay) ReadAt(p []byte, off int64) error {
	if off < 0 || off > o.size-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d of %d: %w", len(p), off, o.size, fsys.ErrCorrupt)
	}
	for len(p) > 0 {
		s, n := o.run(off, int64(len(p)))
		f := o.files[s.file]
		have := max(0, min(n, f.Size()-s.at))
		clear(p[have:n])
		if have > 0 {
			if err := f.ReadAt(p[:have], s.at); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// run returns where the byte at off is, and how many up to n follow it there.
func (o *overlay) run(off, n int64) (source, int64) {
	first, replaced := o.pages[off/page]
	if !replaced {
		first = source{at: off / page * page}
	}
	within := off % page
	length := page - within
	for i := int64(1); length < n; i++ {
		next, ok := o.pages[off/page+i]
		if ok != replaced || ok && next != (source{first.file, first.at + i*page}) {
			break
		}
		length += page
	}
	return source{first.file, first.at + within}, min(length, n)
}
