package volume

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxLogicals is how many logical volumes a group may have.
const maxLogicals = 64 << 10

// group is the metadata of a volume group.
type group struct {
	name, id string
	seqno    int64
	extent   int64 // bytes
	pvs      []*groupPV
	byPV     map[string]*groupPV // by the name that the metadata gives it
	logicals []*logical
	byName   map[string]*logical
}

// groupPV is a physical volume as the group describes it.
type groupPV struct {
	id      string
	device  string // the guest's name of its device, when it was last seen; may be empty
	missing bool   // the group was changed without it
	start   int64  // first byte of its extents
	count   int64  // of extents
}

func (p *groupPV) String() string {
	if p.device == "" {
		return p.id
	}
	return fmt.Sprintf("%s (%s)", p.device, p.id)
}

// logical is a logical volume. Not all of them are visible: others are made of
// those that are not.
type logical struct {
	name, id string
	visible  bool
	extents  int64
	segments []lvSegment
}

// lvSegment is a part of a logical volume; start and count are extents.
type lvSegment struct {
	start, count int64
	kind         string
	*section
}

// parseGroup finds the volume group in a text of metadata.
func parseGroup(text string) (*group, error) {
	root, err := parseText(text)
	if err != nil {
		return nil, err
	}
	if root.text("contents") != "Text Format Volume Group" {
		return nil, errors.New("metadata is not that of a volume group")
	}
	if v, _ := root.number("version"); v != 1 {
		return nil, fmt.Errorf("metadata of version %d", v)
	}
	i := slices.IndexFunc(root.sections, func(s *section) bool { return s.text("id") != "" })
	if i < 0 {
		return nil, errors.New("metadata has no volume group")
	}
	s := root.sections[i]
	g := &group{name: s.name, id: s.text("id"), byPV: map[string]*groupPV{}, byName: map[string]*logical{}}
	if !validName(g.name) || lvmID(strings.ReplaceAll(g.id, "-", "")) == "" {
		return nil, fmt.Errorf("volume group %.100q has no valid name or identifier", g.name)
	}
	g.seqno, _ = s.number("seqno")
	sectors, _ := s.number("extent_size")
	if sectors <= 0 || sectors > 1<<40 {
		return nil, fmt.Errorf("volume group %s has extents of %d sectors", g.name, sectors)
	}
	g.extent = sectors * 512
	return g, errors.Join(g.physicals(s.section("physical_volumes")), g.volumes(s.section("logical_volumes")))
}

// validName says whether s is a name that LVM would give (lvm(8)).
func validName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 127 && s[0] != '-' &&
		!strings.ContainsFunc(s, func(r rune) bool { return !nameRune(r) })
}

// validDevice says whether s may be shown as the name of a device.
func validDevice(s string) bool {
	return len(s) <= 100 && strings.HasPrefix(s, "/dev/") && !strings.ContainsFunc(s, func(r rune) bool { return !nameRune(r) && r != '/' && r != ':' })
}

func (g *group) physicals(s *section) error {
	if s == nil {
		return nil
	}
	for _, c := range s.sections {
		start, ok := c.number("pe_start")
		count, ok2 := c.number("pe_count")
		if !ok || !ok2 || start > maxBytes/512/2 || count > maxBytes/g.extent/2 {
			return fmt.Errorf("physical volume %.40q of volume group %s has no valid extents", c.name, g.name)
		}
		pv := &groupPV{id: c.text("id"), device: c.text("device"), missing: slices.Contains(c.strings("flags"), "MISSING"), start: start * 512, count: count}
		if !validDevice(pv.device) {
			pv.device = ""
		}
		g.pvs = append(g.pvs, pv)
		g.byPV[c.name] = pv
	}
	return nil
}

func (g *group) volumes(s *section) error {
	if s == nil {
		return nil
	}
	for _, c := range s.sections {
		if !validName(c.name) || g.byName[c.name] != nil {
			return fmt.Errorf("logical volume %.100q of volume group %s has no valid name", c.name, g.name)
		}
		if len(g.logicals) == maxLogicals {
			return fmt.Errorf("volume group %s has more than %d logical volumes", g.name, maxLogicals)
		}
		l := &logical{name: c.name, id: c.text("id"), visible: slices.Contains(c.strings("status"), "VISIBLE")}
		g.logicals = append(g.logicals, l)
		g.byName[c.name] = l
		if err := l.parse(c, maxBytes/g.extent); err != nil {
			return fmt.Errorf("logical volume %s/%s: %w", g.name, l.name, err)
		}
	}
	return nil
}

// parse parses the segments of a volume, which have to follow one another.
func (l *logical) parse(s *section, maxExtents int64) error {
	for _, c := range s.sections {
		if !strings.HasPrefix(c.name, "segment") {
			continue
		}
		start, ok := c.number("start_extent")
		count, ok2 := c.number("extent_count")
		if !ok || !ok2 || count == 0 || start > maxExtents || count > maxExtents {
			return fmt.Errorf("%.40q has no valid extents", c.name)
		}
		l.segments = append(l.segments, lvSegment{start, count, c.text("type"), c})
	}
	slices.SortFunc(l.segments, func(a, b lvSegment) int { return cmp.Compare(a.start, b.start) })
	for _, seg := range l.segments {
		if seg.start != l.extents {
			return fmt.Errorf("no segment at extent %d", l.extents)
		}
		if l.extents += seg.count; l.extents > maxExtents {
			return errors.New("it is too large")
		}
	}
	return nil
}

// kind returns the type of a volume's first segment.
func (l *logical) kind() string {
	if len(l.segments) == 0 {
		return ""
	}
	return l.segments[0].kind
}

// area is a place in a physical or logical volume, which a segment refers to.
type area struct {
	name string
	at   int64 // extents
}

// areas returns a list that alternates between names and extents.
func (s lvSegment) areas(name string) ([]area, error) {
	v := s.values[name]
	if len(v) == 0 || len(v)%2 != 0 {
		return nil, fmt.Errorf("its list of %s is not valid", name)
	}
	var list []area
	for i := 0; i < len(v); i += 2 {
		if !v[i].isText || v[i+1].isText || v[i+1].number < 0 {
			return nil, fmt.Errorf("its list of %s is not valid", name)
		}
		list = append(list, area{v[i].text, v[i+1].number})
	}
	return list, nil
}
