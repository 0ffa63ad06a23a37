package ntfs

import (
	"encoding/binary"
	"time"
)

// TimeOf reads a time as the file system has it.
func TimeOf(b []byte) time.Time { return timeOf(binary.LittleEndian.Uint64(b)) }
