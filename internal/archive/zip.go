package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/klauspost/compress/flate"
)

// Signatures and numbers of APPNOTE 6.3.10.
const (
	sigLocal      = 0x04034b50 // 4.3.7
	sigDescriptor = 0x08074b50 // 4.3.9
	sigCentral    = 0x02014b50 // 4.3.12
	sigEnd64      = 0x06064b50 // 4.3.14
	sigLocator64  = 0x07064b50 // 4.3.15
	sigEnd        = 0x06054b50 // 4.3.16

	stored, deflated = 0, 8 // 4.4.5
	flagDescriptor   = 1 << 3
	flagUTF8         = 1 << 11
	needs64          = 45
	madeOnUnix       = 3<<8 | needs64 // 4.4.2

	// surely32 is the size up to which what is written for a file is sure to be
	// less than 4 GiB: deflate adds a little to what it cannot compress.
	surely32 = math.MaxUint32 - 64<<20
	// maxCentral bounds the central directory in memory, compressed, in bytes.
	maxCentral = 256 << 20
)

// zipWriter writes zip. Sizes and checksums of small files stand in front of them;
// those of others follow. The central directory is kept in memory, compressed, to
// be written in the end.
type zipWriter struct {
	w       *output
	deflate *flate.Writer
	buf     []byte
	packed  bytes.Buffer // the content of a small file, compressed

	central      bytes.Buffer
	centralFlate *flate.Writer
	centralBytes int64 // before compression
	count        int64
}

func newZip(w *output) *zipWriter {
	z := &zipWriter{w: w, buf: make([]byte, pieceBytes)}
	z.deflate, z.centralFlate = newDeflate(nil, deflateLevel), newDeflate(&z.central, flate.BestSpeed)
	return z
}

// deflateLevel is where time and size are in balance: beyond it files get little
// smaller.
const deflateLevel = 5

func newDeflate(w io.Writer, level int) *flate.Writer {
	f, err := flate.NewWriter(w, level)
	if err != nil { // of levels that there are not
		panic(err)
	}
	return f
}

func (z *zipWriter) renamed(name string) string { return zipName(name) }

func (z *zipWriter) check(e *Entry) error {
	switch {
	case !e.Mode.IsRegular() && !e.Mode.IsDir() && e.Mode.Type() != fs.ModeSymlink:
		return ErrType
	case e.Mode.Type() == fs.ModeSymlink && (e.Target == "" || strings.Contains(e.Target, "\x00")):
		return ErrTarget
	case len(zipName(e.Name)) >= math.MaxUint16:
		return ErrLong
	}
	return nil
}

// member is a file of a zip, as its headers tell of it.
type member struct {
	name           string
	e              *Entry
	flags, method  uint16
	crc            uint32
	size, packed   uint64
	at             int64
	descriptorAs64 bool
}

func (z *zipWriter) add(ctx context.Context, e *Entry, c Content) (begun bool, err error) {
	m := &member{name: zipName(e.Name), e: e, flags: flagUTF8, at: z.w.n}
	switch {
	case e.Mode.IsDir():
		m.name += "/"
		err = z.known(m, nil)
	case e.Mode.Type() == fs.ModeSymlink:
		err = z.known(m, []byte(e.Target))
	case e.Size == 0 || c == nil:
		err = z.known(m, nil)
	default:
		// What cannot be read at all is found before there is a header.
		first := z.buf[:min(e.Size, int64(len(z.buf)))]
		if err := c.ReadAt(ctx, first, 0); err != nil {
			return false, err
		}
		if int64(len(first)) == e.Size {
			err = z.known(m, first)
		} else {
			err = z.stream(ctx, m, c, first)
		}
	}
	if err == nil {
		err = z.remember(m)
	}
	return true, err
}

// known writes a file whose content is at hand.
func (z *zipWriter) known(m *member, content []byte) error {
	m.size, m.packed, m.crc = uint64(len(content)), uint64(len(content)), crc32.ChecksumIEEE(content)
	if m.e.Mode.IsRegular() && len(content) > 0 {
		z.packed.Reset()
		z.deflate.Reset(&z.packed)
		_, err := z.deflate.Write(content)
		if err == nil {
			err = z.deflate.Close()
		}
		if err != nil {
			return err
		}
		if z.packed.Len() < len(content) {
			m.method, m.packed, content = deflated, uint64(z.packed.Len()), z.packed.Bytes()
		}
	}
	if _, err := z.w.Write(m.local()); err != nil {
		return err
	}
	_, err := z.w.Write(content)
	return err
}

