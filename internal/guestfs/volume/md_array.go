package volume

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// maxMembers is how many members an array may have.
const maxMembers = 384

// mdMember is a volume that belongs to an array.
type mdMember struct {
	node *Node
	*mdSuper
}

// array is what is known of an md array from the members that were found.
type array struct {
	members []mdMember
	newest  *mdSuper
}

// collectArrays collects members by array.
func collectArrays(members []mdMember) []*array {
	var list []*array
	byID := map[string]*array{}
	for _, m := range members {
		key := m.uuid + " " + m.version[:1]
		a := byID[key]
		if a == nil {
			a = &array{newest: m.mdSuper}
			byID[key] = a
			list = append(list, a)
		}
		a.members = append(a.members, m)
		if m.events > a.newest.events {
			a.newest = m.mdSuper
		}
	}
	return list
}

// current says whether a member is in step with the array: it has seen its last
// update, or the one before, and no other member has given up on it.
func (a *array) current(m mdMember) bool {
	if m.role < 0 || m.role >= int(a.newest.disks) || m.behind || m.events+1 < a.newest.events {
		return false
	}
	return int(m.number) < len(a.newest.active) && a.newest.active[m.number] == m.role
}

// byRole returns the members that are in step, by their role: nil where none is.
func (a *array) byRole() []*mdMember {
	list := make([]*mdMember, min(a.newest.disks, maxMembers))
	for i := range a.members {
		m := &a.members[i]
		if a.current(*m) && m.role < len(list) && (list[m.role] == nil || list[m.role].events < m.events) {
			list[m.role] = m
		}
	}
	return list
}

// complete says whether every member of the array was found.
func (a *array) complete() bool { return !slices.Contains(a.byRole(), nil) }

// volume returns the content of the array, with what there is to say of it.
func (a *array) volume() (vol fsys.Volume, notes []string, err error) {
	s := a.newest
	if s.disks == 0 || s.disks > maxMembers {
		return nil, nil, fmt.Errorf("has %d members", s.disks)
	}
	for _, m := range a.members {
		if m.refusal != "" {
			return nil, nil, errors.New(m.refusal)
		}
	}
	members := a.byRole()
	a.tellOthers(members)
	switch s.level {
	case 1:
		return a.mirror(members)
	case 0, levelLinear:
	default:
		return nil, nil, fmt.Errorf("is of level %s, which is not read", s.levelName())
	}
	if n := len(members) - len(slices.DeleteFunc(slices.Clone(members), func(m *mdMember) bool { return m == nil })); n > 0 {
		return nil, nil, fmt.Errorf("is of level %s and lacks %d of %d members", s.levelName(), n, len(members))
	}
	if s.level == levelLinear {
		vol, err = a.linear(members)
		return vol, nil, err
	}
	vol, err = a.striped(members)
	return vol, nil, err
}

// tellOthers says of the members that are not read why that is.
func (a *array) tellOthers(members []*mdMember) {
	for i := range a.members {
		m := &a.members[i]
		switch {
		case slices.Contains(members, m):
		case m.role < 0:
			m.node.note("It is a spare of its array, or was taken out of it, and is not read.")
		case a.current(*m):
			m.node.note(fmt.Sprintf("It is a copy of %s, which is read instead.", members[m.role].node.Path))
		case m.behind:
			m.node.note("It is being rebuilt from the others of its array, and is not read.")
		default:
			m.node.note(fmt.Sprintf("It is not in step with its array (update %d, not %d), and is not read.", m.events, a.newest.events))
		}
	}
}

// mirror reads the member that is in step and knows most, the first of several.
func (a *array) mirror(members []*mdMember) (fsys.Volume, []string, error) {
	var best *mdMember
	n := 0
	for _, m := range members {
		if m == nil || a.newest.size <= 0 || a.newest.size > m.dataLen {
			continue
		}
		n++
		if best == nil || m.events > best.events || m.events == best.events && best.badBlocks && !m.badBlocks {
			best = m
		}
	}
	if best == nil {
		return nil, nil, errors.New("has no member that is in step")
	}
	notes := []string{fmt.Sprintf("It is a mirror of %d members, of which %d are here and in step; %s is read.", a.newest.disks, n, best.node.Path)}
	if best.badBlocks {
		notes = append(notes, "The member that is read has a list of bad blocks, which is not regarded.")
	}
	switch {
	case a.divided(best):
		notes = append(notes, "Its members were written without each other: they hold different things, and what is read may not be what is wanted.")
	case a.unseen(members):
		notes = append(notes, "Others that it counts on are not here: if it was written without those that are, what is read may be older.")
	}
	return slice(best.node.Volume, best.dataOff, a.newest.size), notes, nil
}

