package tree

import (
	"errors"
	"fmt"
	"io"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// assemble finds the guest's root and mounts on it what the guest would.
func (s *System) assemble() {
	best := 0
	for i := range s.volumes {
		for _, subvolume := range rootSubvolumes(s.volumes[i].Type) {
			root, err := s.rootOf(own(s.mountIndex(i, subvolume)))
			if err != nil {
				s.missed(err)
				continue
			}
			if score := s.looksLikeRoot(root); score > best {
				best, s.root, s.hasRoot = score, root, true
			}
		}
	}
	if !s.hasRoot && (s.lost != nil || NewLockedError(s.volumes) != nil) {
		return // it is there, most likely
	}
	if !s.hasRoot {
		s.onlyOne()
		return
	}
	s.followTable()
	s.mark(s.root.FS, "/")
	s.detect()
	s.mountTable()
}

// missed keeps an error of the disks, for which the guest's root may not be found.
func (s *System) missed(err error) {
	if s.lost == nil && errors.Is(err, fsys.ErrVolume) {
		s.lost = err
	}
}

// maxRoots is how often the fstab of one root may name another.
const maxRoots = 3

// followTable goes to the root that the fstab names: it knows better than names do what
// its root is. What else is to be learnt is learnt from there.
func (s *System) followTable() {
	s.cryptTable()
	for range maxRoots {
		root, ok := s.rootOfTable()
		if !ok || root == s.root {
			return
		}
		s.root, s.os = root, OS{}
		for i := range s.volumes {
			s.volumes[i].Devices = s.places[i].devices
		}
		s.cryptTable()
	}
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
		root, err := s.rootOf(own(s.mountIndex(i, "")))
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
	i := s.mounted[mount&^1].volume
	if i < 0 {
		return
	}
	v := &s.volumes[i]
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
		_, err := s.below(root, x.path)
		if err == nil {
			score += x.score
		}
		s.missed(err)
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
