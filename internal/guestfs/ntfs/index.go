package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// indexName is the name of the attributes that make up a directory.
var indexName = units("$I30")

const (
	collationFileName = 1
	// Flags of entries.
	entryNode = 1 // there is a block with what comes before
	entryLast = 2 // it has no name
	// maxDepth is how far an index may branch. Of the smallest blocks, and names as
	// long as they get, that is more than a volume can hold.
	maxDepth = 64
)

// directory is the index of a directory.
type directory struct {
	f          *fileSystem
	id         fsys.ID
	root       []byte  // the entries in the MFT record
	blocks     *stream // nil: none
	blockBytes int64
	vcnBytes   int64 // what the numbers of blocks count
}

// directory opens a directory.
func (f *fileSystem) directory(id fsys.ID) (*directory, error) {
	if d, ok := f.directories.Get(id); ok {
		return d, nil
	}
	n, err := f.node(id)
	if err != nil {
		return nil, err
	}
	if !n.kind.IsDir() {
		return nil, fmt.Errorf("read MFT record %d as a directory: it is none: %w", n.in.base.number, fs.ErrInvalid)
	}
	d, err := f.openDirectory(n.in)
	if err != nil {
		return nil, fmt.Errorf("open directory %d: %w", n.in.base.number, err)
	}
	cost := 16 << 10
	if d.blocks != nil {
		cost += 64 * len(d.blocks.pieces)
	}
	f.directories.Put(id, d, int64(cost))
	return d, nil
}

func (f *fileSystem) openDirectory(in *inode) (*directory, error) {
	b, err := f.value(in, typeIndexRoot, indexName, int(f.recordBytes))
	if err != nil {
		return nil, err
	}
	if len(b) < 0x20 {
		return nil, corruptf("read the root of its index: %d bytes", len(b))
	}
	d := &directory{f: f, id: in.id, blockBytes: int64(binary.LittleEndian.Uint32(b[8:]))}
	if typ, order := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]); typ != typeFileName || order != collationFileName {
		return nil, corruptf("read the root of its index: attribute %#x by order %d", typ, order)
	}
	if d.blockBytes < protected || d.blockBytes > 64<<10 || !powerOf2(d.blockBytes) {
		return nil, corruptf("read the root of its index: blocks of %d bytes", d.blockBytes)
	}
	// Blocks count in clusters, or in 512 bytes where a cluster is larger than one.
	if d.vcnBytes = f.clusterBytes; d.vcnBytes > d.blockBytes {
		d.vcnBytes = protected
	}
	if d.root, err = entriesOf(b[0x10:]); err != nil {
		return nil, fmt.Errorf("read the root of its index: %w", err)
	}
	if d.blocks, err = f.open(in, typeIndexAllocation, indexName); errors.Is(err, errNoAttribute) {
		d.blocks, err = nil, nil
	}
	return d, err
}

// entriesOf returns the entries behind the head of an index node.
func entriesOf(b []byte) ([]byte, error) {
	from, to := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
	if from < 0x10 || from > to || to > int64(len(b)) {
		return nil, corruptf("read a node: entries from %d to %d of %d", from, to, len(b))
	}
	return b[from:to], nil
}

// block returns the entries of a block of the index.
func (d *directory) block(vcn int64) ([]byte, error) {
	if d.blocks == nil || vcn < 0 || vcn > maxSize/d.vcnBytes || vcn*d.vcnBytes+d.blockBytes > d.blocks.initialized {
		return nil, corruptf("read index block %d: there is none", vcn)
	}
	b := make([]byte, d.blockBytes)
	if _, err := d.blocks.readAt(d.f.vol, b, vcn*d.vcnBytes); err != nil {
		return nil, fmt.Errorf("read index block %d: %w", vcn, err)
	}
	entries, err := parseBlock(b, vcn)
	if err != nil {
		return nil, fmt.Errorf("read index block %d: %w", vcn, err)
	}
	return entries, nil
}

// parseBlock verifies an index block, and keeps b.
func parseBlock(b []byte, vcn int64) ([]byte, error) {
	if string(b[:4]) != "INDX" {
		return nil, corruptf("it starts with %q", b[:4])
	}
	if err := restore(b); err != nil {
		return nil, err
	}
	if got := int64(binary.LittleEndian.Uint64(b[0x10:])); got != vcn {
		return nil, corruptf("it is that of %d", got)
	}
	return entriesOf(b[0x18:])
}

// entry is an entry of an index: a name, or the end of a node.
type entry struct {
	id    fsys.ID
	flags uint16
	sub   int64  // block with what comes before, if flags say so
	key   []byte // of a name: the attribute $FILE_NAME
}

func (e *entry) name() []byte       { return e.key[0x42 : 0x42+2*int(e.key[0x40])] }
func (e *entry) space() byte        { return e.key[0x41] }
func (e *entry) attributes() uint32 { return binary.LittleEndian.Uint32(e.key[0x38:]) }
func (e *entry) tag() uint32        { return binary.LittleEndian.Uint32(e.key[0x3c:]) }

