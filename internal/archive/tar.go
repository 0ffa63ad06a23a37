package archive

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	blockBytes = 512
	// maxRecords bounds the pax records of an entry, in bytes: libarchive and Go
	// take no more.
	maxRecords = 1 << 20
	// maxXattrs is how many of them extended attributes may take.
	maxXattrs = 480 << 10
	// maxOctal7 and maxOctal11 are what fields of a header hold.
	maxOctal7, maxOctal11 = 1<<21 - 1, 1<<33 - 1
)

// tarWriter writes pax (POSIX.1-2008, pax, "pax Interchange Format"). Extended
// attributes and ACLs are records of SCHILY, sparse files are GNU's format 1.0:
// GNU tar, libarchive and Python read both.
type tarWriter struct {
	w     *output
	count int // entries with records
	buf   []byte
}

// typeflags are those of ustar, by type.
var typeflags = map[fs.FileMode]byte{0: '0', fs.ModeSymlink: '2', fs.ModeDevice | fs.ModeCharDevice: '3', fs.ModeDevice: '4',
	fs.ModeDir: '5', fs.ModeNamedPipe: '6'}

func (t *tarWriter) renamed(name string) string { return name }

func (t *tarWriter) check(e *Entry) error {
	_, known := typeflags[e.Mode.Type()]
	switch {
	case !known:
		return ErrType
	case e.Major > maxOctal7 || e.Minor > maxOctal7:
		return fmt.Errorf("it is device %d, %d: %w", e.Major, e.Minor, ErrType)
	case e.Mode.Type() == fs.ModeSymlink && (e.Target == "" || strings.Contains(e.Target, "\x00")):
		return ErrTarget
	case len(e.Name)+len(e.Link)+len(e.Target) > maxRecords-maxXattrs-1000:
		return ErrLong
	}
	return nil
}

// CutXattrs removes the extended attributes of an entry that no tar can have, or that
// are too large together, and returns their names.
func (e *Entry) CutXattrs() (cut []string) {
	n := 0
	e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x Xattr) bool {
		size := 3*len(x.Name) + len(x.Value) + 40
		if x.Name == aclAccess || x.Name == aclDefault {
			size += 6 * len(x.Value)
		}
		if bad := x.Name == "" || strings.Contains(x.Name, "\x00"); bad || n+size > maxXattrs {
			cut = append(cut, x.Name)
			return true
		}
		n += size
		return false
	})
	return cut
}

func (t *tarWriter) add(ctx context.Context, e *Entry, c Content) (begun bool, err error) {
	if e.Link != "" || !e.Mode.IsRegular() || e.Size == 0 || c == nil {
		return true, t.header(e, 0, nil, nil)
	}
	runs, err := dataRuns(ctx, c, e.Size)
	if err != nil {
		return false, err
	}
	if t.buf == nil {
		t.buf = make([]byte, pieceBytes)
	}
	// What cannot be read at all is found before the header promises it.
	var first []byte
	if len(runs) > 0 {
		first = t.buf[:min(runs[0].to-runs[0].from, int64(len(t.buf)))]
		if err := c.ReadAt(ctx, first, runs[0].from); err != nil {
			return false, err
		}
	}
	if err := t.begin(e, runs); err != nil {
		return true, err
	}
	if _, err := t.w.Write(first); err != nil {
		return true, err
	}
	for i, r := range runs {
		if i == 0 {
			r.from += int64(len(first))
		}
		if err := copyRange(ctx, t.w, c, r.from, r.to, t.buf); err != nil {
			return true, err
		}
	}
	return true, t.pad()
}

// begin writes what stands in front of the content of a file: its header and, if
// it has holes, their map.
func (t *tarWriter) begin(e *Entry, runs []run) error {
	if len(runs) == 1 && runs[0] == (run{0, e.Size}) {
		return t.header(e, e.Size, nil, nil)
	}
	var stored int64
	for _, r := range runs {
		stored += r.to - r.from
	}
	list := sparseMap(runs, e.Size)
	return t.header(e, stored+int64(len(list)), []record{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", e.Name},
		{"GNU.sparse.realsize", strconv.FormatInt(e.Size, 10)}}, list)
}

// record is one of a pax header.
type record struct{ key, value string }

// header writes the header of an entry, size bytes of which follow, behind the
// records that it needs; list is written after it. sparse are the records of a
// sparse file.
func (t *tarWriter) header(e *Entry, size int64, sparse []record, list []byte) error {
	name, link := e.Name, e.Target
	flag := typeflags[e.Mode.Type()]
	if e.Mode.IsDir() {
		name += "/"
	}
	if e.Link != "" {
		flag, link = '1', e.Link
	}
	records := append(attributeRecords(e, size), sparse...)
	t.count++
	switch {
	case sparse != nil:
		// Who does not know the format finds its file here, and not something
		// that is none.
		name = fmt.Sprintf("GNUSparseFile.0/%d", t.count)
	case !plain(name):
		records = append(records, record{"path", name})
		name = fmt.Sprintf("PaxNames.0/%d", t.count)
	}
	if !plain(link) {
		records = append(records, record{"linkpath", link})
		link = "PaxNames.0/link"
	}
	if !utf8.ValidString(e.Name) || !utf8.ValidString(e.Target) || !utf8.ValidString(e.Link) {
		records = append(records, record{"hdrcharset", "BINARY"})
	}
	if len(records) > 0 {
		slices.SortStableFunc(records, func(a, b record) int { return order(a.key) - order(b.key) })
		var b []byte
		for _, r := range records {
			b = appendRecord(b, r)
		}
		if err := t.block(ustar{name: fmt.Sprintf("PaxHeaders.0/%d", t.count), mode: 0o644, size: int64(len(b)), flag: 'x'}, b); err != nil {
			return err
		}
		if err := t.pad(); err != nil {
			return err
		}
	}
	u := ustar{name: name, link: link, mode: unixMode(e.Mode), uid: e.UID, gid: e.GID, size: size, flag: flag}
	if s := seconds(e.Modified); s >= 0 && s <= maxOctal11 {
		u.seconds = s
	}
	if e.Mode&fs.ModeDevice != 0 {
		u.major, u.minor = e.Major, e.Minor
	}
	return t.block(u, list)
}

