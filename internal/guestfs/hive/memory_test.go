package hive_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"testing"
)

var le = binary.LittleEndian

// memory is a file in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) error {
	if off < 0 || off > m.Size()-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	copy(p, m[off:])
	return nil
}

// save writes a hive to a file.
func save(t testing.TB, path string, m memory) {
	t.Helper()
	if err := os.WriteFile(path, m, 0o600); err != nil {
		t.Fatal(err)
	}
}
