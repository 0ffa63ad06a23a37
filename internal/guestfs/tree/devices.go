package tree

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var errNoVolume = errors.New("no disk of this point holds it")

// volumeFor returns the volume that a line of an fstab names. Of several that are called
// the same it is one that can be read, the present root rather than another.
func (s *System) volumeFor(e fstabEntry) (int, error) {
	found := s.volumesCalled(e.spec)
	if len(found) == 0 {
		return 0, errNoVolume
	}
	rank := func(i int) int {
		switch {
		case e.dir == "/" && i == s.mountAt(s.root.FS).volume:
			return 0
		case s.places[i].refusal == "" && s.volumes[i].Device != nil:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(found, func(a, b int) int { return rank(a) - rank(b) })
	if len(found) > 1 {
		s.note("Its fstab has %s on %s, and there are %s: the first is shown.", clean(e.spec), clean(e.dir), s.paths(found))
	}
	return found[0], nil
}

// paths names volumes.
func (s *System) paths(list []int) string {
	var names []string
	for _, i := range list[:min(len(list), maxTold)] {
		names = append(names, s.volumes[i].Path)
	}
	if n := len(list) - len(names); n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, ", ")
}

// volumesCalled returns the volumes that have a name of those in an fstab.
func (s *System) volumesCalled(spec string) []int {
	tag, value, tagged := strings.Cut(spec, "=")
	if dir, name := path.Split(spec); strings.HasPrefix(dir, "/dev/disk/by-") {
		tag, value, tagged = strings.TrimSuffix(strings.TrimPrefix(dir, "/dev/disk/by-"), "/"), name, true
	}
	at := s.byKernelName(spec)
	var found []int
	for i, v := range s.volumes {
		same := false
		switch strings.ToLower(tag) {
		case "uuid":
			same = strings.EqualFold(v.UUID, value)
		case "label":
			same = v.Label == value
		case "partuuid":
			same = strings.EqualFold(v.PartUUID, value)
		}
		if tagged && value != "" && same || slices.Contains(v.Devices, spec) ||
			at != "" && slices.ContainsFunc(s.places[i].parts, func(p part) bool { return p.path == at }) {
			found = append(found, i)
		}
	}
	return found
}

var (
	lettered = regexp.MustCompile(`^/dev/((?:sd|vd|hd|xvd)([a-z]{1,2}))([0-9]*)$`)
	numbered = regexp.MustCompile(`^/dev/(nvme([0-9]+)n1|mmcblk([0-9]+))(?:p([0-9]+))?$`)
	bus      = regexp.MustCompile(`^(sd|vd|hd|xvd|nvme|mmcblk)[a-z0-9]+$`)
)

// byKernelName returns the position of what the kernel calls /dev/sda1; empty if that is
// not known.
func (s *System) byKernelName(spec string) string {
	name, part, number := "", "", 0
	if m := lettered.FindStringSubmatch(spec); m != nil {
		name, part = m[1], m[3]
		for _, letter := range m[2] {
			number = number*26 + int(letter-'a') + 1
		}
		number--
	} else if m := numbered.FindStringSubmatch(spec); m != nil {
		name, part = m[1], m[4]
		number, _ = strconv.Atoi(m[2] + m[3]) // of what is too large there is none
	} else {
		return ""
	}
	disk, ok := s.diskCalled(name, number)
	switch {
	case !ok:
		return ""
	case part == "":
		return fmt.Sprintf("disk-%d/fs", disk)
	}
	return fmt.Sprintf("disk-%d/p%s", disk, part)
}

// diskCalled returns the index of the disk that has a name of the kernel's. If none has,
// as in a guest that was moved to another bus, and all are on one, disks are taken to be
// numbered in their order.
func (s *System) diskCalled(name string, number int) (int, bool) {
	busOf := func(key string) string {
		if m := bus.FindStringSubmatch(key); m != nil {
			return m[1]
		}
		return ""
	}
	found := -1
	for _, d := range s.disks {
		switch {
		case d.Device == name:
			return d.Index, true
		case busOf(d.Device) != busOf(s.disks[0].Device):
			number = -1
		case d.Index == number:
			found = d.Index
		}
	}
	if found < 0 || number < 0 {
		return 0, false
	}
	s.note("It calls a disk %s, which is taken to be disk-%d.", name, found)
	return found, true
}
