package ntfs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/ntfs"
)

// BenchmarkWalk lists and stats all of a volume that nothing is known of yet.
func BenchmarkWalk(b *testing.B) {
	const files = 5000
	image := made(b, 128<<20, "", "", func(dir string) {
		for i := range files {
			must(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file number %d", i)), nil, 0o644))
		}
	})
	_, v := opened(b, image)
	for b.Loop() {
		f, err := ntfs.Open(v)
		must(b, err)
		n := 0
		must(b, f.ReadDir(f.Root(), func(e fsys.Entry) bool {
			if _, err := f.Stat(e.ID); err != nil {
				b.Error(err)
			}
			n++
			return true
		}))
		if n != files {
			b.Fatalf("got %d files, want %d", n, files)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/file")
}

// BenchmarkRead reads a file from start to end, by 256 KiB.
func BenchmarkRead(b *testing.B) {
	content := text(1, 8<<20)
	names := []string{"plain", "compressed/lznt1", "xpress", "lzx"}
	image := made(b, 128<<20, "", "compression,streams_interface=windows", func(dir string) {
		must(b, os.WriteFile(filepath.Join(dir, names[0]), content, 0o644))
		must(b, os.WriteFile(filepath.Join(compressing(b, dir), "lznt1"), content, 0o644))
		for algorithm, chunk := range []string{"4K", "32K"} {
			at := filepath.Join(dir, names[2+algorithm])
			must(b, os.WriteFile(at, nil, 0o644))
			must(b, os.Truncate(at, int64(len(content))))
			must(b, os.WriteFile(at+":WofCompressedData", packed(b, content, names[2+algorithm], chunk), 0o644))
			must(b, unix.Setxattr(at, "system.ntfs_reparse_data", wofPoint(2, byte(algorithm)), 0))
		}
	})
	f, _ := opened(b, image)
	p := make([]byte, 256<<10)
	for _, name := range names {
		b.Run("how="+filepath.Base(name), func(b *testing.B) {
			id := walkTo(b, f, name)
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				for off := int64(0); off < int64(len(content)); off += int64(len(p)) {
					if _, err := f.ReadAt(id, p, off); err != nil && !errors.Is(err, io.EOF) {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
