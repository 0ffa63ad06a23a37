package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// hostile returns a file whose first guest cluster has the entry given, and whose
// second one is fine.
func hostile(entry uint64) *build {
	b := newBuild(16, 1<<20)
	good := b.cluster(bytes.Repeat([]byte{1}, 65536))
	b.table(0, map[int]uint64{0: entry, 1: uint64(good) | 1<<63})
	return b
}

// TestDamageIsConfined: a bad entry makes reading, mapping and walking over its
// cluster an error that says what is wrong, and leaves the next cluster alone.
func TestDamageIsConfined(t *testing.T) {
	compressed := func(host, sectors uint64) uint64 { return 1<<62 | sectors<<54 | host }
	tests := []struct {
		name  string
		build func() *build
		says  string
	}{
		{"an entry beside a cluster boundary", func() *build { return hostile(0x30200) }, "not aligned"},
		{"an entry far beyond the end", func() *build { return hostile(1 << 55) }, "beyond the end"},
		{"a zero cluster in version 2", func() *build {
			b := hostile(1)
			b.h.Version = 2
			return b
		}, "L2 entry is 0x1"},
		{"a compressed cluster beyond the end", func() *build { return hostile(compressed(1<<50, 1)) }, "beyond the end"},
		{"a compressed cluster that is none", func() *build { return hostile(compressed(0, 1)) }, "zlib stream"},
		{"a compressed cluster that is too short", func() *build {
			b := hostile(0)
			var z bytes.Buffer
			w, _ := flate.NewWriter(&z, 9)
			w.Write(make([]byte, 65535))
			w.Close()
			binary.BigEndian.PutUint64(b.tail[65536:], compressed(uint64(b.cluster(z.Bytes())), 0))
			return b
		}, "ends before it fills the cluster"},
		{"a zstd frame that is none", func() *build {
			b := hostile(compressed(0, 1))
			b.h.Incompatible, b.h.Compression = image.IncompatCompression, image.Zstd
			return b
		}, "zstd stream"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.qcow2")
			tt.build().save(t, path)
			c := openChain(t, path, image.ChainOptions{})
			ctx, p := context.Background(), make([]byte, 65536)
			for _, dst := range [][]byte{p, p[:100]} {
				err := c.ReadAt(ctx, dst, 0)
				if !errors.Is(err, image.ErrCorrupt) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
					t.Errorf("read: got %v, want ErrCorrupt, the file, and %q", err, tt.says)
				}
			}
			if err := c.ReadAt(ctx, p, 65536); err != nil || p[0] != 1 {
				t.Errorf("read behind it: %v", err)
			}
			f, err := image.OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.ReadAt(ctx, p, 0); !errors.Is(err, image.ErrCorrupt) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("read of the file alone: got %v, want ErrCorrupt and %q", err, tt.says)
			}
		})
	}
}

// TestDamagedTables: an L2 table that cannot be is an error for what it describes.
func TestDamagedTables(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry uint64
		says  string
	}{
		{"beside a cluster boundary", 0x20200, "not aligned"},
		{"beyond the end", 1 << 50, "beyond the end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const cs = 4096
			dir := t.TempDir()
			b := newBuild(12, 4<<20)
			b.write(map[int64][]byte{512: bytes.Repeat([]byte{1}, cs)})
			b.l1[0] = tt.entry
			b.backed("base.img", "raw").save(t, filepath.Join(dir, "x.qcow2"))
			writeFile(t, filepath.Join(dir, "base.img"), bytes.Repeat([]byte{2}, 4<<20))
			newBuild(12, 4<<20).write(map[int64][]byte{3: bytes.Repeat([]byte{3}, cs)}).
				backed("x.qcow2", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
			c := openChain(t, filepath.Join(dir, "top.qcow2"), image.ChainOptions{})
			p := make([]byte, cs)
			for i, want := range map[int64]byte{3: 3, 512: 1, 513: 2} {
				if err := c.ReadAt(context.Background(), p, i*cs); err != nil || p[0] != want {
					t.Errorf("cluster %d: got %d and %v, want %d", i, p[0], err, want)
				}
			}
			for _, i := range []int64{0, 2, 4, 511} {
				if err := c.ReadAt(context.Background(), p, i*cs); !errors.Is(err, image.ErrCorrupt) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("cluster %d: got %v, want ErrCorrupt and %q", i, err, tt.says)
				}
			}
			list, err := c.Changed(context.Background(), "base", 0, c.Size())
			if err != nil || len(list) == 0 || list[0].Off != 0 || list[0].Len < 512*cs {
				t.Errorf("changes: got %v and %v, want what is damaged among them", list, err)
			}
		})
	}
}

