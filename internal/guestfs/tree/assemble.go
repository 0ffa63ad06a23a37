package tree

import (
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// assemble finds the guest's root and mounts on it what the guest would.
func (s *System) assemble() {
	best := 0
	for i := range s.volumes {
		for _, subvolume := range rootSubvolumes(s.volumes[i].Type) {
			index := s.mountIndex(i, subvolume)
			root, err := s.rootOf(index)
			if err != nil {
				continue
			}
			if score := s.looksLikeRoot(root); score > best {
				best, s.root, s.hasRoot = score, root, true
			}
		}
	}
	if !s.hasRoot && NewLockedError(s.volumes) != nil {
		return // it is there, most likely
	}
	if !s.hasRoot {
		s.onlyOne()
		return
	}
	s.mark(s.root.FS, "/")
	s.detect()
	s.cryptTable()
	s.mountTable()
}

// rootSubvolumes are those in which distributions put their root; the empty one is
// what a file system is mounted with by default.
func rootSubvolumes(fsType string) []string {
	if fsType != "btrfs" {
		return []string{""}
	}
	return []string{"", "/@", "/@rootfs", "/root"}
}

// onlyOne makes the one file system of a machine without operating system its
// tree.
func (s *System) onlyOne() {
	for i := range s.volumes {
		root, err := s.rootOf(s.mountIndex(i, ""))
		if err != nil {
			continue
		}
		if s.hasRoot { // more than one: only their positions tell them apart
			s.mark(s.root.FS, "")
			s.root, s.hasRoot = Node{}, false
			return
		}
		s.root, s.hasRoot = root, true
		s.mark(root.FS, "/")
	}
}

func (s *System) mark(mount int, at string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &s.volumes[s.mounted[mount-1].volume]
	if v.Mounted == "" || at == "" {
		v.Mounted = at
	}
}

// looksLikeRoot says how much a directory looks like the root of a guest; 0: not
// at all.
func (s *System) looksLikeRoot(root Node) int {
	score := 0
	for _, x := range []struct {
		path  string
		score int
	}{{"etc/os-release", 4}, {"usr/lib/os-release", 4}, {"etc/fstab", 3}, {"etc/passwd", 2}, {"Windows/System32/config/SOFTWARE", 8},
		{"Windows/System32/ntoskrnl.exe", 4}, {"WINNT/System32/config/SOFTWARE", 8}} {
		if _, err := s.below(root, x.path); err == nil {
			score += x.score
		}
	}
	return score
}

// below follows a path from a directory, which it does not leave.
func (s *System) below(root Node, p string) (Node, error) {
	w := &walker{s: s, asked: p, follow: true, base: root, prefix: "/", stack: []step{{node: root}}}
	err := w.follows(p)
	return w.top().node, err
}

// maxConfig bounds the files that are read to learn about a guest.
const maxConfig = 1 << 20

// config reads a small file of the guest's tree.
func (s *System) config(p string) (string, error) {
	n, err := s.below(s.root, p)
	if err != nil {
		return "", err
	}
	a, err := s.Stat(n)
	if err != nil {
		return "", err
	}
	if !a.Mode.IsRegular() || a.Size > maxConfig {
		return "", fmt.Errorf("%s is no small file", p)
	}
	b := make([]byte, a.Size)
	m, err := s.ReadAt(n, b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(b[:m]), nil
}

// mountTable mounts what the guest's fstab names.
func (s *System) mountTable() {
	text, err := s.config("etc/fstab")
	if err != nil {
		return
	}
	entries := parseFstab(text)
	slices.SortStableFunc(entries, func(a, b fstabEntry) int { return len(a.dir) - len(b.dir) })
	for _, e := range entries {
		if err := s.mountEntry(e); err != nil {
			s.os.Notes = append(s.os.Notes, fmt.Sprintf("Its fstab has %s on %s, which is not shown there: %v.", e.spec, e.dir, err))
		}
	}
}

var errNoVolume = errors.New("no disk of this point holds it")

func (s *System) mountEntry(e fstabEntry) error {
	i, ok := s.volumeFor(e.spec)
	if !ok {
		return errNoVolume
	}
	subvolume := ""
	if name, ok := e.option("subvol"); ok && s.volumes[i].Type == "btrfs" {
		subvolume = path.Clean("/" + name)
	}
	index := s.mountIndex(i, subvolume)
	root, err := s.rootOf(index)
	if err != nil {
		return err
	}
	if e.dir == "/" {
		// The fstab knows better than names do what its root is.
		s.root = root
		s.mark(index, "/")
		return nil
	}
	at, err := s.below(s.root, e.dir)
	if err != nil {
		return err
	}
	if a, err := s.Stat(at); err != nil || !a.Mode.IsDir() {
		return errors.Join(err, ErrNotDir)
	}
	if at == s.root || at == root {
		return nil
	}
	s.mu.Lock()
	s.over[at] = root
	s.mu.Unlock()
	s.mark(index, e.dir)
	return nil
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

// pseudo are types in an fstab that no disk holds.
var pseudo = []string{"proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "swap", "cgroup", "cgroup2", "debugfs", "securityfs", "efivarfs",
	"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "overlay", "fuse.sshfs", "none", "autofs"}

// parseFstab returns the lines that mount something of a disk on a directory.
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
		_, bind := e.option("bind")
		_, rbind := e.option("rbind")
		if bind || rbind || !strings.HasPrefix(f[1], "/") || slices.Contains(pseudo, e.fsType) {
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

// volumeFor returns the volume that an fstab names.
func (s *System) volumeFor(spec string) (int, bool) {
	tag, value, tagged := strings.Cut(spec, "=")
	if dir, name := path.Split(spec); strings.HasPrefix(dir, "/dev/disk/by-") {
		tag, value, tagged = strings.TrimSuffix(strings.TrimPrefix(dir, "/dev/disk/by-"), "/"), name, true
	}
	for i, v := range s.volumes {
		if v.Device == nil && !v.Locked {
			continue
		}
		same := false
		switch strings.ToLower(tag) {
		case "uuid":
			same = tagged && strings.EqualFold(v.UUID, value)
		case "label":
			same = tagged && v.Label == value
		case "partuuid":
			same = tagged && strings.EqualFold(v.PartUUID, value)
		}
		at := byKernelName(spec)
		if value != "" && same || slices.Contains(v.Devices, spec) ||
			slices.ContainsFunc(s.places[i].parts, func(p part) bool { return p.path == at }) {
			return i, true
		}
	}
	return 0, false
}

var (
	lettered = regexp.MustCompile(`^/dev/(?:sd|vd|hd|xvd)([a-z])([0-9]*)$`)
	numbered = regexp.MustCompile(`^/dev/(?:nvme|mmcblk)([0-9]+)(?:n1)?(?:p([0-9]+))?$`)
)

// byKernelName guesses the position of what the kernel calls /dev/sda1: disks are
// numbered in the order in which the guest had them.
func byKernelName(spec string) string {
	disk, part := "", ""
	if m := lettered.FindStringSubmatch(spec); m != nil {
		disk, part = strconv.Itoa(int(m[1][0]-'a')), m[2]
	} else if m := numbered.FindStringSubmatch(spec); m != nil {
		disk, part = m[1], m[2]
	} else {
		return ""
	}
	if part == "" {
		return "disk-" + disk + "/fs"
	}
	return "disk-" + disk + "/p" + part
}
