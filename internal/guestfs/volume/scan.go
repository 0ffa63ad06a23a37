package volume

import (
	"fmt"
	"slices"
	"strings"
)

// Limits of a scan.
const (
	maxDepth = 10   // of what lies within one another
	maxNodes = 8192 // all together
)

// scan looks at volumes until there are no more: what is found in one may be part
// of an array or a group, whose volumes are looked at in turn.
type scan struct {
	opts    Options
	queue   []*Node // to be looked at
	count   int
	paths   map[string]bool
	top     []*Node
	members []mdMember
	pvs     []*physical
	pvByID  map[string]*physical
	arrays  map[string]bool // by UUID, those that are done
	groups  map[string]bool
	used    map[*Node]bool // members that are part of an array
	budget  budget         // for unlocking
}

// Scan returns what lies on disks: a node for each, then one for each array and
// each volume group. What cannot be read says so; a scan does not fail. It reads
// little, all of it before it returns but for the mappings of thin volumes and
// snapshots, which volumes read when they are asked.
func Scan(disks []Disk, o Options) []*Node {
	s := &scan{opts: o, paths: map[string]bool{}, pvByID: map[string]*physical{}, arrays: map[string]bool{}, groups: map[string]bool{},
		used: map[*Node]bool{}, budget: newBudget(o)}
	for _, d := range disks {
		s.add(nil, &Node{Name: d.Key, Kind: KindDisk, Size: d.Volume.Size(), Volume: diskVolume{d.Volume, d.Index}}, fmt.Sprint(d.Index))
	}
	for {
		for len(s.queue) > 0 {
			n := s.queue[0]
			s.queue = s.queue[1:]
			s.examine(n)
		}
		// What is complete first: its volumes may complete the rest.
		if !s.assemble(true) && !s.assemble(false) {
			break
		}
	}
	s.strays()
	return s.top
}

// add puts a node below another, or on top, names it, and has it looked at. The id
// tells it from others of the same name.
func (s *scan) add(parent, n *Node, id string) {
	if s.count == maxNodes {
		if parent != nil && parent.Refusal == "" {
			parent.refuse(fmt.Sprintf("There are more than %d volumes; the others are left out.", maxNodes))
		}
		return
	}
	s.count++
	prefix := ""
	if parent != nil {
		prefix, n.depth = parent.Path+"/", max(n.depth, parent.depth+1)
		n.Disk = parent.Disk
	}
	if n.Volume != nil {
		n.Disk = firstDisk(n.Volume, n.Disk)
	}
	base := n.Name
	for i := 2; s.paths[prefix+n.Name]; i++ {
		switch short := strings.ReplaceAll(id, "-", ""); {
		case i == 2 && id != "":
			n.Name = base + "@" + short[:min(6, len(short))]
		case i == 3 && id != "":
			n.Name = base + "@" + short
		default:
			n.Name = fmt.Sprintf("%s@%d", base, i)
		}
	}
	n.Path = prefix + n.Name
	s.paths[n.Path] = true
	if parent != nil {
		parent.Children = append(parent.Children, n)
	} else {
		s.top = append(s.top, n)
	}
	if n.Volume != nil && n.Kind != KindGroup {
		s.queue = append(s.queue, n)
	}
}

// examine looks at what a node holds.
func (s *scan) examine(n *Node) {
	if n.depth > maxDepth {
		n.refuse("It lies within too many others; what it holds is not looked at.")
		return
	}
	w := newWindow(n.Volume)
	found := probe(w)
	var t *table
	if n.Kind != KindPartition { // the kernel does not look for tables in partitions either
		t = readTable(w)
		// What lies in a partition is that one's.
		found = slices.DeleteFunc(found, func(f finding) bool { return t.covers(f.at) || t.cuts(f.end) })
	}
	if w.err != nil {
		n.refuse(fmt.Sprintf("It cannot be read: %v.", w.err))
		n.Err = w.err
	}
	if t != nil {
		if !slices.ContainsFunc(found, finding.disc) { // whose partitions are parts of one another
			t.overlap()
		}
		n.Table, n.TableUUID = t.kind, t.uuid
		n.Notes = append(n.Notes, t.notes...)
	}
	switch {
	case t == nil:
		s.hold(n, found)
	case t.refusal != "" && len(found) > 0:
		s.hold(n, found)
	case t.refusal != "":
		n.refuse(t.refusal)
	case len(found) > 0 && strings.HasSuffix(found[0].Type, "raid_member"):
		n.note("It has a partition table, too, which is not regarded: it belongs to an array.")
		s.hold(n, found)
	case len(found) > 0 && found[0].container():
		n.note(fmt.Sprintf("It has the signature of %s, too, which is not regarded: it has partitions.", found[0].Type))
		for _, f := range found {
			n.Also = append(n.Also, f.Type)
		}
		s.partitions(n, t)
	default:
		s.hold(n, found)
		s.partitions(n, t)
	}
}

