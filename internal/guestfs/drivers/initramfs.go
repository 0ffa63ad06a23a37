package drivers

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// Limits of an initial RAM disk.
const (
	maxUnpacked = 1 << 30 // bytes
	maxFiles    = 500_000
	maxName     = 4096
	maxWindow   = 128 << 20 // bytes that decompressing may look back
)

var errTooLarge = errors.New("it is larger than is looked at")

// readInitramfs calls visit for the names of the files in an initial RAM disk, as
// the kernel unpacks it: archives of cpio, compressed or not, one after another
// with zeroes in between.
func readInitramfs(r io.Reader, visit func(name string)) error {
	a := &archive{visit: visit, left: maxUnpacked}
	return a.read(bufio.NewReaderSize(r, 256<<10), true)
}

type archive struct {
	visit func(string)
	files int
	left  int64 // bytes that are still taken
}

// formats of compression, by how they begin.
var formats = []struct {
	magic, name string
	open        func(*bufio.Reader) (io.Reader, error)
}{
	{"\x1f\x8b", "gzip", func(r *bufio.Reader) (io.Reader, error) {
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false) // what follows may be something else
		}
		return z, err
	}},
	{"BZh", "bzip2", func(r *bufio.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"\xfd7zXZ\x00", "xz", func(r *bufio.Reader) (io.Reader, error) {
		if err := checkXZ(r); err != nil {
			return nil, err
		}
		return xz.NewReader(r)
	}},
	{"\x5d\x00\x00", "lzma", func(r *bufio.Reader) (io.Reader, error) {
		return lzma.ReaderConfig{DictCap: maxWindow}.NewReader(r)
	}},
	{"\x02\x21\x4c\x18", "lz4", func(r *bufio.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"\x04\x22\x4d\x18", "lz4", func(r *bufio.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"\x28\xb5\x2f\xfd", "zstd", func(r *bufio.Reader) (io.Reader, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		return d, err
	}},
	{"\x89LZO", "lzo", func(*bufio.Reader) (io.Reader, error) { return nil, errors.New("not supported") }},
}

// checkXZ refuses what would take too much memory: the reader takes what the header
// of the first block asks for (section 3.1 of the file format, and 5.3.1).
func checkXZ(r *bufio.Reader) error {
	head, err := r.Peek(40)
	if err != nil && len(head) < 18 {
		return orEnd(err)
	}
	at, flags := 14, head[13]
	for _, has := range []byte{0x40, 0x80} { // sizes, of seven bits a byte
		if flags&has == 0 {
			continue
		}
		for at < len(head)-4 && head[at]&0x80 != 0 {
			at++
		}
		at++
	}
	const lzma2 = 0x21
	if flags&3 != 0 || at+3 > len(head) || head[at] != lzma2 || head[at+1] != 1 {
		return errors.New("it uses filters beside LZMA2")
	}
	bits := head[at+2]
	if window := int64(2|bits&1) << (bits/2 + 11); bits > 40 || window > maxWindow {
		return fmt.Errorf("it wants to look back over %d bytes", window)
	}
	return nil
}

// read reads archives to the end. Only the outer ones may be compressed; what
// follows the archives inside of one may be filling, which decompressors refuse.
func (a *archive) read(r *bufio.Reader, outer bool) error {
	for some := false; ; some = true {
		err := a.zeroes(r)
		if some && (errors.Is(err, io.EOF) || !outer && err != nil) {
			return nil
		}
		if err != nil {
			return orEnd(err)
		}
		head, err := r.Peek(6)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		more := true
		switch {
		case bytes.HasPrefix(head, []byte("070701")), bytes.HasPrefix(head, []byte("070702")):
			err = a.cpio(r)
		case outer:
			more, err = a.compressed(r, head)
		default:
			err = errors.New("it holds something that is no archive of cpio")
		}
		if err != nil || !more {
			return err
		}
	}
}

// zeroes skips what fills the room between archives.
func (a *archive) zeroes(r *bufio.Reader) error {
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return r.UnreadByte()
		}
		if a.left--; a.left < 0 {
			return errTooLarge
		}
	}
}

// compressed reads archives that are compressed. What may follow can only be told
// where the decompressor stops at its end.
func (a *archive) compressed(r *bufio.Reader, head []byte) (more bool, err error) {
	for _, f := range formats {
		if !bytes.HasPrefix(head, []byte(f.magic)) {
			continue
		}
		in, err := f.open(r)
		if err == nil {
			err = a.read(bufio.NewReaderSize(in, 64<<10), false)
		}
		if d, ok := in.(*zstd.Decoder); ok && d != nil {
			d.Close()
		}
		if err != nil && !errors.Is(err, errTooLarge) {
			err = fmt.Errorf("it is compressed with %s, which cannot be read: %w", f.name, err)
		}
		return f.name == "gzip", err
	}
	return false, fmt.Errorf("it begins with %x, which is no archive that is known", head)
}

// cpio reads one archive in the format that the kernel reads ("newc").
func (a *archive) cpio(r *bufio.Reader) error {
	var head [110]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return orEnd(err)
		}
		if m := string(head[:6]); m != "070701" && m != "070702" {
			return fmt.Errorf("an entry of its archive begins with %q", m)
		}
		size, err1 := strconv.ParseUint(string(head[54:62]), 16, 32)
		nameLen, err2 := strconv.ParseUint(string(head[94:102]), 16, 32)
		if err := errors.Join(err1, err2); err != nil || nameLen == 0 || nameLen > maxName {
			return errors.New("an entry of its archive makes no sense")
		}
		name := make([]byte, pad(110+int64(nameLen))-110)
		if _, err := io.ReadFull(r, name); err != nil {
			return orEnd(err)
		}
		skip := pad(int64(size))
		if a.files++; a.files > maxFiles || skip > a.left {
			return errTooLarge
		}
		a.left -= skip + int64(len(name)) + 110
		if _, err := r.Discard(int(skip)); err != nil {
			return orEnd(err)
		}
		plain := string(name[:nameLen-1])
		if plain == "TRAILER!!!" {
			return nil
		}
		a.visit(plain)
	}
}

// pad rounds up to the alignment of an archive.
func pad(n int64) int64 { return (n + 3) &^ 3 }

// orEnd says of an end that comes too early what it is.
func orEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends in the middle")
	}
	return err
}
