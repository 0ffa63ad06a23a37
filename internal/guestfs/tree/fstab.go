package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// table returns the lines of the guest's fstab, those of directories above others
// first. One that cannot be read is told, where there is one.
func (s *System) table() []fstabEntry {
	text, err := s.config("etc/fstab")
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotDir):
		return nil
	default:
		s.note("Its fstab cannot be read, so that nothing is mounted: %v.", err)
		if errors.Is(err, fsys.ErrVolume) {
			s.hasRoot, s.lost = false, fmt.Errorf("its fstab: %w", err)
		}
		return nil
	}
	entries := parseFstab(text)
	slices.SortStableFunc(entries, func(a, b fstabEntry) int { return len(a.dir) - len(b.dir) })
	return entries
}

// rootOfTable returns the root that the guest's fstab names, if that can be read.
func (s *System) rootOfTable() (Node, bool) {
	for _, e := range s.table() {
		if e.dir != "/" || e.bound() {
			continue
		}
		i, err := s.volumeFor(e)
		if err != nil {
			continue
		}
		subvolume, err := e.subvolume(s.volumes[i].Type)
		if err != nil {
			continue
		}
		root, err := s.rootOf(own(s.mountIndex(i, subvolume)))
		if err == nil {
			return root, true
		}
	}
	return Node{}, false
}

// mountTable mounts what the guest's fstab names.
func (s *System) mountTable() {
	for _, e := range s.table() {
		if err := s.mountEntry(e); err != nil {
			s.note("Its fstab has %s on %s, which is not shown there: %v.", clean(e.spec), clean(e.dir), err)
		}
	}
}

// mountEntry mounts what a line names. Where that fails, an error stands in its place:
// what is in the directory beneath is not what the guest had there.
func (s *System) mountEntry(e fstabEntry) error {
	if e.bound() {
		return errors.New("its files are where they come from")
	}
	root, index, err := s.mountOf(e)
	if e.dir == "/" {
		if err == nil && root != s.root {
			err = errors.New("another root was found before")
		}
		return err
	}
	if root == (Node{}) {
		return err
	}
	at, atErr := s.dirBelow(e.dir)
	if err == nil {
		err = atErr
	}
	if atErr != nil || at == s.root || at == root {
		return err
	}
	s.mu.Lock()
	s.over[at] = root
	s.mu.Unlock()
	s.mark(index, e.dir)
	return err
}

// dirBelow returns a directory of the guest's tree.
func (s *System) dirBelow(p string) (Node, error) {
	n, err := s.below(s.root, p)
	if err != nil {
		return Node{}, err
	}
	a, err := s.Stat(n)
	if err == nil && !a.Mode.IsDir() {
		err = ErrNotDir
	}
	return n, err
}

// mountOf returns the topmost directory of what a line names, and the number of the file
// system. With an error it is what stands in its place; the zero Node: nothing does.
func (s *System) mountOf(e fstabEntry) (root Node, index int, err error) {
	i, err := s.volumeFor(e)
	if err != nil && !e.needed() {
		return Node{}, 0, err
	}
	subvolume := ""
	if err == nil {
		subvolume, err = e.subvolume(s.volumes[i].Type)
	}
	if err != nil {
		told := &because{fmt.Sprintf("%s, which the fstab has on %s, cannot be shown: %v", clean(e.spec), clean(e.dir), err), fsys.ErrUnsupported}
		index = own(s.failing(told, "fstab", e.spec, e.dir))
		return Node{index, atRoot}, index, err
	}
	index = own(s.mountIndex(i, subvolume))
	if root, err = s.rootOf(index); err != nil {
		root = Node{index, atRoot}
	}
	return root, index, err
}

// fstabEntry is a line of an fstab(5).
type fstabEntry struct {
	spec, dir, fsType string
	options           []string
}

// option returns the value of an option.
func (e fstabEntry) option(name string) (value string, ok bool) {
	for _, o := range e.options {
		if k, v, _ := strings.Cut(o, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// bound says whether it shows a directory in another place.
func (e fstabEntry) bound() bool {
	_, bind := e.option("bind")
	_, rbind := e.option("rbind")
	return bind || rbind
}

// needed says whether the guest does not do without it, and has it on a disk.
func (e fstabEntry) needed() bool {
	_, later := e.option("noauto")
	_, optional := e.option("nofail")
	_, loop := e.option("loop")
	tagged := strings.Contains(e.spec, "=") && !strings.Contains(e.spec, "/")
	return !later && !optional && !loop && (tagged || strings.HasPrefix(e.spec, "/dev/")) && !removable.MatchString(e.spec)
}

// removable are the devices of media that nobody keeps in a machine.
var removable = regexp.MustCompile(`^/dev/(sr|scd|fd|cdrom|dvd|floppy)`)

// subvolume returns which of a file system's the line names.
func (e fstabEntry) subvolume(fsType string) (string, error) {
	if fsType != "btrfs" {
		return "", nil
	}
	if name, ok := e.option("subvol"); ok {
		return path.Clean("/" + name), nil
	}
	id, ok := e.option("subvolid")
	if !ok {
		return "", nil
	}
	n, err := strconv.ParseUint(id, 0, 64)
	if err != nil {
		return "", fmt.Errorf("its subvolid %q is no number", clean(id))
	}
	return strconv.FormatUint(n, 10), nil
}

// pseudo are types in an fstab that no disk holds.
var pseudo = []string{"proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "swap", "cgroup", "cgroup2", "debugfs", "securityfs", "efivarfs",
	"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "overlay", "fuse.sshfs", "none", "autofs"}

// parseFstab returns the lines that show something of a disk in a directory.
func parseFstab(text string) []fstabEntry {
	var list []fstabEntry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") || len(list) >= 1000 {
			continue
		}
		e := fstabEntry{spec: unescape(f[0]), dir: path.Clean("/" + unescape(f[1])), fsType: f[2]}
		if len(f) > 3 {
			e.options = strings.Split(f[3], ",")
		}
		if !strings.HasPrefix(f[1], "/") || slices.Contains(pseudo, e.fsType) && !e.bound() {
			continue
		}
		list = append(list, e)
	}
	return list
}

// unescape undoes the octal escapes of fstab(5), and quotes of a tag's value.
func unescape(s string) string {
	s = octal.ReplaceAllStringFunc(s, func(o string) string {
		n, err := strconv.ParseUint(o[1:], 8, 8)
		if err != nil {
			return o
		}
		return string([]byte{byte(n)})
	})
	return strings.ReplaceAll(s, `"`, "")
}

var octal = regexp.MustCompile(`\\[0-3][0-7][0-7]`)
