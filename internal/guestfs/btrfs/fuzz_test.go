package btrfs

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// FuzzTrees walks a file system with leaves of any content, also in its log.
func FuzzTrees(f *testing.F) {
	image := withLog()
	body, n := image.leaf(tinyFiles)
	logBody, logN := image.leaf(tinyLog)
	f.Add(body, n, logBody, logN)
	f.Add(body, n, body, n)
	f.Fuzz(func(_ *testing.T, body []byte, n uint8, logBody []byte, logN uint8) {
		image := newTiny()
		image.putRaw(tinyFiles, 7, body[:min(len(body), tinyNode-headerSize)], int(n))
		image.putRaw(tinyLog, 8, logBody[:min(len(logBody), tinyNode-headerSize)], int(logN))
		image.log()
		fs, err := image.open(Options{VerifyData: n%2 == 0})
		if err != nil {
			return
		}
		_ = visit(fs) // errors are fine
	})
}

// FuzzOpen opens a volume with any superblock, chunks and roots.
func FuzzOpen(f *testing.F) {
	image := newTiny()
	chunks, roots := image.b[tinyChunks:][headerSize:tinyNode], image.b[tinyRoots:][headerSize:tinyNode]
	f.Add(image.b[64<<10:][:superSize], chunks, uint8(2), roots, uint8(1))
	f.Fuzz(func(_ *testing.T, super, chunks []byte, n uint8, roots []byte, rootsN uint8) {
		image := newTiny()
		image.put(tinyFiles, 7, tinyFileSystem()...)
		copy(image.b[64<<10:][:superSize], super)
		image.seal()
		image.putRaw(tinyChunks, 7, chunks[:min(len(chunks), tinyNode-headerSize)], int(n))
		image.putRaw(tinyRoots, 7, roots[:min(len(roots), tinyNode-headerSize)], int(rootsN))
		fs, err := OpenWith([]fsys.Volume{memory(image.b)}, Options{trusting: true, Degraded: n%2 == 0})
		if err != nil {
			return
		}
		_ = visit(fs)
	})
}

// FuzzExpand expands anything.
func FuzzExpand(f *testing.F) {
	text := bytes.Repeat([]byte("compresses well. "), 1000)
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	if _, err := w.Write(text); err != nil || w.Close() != nil {
		f.Fatal(err)
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(1), z.Bytes(), uint16(len(text)))
	f.Add(uint8(3), append(e.EncodeAll(text, nil), make([]byte, 100)...), uint16(len(text)))
	f.Add(uint8(2), []byte{20, 0, 0, 0, 12, 0, 0, 0, 22, 'h', 'e', 'l', 'l', 'o', 0x20 | 1, 0, 0, 17, 0, 0}, uint16(100))
	s := &store{super: super{sectorSize: 4096}}
	f.Fuzz(func(_ *testing.T, compression uint8, in []byte, n uint16) {
		expand := expanders[1+compression%3]
		_ = expand(s, make([]byte, n), in)
	})
}
