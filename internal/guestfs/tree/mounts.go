package tree

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// mounted is a file system, or a subvolume of one, that is opened when it is
// needed; or what stands in the place of one that is not there.
type mounted struct {
	volume    int // -1: none, there is an error
	subvolume string

	mu  sync.Mutex // held to open it, guards the fields below
	fs  fsys.FileSystem
	on  fsys.Volume // what its extents name
	err error
}

// atRoot is the ID by which the topmost directory of a file system is named that could
// not be opened: whoever asks for it is told why.
const atRoot = ^fsys.ID(0)

// own returns the number that a file system has in the guest's own tree.
func own(i int) int { return i | 1 }

// because is an error that is told in a sentence.
type because struct {
	text string
	is   error
}

func (e *because) Error() string { return e.text }
func (e *because) Unwrap() error { return e.is }

// fsAt opens a file system. What failed because of the disks is tried again.
func (s *System) fsAt(i int) (fsys.FileSystem, error) {
	m := s.mountAt(i)
	if m == nil {
		return nil, fmt.Errorf("file system %d: %w", i, fs.ErrNotExist)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fs == nil && (m.err == nil || errors.Is(m.err, fsys.ErrVolume)) {
		s.openVolume(m)
	}
	return m.fs, m.err
}

func (s *System) mountAt(i int) *mounted {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mounted[i&^1]
}

// inode returns the file system of a node and its ID there.
func (s *System) inode(n Node) (fsys.FileSystem, fsys.ID, error) {
	f, err := s.fsAt(n.FS)
	if err == nil && n.ID == atRoot {
		return f, f.Root(), nil
	}
	return f, n.ID, err
}

// openVolume opens what m stands for, and notes what it is like.
func (s *System) openVolume(m *mounted) {
	s.mu.Lock()
	v, p := s.volumes[m.volume], s.places[m.volume]
	s.mu.Unlock()
	m.err = nil
	switch {
	case v.Locked:
		m.err = NewLockedError([]Volume{v})
		return
	case p.err != nil:
		m.err = fmt.Errorf("%s: %w", v.Path, p.err)
		return
	case v.Device == nil || m.subvolume == "" && p.refusal != "":
		m.err = fmt.Errorf("%s: %s: %w", v.Path, strings.TrimSuffix(orElse(p.refusal, "it cannot be read"), "."), fsys.ErrUnsupported)
		return
	case v.Type == "":
		m.err = fmt.Errorf("%s holds nothing that is known: %w", v.Path, fsys.ErrNotFound)
	default:
		var f fsys.FileSystem
		var on []fsys.Volume
		if f, on, m.err = s.open(v.Device, s.others(m.volume, v.Type), v.Type, m.subvolume); m.err == nil {
			m.fs, m.on = f, volume.Join(on)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.err != nil {
		if m.subvolume == "" {
			s.volumes[m.volume].Refusal = m.err.Error()
		}
		m.err = fmt.Errorf("open %s: %w", v.Path, m.err)
		return
	}
	if m.subvolume == "" {
		s.volumes[m.volume].Refusal = ""
	}
	info := m.fs.Info()
	s.volumes[m.volume].Notes, s.volumes[m.volume].Free = slices.Concat(p.notes, info.Notes), info.Free
}

// others returns what a file system may lie on beside a volume: its other parts, then
// parts of others of the same type.
func (s *System) others(i int, fsType string) []fsys.Volume {
	var list []fsys.Volume
	for _, p := range s.places[i].parts[1:] {
		list = append(list, p.volume)
	}
	for k := range s.places {
		if k == i || s.volumes[k].Type != fsType {
			continue
		}
		for _, p := range s.places[k].parts {
			list = append(list, p.volume)
		}
	}
	return list
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// mountIndex returns the number of a volume's file system, or of its subvolume.
func (s *System) mountIndex(volume int, subvolume string) int {
	v := &s.volumes[volume]
	return s.number(&mounted{volume: volume, subvolume: subvolume}, "volume", v.Path, v.Type, v.UUID, v.PartUUID, subvolume)
}

// failing returns what stands in the place of a file system that is not there: whoever
// asks for it gets an error.
func (s *System) failing(err error, names ...string) int {
	return s.number(&mounted{volume: -1, err: err}, names...)
}

// number gives what is called by names its number, which follows from these.
func (s *System) number(m *mounted, names ...string) int {
	h := fnv.New64a()
	for _, name := range names {
		_, _ = fmt.Fprintf(h, "%d %s", len(name), name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := int(h.Sum64()>>1) &^ 1; ; i = (i + 2) & math.MaxInt {
		have := s.mounted[i]
		switch {
		case i == 0: // is the tree by position
		case have == nil:
			s.mounted[i] = m
			return i
		case m.volume >= 0 && have.volume == m.volume && have.subvolume == m.subvolume:
			return i
		}
	}
}

// rootOf returns the topmost directory of a file system.
func (s *System) rootOf(i int) (Node, error) {
	f, err := s.fsAt(i)
	if err != nil {
		return Node{}, err
	}
	return Node{i, f.Root()}, nil
}

// crossed returns what is mounted on n, or n.
func (s *System) crossed(n Node) Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	if to, ok := s.over[n]; ok {
		return to
	}
	return n
}

// device returns what the extents of an open file system name.
func (s *System) device(mount int) fsys.Volume {
	m := s.mountAt(mount)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}
