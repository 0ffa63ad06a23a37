package image_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

func TestMergeMayBeKilledAndDoneAgain(t *testing.T) {
	const k = 1 << 10
	plain := image.CreateOptions{Size: 512*k + 512, ClusterSize: 4 * k}
	for _, tt := range []struct {
		name          string
		parent, child image.CreateOptions
	}{
		{"clusters of one size", plain, plain},
		{"larger clusters below", image.CreateOptions{Size: 400 * k, ClusterSize: 16 * k}, plain},
		{"subclusters above", plain, image.CreateOptions{Size: 512*k + 512, ClusterSize: 16 * k, ExtendedL2: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			rng := newRand(1)
			paths, below := makeChain(t, 1, []layer{{plain, 30}, {tt.parent, 30}})
			whole, under := openChain(t, paths[1], image.ChainOptions{}), openChain(t, paths[0], image.ChainOptions{})
			parent, err := image.OpenFile(paths[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { parent.Close() })

			f := &memFile{}
			tt.child.BackingFile = "parent.qcow2"
			if err := image.FormatOn(f, tt.child); err != nil {
				t.Fatal(err)
			}
			d := &disk{t: t, rng: rng, backing: whole, cs: tt.child.ClusterSize, model: make([]byte, tt.child.Size)}
			copy(d.model, below)
			d.reopen(f)
			for range 10 {
				d.step()
			}
			d.must(d.w.Close())

			h := history{start: bytes.Clone(f.data), backing: whole, moments: []moment{{0, d.model, true}}}
			f.log = nil
			d.reopen(f)
			d.must(image.Merge(ctx, d.w, parent, nil))
			d.must(d.w.Close())
			h.log = f.log
			sameThrough(t, f.data, under, d.model)
			h.crashes(rng, func(left []byte, n int, what string) {
				h.survives(t, bytes.Clone(left), n, what)
				if n%5 != 0 {
					return
				}
				f := &memFile{data: left}
				d.reopen(f)
				d.must(image.Merge(ctx, d.w, parent, nil))
				d.must(d.w.Close())
				sameThrough(t, f.data, under, d.model)
			})
		})
	}
}

// sameThrough compares what a file reads as over a backing device with a model.
func sameThrough(t testing.TB, file []byte, backing block.Device, model []byte) {
	t.Helper()
	w, err := image.NewWriterOn(&memFile{data: bytes.Clone(file)}, image.WriterOptions{Backing: backing})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, w.Size())
	if err := w.ReadAt(context.Background(), got, 0); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "content over the grandparent", got, model)
}

func TestRebaseLeavesTheOldNameOrTheNew(t *testing.T) {
	const old = "a/name/that/is/rather/long.qcow2"
	for _, next := range []string{"b.qcow2", strings.Repeat("long", 30), ""} {
		f := &memFile{}
		if err := image.FormatOn(f, image.CreateOptions{Size: 1 << 20, ClusterSize: 512, BackingFile: old, BackingFormat: "qcow2"}); err != nil {
			t.Fatal(err)
		}
		w, err := image.NewWriterOn(f, image.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		h := history{start: bytes.Clone(f.data)}
		f.log = nil
		if err := w.Rebase(context.Background(), next, "qcow2"); err != nil {
			t.Fatal(err)
		}
		h.log = f.log
		rng := newRand(1)
		for range 20 {
			h.crashes(rng, func(left []byte, n int, what string) {
				got, err := image.ReadHeader(bytes.NewReader(left))
				if err != nil || got.BackingFile != old && got.BackingFile != next {
					t.Fatalf("%s after %d operations: %v, backing file %+v", what, n, err, got)
				}
			})
		}
		if got, err := image.ReadHeader(bytes.NewReader(f.data)); err != nil || got.BackingFile != next {
			t.Errorf("backing file: got %+v, %v, want %q", got, err, next)
		}
	}
}