// stream writes a file of any size, of which first is known.
func (z *zipWriter) stream(ctx context.Context, m *member, c Content, first []byte) error {
	m.flags |= flagDescriptor
	m.method = deflated // what is stored could not be told from what follows by who reads a stream
	m.descriptorAs64 = m.e.Size > surely32
	if _, err := z.w.Write(m.local()); err != nil {
		return err
	}
	from := z.w.n
	z.deflate.Reset(z.w)
	sum := &checksum{w: z.deflate}
	if _, err := sum.Write(first); err != nil {
		return err
	}
	if err := z.rest(ctx, sum, c, int64(len(first)), m.e.Size); err != nil {
		return err
	}
	if err := z.deflate.Close(); err != nil {
		return err
	}
	m.crc, m.size, m.packed = sum.crc, uint64(m.e.Size), uint64(z.w.n-from)
	_, err := z.w.Write(m.descriptor())
	return err
}

// rest writes the bytes [off, size) of a file; holes are not read.
func (z *zipWriter) rest(ctx context.Context, w io.Writer, c Content, off, size int64) error {
	for off < size {
		from, to, err := c.Data(ctx, off)
		if err != nil {
			return err
		}
		if from < off || to < from || to > size || from == to && to != size {
			return errRuns
		}
		for ; off < from; off += min(from-off, int64(len(zeroes))) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := w.Write(zeroes[:min(from-off, int64(len(zeroes)))]); err != nil {
				return err
			}
		}
		if err := copyRange(ctx, w, c, from, to, z.buf); err != nil {
			return err
		}
		off = to
	}
	return nil
}

// checksum takes the CRC of what is written through it.
type checksum struct {
	w   io.Writer
	crc uint32
}

func (s *checksum) Write(p []byte) (int, error) {
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p)
	return s.w.Write(p)
}

// local returns the header that stands in front of a file (4.3.7).
func (m *member) local() []byte {
	extra := m.extra()
	size, packed, crc, version := uint32(m.size), uint32(m.packed), m.crc, uint16(20)
	if m.flags&flagDescriptor != 0 {
		size, packed, crc = 0, 0, 0
	}
	if m.descriptorAs64 {
		size, packed, version = math.MaxUint32, math.MaxUint32, needs64
		extra = append(field(1, make([]byte, 16)), extra...) // 4.5.3; what it is, the descriptor tells
	}
	b := le.AppendUint32(make([]byte, 0, 30+len(m.name)+len(extra)), sigLocal)
	b = le.AppendUint16(b, version)
	b = m.common(b, crc, packed, size, extra)
	return append(append(b, m.name...), extra...)
}

var le = binary.LittleEndian

