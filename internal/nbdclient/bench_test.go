package nbdclient_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sendense/sendense/internal/nbdclient"
)

// BenchmarkRead reads a disk in memory with so many callers at once. A peer, on
// the same server: nbdcopy --connections=4 --requests=16 URI null:
func BenchmarkRead(b *testing.B) {
	uri := nbdkit(b, "memory", "1G")
	for _, c := range []struct{ bytes, callers int }{{64 << 10, 1}, {64 << 10, 32}, {256 << 10, 32}, {1 << 20, 16}} {
		b.Run(fmt.Sprintf("bs=%dk/callers=%d", c.bytes>>10, c.callers), func(b *testing.B) {
			d := open(b, uri, nbdclient.Options{})
			var next atomic.Int64
			b.SetBytes(int64(c.bytes))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range c.callers {
				wg.Go(func() {
					buf := make([]byte, c.bytes)
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						off := i * int64(c.bytes) % (d.Size() - int64(c.bytes))
						if err := d.ReadAt(context.Background(), buf, off); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
