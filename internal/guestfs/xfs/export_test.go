package xfs

// LogWraps reports whether what is to be replayed goes around the end of the log.
func (f *FS) LogWraps() bool {
	j, err := openJournal(&f.super, f.vol)
	if err != nil {
		return false
	}
	if used, err := j.findHead(); err != nil || !used {
		return false
	}
	last, err := j.trim()
	return err == nil && int64(uint32(last.tail)) > last.sector
}

// Log returns where the log lies and how long it is, in bytes, and which sector is
// behind its last record.
func (f *FS) Log() (at, size, head int64) {
	j, err := openJournal(&f.super, f.vol)
	if err != nil {
		return 0, 0, 0
	}
	if used, err := j.findHead(); err != nil || !used {
		return 0, 0, 0
	}
	if _, err := j.trim(); err != nil {
		return 0, 0, 0
	}
	return j.at, j.sectors * logSector, j.head
}
