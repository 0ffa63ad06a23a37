package image_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// qemuInfo is what qemu-img info --output=json says.
type qemuInfo struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	ClusterSize int64  `json:"cluster-size"`
	Dirty       bool   `json:"dirty-flag"`
	Backing     string `json:"backing-filename"`
	BackingFmt  string `json:"backing-filename-format"`
	Snapshots   []struct {
		ID, Name string
		DateSec  int64 `json:"date-sec"`
	}
	Specific struct {
		Data struct {
			Compat       string
			Compression  string `json:"compression-type"`
			LazyRefs     bool   `json:"lazy-refcounts"`
			RefcountBits int    `json:"refcount-bits"`
			Corrupt      bool
			ExtendedL2   bool   `json:"extended-l2"`
			DataFile     string `json:"data-file"`
			DataFileRaw  bool   `json:"data-file-raw"`
			Bitmaps      []struct {
				Name        string
				Granularity int64
				Flags       []string
			}
		}
	} `json:"format-specific"`
}

func TestInfoAgreesWithQEMU(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	tests := []struct {
		name    string
		options string
		more    func(t *testing.T, dir string)
	}{
		{"version 2", "compat=0.10", nil},
		{"version 3", "cluster_size=2M,refcount_bits=64", nil},
		{"a backing file", "backing_file=base.img,backing_fmt=raw", nil},
		{"zstd, subclusters and lazy refcounts", "compression_type=zstd,extended_l2=on,lazy_refcounts=on", nil},
		{"a raw external data file", "data_file=x.data,data_file_raw=on", nil},
		{"snapshots", "", func(t *testing.T, dir string) {
			qemuImg(t, dir, "snapshot", "-c", "first", "x.qcow2")
			qemuImg(t, dir, "snapshot", "-c", "the second, with a longer name", "x.qcow2")
		}},
		{"bitmaps", "", func(t *testing.T, dir string) {
			qemuImg(t, dir, "bitmap", "--add", "x.qcow2", "b0")
			qemuImg(t, dir, "bitmap", "--add", "--disable", "-g", "4096", "x.qcow2", "another bitmap")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "base.img"), make([]byte, 1<<20))
			args := []string{"create", "-q", "-f", "qcow2"}
			if tt.options != "" {
				args = append(args, "-o", tt.options)
			}
			qemuImg(t, dir, append(args, "x.qcow2", "3M")...)
			if tt.more != nil {
				tt.more(t, dir)
			}
			var want qemuInfo
			if err := json.Unmarshal(qemuImg(t, dir, "info", "--output=json", "x.qcow2"), &want); err != nil {
				t.Fatal(err)
			}
			got, err := image.ReadInfo(filepath.Join(dir, "x.qcow2"))
			if err != nil {
				t.Fatal(err)
			}
			compareInfo(t, got, want)
		})
	}
}

func compareInfo(t *testing.T, got image.Info, want qemuInfo) {
	t.Helper()
	q, w := got.QCOW2, want.Specific.Data
	if w.Compression == "" {
		w.Compression = "zlib" // QEMU does not say it of version 2
	}
	if w.RefcountBits == 0 {
		w.RefcountBits = 16
	}
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"format", got.Format, want.Format},
		{"virtual size", got.VirtualBytes, want.VirtualSize},
		{"cluster size", q.ClusterBytes, want.ClusterSize},
		{"backing file", q.BackingFile, want.Backing},
		{"backing format", q.BackingFormat, want.BackingFmt},
		{"dirty", q.Dirty, want.Dirty},
		{"compat", q.Compat, w.Compat},
		{"compression", q.Compression, w.Compression},
		{"lazy refcounts", q.LazyRefcounts, w.LazyRefs},
		{"refcount bits", q.RefcountBits, w.RefcountBits},
		{"corrupt", q.Corrupt, w.Corrupt},
		{"extended L2", q.ExtendedL2, w.ExtendedL2},
		{"data file", q.DataFile, w.DataFile},
		{"data file is raw", q.DataFileRaw, w.DataFileRaw},
		{"snapshots", len(q.Snapshots), len(want.Snapshots)},
		{"bitmaps", len(q.Bitmaps), len(w.Bitmaps)},
	} {
		if f.got != f.want {
			t.Errorf("%s: got %v, want %v", f.name, f.got, f.want)
		}
	}
	for i, s := range want.Snapshots {
		if g := q.Snapshots[i]; g.ID != s.ID || g.Name != s.Name || g.Taken.Unix() != s.DateSec || g.VirtualBytes != want.VirtualSize {
			t.Errorf("snapshot %d: got %+v, want %+v", i, g, s)
		}
	}
	for i, b := range w.Bitmaps {
		if g := q.Bitmaps[i]; g.Name != b.Name || g.Granularity != b.Granularity || g.Auto != (len(b.Flags) == 1 && b.Flags[0] == "auto") {
			t.Errorf("bitmap %d: got %+v, want %+v", i, g, b)
		}
	}
}

func TestInfoOfARawFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.img")
	writeFile(t, path, make([]byte, 4097))
	in, err := image.ReadInfo(path)
	if err != nil || in.Format != "raw" || in.VirtualBytes != 4097 || in.QCOW2 != nil {
		t.Errorf("info: got %+v and %v, want raw of 4097 bytes", in, err)
	}
}

func TestHeaderIsReadAsQEMUWroteIt(t *testing.T) {
	requires.Tool(t, "qemu-img")
	dir := t.TempDir()
	for i, options := range []string{
		"compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on,compression_type=zstd",
		"backing_file=a name,backing_fmt=raw", "lazy_refcounts=on,refcount_bits=1", "data_file=y.data",
	} {
		name := string(rune('a'+i)) + ".qcow2"
		qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-u", "-o", options, name, "1M")
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h, err := image.ReadHeader(f)
		if err != nil {
			t.Fatalf("%s: %v", options, err)
		}
		encoded, err := h.Encode()
		if err != nil {
			t.Fatalf("%s: %v", options, err)
		}
		got := make([]byte, len(encoded))
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, encoded) {
			t.Errorf("%s: encoded again\n got %x\nwant %x", options, encoded, got)
		}
	}
}

func headerBytes(t testing.TB, change func(h *image.Header)) []byte {
	t.Helper()
	b := newBuild(16, 1<<20)
	change(&b.h)
	out, err := b.bytes()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnknownFeaturesAreNamed(t *testing.T) {
	names := make([]byte, 2*48)
	names[1] = 9
	copy(names[2:], "flux capacitor")
	names[48], names[49] = 1, 7 // a compatible feature: not the one
	copy(names[50:], "other")
	b := headerBytes(t, func(h *image.Header) {
		h.Incompatible = 1<<9 | 1<<7
		h.Extensions = []image.Extension{{Type: 0x6803f857, Data: names}}
	})
	_, err := image.ReadHeader(bytes.NewReader(b))
	want := `incompatible feature bit 7, "flux capacitor" (incompatible feature bit 9)`
	if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), want) {
		t.Errorf("error: got %v, want ErrUnsupported and %s", err, want)
	}
}

