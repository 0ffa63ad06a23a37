package volume

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// physical is a physical volume that was found.
type physical struct {
	node *Node
	id   string
	meta *group // what it says of its group; nil if it keeps no metadata
	used bool   // its fate was told
}

// addPhysical takes note of a physical volume, and reads the metadata on it.
func (s *scan) addPhysical(n *Node, l *pvLabel) {
	p := &physical{node: n, id: l.id}
	p.read(l)
	other := s.pvByID[l.id]
	switch {
	case other == nil:
		s.pvs = append(s.pvs, p)
	case other.used || p.version() <= other.version():
		n.refuse(fmt.Sprintf("It is a copy of the physical volume %s, which is used instead.", other.node.Path))
		return
	default:
		other.node.refuse(fmt.Sprintf("It is an older copy of the physical volume %s, which is used instead.", n.Path))
		s.pvs[slices.Index(s.pvs, other)] = p
	}
	s.pvByID[l.id] = p
}

// version is that of the metadata, -1 if there is none.
func (p *physical) version() int64 {
	if p.meta == nil {
		return -1
	}
	return p.meta.seqno
}

// read reads the metadata.
func (p *physical) read(l *pvLabel) {
	w := newWindow(p.node.Volume)
	var problem error
	for _, area := range l.areas {
		text, err := readMetadata(w, area)
		if errors.Is(err, errNoMetadata) {
			continue
		}
		var g *group
		if err == nil {
			g, err = parseGroup(text)
		}
		if err != nil {
			problem = err
		} else if p.meta == nil || g.seqno > p.meta.seqno {
			p.meta = g
		}
	}
	if problem != nil {
		p.node.note(sentence("metadata of LVM on it: " + problem.Error()))
	}
}

// collectGroups returns the newest metadata of each group.
func (s *scan) collectGroups() []*group {
	var list []*group
	at := map[string]int{}
	for _, p := range s.pvs {
		if p.meta == nil {
			continue
		}
		i, ok := at[p.meta.id]
		if !ok {
			at[p.meta.id] = len(list)
			list = append(list, p.meta)
		} else if p.meta.seqno > list[i].seqno {
			list[i] = p.meta
		}
	}
	return list
}

// complete says whether all physical volumes of the group were found.
func (g *group) complete(found map[string]*physical) bool {
	for _, pv := range g.pvs {
		if found[pv.id] == nil {
			return false
		}
	}
	return true
}

// addGroup adds a volume group with its visible logical volumes.
func (s *scan) addGroup(g *group) {
	n := &Node{Name: g.name, Kind: KindGroup, ID: g.id}
	volumes := map[string]fsys.Volume{}
	var missing []string
	for _, pv := range g.pvs {
		p := s.pvByID[pv.id]
		if p == nil {
			missing = append(missing, pv.String())
			continue
		}
		if p.meta != nil && p.meta.id != g.id {
			missing = append(missing, pv.String())
			continue // it was moved to another group, which knows more of it
		}
		if len(volumes) == 0 || p.node.Disk < n.Disk {
			n.Disk = p.node.Disk
		}
		volumes[pv.id] = p.node.Volume
		n.depth = max(n.depth, p.node.depth+1)
		n.Size += pv.count * g.extent
	}
	if len(missing) > 0 {
		n.note(fmt.Sprintf("It lacks %d of %d physical volumes: %s.", len(missing), len(g.pvs), strings.Join(missing[:min(len(missing), 20)], ", ")))
	}
	s.add(nil, n, g.id)
	for _, pv := range g.pvs {
		if p := s.pvByID[pv.id]; p != nil && volumes[pv.id] != nil {
			p.used = true
			p.node.PartOf = n.Path
			if v := p.version(); v >= 0 && v < g.seqno {
				p.node.note(fmt.Sprintf("Its metadata of LVM is older than that of its group (version %d, not %d).", v, g.seqno))
			}
		}
	}
	for _, p := range s.pvs {
		if !p.used && p.meta != nil && p.meta.id == g.id {
			p.used = true
			p.node.refuse(fmt.Sprintf("Its metadata is outdated: the volume group %s does without it.", n.Path))
		}
	}
	r := newResolver(g, volumes)
	for _, l := range g.logicals {
		// The store of a snapshot's exceptions stands for the snapshot, and is not marked.
		_, snap := r.snapshots[l.name]
		if (l.visible || snap) && l.kind() != "snapshot" {
			s.addLogical(n, r, l)
		}
	}
}

// pools are segment types of volumes that hold others, and nothing to read.
var pools = map[string]string{
	"thin-pool":  "It is a thin pool; its volumes are listed beside it.",
	"cache-pool": "It is a cache without an origin, which holds nothing to read.",
	"vdo-pool":   "It is a pool of VDO (deduplicated and compressed), which is not read.",
}

func (s *scan) addLogical(parent *Node, r *resolver, l *logical) {
	n := &Node{Name: l.name, Kind: KindLogical, ID: l.id, Size: l.extents * r.extent}
	if pool := pools[l.kind()]; pool != "" {
		n.Type = l.kind()
		n.refuse(pool)
		if p, err := r.pool(l.name); l.kind() == "thin-pool" && err == nil {
			n.Notes = append(n.Notes, p.notes...)
		}
		s.add(parent, n, l.id)
		return
	}
	v, err := r.volume(l.name)
	if err != nil {
		n.refuse(sentence("it cannot be read: " + err.Error()))
	} else {
		n.Volume, n.Size = v, v.Size()
	}
	n.Notes = append(n.Notes, r.notes[l.name]...)
	if r.stale[l.name] || r.stale[l.name+"/snapshot"] {
		n.note("It lies on a physical volume that its group counts as missing: the group was changed without it, and what it holds may be older.")
	}
	s.add(parent, n, l.id)
}

// sentence makes a sentence of an error's text.
func sentence(s string) string {
	first, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[n:] + "."
}
