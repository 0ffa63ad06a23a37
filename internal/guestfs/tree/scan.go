package tree

import (
	"fmt"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// holders are types whose content stands elsewhere in the result of a scan.
var holders = map[string]bool{"LVM2_member": true, "linux_raid_member": true, "crypto_LUKS": true}

// Volumes returns the places of a scan in which a file system is, or could be, by
// the names under which they are shown.
func Volumes(disks []volume.Disk, nodes []*volume.Node) []Volume {
	c := collector{disks: map[string]int{}}
	for _, d := range disks {
		c.disks[d.Key] = d.Index
	}
	volume.Walk(nodes, func(n *volume.Node) bool {
		c.add(n)
		return true
	})
	return c.list
}

type collector struct {
	disks map[string]int // index by key
	list  []Volume
}

func (c *collector) add(n *volume.Node) {
	// A disc may have partitions that are parts of it.
	divided := (len(n.Children) > 0 || n.Table != "") && n.Type != "iso9660" && n.Type != "udf"
	if divided || n.Kind == volume.KindGroup || holders[n.Type] && n.Refusal == "" {
		return
	}
	v := Volume{
		Path: c.path(n), Type: n.Type, Label: n.Label, UUID: n.UUID, Size: n.Size, Refusal: n.Refusal, Notes: n.Notes, Device: n.Volume,
	}
	if n.Partition != nil {
		v.PartUUID, v.Start = n.Partition.UUID, n.Partition.Start
	}
	switch n.Kind {
	case volume.KindLogical:
		if group, name, ok := strings.Cut(n.Path, "/"); ok {
			v.Devices = []string{"/dev/" + group + "/" + name, "/dev/mapper/" + dashes(group) + "-" + dashes(name)}
		}
	case volume.KindArray:
		v.Devices = []string{"/dev/" + n.Path, "/dev/md/" + n.Name}
	}
	c.list = append(c.list, v)
}

// dashes doubles them, as device mapper does in its names.
func dashes(s string) string { return strings.ReplaceAll(s, "-", "--") }

// path returns the name by position: that of the first disk in front of what spans
// several, disk-0/vg0/root, and fs behind a disk without partitions.
func (c *collector) path(n *volume.Node) string {
	first, rest, _ := strings.Cut(n.Path, "/")
	index, isDisk := c.disks[first]
	if !isDisk {
		return fmt.Sprintf("disk-%d/%s", firstDisk(n.Volume), n.Path)
	}
	if rest == "" {
		rest = "fs"
	}
	return fmt.Sprintf("disk-%d/%s", index, rest)
}

// firstDisk returns the disk that the first byte of a volume lies on.
func firstDisk(v any) int {
	if located, ok := v.(volume.Located); ok {
		if pieces, err := located.Locate(0, 1); err == nil && len(pieces) > 0 && pieces[0].Disk >= 0 {
			return pieces[0].Disk
		}
	}
	return 0
}
