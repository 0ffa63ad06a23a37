package ntfs

import (
	"fmt"
	"io"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// maxExtents is how many extents are told at once.
const maxExtents = 4096

// maxUnit is the largest compression unit, in bytes. Windows compresses where
// clusters have no more than 4 KiB, in units of 64 KiB.
const maxUnit = 1 << 20

// extents returns where the content lies in [off, off+n).
func (s *stream) extents(off, n int64) ([]fsys.Extent, error) {
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("find %d bytes at %d: %w", n, off, fs.ErrInvalid)
	}
	end := s.size
	if off < end && n < end-off {
		end = off + n
	}
	var list []fsys.Extent
	for off < end && len(list) < maxExtents {
		e, err := s.extent(off)
		if err != nil {
			if len(list) > 0 {
				break // whoever asks for what follows gets the error
			}
			return nil, err
		}
		e.Len = min(e.Len, end-off)
		off += e.Len
		if last := len(list) - 1; last >= 0 && follows(list[last], e) {
			list[last].Len += e.Len
		} else {
			list = append(list, e)
		}
	}
	return list, nil
}

// follows says whether b may be told as one with a, which ends where b begins.
func follows(a, b fsys.Extent) bool {
	return a.Kind == b.Kind && (a.Kind != fsys.Data || a.At+a.Len == b.At)
}

// extent returns an extent that starts at off, which is before the end.
func (s *stream) extent(off int64) (fsys.Extent, error) {
	if s.resident || s.flags&flagEncrypted != 0 {
		return fsys.Extent{Kind: fsys.Opaque, Off: off, Len: s.size - off}, nil
	}
	if off >= s.initialized {
		return fsys.Extent{Kind: fsys.Hole, Off: off, Len: s.size - off}, nil
	}
	cluster := s.f.clusterBytes
	vcn := off / cluster
	runs, err := s.piece(vcn)
	if err != nil {
		return fsys.Extent{}, err
	}
	r := runs[runAt(runs, vcn)]
	e := fsys.Extent{Kind: fsys.Hole, Off: off}
	if r.lcn >= 0 {
		e.Kind, e.At = fsys.Data, r.lcn*cluster+off-r.vcn*cluster
	}
	if s.unit == 0 {
		e.Len = r.end()*cluster - off
	} else {
		// Units that lie in the run as a whole are what it is: holes, or not compressed.
		first := vcn / s.unit * s.unit
		whole := r.end() / s.unit * s.unit
		if r.vcn > first || whole <= first {
			if e, err = s.mixed(e, r, first); err != nil {
				return e, err
			}
		} else {
			e.Len = whole*cluster - off
		}
	}
	e.Len = min(e.Len, s.initialized-off)
	return e, nil
}

// mixed completes the extent e, which begins in the run r, for a compression unit
// that lies in several runs or in a part of one.
func (s *stream) mixed(e fsys.Extent, r run, first int64) (fsys.Extent, error) {
	_, taken, err := s.unitRuns(first)
	if err != nil {
		return e, err
	}
	switch taken {
	case 0:
		e.Kind = fsys.Hole
	case s.unit:
		e.Len = min(r.end(), first+s.unit)*s.f.clusterBytes - e.Off
		return e, nil
	default:
		e.Kind, e.At = fsys.Opaque, 0
	}
	e.Len = (first+s.unit)*s.f.clusterBytes - e.Off
	return e, nil
}

// unitRuns returns the runs that hold a compression unit, and how many clusters
// they take. What was cut off at the end of the attribute counts as a hole.
func (s *stream) unitRuns(first int64) (runs []run, taken int64, err error) {
	hole := false
	for vcn := first; vcn < first+s.unit; {
		if vcn*s.f.clusterBytes >= s.size && taken == 0 {
			break
		}
		list, err := s.piece(vcn)
		if err != nil {
			if vcn > first && vcn*s.f.clusterBytes >= s.size {
				break
			}
			return nil, 0, err
		}
		r := list[runAt(list, vcn)]
		n := min(r.end(), first+s.unit) - vcn
		if r.lcn < 0 {
			hole = true
		} else {
			if hole {
				return nil, 0, corruptf("read the compression unit at cluster %d: it goes on behind a hole", first)
			}
			runs = append(runs, run{vcn, n, r.lcn + vcn - r.vcn})
			taken += n
		}
		vcn += n
	}
	return runs, taken, nil
}

// readAt fills p with the content from off, read through v. Like io.ReaderAt it
// returns io.EOF where the content ends.
func (s *stream) readAt(v fsys.Volume, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > s.size-off {
		p, atEnd = p[:s.size-off], io.EOF
	}
	if s.flags&flagEncrypted != 0 {
		return 0, unsupportedf("read what is encrypted (EFS)")
	}
	if s.resident {
		return copy(p, s.value[off:]), atEnd
	}
	done := 0
	for done < len(p) {
		e, err := s.extent(off + int64(done))
		if err != nil {
			return done, err
		}
		part := p[done:min(int64(len(p)), int64(done)+e.Len)]
		switch e.Kind {
		case fsys.Hole:
			clear(part)
		case fsys.Data:
			err = v.ReadAt(part, e.At)
		case fsys.Opaque:
			err = s.readUnits(v, part, e.Off)
		}
		if err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, atEnd
}

// unitKey names a piece of content that was decompressed.
type unitKey struct {
	s     *stream
	index int64
}

// readUnits fills p from off with what compression units hold.
func (s *stream) readUnits(v fsys.Volume, p []byte, off int64) error {
	size := s.unit * s.f.clusterBytes
	for len(p) > 0 {
		key := unitKey{s, off / size}
		b, ok := s.f.units.Get(key)
		if !ok {
			var err error
			if b, err = s.decompress(v, key.index*s.unit); err != nil {
				return fmt.Errorf("read the compression unit at %d: %w", key.index*size, err)
			}
			s.f.units.Put(key, b, int64(len(b)))
		}
		n := copy(p, b[off-key.index*size:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// decompress returns the content of a compression unit that has a hole.
func (s *stream) decompress(v fsys.Volume, first int64) ([]byte, error) {
	runs, taken, err := s.unitRuns(first)
	if err != nil {
		return nil, err
	}
	cluster := s.f.clusterBytes
	packed := make([]byte, 0, taken*cluster)
	for _, r := range runs {
		n := len(packed)
		packed = packed[:n+int(r.n*cluster)]
		if err := v.ReadAt(packed[n:], r.lcn*cluster); err != nil {
			return nil, err
		}
	}
	b := make([]byte, s.unit*cluster)
	return b, decompressLZNT1(b, packed)
}
