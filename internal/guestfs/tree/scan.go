package tree

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// holders are types whose content stands elsewhere in the result of a scan.
var holders = map[string]bool{"LVM2_member": true, "linux_raid_member": true, "crypto_LUKS": true}

// collect returns the places of a scan in which a file system is, or could be, by
// the names under which they are shown, and what there is to say of the others.
func collect(disks []volume.Disk, nodes []*volume.Node) ([]Volume, []place, []string) {
	c := collector{disks: map[string]int{}, paths: map[*volume.Node]string{}, taken: map[string]bool{}}
	for _, d := range disks {
		c.disks[d.Key] = d.Index
	}
	c.all(nil, nodes)
	return c.list, c.places, c.notes
}

type collector struct {
	disks  map[string]int // index by key
	paths  map[*volume.Node]string
	taken  map[string]bool // paths
	list   []Volume
	places []place
	notes  []string
}

// maxNotes is how many notes are kept.
const maxNotes = 200

func (c *collector) all(parent *volume.Node, nodes []*volume.Node) {
	for _, n := range nodes {
		c.add(parent, n)
		c.all(n, n.Children)
	}
}

func (c *collector) add(parent, n *volume.Node) {
	switch {
	case n.Refusal != "": // whatever it is, it is missed
	case divided(n), n.Kind == volume.KindGroup, holders[n.Type], n.Volume == nil:
		c.note(n, n.Notes...)
		return
	}
	if n.Span != nil && n.Refusal == "" && c.joins(n) {
		return
	}
	v := Volume{
		Path: c.path(n), Type: orElse(n.Type, n.Table), Label: n.Label, UUID: n.UUID, Size: n.Size, Refusal: n.Refusal, Notes: n.Notes,
		Device: n.Volume, Devices: devices(n), Locked: n.Locked,
	}
	if n.Partition != nil {
		v.PartUUID, v.Start = n.Partition.UUID, n.Partition.Start
	}
	p := place{notes: n.Notes, devices: v.Devices, refusal: n.Refusal, err: n.Err, parts: []part{{path: v.Path, volume: n.Volume}}}
	if n.Span != nil {
		p.parts[0].uuid = n.Span.UUID
	}
	switch {
	case n.Kind == volume.KindCrypt:
		p.container = containerNames(parent)
	case n.Locked:
		p.container = containerNames(n)
	}
	c.list, c.places = append(c.list, v), append(c.places, p)
}

// joins adds a node to the file system of which it is a further part, if that was
// found before. Of two copies of a part each belongs to a file system of its own.
func (c *collector) joins(n *volume.Node) bool {
	for i := range c.list {
		v, p := &c.list[i], &c.places[i]
		if v.Type != n.Type || v.UUID != n.UUID || p.parts[0].uuid == "" ||
			slices.ContainsFunc(p.parts, func(o part) bool { return o.uuid == n.Span.UUID }) {
			continue
		}
		p.parts = append(p.parts, part{c.path(n), n.Span.UUID, n.Volume})
		v.Size += n.Size
		c.note(n, n.Notes...)
		c.note(n, fmt.Sprintf("It is device %d of the %s at %s, which has %d.", n.Span.Number, n.Type, v.Path, n.Span.Count))
		return true
	}
	return false
}

// note keeps what there is to say of a node that is no volume of its own.
func (c *collector) note(n *volume.Node, notes ...string) {
	for _, note := range notes[:min(len(notes), maxNotes-len(c.notes))] {
		c.notes = append(c.notes, fmt.Sprintf("%s: %s", c.path(n), note))
	}
}

// devices are the names of a node's own device, beside those that follow from what
// is on it.
func devices(n *volume.Node) []string {
	switch n.Kind {
	case volume.KindLogical:
		if group, name, ok := strings.Cut(n.Path, "/"); ok {
			return []string{"/dev/" + group + "/" + name, "/dev/mapper/" + dashes(group) + "-" + dashes(name)}
		}
	case volume.KindArray:
		return []string{"/dev/" + n.Name, "/dev/md/" + strings.TrimPrefix(strings.TrimPrefix(n.Name, "md"), "-")}
	case volume.KindCrypt:
		return []string{"/dev/mapper/luks-" + n.ID}
	}
	return nil
}

// dashes doubles them, as device mapper does in its names.
func dashes(s string) string { return strings.ReplaceAll(s, "-", "--") }

// path returns the name by position of a node, which no other has.
func (c *collector) path(n *volume.Node) string {
	if p, ok := c.paths[n]; ok {
		return p
	}
	base := c.position(n)
	p := base
	for i := 2; c.taken[p]; i++ {
		p = fmt.Sprintf("%s@%d", base, i)
	}
	c.paths[n], c.taken[p] = p, true
	return p
}

// byPosition are names of what is on one disk, which a group or an array may have, too.
var byPosition = regexp.MustCompile(`^(fs|crypt|p[0-9]+)$`)

// position returns where a node stands: what spans several disks in the first of them,
// disk-0/vg0/root, and fs behind what holds nothing else.
func (c *collector) position(n *volume.Node) string {
	first, rest, _ := strings.Cut(n.Path, "/")
	index, isDisk := c.disks[first]
	if !isDisk {
		p := n.Path
		if byPosition.MatchString(first) {
			p = first + "@" + strings.TrimPrefix(n.Path, first)
		}
		if len(n.Children) > 0 && n.Refusal == "" && !divided(n) && n.Kind != volume.KindGroup {
			p += "/fs"
		}
		return fmt.Sprintf("disk-%d/%s", n.Disk, p)
	}
	switch {
	case rest != "":
	case len(n.Children) > 0 && divided(n):
		return fmt.Sprintf("disk-%d", index)
	default:
		rest = "fs"
	}
	return fmt.Sprintf("disk-%d/%s", index, rest)
}

// divided reports whether what there is in a place is in its parts. A disc may have
// partitions that are parts of it.
func divided(n *volume.Node) bool {
	return (len(n.Children) > 0 || n.Table != "") && n.Type != "iso9660" && n.Type != "udf"
}