// counts reports whether a member, by number, is in step as s knows it.
func (s *mdSuper) counts(number uint32) bool {
	return int(number) < len(s.active) && s.active[number] >= 0
}

// divided reports whether another member has given up on the one that is read, while
// that has given up on it.
func (a *array) divided(best *mdMember) bool {
	return slices.ContainsFunc(a.members, func(m mdMember) bool {
		return m.number != best.number && m.role >= 0 && !m.counts(best.number) && !best.counts(m.number)
	})
}

// unseen reports whether a member is not here of which the newest one knows nothing
// bad.
func (a *array) unseen(members []*mdMember) bool {
	return slices.ContainsFunc(a.newest.active, func(role int) bool {
		return role >= 0 && role < len(members) && members[role] == nil &&
			!slices.ContainsFunc(a.members, func(m mdMember) bool { return m.role == role })
	})
}

// linear reads members one after the other.
func (a *array) linear(members []*mdMember) (fsys.Volume, error) {
	var all concatenation
	var size int64
	for _, m := range members {
		n := m.dataLen
		if a.newest.chunk > 0 {
			n -= n % a.newest.chunk
		}
		if n > maxBytes-size {
			return nil, errTooLarge
		}
		if n > 0 {
			all = append(all, segment{size, n, part{m.node.Volume, m.dataOff}})
			size += n
		}
	}
	return newVolume(all, size), nil
}

var errTooLarge = errors.New("is too large")

// Layouts of a striped array whose members differ in size (torvalds/linux
// drivers/md/raid0.h, enum r0layout).
const (
	raid0Original  = 1 // the order of members in a zone follows from the chunk's number in the array
	raid0Alternate = 2 // … in the zone
)

// striped reads an array of stripes. Members of different sizes make zones: what
// the smallest ones can hold, then what those that are left can.
func (a *array) striped(members []*mdMember) (fsys.Volume, error) {
	s := a.newest
	if s.chunk < 512 || s.chunk%512 != 0 {
		return nil, fmt.Errorf("has chunks of %d bytes", s.chunk)
	}
	usable := func(m *mdMember) int64 { return m.dataLen - m.dataLen%s.chunk }
	sizes := make([]int64, len(members))
	for i, m := range members {
		if sizes[i] = usable(m); sizes[i] == 0 {
			return nil, errors.New("has a member without room")
		}
	}
	slices.SortFunc(sizes, cmp.Compare)
	sizes = slices.Compact(sizes)
	if len(sizes) > 1 && s.layout != raid0Original && s.layout != raid0Alternate {
		return nil, errors.New("has members of different sizes, and does not say in which of two ways they are striped")
	}
	var all concatenation
	var size, done int64
	for _, end := range sizes {
		z := zone{stripes: stripes{chunk: s.chunk}}
		for _, m := range members {
			if usable(m) > done {
				z.vols = append(z.vols, part{m.node.Volume, m.dataOff + done})
			}
		}
		if s.layout == raid0Original {
			z.first = size / s.chunk
		}
		if end-done > (maxBytes-size)/int64(len(z.vols)) {
			return nil, errTooLarge
		}
		n := (end - done) * int64(len(z.vols))
		all = append(all, segment{size, n, z})
		size, done = size+n, end
	}
	return newVolume(all, size), nil
}

// zone is the layout of stripes whose first one need not be on the first member.
type zone struct {
	stripes
	first int64 // number of the chunk that the zone starts with
}

func (z zone) run(off, max int64) (run, error) {
	chunk, in, n := off/z.chunk, off%z.chunk, int64(len(z.vols))
	p := z.vols[(z.first+chunk)%n]
	return run{p.vol, p.at + chunk/n*z.chunk + in, min(max, z.chunk-in)}, nil
}
