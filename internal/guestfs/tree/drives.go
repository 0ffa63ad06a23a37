package tree

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/hive"
)

// drive is a volume that Windows has under a letter.
type drive struct {
	name string // D:
	root Node
}

// driveLetters finds which volumes have which letters, and shows those that are not
// the system's own in the topmost directory: a name of Windows has no colon.
func (s *System) driveLetters(h *hive.Hive) {
	k, err := h.Key("MountedDevices")
	if err != nil {
		return // a machine that has not been set up yet
	}
	err = k.Values(func(v hive.Value) bool {
		letter, ok := strings.CutPrefix(strings.ToUpper(v.Name), `\DOSDEVICES\`)
		if !ok || len(letter) != 2 || letter[0] < 'A' || letter[0] > 'Z' || letter[1] != ':' {
			return true
		}
		found := s.volumesOfDevice(v.Data)
		if len(found) > 1 {
			s.note("Its drive %s may be any of %s: the first is shown.", letter, s.paths(found))
		}
		if len(found) > 0 {
			s.addDrive(letter, found[0])
		}
		return len(s.drives) < 26
	})
	if err != nil {
		s.note("Its registry does not tell all of its drives: %v.", err)
	}
	slices.SortFunc(s.drives, func(a, b drive) int { return strings.Compare(a.name, b.name) })
}

func (s *System) addDrive(letter string, volume int) {
	if slices.ContainsFunc(s.drives, func(d drive) bool { return d.name == letter }) {
		return
	}
	index := own(s.mountIndex(volume, ""))
	root, err := s.rootOf(index)
	if err != nil {
		s.note("Its drive %s, %s, is not shown there: %v.", letter, s.volumes[volume].Path, err)
		return
	}
	s.drives = append(s.drives, drive{letter, root})
	if root != s.root {
		s.mark(index, "/"+letter)
	}
}

// volumesOfDevice finds the volumes that a value of MountedDevices may stand for: by the
// disk's signature and where the partition begins, or by the GUID of a partition.
func (s *System) volumesOfDevice(b []byte) (found []int) {
	const byGUID = "DMIO:ID:"
	match := func(Volume) bool { return false }
	switch {
	case len(b) == 12:
		signature, start := fmt.Sprintf("%08x-", binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint64(b[4:]))
		match = func(v Volume) bool {
			return v.Start == start && strings.HasPrefix(strings.ToLower(v.PartUUID), signature)
		}
	case len(b) == len(byGUID)+16 && string(b[:len(byGUID)]) == byGUID:
		guid := guidText(b[len(byGUID):])
		match = func(v Volume) bool { return strings.EqualFold(v.PartUUID, guid) }
	}
	for i, v := range s.volumes {
		if match(v) {
			found = append(found, i)
		}
	}
	return found
}

// guidText prints a GUID as partition tables are printed.
func guidText(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// drive returns the root of a drive, by name in the topmost directory.
func (s *System) drive(dir Node, name string) (Node, bool) {
	if len(s.drives) == 0 || dir != s.root || len(name) != 2 || name[1] != ':' {
		return Node{}, false
	}
	i := slices.IndexFunc(s.drives, func(d drive) bool { return strings.EqualFold(d.name, name) })
	if i < 0 {
		return Node{}, false
	}
	return s.drives[i].root, true
}

// driveEntries are those that the topmost directory has for drives. That of the system
// itself is not listed, where it would be in itself, but can be asked for.
func (s *System) driveEntries(dir Node) []Entry {
	if dir != s.root {
		return nil
	}
	var list []Entry
	for _, d := range s.drives {
		if d.root != s.root {
			list = append(list, Entry{d.name, d.root, fs.ModeDir})
		}
	}
	return list
}