// common appends what both headers of a file have from the flags on.
func (m *member) common(b []byte, crc, packed, size uint32, extra []byte) []byte {
	date, clock := dosTime(m.e.Modified)
	for _, v := range []uint16{m.flags, m.method, clock, date} {
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{crc, packed, size} {
		b = le.AppendUint32(b, v)
	}
	return le.AppendUint16(le.AppendUint16(b, uint16(len(m.name))), uint16(len(extra)))
}

// descriptor returns what follows a file whose header did not know it (4.3.9).
func (m *member) descriptor() []byte {
	b := le.AppendUint32(le.AppendUint32(nil, sigDescriptor), m.crc)
	if m.descriptorAs64 {
		return le.AppendUint64(le.AppendUint64(b, m.packed), m.size)
	}
	return le.AppendUint32(le.AppendUint32(b, uint32(m.packed)), uint32(m.size))
}

// remember adds a file to the central directory (4.3.12).
func (z *zipWriter) remember(m *member) error {
	extra := m.extra()
	size, packed, at, version := uint32(m.size), uint32(m.packed), uint32(m.at), uint16(20)
	var large []byte
	if m.descriptorAs64 || m.size >= math.MaxUint32 || m.packed >= math.MaxUint32 {
		size, packed, version = math.MaxUint32, math.MaxUint32, needs64
		large = le.AppendUint64(le.AppendUint64(large, m.size), m.packed)
	}
	if m.at >= math.MaxUint32 {
		at, version = math.MaxUint32, needs64
		large = le.AppendUint64(large, uint64(m.at))
	}
	if large != nil {
		extra = append(field(1, large), extra...)
	}
	b := le.AppendUint32(nil, sigCentral)
	b = le.AppendUint16(le.AppendUint16(b, madeOnUnix), version)
	b = m.common(b, m.crc, packed, size, extra)
	b = append(b, 0, 0, 0, 0, 0, 0) // no comment, disk 0, binary
	b = le.AppendUint32(le.AppendUint32(b, m.attributes()), at)
	b = append(append(b, m.name...), extra...)
	z.count++
	z.centralBytes += int64(len(b))
	if z.central.Len() > maxCentral {
		return ErrMany
	}
	_, err := z.centralFlate.Write(b)
	return err
}

// attributes are the external ones (4.4.15): a mode as Unix has it, and that of DOS
// for a directory.
func (m *member) attributes() uint32 {
	types := map[fs.FileMode]uint32{0: 0o100000, fs.ModeDir: 0o40000, fs.ModeSymlink: 0o120000}
	a := (types[m.e.Mode.Type()] | unixMode(m.e.Mode)) << 16
	if m.e.Mode.IsDir() {
		a |= 0x10
	}
	return a
}

// extra returns the extra fields of a file: time and owners as Info-ZIP has them
// (extrafld.txt, "UT" and "ux"), and the time of NTFS (4.5.5), which is finer and
// goes further.
func (m *member) extra() []byte {
	var b []byte
	t := m.e.Modified
	if s := t.Unix(); !t.IsZero() && s >= math.MinInt32 && s <= math.MaxInt32 {
		b = append(b, field(0x5455, le.AppendUint32([]byte{1}, uint32(int32(s))))...)
	}
	owners := le.AppendUint32(append(le.AppendUint32([]byte{1, 4}, m.e.UID), 4), m.e.GID)
	b = append(b, field(0x7875, owners)...)
	if y := t.Year(); y >= 1601 && y < 30000 {
		ticks := uint64((t.Unix()+secondsTo1970)*1e7 + int64(t.Nanosecond()/100))
		list := []byte{0, 0, 0, 0, 1, 0, 24, 0}
		for range 3 { // modified, read, made
			list = le.AppendUint64(list, ticks)
		}
		b = append(b, field(0x000a, list)...)
	}
	return b
}

// secondsTo1970 are those from the beginning of 1601.
const secondsTo1970 = 11644473600

// field returns an extra field (4.5.1).
func field(id uint16, data []byte) []byte {
	b := le.AppendUint16(make([]byte, 0, 4+len(data)), id)
	return append(le.AppendUint16(b, uint16(len(data))), data...)
}

// dosTime returns a date and a time of day of MS-DOS (4.4.6), in UTC; the nearest
// that it has.
func dosTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	switch y := t.Year(); {
	case y < 1980:
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	case y > 2107:
		t = time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)
	}
	return uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day()), uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
}

// spoil has nothing to do: there is no zip without its end.
func (z *zipWriter) spoil() error { return nil }

// end writes the central directory and where it is.
func (z *zipWriter) end() error {
	if err := z.centralFlate.Close(); err != nil {
		return err
	}
	at := z.w.n
	n, err := io.CopyBuffer(struct{ io.Writer }{z.w}, flate.NewReader(&z.central), z.buf)
	if err != nil {
		return err
	}
	if n != z.centralBytes {
		return fmt.Errorf("central directory: %d bytes of %d", n, z.centralBytes)
	}
	_, err = z.w.Write(endOfCentral(z.count, n, at, z.w.n))
	return err
}

// endOfCentral returns what a zip ends with: n bytes of directory for count files
// lie at a place, and end stands at another (4.3.14 to 4.3.16).
func endOfCentral(count, n, at, end int64) []byte {
	var b []byte
	if count >= math.MaxUint16 || n >= math.MaxUint32 || at >= math.MaxUint32 {
		b = le.AppendUint64(le.AppendUint32(b, sigEnd64), 44)
		b = le.AppendUint16(le.AppendUint16(b, madeOnUnix), needs64)
		b = append(b, make([]byte, 8)...) // disks
		for _, v := range []int64{count, count, n, at} {
			b = le.AppendUint64(b, uint64(v))
		}
		b = le.AppendUint32(le.AppendUint32(b, sigLocator64), 0)
		b = le.AppendUint32(le.AppendUint64(b, uint64(end)), 1)
	}
	b = append(le.AppendUint32(b, sigEnd), 0, 0, 0, 0)
	short := uint16(min(count, math.MaxUint16))
	b = le.AppendUint16(le.AppendUint16(b, short), short)
	b = le.AppendUint32(le.AppendUint32(b, uint32(min(n, math.MaxUint32))), uint32(min(at, math.MaxUint32)))
	return append(b, 0, 0)
}
