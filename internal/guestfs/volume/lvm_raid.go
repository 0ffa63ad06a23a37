package volume

import (
	"errors"
	"fmt"
	"math"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// raidSuper is what dm-raid writes into the metadata volume of a leg
// (torvalds/linux drivers/md/dm-raid.c, struct dm_raid_superblock).
type raidSuper struct {
	position  uint32
	events    uint64
	failed    [4]uint64 // bits of failed legs
	recovered uint64    // sectors; all ones: in step
	reshaping bool
}

// readRaidSuper returns the superblock of a metadata volume, nil if there is none:
// an array that was never activated has none.
func readRaidSuper(v fsys.Volume) *raidSuper {
	const (
		magic         = 0x64526D44
		supportsV190  = 1
		reshapeActive = 1
	)
	b := make([]byte, 512)
	if v == nil || v.ReadAt(b, 0) != nil || le.Uint32(b) != magic {
		return nil
	}
	s := &raidSuper{
		position: le.Uint32(b[12:]), events: le.Uint64(b[16:]), recovered: le.Uint64(b[32:]),
		failed: [4]uint64{le.Uint64(b[24:])},
	}
	if le.Uint32(b[4:])&supportsV190 != 0 {
		s.reshaping = le.Uint32(b[60:])&reshapeActive != 0
		for i := range 3 {
			s.failed[i+1] = le.Uint64(b[120+8*i:])
		}
	}
	return s
}

func (s *raidSuper) hasFailed(leg int) bool { return leg < 256 && s.failed[leg/64]>>(leg%64)&1 != 0 }

// raid1 reads the leg of a mirror that is in step and knows most of the array.
func (r *resolver) raid1(l *logical, s lvSegment) (layout, error) {
	names := s.strings("raids")
	if len(names) == 0 || len(names)%2 != 0 || len(l.segments) != 1 {
		return nil, errors.New("its list of raids is not valid")
	}
	if n, _ := s.number("reshape_count"); n != 0 {
		return nil, errors.New("it is being reshaped")
	}
	legs, before := len(names)/2, r.doubtful
	supers := make([]*raidSuper, legs)
	var newest *raidSuper
	for i := range legs {
		meta, _ := r.plain(names[2*i]) // without it the leg is not known to be in step
		if supers[i] = readRaidSuper(meta); supers[i] != nil && (newest == nil || supers[i].events > newest.events) {
			newest = supers[i]
		}
	}
	var first error
	for i := range legs {
		r.doubtful = before // only the leg that is read matters
		if newest != nil {
			own := supers[i]
			if own == nil || own.position != uint32(i) || own.events != newest.events || own.recovered != math.MaxUint64 || newest.hasFailed(i) {
				continue
			}
			if own.reshaping {
				return nil, errors.New("it is being reshaped")
			}
		}
		p, err := r.at(area{name: names[2*i+1]}, s.count*r.extent)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		r.notes[l.name] = append(r.notes[l.name], fmt.Sprintf("It is a mirror, of whose %d legs number %d is read.", legs, i+1))
		if r.unseen(newest, names, s.count*r.extent) {
			r.notes[l.name] = append(r.notes[l.name], "A leg that it counts on is not here: if it was written without this one, what is read may be older.")
		}
		return p, nil
	}
	if first != nil {
		return nil, first
	}
	return nil, errors.New("none of its mirrored legs is in step")
}

// unseen reports whether a leg is not here that the newest one does not know to have
// failed.
func (r *resolver) unseen(newest *raidSuper, names []string, size int64) bool {
	before := r.doubtful
	defer func() { r.doubtful = before }()
	for i := 1; i < len(names); i += 2 {
		if _, err := r.at(area{name: names[i]}, size); err != nil && (newest == nil || !newest.hasFailed(i/2)) {
			return true
		}
	}
	return false
}

// raid0 reads an array of stripes.
func (r *resolver) raid0(s lvSegment) (layout, error) {
	if n, _ := s.number("reshape_count"); n != 0 {
		return nil, errors.New("it is being reshaped")
	}
	names, step := s.strings("raid0_lvs"), 1
	if len(names) == 0 {
		names, step = s.strings("raids"), 2
	}
	if len(names) == 0 || len(names)%step != 0 {
		return nil, errors.New("its list of raids is not valid")
	}
	var areas []area
	for i := step - 1; i < len(names); i += step {
		areas = append(areas, area{name: names[i]})
	}
	return r.stripe(s, areas)
}
