package fstest

import (
	"fmt"
	"io"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Memory is a Volume in memory.
type Memory []byte

// Size implements fsys.Volume.
func (m Memory) Size() int64 { return int64(len(m)) }

// ReadAt implements fsys.Volume.
func (m Memory) ReadAt(p []byte, off int64) error {
	if off < 0 || off > m.Size()-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	copy(p, m[off:])
	return nil
}

var _ fsys.Volume = Memory(nil)
