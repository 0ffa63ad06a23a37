package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// errNoAttribute says that an inode has no attribute of a type and name.
var errNoAttribute = errors.New("no such attribute")

// inode is a file: its base record, and the list of what lies in others.
type inode struct {
	id   fsys.ID
	base *record
	list []listEntry // nil: everything is in the base record
}

// listEntry is an entry of an attribute list: where a piece of an attribute is.
type listEntry struct {
	typ    uint32
	name   []byte
	lowest int64 // first cluster
	record fsys.ID
	id     uint16
}

// inode reads what id refers to.
func (f *fileSystem) inode(id fsys.ID) (*inode, error) {
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	if numberOf(r.base) != 0 {
		return nil, corruptf("read MFT record %d: it is an extension of %d", r.number, numberOf(r.base))
	}
	in := &inode{id: reference(r.number, r.sequence), base: r}
	if in.list, err = f.attributeList(r); err != nil {
		return nil, fmt.Errorf("read MFT record %d: %w", r.number, err)
	}
	return in, nil
}

// maxList is the largest attribute list that Windows makes, in bytes.
const maxList = 256 << 10

// attributeList reads the attribute list of a base record, nil if it has none.
func (f *fileSystem) attributeList(r *record) ([]listEntry, error) {
	a := r.find(typeAttributeList, nil)
	if a == nil {
		return nil, nil
	}
	b := a.value
	if !a.resident {
		s, err := f.newStream(nil, a, nil)
		if err == nil {
			b, err = s.all(maxList)
		}
		if err != nil {
			return nil, fmt.Errorf("read its attribute list: %w", err)
		}
	}
	return parseList(b)
}

// parseList reads the entries of an attribute list, and keeps b.
func parseList(b []byte) ([]listEntry, error) {
	list := make([]listEntry, 0, 8)
	for len(b) > 0 {
		if len(b) < 0x1a {
			return nil, corruptf("read its attribute list: %d bytes are left", len(b))
		}
		n, nameLen, nameAt := int(binary.LittleEndian.Uint16(b[4:])), 2*int(b[6]), int(b[7])
		if n < 0x1a || n%8 != 0 || n > len(b) || nameLen > 0 && nameAt+nameLen > n {
			return nil, corruptf("read its attribute list: an entry takes %d of %d bytes", n, len(b))
		}
		e := listEntry{
			typ: binary.LittleEndian.Uint32(b), lowest: int64(binary.LittleEndian.Uint64(b[8:])),
			record: fsys.ID(binary.LittleEndian.Uint64(b[0x10:])), id: binary.LittleEndian.Uint16(b[0x18:]),
		}
		if e.lowest < 0 {
			return nil, corruptf("read its attribute list: an entry starts at cluster %d", e.lowest)
		}
		if nameLen > 0 {
			e.name = b[nameAt : nameAt+nameLen]
		}
		list = append(list, e)
		b = b[n:]
	}
	return list, nil
}

// listed reads the attribute that an entry of an inode's list stands for.
func (f *fileSystem) listed(in *inode, e listEntry) (*attr, error) {
	r, err := f.extension(in, e.record)
	if err != nil {
		return nil, err
	}
	return r.listed(e)
}

// listed returns the attribute that an entry of a list says is in the record.
func (r *record) listed(e listEntry) (*attr, error) {
	for i := range r.attrs {
		a := &r.attrs[i]
		if a.typ == e.typ && a.id == e.id && a.lowest == e.lowest && bytes.Equal(a.name, e.name) {
			return a, nil
		}
	}
	return nil, corruptf("find attribute %#x, %d: MFT record %d does not hold it", e.typ, e.id, r.number)
}

// attributes returns all attributes of a type, each by its first piece.
func (f *fileSystem) attributes(in *inode, typ uint32) ([]attr, error) {
	var found []attr
	if in.list == nil {
		for _, a := range in.base.attrs {
			if a.typ == typ && a.lowest == 0 {
				found = append(found, a)
			}
		}
		return found, nil
	}
	r := in.base
	for _, e := range in.list {
		if e.typ != typ || e.lowest != 0 {
			continue
		}
		if number := numberOf(e.record); number != r.number {
			var err error
			if r, err = f.extension(in, e.record); err != nil {
				return nil, err
			}
		}
		a, err := r.listed(e)
		if err != nil {
			return nil, err
		}
		found = append(found, *a)
	}
	return found, nil
}

// extension returns a record of an inode.
func (f *fileSystem) extension(in *inode, id fsys.ID) (*record, error) {
	if numberOf(id) == in.base.number {
		return in.base, nil
	}
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	if numberOf(r.base) != in.base.number {
		return nil, corruptf("read MFT record %d: it is no extension of %d", r.number, in.base.number)
	}
	return r, nil
}

