package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// wofStream is the stream in which a file lies that was compressed by the Windows
// Overlay Filter. The file itself is a hole.
var wofStream = units("WofCompressedData")

// wofFile is a file that was compressed so.
type wofFile struct {
	f      *fileSystem
	size   int64 // of the content
	stream *stream
	chunk  int64 // bytes of content that are compressed at a time
	lzx    bool
}

// openWOF opens a compressed file ([MS-FSCC] 2.1.2, WOF_EXTERNAL_INFO and
// FILE_PROVIDER_EXTERNAL_INFO_V1): versions, which provider, and what it did.
func (f *fileSystem) openWOF(n *node, size int64) (*wofFile, error) {
	if len(n.reparse) < 8 {
		return nil, corruptf("read how it is compressed: %d bytes", len(n.reparse))
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(n.reparse[4*i:]) }
	if word(0) != 1 || word(1) != 2 || len(n.reparse) < 16 || word(2) != 1 {
		return nil, unsupportedf("read what lies in a WIM file (WOF provider %d, version %d)", word(1), word(0))
	}
	w := &wofFile{f: f, size: size}
	switch word(3) {
	case 0:
		w.chunk = 4 << 10
	case 1:
		w.chunk, w.lzx = 32<<10, true
	case 2:
		w.chunk = 8 << 10
	case 3:
		w.chunk = 16 << 10
	default:
		return nil, unsupportedf("read what WOF compressed by algorithm %d", word(3))
	}
	var err error
	if w.stream, err = f.open(n.in, typeData, wofStream); errors.Is(err, errNoAttribute) {
		return nil, corruptf("read what WOF compressed: there is no stream of it")
	}
	return w, err
}

// readAt fills p with the content from off, which is before the end.
func (w *wofFile) readAt(p []byte, off int64) (int, error) {
	var atEnd error
	if int64(len(p)) > w.size-off {
		p, atEnd = p[:w.size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		key := unitKey{w.stream, off / w.chunk}
		b, ok := w.f.units.Get(key)
		if !ok {
			var err error
			if b, err = w.decompress(key.index); err != nil {
				return done, fmt.Errorf("decompress chunk %d: %w", key.index, err)
			}
			w.f.units.Put(key, b, int64(len(b)))
		}
		n := copy(p[done:], b[off-key.index*w.chunk:])
		done, off = done+n, off+int64(n)
	}
	return done, atEnd
}

// place returns where chunk i lies in the stream: it starts with where each chunk
// but the first begins, counted from the end of that table.
func (w *wofFile) place(i int64) (from, to int64, err error) {
	width := int64(4)
	if w.size > 1<<32-1 {
		width = 8
	}
	last := (w.size - 1) / w.chunk
	table := last * width
	entry := func(i int64) (int64, error) {
		if i == 0 {
			return 0, nil
		}
		if i > last {
			return w.stream.size - table, nil
		}
		var b [8]byte
		_, err := w.stream.readAt(w.f.vol, b[:width], (i-1)*width)
		return int64(binary.LittleEndian.Uint64(b[:])), err
	}
	if from, err = entry(i); err == nil {
		to, err = entry(i + 1)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	if err != nil || from < 0 || to <= from || to-from > w.chunk || to > w.stream.size-table {
		return 0, 0, corruptf("find it: it is from %d to %d of %d", from, to, w.stream.size-table)
	}
	return table + from, table + to, nil
}

// decompress returns the content of chunk i.
func (w *wofFile) decompress(i int64) ([]byte, error) {
	from, to, err := w.place(i)
	if err != nil {
		return nil, err
	}
	packed := make([]byte, to-from)
	if _, err := w.stream.readAt(w.f.raw, packed, from); err != nil {
		return nil, err
	}
	b := make([]byte, min(w.chunk, w.size-i*w.chunk))
	switch {
	case len(packed) == len(b):
		return packed, nil
	case len(packed) > len(b):
		return nil, corruptf("it takes %d bytes for %d", len(packed), len(b))
	case w.lzx:
		err = decompressLZX(b, packed)
	default:
		err = decompressXpress(b, packed)
	}
	return b, err
}
