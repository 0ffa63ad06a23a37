package image_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// layer says how a file of a chain is made.
type layer struct {
	o     image.CreateOptions
	steps int
}

// makeChain writes the layers, bottom first, each at random, and returns their
// paths and what the top one reads as.
func makeChain(t testing.TB, seed uint64, layers []layer) (paths []string, model []byte) {
	t.Helper()
	rng := newRand(seed)
	dir := t.TempDir()
	var below block.Device
	for i, l := range layers {
		o := l.o
		path := filepath.Join(dir, string(rune('a'+i))+".qcow2")
		if i > 0 {
			o.BackingFile, o.BackingFormat = filepath.Base(paths[i-1]), "qcow2"
		}
		if err := image.Create(path, o); err != nil {
			t.Fatal(err)
		}
		next := make([]byte, o.Size)
		copy(next, model)
		d := &disk{t: t, rng: rng, path: path, backing: below, model: next, cs: o.ClusterSize}
		d.open()
		for range l.steps {
			d.step()
		}
		d.close()
		model = d.model
		paths = append(paths, path)
		below = memDevice(append([]byte(nil), model...))
	}
	return paths, model
}

// mergeTop merges the second file from the top into the top one.
func mergeTop(t testing.TB, paths []string) error {
	t.Helper()
	n := len(paths)
	chain, err := image.OpenChain(paths[n-2], image.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer chain.Close()
	parent, err := image.OpenFile(paths[n-2])
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	child, err := image.OpenWriter(paths[n-1], image.WriterOptions{Backing: chain})
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	ctx := context.Background()
	if err := image.Merge(ctx, child, parent, nil); err != nil {
		return err
	}
	if h := parent.Header(); h.BackingFile != "" {
		err = child.Rebase(ctx, h.BackingFile, h.BackingFormat())
	} else {
		err = child.Rebase(ctx, "", "")
	}
	if err != nil {
		return err
	}
	return child.Close()
}

func TestMergedChainsReadTheSame(t *testing.T) {
	requires.Tool(t, "qemu-img")
	const k, m = 1 << 10, 1 << 20
	plain := func(size, cs int64) layer {
		return layer{image.CreateOptions{Size: size, ClusterSize: cs}, 30}
	}
	with := func(l layer, change func(*image.CreateOptions)) layer {
		change(&l.o)
		return l
	}
	zstd := func(o *image.CreateOptions) { o.Compression = image.Zstd }
	v2 := func(o *image.CreateOptions) { o.Version = 2 }
	ext := func(o *image.CreateOptions) { o.ExtendedL2 = true }
	for _, tt := range []struct {
		name   string
		layers []layer
	}{
		{"into a child over a full", []layer{plain(2*m+512, 16*k), plain(2*m+512, 16*k)}},
		{"in the middle of a chain", []layer{plain(2*m, 4*k), plain(2*m, 4*k), plain(2*m, 4*k)}},
		{"with a parent that ends early", []layer{plain(2*m, 16*k), plain(1*m+1536, 16*k), plain(2*m, 16*k)}},
		{"with a child that ends early", []layer{plain(2*m, 16*k), plain(2*m, 16*k), plain(1*m+1536, 16*k)}},
		{"with a parent of smaller clusters", []layer{plain(2*m, 4*k), plain(2*m-512, 512), plain(2*m, 64*k)}},
		{"with a parent of larger clusters", []layer{plain(2*m, 4*k), plain(2*m-1024, 64*k), plain(2*m, 4*k)}},
		{"with another compression", []layer{plain(2*m, 16*k), with(plain(2*m, 16*k), zstd), plain(2*m, 16*k)}},
		{"with zstd on both sides", []layer{plain(2*m, 16*k), with(plain(2*m+512, 16*k), zstd), with(plain(2*m+512, 16*k), zstd)}},
		{"in version 2", []layer{plain(2*m, 16*k), with(plain(1*m+512, 16*k), v2), with(plain(2*m, 16*k), v2)}},
		{"from version 3 into version 2", []layer{plain(2*m, 16*k), plain(1*m+512, 16*k), with(plain(2*m, 16*k), v2)}},
		{"with subclusters below", []layer{plain(2*m, 16*k), with(plain(2*m-512, 16*k), ext), plain(2*m, 16*k)}},
		{"with subclusters above", []layer{plain(2*m, 16*k), plain(1*m+512, 16*k), with(plain(2*m, 16*k), ext)}},
		{"with subclusters on both sides", []layer{plain(2*m, 16*k), with(plain(1*m+512, 32*k), ext), with(plain(2*m, 16*k), ext)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for seed := range seeds(t, 2) {
				paths, want := makeChain(t, seed, tt.layers)
				top := paths[len(paths)-1]
				sameBytes(t, "content before", content(t, top), want)
				if err := mergeTop(t, paths); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(paths[len(paths)-2]); err != nil {
					t.Fatal(err)
				}
				checkClean(t, top)
				sameBytes(t, "content after", content(t, top), want)
			}
		})
	}
}