// nextEntry parses the first of the entries in b, and returns those that follow.
func nextEntry(b []byte) (e entry, rest []byte, err error) {
	if len(b) < 0x10 {
		return e, nil, corruptf("read an index entry: %d bytes are left", len(b))
	}
	n, keyLen := int(binary.LittleEndian.Uint16(b[8:])), int(binary.LittleEndian.Uint16(b[0x0a:]))
	e.id, e.flags = fsys.ID(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint16(b[0x0c:])
	if n < 0x10 || n%8 != 0 || n > len(b) {
		return e, nil, corruptf("read an index entry: it takes %d of %d bytes", n, len(b))
	}
	end := n
	if e.flags&entryNode != 0 {
		if end -= 8; end < 0x10 {
			return e, nil, corruptf("read an index entry: it takes %d bytes", n)
		}
		e.sub = int64(binary.LittleEndian.Uint64(b[end:]))
	}
	if e.flags&entryLast != 0 {
		return e, nil, nil
	}
	if e.key, err = fileName(b[0x10:end], keyLen); err != nil {
		return e, nil, err
	}
	return e, b[n:], nil
}

// fileName returns the attribute $FILE_NAME, of n bytes, that b starts with.
func fileName(b []byte, n int) ([]byte, error) {
	if n > len(b) || n < 0x42 || n < 0x42+2*int(b[0x40]) || b[0x40] == 0 {
		return nil, corruptf("read a file name: it takes %d of %d bytes", n, len(b))
	}
	return b[:n], nil
}

// Lookup implements fsys.FileSystem. Names that differ in case only are the same,
// unless there is one that does not differ. Short names stand for their files as
// well.
func (f *fileSystem) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	d, err := f.directory(dir)
	if err != nil {
		return 0, err
	}
	key, ok := encodeName(name)
	if !ok || len(key) == 0 || len(key) > 255 {
		return 0, fmt.Errorf("look up %q: %w", name, fs.ErrNotExist)
	}
	id, err := d.lookup(key)
	if err != nil {
		return 0, fmt.Errorf("look up %q: %w", name, err)
	}
	if numberOf(id) < firstUser {
		return 0, fmt.Errorf("look up %q: %w", name, fs.ErrNotExist)
	}
	return id, nil
}

// lookup descends to where a name belongs. A name that differs in case only lies
// on the way there.
func (d *directory) lookup(key []uint16) (fsys.ID, error) {
	var found fsys.ID
	b := d.root
	for range maxDepth {
		for {
			e, rest, err := nextEntry(b)
			if err != nil {
				return 0, err
			}
			order := -1
			if e.flags&entryLast == 0 {
				var same bool
				if order, same = d.f.up.compare(key, e.name()); same {
					found = e.id
				}
			}
			if order == 0 {
				return e.id, nil
			}
			if order > 0 {
				b = rest
				continue
			}
			if e.flags&entryNode == 0 {
				if found == 0 {
					return 0, fs.ErrNotExist
				}
				return found, nil
			}
			if b, err = d.block(e.sub); err != nil {
				return 0, err
			}
			break
		}
	}
	return 0, corruptf("descend the index of directory %d: it has more than %d levels", numberOf(d.id), maxDepth)
}

// ReadDir implements fsys.FileSystem. The order is that of names. What follows
// damage is visited all the same.
func (f *fileSystem) ReadDir(dir fsys.ID, yield func(fsys.Entry) bool) error {
	d, err := f.directory(dir)
	if err != nil {
		return err
	}
	w := walker{d: d, seen: map[int64]bool{}, yield: yield}
	w.walk(d.root, 0)
	if w.err != nil {
		return fmt.Errorf("read directory %d: %w", numberOf(dir), w.err)
	}
	return nil
}

// walker visits all names of a directory.
type walker struct {
	d     *directory
	seen  map[int64]bool // blocks
	yield func(fsys.Entry) bool
	err   error // the first one
}

func (w *walker) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// walk visits what a node holds, and what comes before each of its entries. It
// returns false when there is to be no more.
func (w *walker) walk(b []byte, depth int) bool {
	for {
		e, rest, err := nextEntry(b)
		if err != nil {
			w.fail(err)
			return true
		}
		if e.flags&entryNode != 0 && !w.descend(e.sub, depth+1) {
			return false
		}
		if e.flags&entryLast != 0 {
			return true
		}
		if !w.visit(&e) {
			return false
		}
		b = rest
	}
}

func (w *walker) descend(vcn int64, depth int) bool {
	if w.seen[vcn] || depth > maxDepth {
		w.fail(corruptf("read index block %d: it is in two places, or %d deep", vcn, depth))
		return true
	}
	w.seen[vcn] = true
	b, err := w.d.block(vcn)
	if err != nil {
		w.fail(err)
		return true
	}
	return w.walk(b, depth)
}

func (w *walker) visit(e *entry) bool {
	if e.space() == spaceDOS || numberOf(e.id) < firstUser {
		return true
	}
	name := decodeName(e.name())
	if name == "." || name == ".." {
		return true
	}
	if strings.ContainsAny(name, "/\x00") {
		w.fail(corruptf("read the name %q", name))
		return true
	}
	return w.yield(fsys.Entry{Name: name, ID: e.id, Type: e.kind()})
}

// kind returns what the directory tells of the kind of a file.
func (e *entry) kind() fs.FileMode {
	attributes := e.attributes()
	kind := fs.FileMode(0)
	if attributes&attributeIndex != 0 {
		kind = fs.ModeDir
	} else if attributes&attributeSystem != 0 {
		kind = fs.ModeIrregular // it may be of the subsystem for UNIX
	}
	if attributes&attributeReparse == 0 {
		return kind
	}
	// ntfs-3g does not always write the tag here that the file has.
	if linked := kindOf(e.tag(), kind); linked != kind || holdsContent(e.tag()) {
		return linked
	}
	return fs.ModeIrregular
}
