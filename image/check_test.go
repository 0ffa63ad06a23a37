package image_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// qemuVerdict returns the exit status of qemu-img check: 0 clean, 2 corrupt,
// 3 leaked, 1 and others: could not be checked.
func qemuVerdict(t testing.TB, path string) (int, string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode(), string(out[:min(len(out), 300)])
	}
	return 0, string(out)
}

// ourVerdict is Check's in the numbers of qemuVerdict.
func ourVerdict(t testing.TB, path string) (int, string) {
	t.Helper()
	r, err := image.Check(context.Background(), path)
	switch {
	case err != nil:
		return 1, err.Error()
	case r.Corruptions > 0:
		return 2, fmt.Sprint(r.Errors)
	case r.Leaks > 0:
		return 3, fmt.Sprint(r.Leaks, " leaks")
	}
	return 0, "clean"
}

// patch changes 8 bytes of a file.
func patch(t testing.TB, path string, off int64, change func(uint64) uint64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint64(b[:], change(binary.BigEndian.Uint64(b[:])))
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// entryAt reads 8 bytes of a file.
func entryAt(t testing.TB, path string, off int64) (v uint64) {
	t.Helper()
	patch(t, path, off, func(e uint64) uint64 { v = e; return e })
	return v
}

func copyFile(t testing.TB, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// header reads a file's header.
func header(t testing.TB, path string) *image.Header {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := image.ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// bigImage makes a file with all that Check knows: data, compressed clusters,
// zeroes, internal snapshots, a bitmap.
func bigImage(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	requires.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "4M")
	requires.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 200k", "-c", "write -c -P 2 256k 64k",
		"-c", "write -z 512k 64k", "-c", "write -P 4 3M 20k", path)
	requires.Run(t, "qemu-img", "snapshot", "-c", "first", path)
	requires.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 100k 50k", "-c", "write -c -P 6 360k 4k", path)
	requires.Run(t, "qemu-img", "snapshot", "-c", "second", path)
	requires.Run(t, "qemu-img", "bitmap", "--add", "--enable", "-g", "4k", path, "b0")
	requires.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 10k 50k", path)
	return path
}

func TestCheckAgreesWithQEMUOnDamagedFiles(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	good := bigImage(t)
	h := header(t, good)
	l1 := h.L1Offset
	l2 := int64(entryAt(t, good, l1) & 0x00fffffffffffe00)
	refBlock := int64(entryAt(t, good, h.RefcountTableOffset))
	const cluster = 4096
	damage := []struct {
		name   string
		off    int64
		change func(uint64) uint64
	}{
		{"nothing", 0, func(e uint64) uint64 { return e }},
		{"an L1 entry without the copied flag", l1, func(e uint64) uint64 { return e &^ (1 << 63) }},
		{"an L1 entry with a reserved bit", l1, func(e uint64) uint64 { return e | 1<<60 }},
		{"an L1 entry off the grid", l1, func(e uint64) uint64 { return e + 512 }},
		{"an L1 entry far outside", l1, func(e uint64) uint64 { return e | 1<<50 }},
		{"a lost L2 table", l1, func(uint64) uint64 { return 0 }},
		{"two L1 entries alike", l1 + 8, func(uint64) uint64 { return entryAt(t, good, l1) }},
		{"an L2 entry without the copied flag", l2 + 4*8, func(e uint64) uint64 { return e ^ 1<<63 }},
		{"an L2 entry with a reserved bit", l2, func(e uint64) uint64 { return e | 1<<5 }},
		{"an L2 entry off the grid", l2, func(e uint64) uint64 { return e + 1024 }},
		{"an L2 entry far outside", l2, func(e uint64) uint64 { return e | 1<<48 }},
		{"an L2 entry on the header", l2, func(uint64) uint64 { return 1 << 63 }},
		{"an L2 entry on the refcount table", l2, func(uint64) uint64 { return 1<<63 | cluster }},
		{"a lost cluster", l2, func(uint64) uint64 { return 0 }},
		{"a lost compressed cluster", l2 + 66*8, func(uint64) uint64 { return 0 }},
		{"a compressed cluster with the copied flag", l2 + 66*8, func(e uint64) uint64 { return e | 1<<63 }},
		{"a compressed cluster that lies elsewhere", l2 + 66*8, func(e uint64) uint64 { return e + 8192 }},
		{"a compressed cluster outside", l2 + 66*8, func(e uint64) uint64 { return e | 1<<40 }},
		{"two L2 entries alike", l2, func(uint64) uint64 { return entryAt(t, good, l2+8) }},
		{"a refcount that is too low", refBlock + 16*2, func(uint64) uint64 { return 0 }},
		{"a refcount that is too high", refBlock + 16*2, func(e uint64) uint64 { return e + 1 }},
		{"a lost refcount block", h.RefcountTableOffset, func(uint64) uint64 { return 0 }},
		{"a refcount block with a reserved bit", h.RefcountTableOffset, func(e uint64) uint64 { return e | 4 }},
		{"a refcount block off the grid", h.RefcountTableOffset, func(e uint64) uint64 { return e + 512 }},
		{"a refcount block far outside", h.RefcountTableOffset, func(e uint64) uint64 { return e | 1<<50 }},
		{"a second user of a refcount block", h.RefcountTableOffset + 8, func(uint64) uint64 { return uint64(refBlock) }},
		{"a snapshot without its L1 table", h.SnapshotsOffset, func(e uint64) uint64 { return e + cluster }},
		{"a snapshot off the grid", h.SnapshotsOffset, func(e uint64) uint64 { return e + 8 }},
		{"bitmaps that are void", 88, func(uint64) uint64 { return 0 }},
	}
	for _, d := range damage {
		t.Run(d.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			copyFile(t, path, good)
			patch(t, path, d.off, d.change)
			got, ours := ourVerdict(t, path)
			want, theirs := qemuVerdict(t, path)
			if !sameVerdict(got, want) {
				t.Errorf("verdict: got %d (%s), want %d (%s)", got, ours, want, theirs)
			}
		})
	}
}

// sameVerdict compares verdicts. Where QEMU gives up we may go on to find the
// file corrupt, and the other way round.
func sameVerdict(got, want int) bool {
	bad := func(v int) bool { return v == 1 || v == 2 }
	return got == want || bad(got) && bad(want)
}

func TestCheckAgreesWithQEMUOnFlippedBits(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	good := bigImage(t)
	h := header(t, good)
	l1 := h.L1Offset
	l2 := int64(entryAt(t, good, l1) & 0x00fffffffffffe00)
	refBlock := int64(entryAt(t, good, h.RefcountTableOffset))
	rng := newRand(1)
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	for range 150 {
		copyFile(t, path, good)
		tables := []struct{ off, n int64 }{{l1, 2}, {l2, 160}, {refBlock, 40}, {h.RefcountTableOffset, 2}}
		table := tables[rng.IntN(len(tables))]
		at, bit := table.off+8*rng.Int64N(table.n), rng.IntN(64)
		patch(t, path, at, func(e uint64) uint64 { return e ^ 1<<bit })
		got, ours := ourVerdict(t, path)
		want, theirs := qemuVerdict(t, path)
		if !sameVerdict(got, want) {
			t.Errorf("bit %d at %#x: got %d (%s), want %d (%s)", bit, at, got, ours, want, theirs)
		}
	}
}