// order puts what says how the others are to be read in front.
func order(key string) int {
	if key == "hdrcharset" {
		return 0
	}
	return 1
}

// attributeRecords are those for which a header has no room, or not enough.
func attributeRecords(e *Entry, size int64) []record {
	var list []record
	if size > maxOctal11 {
		list = append(list, record{"size", strconv.FormatInt(size, 10)})
	}
	if e.UID > maxOctal7 {
		list = append(list, record{"uid", strconv.FormatUint(uint64(e.UID), 10)})
	}
	if e.GID > maxOctal7 {
		list = append(list, record{"gid", strconv.FormatUint(uint64(e.GID), 10)})
	}
	if s := seconds(e.Modified); s < 0 || s > maxOctal11 || !e.Modified.IsZero() && e.Modified.Nanosecond() != 0 {
		list = append(list, record{"mtime", paxTime(e.Modified)})
	}
	if e.Link != "" {
		return list // the file has them already
	}
	for _, x := range e.Xattrs {
		if acl, ok := aclText(x); ok {
			list = append(list, acl)
		}
		list = append(list, record{"SCHILY.xattr." + xattrKeyword.Replace(x.Name), string(x.Value)})
	}
	return list
}

// xattrKeyword writes names of extended attributes as GNU tar does: an equals sign
// would end the keyword.
var xattrKeyword = strings.NewReplacer("%", "%25", "=", "%3D")

// seconds is a time since 1970; one that is not kept counts as 1970.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// paxTime writes a time in decimal.
func paxTime(t time.Time) string {
	s, ns := t.Unix(), int64(t.Nanosecond())
	sign := ""
	if s < 0 && ns > 0 {
		s, ns = s+1, 1e9-ns
		if s == 0 {
			sign = "-"
		}
	}
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, s, ns), "0"), ".")
}

// plain reports whether a name fits into a header and means the same to everybody.
func plain(s string) bool {
	if len(s) > 100 {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// appendRecord writes a record, which begins with its own length.
func appendRecord(b []byte, r record) []byte {
	n := len(r.key) + len(r.value) + 3 // a space, an equals sign, a newline
	total := n + len(strconv.Itoa(n))
	if longer := n + len(strconv.Itoa(total)); longer > total {
		total = longer
	}
	b = strconv.AppendInt(b, int64(total), 10)
	b = append(append(append(b, ' '), r.key...), '=')
	return append(append(b, r.value...), '\n')
}

// ustar is a header block.
type ustar struct {
	name, link   string
	mode         uint32
	uid, gid     uint32
	size         int64
	seconds      int64
	flag         byte
	major, minor uint32
}

// block writes a header, and what follows it at once.
func (t *tarWriter) block(u ustar, follows []byte) error {
	b := make([]byte, blockBytes, blockBytes+len(follows))
	copy(b, u.name)
	octal(b[100:108], int64(u.mode))
	octal(b[108:116], fitting(u.uid))
	octal(b[116:124], fitting(u.gid))
	octal(b[124:136], min(u.size, maxOctal11))
	octal(b[136:148], u.seconds)
	b[156] = u.flag
	copy(b[157:257], u.link)
	copy(b[257:], "ustar\x0000")
	octal(b[329:337], int64(u.major))
	octal(b[337:345], int64(u.minor))
	sum := int64(8 * ' ')
	for _, x := range b {
		sum += int64(x)
	}
	octal(b[148:155], sum)
	b[155] = ' '
	_, err := t.w.Write(append(b, follows...))
	return err
}

// fitting returns a number for a header; one with a record of its own counts for
// nothing there.
func fitting(n uint32) int64 {
	if n > maxOctal7 {
		return 0
	}
	return int64(n)
}

// octal writes a number that fits into a field, which it ends with a NUL.
func octal(field []byte, n int64) {
	copy(field, fmt.Sprintf("%0*o", len(field)-1, n))
}

// pad fills the last block up.
func (t *tarWriter) pad() error {
	n := -t.w.n & (blockBytes - 1)
	_, err := t.w.Write(zeroes[:n])
	return err
}

// end writes two blocks of zeroes, and more up to a record of 10 KiB, in which
// GNU tar reads.
func (t *tarWriter) end() error {
	const recordBytes = 20 * blockBytes
	n := 2*blockBytes + (recordBytes-(t.w.n+2*blockBytes)%recordBytes)%recordBytes
	_, err := t.w.Write(zeroes[:n])
	return err
}

// spoil begins what does not follow.
func (t *tarWriter) spoil() error {
	return t.block(ustar{name: "PaxHeaders.0/broken-off", mode: 0o644, size: blockBytes, flag: 'x'}, nil)
}

var zeroes [pieceBytes]byte
