package hive_test

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

var le = binary.LittleEndian

// memory is a file in memory.
type memory = fstest.Memory

// save writes a hive to a file.
func save(t testing.TB, path string, m memory) {
	t.Helper()
	if err := os.WriteFile(path, m, 0o600); err != nil {
		t.Fatal(err)
	}
}
