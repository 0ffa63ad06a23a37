package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// Flags of a volume.
const (
	volumeDirty  = 0x1
	volumeChkdsk = 0x4000 // is at work
)

// volumeNotes says what the flags of a volume mean.
func volumeNotes(flags uint16) []string {
	var notes []string
	if flags&volumeDirty != 0 {
		notes = append(notes, "The volume is marked dirty: it was not unmounted, or Windows found errors in it and wants to check it.")
	}
	if flags&volumeChkdsk != 0 {
		notes = append(notes, "A check of the volume (chkdsk) was under way.")
	}
	return notes
}

// logNotes says what state the log is in.
func (f *fileSystem) logNotes() []string {
	clean, err := f.logIsClean()
	switch {
	case err != nil:
		return []string{fmt.Sprintf("The state of the log ($LogFile) is not known: %v.", err)}
	case !clean:
		return []string{"The log ($LogFile) was in use: what Windows would redo or undo from it when it mounts the volume " +
			"was not, so that the last changes of names and sizes may be missing or half done."}
	}
	return nil
}

// logIsClean reads the two restart pages of the log. The one with the higher
// number tells whether anybody has the log open.
func (f *fileSystem) logIsClean() (bool, error) {
	in, err := f.inode(reference(recordLog, 0))
	if err != nil {
		return false, err
	}
	s, err := f.open(in, typeData, nil)
	if err != nil {
		return false, err
	}
	// The second page is behind the first, whose size it has.
	b := make([]byte, min(s.size, 2*maxLogPage))
	if _, err := s.readAt(f.vol, b, 0); err != nil {
		return false, err
	}
	if len(bytes.Trim(b, "\xff")) == 0 {
		return true, nil // made or emptied, and not used since
	}
	first, err := parseRestart(b)
	second := min(max(first.bytes, usualLogPage), len(b))
	if last, lastErr := parseRestart(b[second:]); lastErr == nil && (err != nil || last.lsn > first.lsn) {
		first, err = last, nil
	}
	return first.clean, err
}

// Pages of a log, in bytes.
const (
	usualLogPage = 4 << 10
	maxLogPage   = 64 << 10
)

// restart is what a restart page tells.
type restart struct {
	bytes int // of a page
	lsn   uint64
	clean bool
}

// parseRestart reads the restart page that b starts with.
func parseRestart(b []byte) (restart, error) {
	if len(b) < 0x30 || string(b[:4]) != "RSTR" && string(b[:4]) != "CHKD" {
		return restart{}, errors.New("there is no restart page")
	}
	n := int64(binary.LittleEndian.Uint32(b[0x10:]))
	if n < protected || n > maxLogPage || !powerOf2(n) || n > int64(len(b)) {
		return restart{}, fmt.Errorf("its pages have %d bytes", n)
	}
	page := bytes.Clone(b[:n])
	if err := restore(page); err != nil {
		return restart{}, err
	}
	at := int64(binary.LittleEndian.Uint16(page[0x18:]))
	if at+0x10 > n {
		return restart{}, fmt.Errorf("its restart area is at %d of %d", at, n)
	}
	const noClient, isClean = 0xffff, 2
	area := page[at:]
	inUse, flags := binary.LittleEndian.Uint16(area[0x0c:]), binary.LittleEndian.Uint16(area[0x0e:])
	return restart{int(n), binary.LittleEndian.Uint64(area), inUse == noClient || flags&isClean != 0}, nil
}

// hibernationNotes says whether Windows sleeps with the volume mounted.
func (f *fileSystem) hibernationNotes() []string {
	id, err := f.Lookup(f.root, "hiberfil.sys")
	if err != nil {
		return nil
	}
	magic := make([]byte, 4)
	if _, err := f.ReadAt(id, magic, 0); err != nil {
		return nil
	}
	if m := string(bytes.ToLower(magic)); m != "hibr" {
		return nil
	}
	return []string{"Windows is hibernated, or was shut down to start fast: what it had not written lies in hiberfil.sys."}
}

// maxBitmap is the longest bitmap that is counted, in bytes: a volume of 512 GiB
// with clusters of 4 KiB has one.
const maxBitmap = 16 << 20

// countFree returns the bytes that are free, or -1 if that would take long or
// cannot be told.
func (f *fileSystem) countFree() int64 {
	if f.clusters > 8*maxBitmap {
		return -1
	}
	in, err := f.inode(reference(recordBitmap, 0))
	if err != nil {
		return -1
	}
	s, err := f.open(in, typeData, nil)
	if err != nil || s.size*8 < f.clusters {
		return -1
	}
	free := f.clusters
	b := make([]byte, 1<<20)
	for off := int64(0); off*8 < f.clusters; off += int64(len(b)) {
		n := min(int64(len(b)), (f.clusters+7)/8-off)
		if _, err := s.readAt(f.raw, b[:n], off); err != nil {
			return -1
		}
		if rest := f.clusters - (off+n)*8; rest < 0 {
			b[n-1] &= 0xff >> -rest
		}
		clear(b[n : (n+7)&^7])
		for i := int64(0); i < n; i += 8 {
			free -= int64(bits.OnesCount64(binary.LittleEndian.Uint64(b[i:])))
		}
	}
	return free * f.clusterBytes
}