// TestTablesThatReferToThemselves only have to end, with some bytes or an error.
func TestTablesThatReferToThemselves(t *testing.T) {
	for _, bits := range []uint32{9, 12, 16} {
		b := newBuild(bits, 64<<bits)
		table := b.table(0, nil)
		at := table - b.first
		for k := range b.perTable() {
			host := []int64{table, b.h.L1Offset, b.h.RefcountTableOffset}[k%3]
			binary.BigEndian.PutUint64(b.tail[at+k*8:], uint64(host)|1<<63)
		}
		for _, l1 := range []int64{table, b.h.L1Offset, b.h.RefcountTableOffset, 1 << bits} {
			b.l1[0] = uint64(l1)
			path := filepath.Join(t.TempDir(), "x.qcow2")
			b.save(t, path)
			exercise(t, path)
		}
	}
}

// TestDecompressionIsBounded: a stream that would fill the memory fills a cluster.
func TestDecompressionIsBounded(t *testing.T) {
	for _, kind := range []image.Compression{image.Deflate, image.Zstd} {
		b := hostile(0)
		var z bytes.Buffer
		var w io.WriteCloser
		if kind == image.Zstd {
			b.h.Incompatible, b.h.Compression = image.IncompatCompression, image.Zstd
			w, _ = zstd.NewWriter(&z)
		} else {
			w, _ = flate.NewWriter(&z, 9)
		}
		for range 16 {
			w.Write(bytes.Repeat([]byte{5}, 1<<20))
		}
		w.Close()
		sectors := uint64(min((z.Len()-1)/512, 255))
		binary.BigEndian.PutUint64(b.tail[65536:], 1<<62|sectors<<54|uint64(b.cluster(z.Bytes())))
		path := filepath.Join(t.TempDir(), "x.qcow2")
		b.save(t, path)
		p := make([]byte, 65536)
		if err := openChain(t, path, image.ChainOptions{}).ReadAt(context.Background(), p, 0); err != nil {
			t.Errorf("%v: %v", kind, err)
		}
		compareBytes(t, kind.String(), p, bytes.Repeat([]byte{5}, 65536))
	}
}

func TestExternalDataFileHasNoOtherOffsets(t *testing.T) {
	for _, tt := range []struct {
		entry uint64
		says  string
	}{
		{1<<63 | 65536, "is not the guest offset"},
		{1 << 62, "compressed cluster in an external data file"},
	} {
		dir := t.TempDir()
		b := hostile(tt.entry)
		binary.BigEndian.PutUint64(b.tail[65536+8:], 1<<63|65536)
		b.h.Incompatible = image.IncompatDataFile
		b.h.Extensions = append(b.h.Extensions, image.Extension{Type: 0x44415441, Data: []byte("x.data")})
		b.save(t, filepath.Join(dir, "x.qcow2"))
		writeFile(t, filepath.Join(dir, "x.data"), bytes.Repeat([]byte{1}, 1<<20))
		c := openChain(t, filepath.Join(dir, "x.qcow2"), image.ChainOptions{})
		p := make([]byte, 10)
		if err := c.ReadAt(context.Background(), p, 0); !errors.Is(err, image.ErrCorrupt) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("read: got %v, want ErrCorrupt and %q", err, tt.says)
		}
		if err := c.ReadAt(context.Background(), p, 65536); err != nil || p[0] != 1 {
			t.Errorf("read of the next cluster: %v", err)
		}
	}
}

