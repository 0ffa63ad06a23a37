package tree

import (
	"fmt"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// holders are types whose content stands elsewhere in the result of a scan.
var holders = map[string]bool{"LVM2_member": true, "linux_raid_member": true, "crypto_LUKS": true}

// collect returns the places of a scan in which a file system is, or could be, by
// the names under which they are shown, and what there is to say of the others.
func collect(disks []volume.Disk, nodes []*volume.Node) ([]Volume, []place, []string) {
	c := collector{disks: map[string]int{}}
	for _, d := range disks {
		c.disks[d.Key] = d.Index
	}
	c.all(nil, nodes)
	return c.list, c.places, c.notes
}

type collector struct {
	disks  map[string]int // index by key
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
		for _, note := range n.Notes[:min(len(n.Notes), maxNotes-len(c.notes))] {
			c.notes = append(c.notes, fmt.Sprintf("%s: %s", c.path(n), note))
		}
		return
	}
	v := Volume{
		Path: c.path(n), Type: orElse(n.Type, n.Table), Label: n.Label, UUID: n.UUID, Size: n.Size, Refusal: n.Refusal, Notes: n.Notes,
		Device: n.Volume, Devices: devices(n), Locked: n.Locked,
	}
	if n.Partition != nil {
		v.PartUUID, v.Start = n.Partition.UUID, n.Partition.Start
	}
	p := place{notes: n.Notes}
	switch {
	case n.Kind == volume.KindCrypt:
		p.container = containerNames(parent)
	case n.Locked:
		p.container = containerNames(n)
	}
	c.list, c.places = append(c.list, v), append(c.places, p)
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

// path returns the name by position: that of the first disk in front of what spans
// several, disk-0/vg0/root, and fs behind a disk that holds nothing else.
func (c *collector) path(n *volume.Node) string {
	first, rest, _ := strings.Cut(n.Path, "/")
	index, isDisk := c.disks[first]
	if !isDisk {
		return fmt.Sprintf("disk-%d/%s", n.Disk, n.Path)
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
