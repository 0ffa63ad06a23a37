package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// FuzzRuns sees that runs cover what they are to, inside of the volume.
func FuzzRuns(f *testing.F) {
	f.Add([]byte{0x11, 4, 10, 0x01, 2, 0x12, 0, 1, 0xf0, 0}, int64(0), int64(262), int64(1000))
	f.Add([]byte{0x81, 1, 1, 2, 3, 4, 5, 6, 7, 8}, int64(5), int64(6), int64(1<<50))
	f.Fuzz(func(t *testing.T, pairs []byte, vcn, end, clusters int64) {
		if vcn < 0 || end < vcn || end > maxSize || clusters < 0 || clusters > maxSize {
			return
		}
		runs, err := decodeRuns(pairs, vcn, end, clusters)
		if err != nil {
			return
		}
		for _, r := range runs {
			if r.vcn != vcn || r.n <= 0 || r.lcn < -1 || r.lcn > clusters-r.n {
				t.Fatalf("got %+v from cluster %d on a volume of %d", r, vcn, clusters)
			}
			vcn = r.end()
		}
		if vcn != end {
			t.Fatalf("runs end at %d, not %d", vcn, end)
		}
	})
}

// FuzzRecord parses records whose update sequence is right, and what their
// attributes hold.
func FuzzRecord(f *testing.F) {
	b := build()
	for _, number := range []int{recordMFT, recordVolume, recordRoot} {
		f.Add([]byte(b[(1+number)*builtUnit : (2+number)*builtUnit]))
	}
	f.Add([]byte(b.record(20, 20, 0, info(attributeReparse), listOf(listEntry{typ: typeData, record: 20}), resident(typeReparsePoint, nil, make([]byte, 40)))))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < builtUnit {
			return
		}
		p = bytes.Clone(p[:builtUnit])
		copy(p, "FILE")
		protect(p)
		r, err := parseRecord(p, 20)
		if err != nil {
			return
		}
		for _, a := range r.attrs {
			if !a.resident {
				if _, err := decodeRuns(a.pairs, a.lowest, a.highest+1, 1<<40); err == nil && a.size > a.allocated {
					t.Fatalf("got %d of %d bytes", a.size, a.allocated)
				}
				continue
			}
			if key, err := fileName(a.value, len(a.value)); err == nil {
				e := entry{key: key}
				_, _, _ = e.kind(), decodeName(e.name()), e.space()
			}
			_, _ = parseList(a.value)
			_ = eachEA(a.value, func(string, []byte) {})
			_, _, _ = parseLink(tagSymlink, a.value)
			_, _, _ = parseLink(tagMountPoint, a.value)
			_, _ = parseRestart(a.value)
		}
	})
}

// FuzzName sees that names are found by what they are shown as.
func FuzzName(f *testing.F) {
	f.Add([]byte("a\x00\x3d\xd8\x00\xde\x3d\xd8\x00\xdc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b)&^1]
		shown := decodeName(b)
		name, ok := encodeName(shown)
		if !ok || len(name) != len(b)/2 {
			t.Fatalf("%x is shown as %q, which is %x, %v", b, shown, name, ok)
		}
		for i, u := range name {
			if u != binary.LittleEndian.Uint16(b[2*i:]) {
				t.Fatalf("%x is shown as %q, which is %x", b, shown, name)
			}
		}
	})
}

// FuzzDecompress sees that what is decompressed does not depend on what was there.
func FuzzDecompress(f *testing.F) {
	f.Add(byte(0), []byte("\x3f\xb0\x08aaaa\x00\x00"))
	f.Add(byte(1), append(bytes.Repeat([]byte{0x99}, 256), "some bits to decode"...))
	f.Add(byte(2), []byte("\x00\x30\x00\x10 a block that is not compressed"))
	f.Add(byte(2), append([]byte{0x20, 0x20, 0x33, 0x33}, bytes.Repeat([]byte{0x5a, 0xa5, 0x33, 0x12}, 100)...))
	f.Fuzz(func(t *testing.T, method byte, src []byte) {
		decompress := []func(dst, src []byte) error{decompressLZNT1, decompressXpress, decompressLZX}[method%3]
		dst := make([]byte, 16<<10)
		if decompress(dst, src) != nil {
			return
		}
		again := make([]byte, 16<<10)
		if err := decompress(again, bytes.Clone(src)); err != nil || !bytes.Equal(dst, again) {
			t.Fatalf("got something else the second time, or %v", err)
		}
	})
}

// FuzzVolume walks volumes whose records and blocks have the right update
// sequences.
func FuzzVolume(f *testing.F) {
	b := build()
	b.directory(recordRoot, entryOf(20, spacePOSIX, "a"), indexEntry(reference(21, 21), nameKey(5, 0, units("b")), 0), indexEntry(0, nil, -1))
	b.block(0, entryOf(22, spacePOSIX, "aa"), indexEntry(0, nil, -1))
	b.record(20, 20, 0, info(0), runsAttr(typeData, 3000, 0x11, 3, builtFree+5))
	b.record(21, 21, 0, info(attributeReparse), resident(typeReparsePoint, nil, append([]byte{0x17, 0, 0, 0x80, 16, 0, 0, 0}, make([]byte, 16)...)))
	packed := runsAttr(typeData, 16*builtUnit, 0x11, 3, builtFree+5, 0x01, 13)
	packed[0x0c], packed[0x22] = 1, 4
	b.record(22, 22, 0, info(attributeCompressed), packed)
	f.Add([]byte(b[builtUnit:]))
	start := bytes.Clone(b[:builtUnit])
	f.Fuzz(func(t *testing.T, p []byte) {
		b := make(builder, builtUnits*builtUnit)
		copy(b, start)
		copy(b[builtUnit:], p)
		for at := builtUnit; at < len(b); at += builtUnit {
			if magic := string(b[at : at+4]); magic == "FILE" || magic == "INDX" {
				protect(b[at : at+builtUnit])
			}
		}
		v, err := Open(b)
		if err != nil {
			return
		}
		_ = v.Info()
		visit(t, v, v.Root(), map[fsys.ID]bool{})
	})
}

func visit(t *testing.T, v fsys.FileSystem, id fsys.ID, seen map[fsys.ID]bool) {
	if seen[id] {
		return
	}
	seen[id] = true
	a, err := v.Stat(id)
	if err != nil {
		return
	}
	_, _ = v.Xattrs(id)
	if a.Mode.IsDir() {
		_ = v.ReadDir(id, func(e fsys.Entry) bool {
			_, _ = v.Lookup(id, e.Name)
			visit(t, v, e.ID, seen)
			return true
		})
		return
	}
	if _, err := v.Readlink(id); err == nil || !a.Mode.IsRegular() {
		return
	}
	p := make([]byte, 1000)
	for _, off := range []int64{0, a.Size / 2, a.Size - 1} {
		n, err := v.ReadAt(id, p, max(off, 0))
		if want := min(int64(len(p)), a.Size-max(off, 0)); err == nil && n != len(p) || errors.Is(err, io.EOF) && int64(n) != want {
			t.Fatalf("read %d of %d bytes at %d: got %d, %v", len(p), a.Size, off, n, err)
		}
	}
	end := int64(0)
	list, _ := v.Extents(id, 0, a.Size)
	for _, e := range list {
		if e.Off != end || e.Len <= 0 || e.Len > a.Size-end {
			t.Fatalf("extents of a file of %d bytes: %v", a.Size, list)
		}
		end += e.Len
	}
}
