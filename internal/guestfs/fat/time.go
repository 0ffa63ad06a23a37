package fat

import "time"

// stamp returns the time that a date and a time of day say, and hundredths of a
// second. It is the time of whoever wrote it: no zone is recorded, it is taken
// for UTC. The zero time is returned for a date that was not set.
func stamp(date, clock uint16, hundredths byte) time.Time {
	if date == 0 {
		return time.Time{}
	}
	// As Linux has it, months and days that do not exist count as the first.
	year, month, day := 1980+int(date>>9), max(1, int(date>>5&0xf)), max(1, int(date&0x1f))
	return time.Date(year, time.Month(month), day, int(clock>>11), int(clock>>5&0x3f), int(clock&0x1f)*2, 0, time.UTC).
		Add(time.Duration(hundredths) * 10 * time.Millisecond)
}
