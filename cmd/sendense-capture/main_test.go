package main_test

import (
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
)

// bin is the folder of the programs under test.
var bin string

func TestMain(m *testing.M) {
	os.Exit(clitest.Main(m, func(dir string) { bin = dir }))
}

// disk makes a raw image of a size with random data at its begin and a hole behind.
func disk(t testing.TB, path string, data, size int64) {
	t.Helper()
	if err := os.WriteFile(path, noise(path, data), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// noise returns bytes that no compression makes shorter, the same for each seed.
func noise(seed string, n int64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b)
	return b
}