// hold takes note of what a node holds that is more than a file system.
func (s *scan) hold(n *Node, found []finding) {
	if len(found) == 0 {
		return
	}
	n.Type, n.Label, n.UUID, n.Span = found[0].Type, found[0].Label, found[0].UUID, found[0].span
	for _, f := range found[1:] {
		n.Also = append(n.Also, f.Type)
	}
	switch f := found[0]; {
	case f.refusal != "":
		n.refuse(f.refusal)
	case f.md != nil:
		s.members = append(s.members, mdMember{n, f.md})
	case f.pv != nil:
		s.addPhysical(n, f.pv)
	case f.luks != nil:
		s.unlock(n, f.luks)
	}
}

// partitions adds the partitions of a table.
func (s *scan) partitions(n *Node, t *table) {
	for i := range t.parts {
		e := &t.parts[i]
		c := &Node{Name: fmt.Sprintf("p%d", e.Number), Kind: KindPartition, Size: e.Size, Partition: &e.Partition}
		switch {
		case e.refusal != "":
			c.refuse(e.refusal)
		case e.extended:
		default:
			if left := n.Size - e.Start; c.Size > left {
				c.note(fmt.Sprintf("It reaches %d bytes past the end of the disk, and is cut there.", c.Size-left))
				c.Size = left
			}
			c.Volume = slice(n.Volume, e.Start, c.Size)
		}
		s.add(n, c, "")
	}
}

// assemble makes arrays and groups of what was found, only those that are complete
// or the first of the others. It says whether it made any.
func (s *scan) assemble(complete bool) bool {
	made := false
	for _, a := range collectArrays(s.members) {
		if s.arrays[a.newest.uuid] || a.complete() != complete {
			continue
		}
		s.arrays[a.newest.uuid] = true
		s.addArray(a)
		if made = true; !complete {
			return true
		}
	}
	for _, g := range s.collectGroups() {
		if s.groups[g.id] || g.complete(s.pvByID) != complete {
			continue
		}
		s.groups[g.id] = true
		s.addGroup(g)
		if made = true; !complete {
			return true
		}
	}
	return made
}

// addArray adds an array of md.
func (s *scan) addArray(a *array) {
	vol, notes, err := a.volume()
	n := &Node{Name: a.newest.arrayName(), Kind: KindArray, ID: a.newest.uuid, Notes: notes}
	for i, m := range a.members {
		n.depth = max(n.depth, m.node.depth+1)
		if i == 0 || m.node.Disk < n.Disk {
			n.Disk = m.node.Disk
		}
	}
	for i := 127; n.Name == ""; i-- { // as the kernel counts those without a name
		if name := fmt.Sprintf("md%d", i); !s.paths[name] || i == 0 {
			n.Name = name
		}
	}
	if err != nil {
		n.refuse(fmt.Sprintf("The array %v.", err))
	} else {
		n.Volume, n.Size = vol, vol.Size()
	}
	s.add(nil, n, a.newest.uuid)
	for _, m := range a.members {
		s.used[m.node] = true
		m.node.PartOf = n.Path
	}
}

// strays says what became of members that are part of nothing that was read: of
// those that were found too late, too, which lie in what they are a part of.
func (s *scan) strays() {
	for _, m := range s.members {
		if !s.used[m.node] {
			m.node.refuse("It belongs to an array that was read without it.")
		}
	}
	for _, p := range s.pvs {
		switch {
		case p.used:
		case p.meta == nil:
			p.node.refuse("It is a physical volume of LVM, and of no volume group that is here.")
		default:
			p.node.refuse("It belongs to a volume group that was read without it.")
		}
	}
}
