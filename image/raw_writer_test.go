package image_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
)

func TestRawWriterConforms(t *testing.T) {
	content := bytes.Repeat([]byte("sendense"), 40_000)
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		path := filepath.Join(t.TempDir(), "disk.raw")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := image.OpenRawWriter(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		return blocktest.Subject{Device: w, Content: content, Reopen: func() (block.Device, error) {
			if err := w.Close(); err != nil {
				return nil, err
			}
			w, err = image.OpenRawWriter(path)
			return w, err
		}}
	})
}

func TestRawWriterMakesHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := image.OpenRawWriter(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx := context.Background()
	if err := w.WriteZeroes(ctx, 256<<10, 512<<10, block.MayTrim); err != nil {
		t.Fatal(err)
	}
	var got []block.Extent
	if err := block.MapAll(ctx, w, 0, w.Size(), func(e block.Extent) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[1] != (block.Extent{Off: 256 << 10, Len: 512 << 10, Kind: block.Hole}) {
		t.Errorf("map: got %v, want a hole of 512 KiB at 256 KiB", got)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 1<<20 {
		t.Errorf("length of the file: got %v, %v, want 1 MiB", st.Size(), err)
	}
}