// first returns the first piece of an attribute, and where the others are.
func (f *fileSystem) first(in *inode, typ uint32, name []byte) (*attr, []listEntry, error) {
	if in.list == nil {
		if a := in.base.find(typ, name); a != nil {
			return a, nil, nil
		}
		return nil, nil, errNoAttribute
	}
	var pieces []listEntry
	for _, e := range in.list {
		if e.typ != typ || !bytes.Equal(e.name, name) {
			continue
		}
		if n := len(pieces); n > 0 && e.lowest <= pieces[n-1].lowest {
			return nil, nil, corruptf("find attribute %#x of MFT record %d: its pieces are out of order", typ, in.base.number)
		}
		pieces = append(pieces, e)
	}
	if len(pieces) == 0 {
		return nil, nil, errNoAttribute
	}
	a, err := f.listed(in, pieces[0])
	if err == nil && a.lowest != 0 {
		err = corruptf("find attribute %#x of MFT record %d: its start is missing", typ, in.base.number)
	}
	return a, pieces, err
}

// stream is the content of an attribute.
type stream struct {
	f                            *fileSystem
	in                           *inode
	flags                        uint16
	size, initialized, allocated int64 // bytes
	value                        []byte
	resident                     bool
	unit                         int64       // clusters of a compression unit; 0: not compressed
	pieces                       []listEntry // in order; nil: one, whose runs are below

	mu   sync.Mutex // guards the fields below
	at   int        // the piece that runs are of
	runs []run
}

// open returns the content of an attribute.
func (f *fileSystem) open(in *inode, typ uint32, name []byte) (*stream, error) {
	a, pieces, err := f.first(in, typ, name)
	if err != nil {
		return nil, err
	}
	s, err := f.newStream(in, a, pieces)
	if err != nil {
		return nil, fmt.Errorf("open attribute %#x of MFT record %d: %w", typ, in.base.number, err)
	}
	return s, nil
}

// newStream returns the content of an attribute whose first piece is a.
func (f *fileSystem) newStream(in *inode, a *attr, pieces []listEntry) (*stream, error) {
	s := &stream{f: f, in: in, flags: a.flags, resident: a.resident, pieces: pieces}
	if a.resident {
		s.value = a.value
		s.size, s.initialized = int64(len(a.value)), int64(len(a.value))
		return s, nil
	}
	if a.lowest != 0 {
		return nil, corruptf("read its head: it starts at cluster %d", a.lowest)
	}
	s.size, s.initialized, s.allocated = a.size, a.initialized, a.total
	if method := a.flags & flagCompression; method > 1 {
		return nil, unsupportedf("compression method %d", method)
	} else if method == 1 {
		if a.unit > 12 || f.clusterBytes<<a.unit > maxUnit {
			return nil, unsupportedf("compression units of 2^%d clusters of %d bytes", a.unit, f.clusterBytes)
		}
		s.unit = 1 << a.unit
		if a.unit == 0 {
			s.unit = 0
		}
	}
	var err error
	s.runs, err = f.runs(a)
	return s, err
}

// piece returns runs among which is that of a cluster.
func (s *stream) piece(vcn int64) ([]run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The piece before the first one that starts later.
	i := max(0, sort.Search(len(s.pieces), func(i int) bool { return s.pieces[i].lowest > vcn })-1)
	if i != s.at {
		a, err := s.f.listed(s.in, s.pieces[i])
		if err != nil {
			return nil, err
		}
		runs, err := s.f.runs(a)
		if err != nil {
			return nil, err
		}
		s.at, s.runs = i, runs
	}
	if vcn < 0 || len(s.runs) == 0 || vcn < s.runs[0].vcn || vcn >= mapped(s.runs) {
		return nil, corruptf("find cluster %d: where it is is not told", vcn)
	}
	return s.runs, nil
}

// all returns the whole content, of no more than limit bytes.
func (s *stream) all(limit int) ([]byte, error) {
	if s.size > int64(limit) {
		return nil, corruptf("read all of it: %d bytes, where %d are the most", s.size, limit)
	}
	b := make([]byte, s.size)
	if _, err := s.readAt(s.f.vol, b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// value returns the whole content of an attribute, of no more than limit bytes.
func (f *fileSystem) value(in *inode, typ uint32, name []byte, limit int) ([]byte, error) {
	s, err := f.open(in, typ, name)
	if err != nil {
		return nil, err
	}
	return s.all(limit)
}
