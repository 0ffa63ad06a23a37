package dir_test

import (
	"math/rand/v2"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// BenchmarkVerify verifies a point of 256 MiB of noise.
func BenchmarkVerify(b *testing.B) {
	const size = 256 << 20
	r, err := dir.Open(b.TempDir(), dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	d, err := r.Begin(b.Context(), repository.BeginOptions{VM: repositorytest.Web, Name: "web"})
	if err != nil {
		b.Fatal(err)
	}
	x, err := d.AddDisk(b.Context(), "vda", size)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	noise := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < size; off += int64(len(p)) {
		_, _ = noise.Read(p)
		if err := block.Write(b.Context(), x.Device(), p, off); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := d.Commit(b.Context(), repository.PointInfo{}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		report, err := r.Verify(b.Context(), repository.VerifyOptions{})
		if err != nil || !report.OK() || report.Bytes != size {
			b.Fatalf("verify: got %+v (%v)", report, err)
		}
	}
}
