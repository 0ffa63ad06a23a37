package image_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// ingest writes size bytes from four goroutines in requests of bs bytes that
// follow one another, as the connections of one client do, then flushes.
func ingest(b *testing.B, size, bs int64, write func(p []byte, off int64) error, flush func() error) {
	b.Helper()
	var mu sync.Mutex
	next := int64(0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, bs)
			for i := range p {
				p[i] = byte(i*7 + i>>8 + 1)
			}
			for {
				mu.Lock()
				off := next
				next += bs
				mu.Unlock()
				if off >= size {
					return
				}
				if err := write(p, off); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := flush(); err != nil {
		b.Error(err)
	}
}

// BenchmarkWriterIngest fills a new file and flushes it, beside plain writes to a
// plain file.
func BenchmarkWriterIngest(b *testing.B) {
	const size = 512 << 20
	ctx := context.Background()
	for _, bs := range []int64{64 << 10, 256 << 10, 1 << 20, 2 << 20} {
		b.Run(fmt.Sprintf("bs=%dk/qcow2", bs>>10), func(b *testing.B) {
			b.SetBytes(size)
			for range b.N {
				path := filepath.Join(b.TempDir(), "disk.qcow2")
				if err := image.Create(path, image.CreateOptions{Size: size}); err != nil {
					b.Fatal(err)
				}
				w, err := image.OpenWriter(path, image.WriterOptions{})
				if err != nil {
					b.Fatal(err)
				}
				ingest(b, size, bs, func(p []byte, off int64) error { return block.Write(ctx, w, p, off) },
					func() error { return w.Flush(ctx) })
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				os.Remove(path)
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("bs=%dk/plain", bs>>10), func(b *testing.B) {
			b.SetBytes(size)
			for range b.N {
				f, err := os.Create(filepath.Join(b.TempDir(), "disk.raw"))
				if err != nil {
					b.Fatal(err)
				}
				ingest(b, size, bs, func(p []byte, off int64) error { _, err := f.WriteAt(p, off); return err },
					func() error { return syscall.Fdatasync(int(f.Fd())) })
				f.Close()
				b.StopTimer()
				os.Remove(f.Name())
				b.StartTimer()
			}
		})
	}
}