func TestHeaderKeepsWhatItDoesNotKnow(t *testing.T) {
	want := newBuild(16, 1<<20).backed("name", "raw").h
	want.Unknown = []byte("12345678")
	want.Compatible = 1 << 40
	want.Extensions = append(want.Extensions,
		image.Extension{Type: 0x12345678, Data: []byte("kept as it is")},
		image.Extension{Type: 1, Data: bytes.Repeat([]byte{4}, 5000)}) // beyond the first page
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := image.ReadHeader(bytes.NewReader(append(b, make([]byte, 65536)...)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("header: got %+v, want %+v", *got, want)
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	be := binary.BigEndian
	tests := []struct {
		name   string
		change func(b []byte)
		want   error
	}{
		{"another magic", func(b []byte) { b[0] = 'X' }, image.ErrNotQCOW2},
		{"version 1", func(b []byte) { b[7] = 1 }, image.ErrUnsupported},
		{"version 4", func(b []byte) { b[7] = 4 }, image.ErrUnsupported},
		{"clusters of 256 bytes", func(b []byte) { b[23] = 8 }, image.ErrCorrupt},
		{"clusters of 4 MiB", func(b []byte) { b[23] = 22 }, image.ErrCorrupt},
		{"a size beyond 2^63", func(b []byte) { b[24] = 0x80 }, image.ErrCorrupt},
		{"an L1 table that is too short", func(b []byte) { be.PutUint32(b[36:], 0) }, image.ErrCorrupt},
		{"an L1 table of more than 32 MiB", func(b []byte) { be.PutUint32(b[36:], 1<<23) }, image.ErrCorrupt},
		{"an L1 table beside a cluster boundary", func(b []byte) { b[47] = 8 }, image.ErrCorrupt},
		{"an L1 table in the header", func(b []byte) { be.PutUint64(b[40:], 0) }, image.ErrCorrupt},
		{"no refcount table", func(b []byte) { be.PutUint32(b[56:], 0) }, image.ErrCorrupt},
		{"a refcount table of more than 8 MiB", func(b []byte) { be.PutUint32(b[56:], 129) }, image.ErrCorrupt},
		{"too many snapshots", func(b []byte) { be.PutUint32(b[60:], 65537) }, image.ErrCorrupt},
		{"refcounts of 128 bits", func(b []byte) { b[99] = 7 }, image.ErrCorrupt},
		{"a header of 100 bytes", func(b []byte) { be.PutUint32(b[100:], 100) }, image.ErrCorrupt},
		{"a header of 2 GiB", func(b []byte) { be.PutUint32(b[100:], 1<<31) }, image.ErrCorrupt},
		{"a compression without its feature bit", func(b []byte) { b[104] = 1 }, image.ErrCorrupt},
		{"an unknown compression", func(b []byte) { b[104], b[79] = 2, 8 }, image.ErrUnsupported},
		{"a feature bit without its compression", func(b []byte) { b[79] = 8 }, image.ErrCorrupt},
		{"a backing name behind the first cluster", func(b []byte) { be.PutUint64(b[8:], 65537) }, image.ErrCorrupt},
		{"a backing name of 1024 bytes", func(b []byte) { be.PutUint64(b[8:], 4096); be.PutUint32(b[16:], 1024) }, image.ErrCorrupt},
		{"a backing name inside the header", func(b []byte) { be.PutUint64(b[8:], 80); be.PutUint32(b[16:], 8) }, image.ErrCorrupt},
		{"an extension that does not end", func(b []byte) { be.PutUint32(b[112:], 1); be.PutUint32(b[116:], 1<<31) }, image.ErrCorrupt},
		{"raw external data without a file", func(b []byte) { b[95] = 2 }, image.ErrCorrupt},
		{"AES", func(b []byte) { b[35] = 1 }, image.ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := headerBytes(t, func(*image.Header) {})
			tt.change(b)
			if _, err := image.ReadHeader(bytes.NewReader(b)); !errors.Is(err, tt.want) {
				t.Errorf("error: got %v, want %v", err, tt.want)
			}
		})
	}
	whole := headerBytes(t, func(*image.Header) {})
	for n := range 112 {
		if _, err := image.ReadHeader(bytes.NewReader(whole[:n])); err == nil {
			t.Errorf("a file of %d bytes is no error", n)
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add(headerBytes(f, func(h *image.Header) {}))
	f.Add(headerBytes(f, func(h *image.Header) {
		h.BackingFile = "base"
		h.Unknown = make([]byte, 16)
		h.Extensions = []image.Extension{{Type: 0xe2792aca, Data: []byte("raw")}, {Type: 5, Data: []byte("kept")}}
	})[:512])
	f.Add(headerBytes(f, func(h *image.Header) { h.Version = 2 })[:256])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := image.ReadHeader(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, image.ErrNotQCOW2) && !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, image.ErrUnsupported) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		out, err := h.Encode()
		if err != nil {
			return // what came without an end marker need not fit with one
		}
		again, err := image.ReadHeader(bytes.NewReader(out))
		if err != nil || !reflect.DeepEqual(h, again) {
			t.Fatalf("read again: got %+v and %v, want %+v", again, err, h)
		}
	})
}
