package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

func TestResizeUncoversNothingOfALongerBackingDisk(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	ctx := context.Background()
	const k = 1 << 10
	for _, v := range []variant{
		{name: "version 3", o: image.CreateOptions{Size: 200*k + 512}, backing: 400 * k},
		{name: "version 2", o: image.CreateOptions{Size: 200*k + 512, Version: 2}, backing: 400 * k},
		{name: "subclusters", o: image.CreateOptions{Size: 200*k + 512, ExtendedL2: true}, backing: 400 * k},
		{name: "clusters of 2 MiB", o: image.CreateOptions{Size: 200*k + 512, ClusterSize: 2 << 20}, backing: 400 * k},
		{name: "an end on a cluster", o: image.CreateOptions{Size: 192 * k}, backing: 400 * k},
	} {
		for _, write := range []string{"", fmt.Sprintf("write -P 7 %d 512", v.o.Size-512)} {
			for _, size := range []int64{v.o.Size + 512, 300 * k, 600 * k} {
				t.Run(fmt.Sprintf("%s to %d after %q", v.name, size, write), func(t *testing.T) {
					d := newDisk(t, newRand(1), v)
					for i := range v.backing {
						d.backing.(memDevice)[i] |= 1 // nothing of it may pass for zeroes
					}
					copy(d.model, d.backing.(memDevice))
					d.close()
					writeBelow(t, d)
					if write != "" {
						requires.Run(t, "qemu-io", "-f", "qcow2", "-c", write, d.path)
						copy(d.model[v.o.Size-512:], bytes.Repeat([]byte{7}, 512))
					}
					d.open()
					d.must(d.w.Resize(ctx, size))
					d.model = append(d.model, make([]byte, size-v.o.Size)...)
					got := make([]byte, size)
					d.must(d.w.ReadAt(ctx, got, 0))
					sameBytes(t, "content", got, d.model)
					if err := d.w.Resize(ctx, size-1); !errors.Is(err, image.ErrShrink) {
						t.Errorf("shrink: got %v, want ErrShrink", err)
					}
					d.close()
					checkClean(t, d.path)
					sameBytes(t, "content for QEMU", content(t, d.path), d.model)
				})
			}
		}
	}
}

func TestStreamsAreNotPackedIntoAClusterThatBecameSomethingElse(t *testing.T) {
	requires.Tool(t, "qemu-img")
	ctx := context.Background()
	d := newDisk(t, newRand(1), variant{o: image.CreateOptions{Size: 1 << 20}})
	const cs = 64 << 10
	fill := func(c int64, b byte) []byte {
		p := d.model[c*cs : (c+1)*cs]
		copy(p, bytes.Repeat([]byte{b}, cs))
		return p
	}
	stored, err := d.w.WriteCompressed(ctx, fill(0, 1), 0)
	if err != nil || !stored {
		t.Fatalf("compressed: got %v, %v", stored, err)
	}
	fill(0, 0)
	d.must(d.w.Trim(ctx, 0, cs))
	d.must(d.w.Flush(ctx))
	d.must(d.w.WriteAt(ctx, fill(1, 2), cs))
	if _, err := d.w.WriteCompressed(ctx, fill(2, 3), 2*cs); err != nil {
		t.Fatal(err)
	}
	d.close()
	checkClean(t, d.path)
	sameBytes(t, "content", content(t, d.path), d.model)
}