// exercise does everything that can be done with the image at path, a bounded
// number of times, and checks what holds for any image.
func exercise(t *testing.T, path string) {
	t.Helper()
	ctx := context.Background()
	if _, err := image.ReadInfo(path); err != nil && !foreign(err) {
		t.Fatalf("info: error of no kind: %v", err)
	}
	c, err := image.OpenChain(path, image.ChainOptions{MapBytes: 1 << 20})
	if err != nil {
		return
	}
	defer c.Close()
	p := make([]byte, 8192)
	for i, off := 0, int64(0); i < 4 && off < c.Size(); i++ {
		exts, err := c.Map(ctx, off, min(c.Size()-off, 64<<20))
		if err != nil {
			if !foreign(err) {
				t.Fatalf("map: error of no kind: %v", err)
			}
			off += 4096
			continue
		}
		for _, e := range exts[:min(len(exts), 64)] {
			if e.Off != off || e.Len <= 0 {
				t.Fatalf("map: got %+v where %d was next", e, off)
			}
			b := p[:min(e.Len, int64(len(p)))]
			if err := c.ReadAt(ctx, b, e.Off); err != nil && (e.Kind != block.Data || !foreign(err)) {
				t.Fatalf("read of %+v: %v", e, err)
			} else if err == nil && e.Kind != block.Data && bytes.Count(b, []byte{0}) != len(b) {
				t.Fatalf("%+v does not read as zeroes", e)
			}
			off = e.End()
		}
		locs, err := c.Locate(ctx, nil, exts[0].Off, min(exts[0].Len, 1<<20))
		if err != nil {
			t.Fatalf("locate %+v: %v", exts[0], err)
		}
		for _, l := range locs {
			if l.Kind != block.InFile {
				continue
			}
			st, err := l.File.Stat()
			if err != nil || l.Off+l.Len > st.Size() {
				t.Fatalf("location %+v in a file of %d bytes: %v", l, st.Size(), err)
			}
		}
	}
	for _, l := range c.Layers() {
		if _, err := c.Changed(ctx, l.Name, 0, min(c.Size(), 64<<20)); err != nil {
			t.Fatalf("changes since %s: %v", l.Name, err)
		}
	}
	f, err := image.OpenFile(path)
	if err != nil {
		return
	}
	defer f.Close()
	if err := f.Runs(ctx, 0, min(f.Size(), 64<<20), func(image.Run) error { return nil }); err != nil && !foreign(err) {
		t.Fatalf("runs: error of no kind: %v", err)
	}
}

// foreign reports whether err blames the file.
func foreign(err error) bool {
	return errors.Is(err, image.ErrNotQCOW2) || errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrUnsupported)
}

// FuzzChain opens anything. To keep the files small their cluster size is.
func FuzzChain(f *testing.F) {
	seed := func(change func(b *build)) {
		b := newBuild(9, 64<<10)
		b.write(map[int64][]byte{0: bytes.Repeat([]byte{1}, 512), 5: bytes.Repeat([]byte{2}, 512)})
		change(b)
		out, err := b.bytes()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(out)
	}
	seed(func(*build) {})
	seed(func(b *build) { b.h.Version = 2 })
	seed(func(b *build) { b.h.Snapshots, b.h.SnapshotsOffset = 1, b.cluster(make([]byte, 64)) })
	seed(func(b *build) {
		var z bytes.Buffer
		w, _ := flate.NewWriter(&z, 9)
		w.Write(make([]byte, 512))
		w.Close()
		b.table(1, map[int]uint64{0: 1<<62 | uint64(b.cluster(z.Bytes())), 1: 1, 2: 1 | 1<<20})
	})
	seed(func(b *build) { b.h.Size = 1 << 36; b.h.ClusterBits = 21 })
	small := newBuild(14, 1<<20) // with subclusters
	small.h.Incompatible = image.IncompatExtendedL2
	small.table(0, map[int]uint64{0: 1 << 16, 1: 0x0000ff0000ff0000, 2: 0, 3: 0xff << 32})
	out, err := small.bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out[:len(out)-16000])
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := os.CreateTemp(dir, "fuzz")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		_, err = file.Write(b)
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		exercise(t, file.Name())
	})
}
