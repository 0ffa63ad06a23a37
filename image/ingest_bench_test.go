package image_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sendense/sendense/image"
)

// BenchmarkIngest writes 256 MiB of noise and makes it durable, from two goroutines
// by 1 MiB, as a draft; to a plain file for comparison.
func BenchmarkIngest(b *testing.B) {
	const size, piece = 256 << 20, 1 << 20
	noise := randomBytes(1, size)
	parallel := func(b *testing.B, write func(p []byte, off int64) error) {
		var wg sync.WaitGroup
		for g := range int64(2) {
			wg.Go(func() {
				for off := g * piece; off < size; off += 2 * piece {
					if err := write(noise[off:off+piece], off); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	b.Run("plain file", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
			if err != nil {
				b.Fatal(err)
			}
			parallel(b, func(p []byte, off int64) error { _, err := f.WriteAt(p, off); return err })
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			f.Close()
			os.Remove(f.Name())
		}
	})
	draft := func(b *testing.B, path, parent string) {
		co := image.CreateOptions{Size: size}
		var wo image.WriterOptions
		var o image.IngestOptions
		if parent != "" {
			p := openParent(b, parent)
			co.BackingFile, co.BackingFormat = filepath.Base(parent), "qcow2"
			wo.Backing, o.Parent, o.ParentDigests = p.chain, p.chain, p.digests
		}
		if err := image.Create(path, co); err != nil {
			b.Fatal(err)
		}
		w, err := image.OpenWriter(path, wo)
		if err != nil {
			b.Fatal(err)
		}
		in, err := image.NewIngest(b.Context(), w, o)
		if err != nil {
			b.Fatal(err)
		}
		parallel(b, func(p []byte, off int64) error { return in.WriteAt(b.Context(), p, off) })
		var sums bytes.Buffer
		if _, err := in.Finish(b.Context(), &sums); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path+".digests", sums.Bytes(), 0o600); err != nil {
			b.Fatal(err)
		}
		in.Close()
		w.Close()
	}
	b.Run("full", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			path := filepath.Join(b.TempDir(), "full")
			draft(b, path, "")
			os.Remove(path)
		}
	})
	b.Run("all of it the parent's", func(b *testing.B) {
		b.SetBytes(size)
		dir := b.TempDir()
		draft(b, filepath.Join(dir, "full"), "")
		b.ResetTimer()
		for range b.N {
			path := filepath.Join(dir, "incr")
			draft(b, path, filepath.Join(dir, "full"))
			os.Remove(path)
		}
	})
}
