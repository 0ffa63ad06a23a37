package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/hive"
)

// registryValue returns a value of a hive. Of one that holds them, CurrentControlSet
// stands for the set that is in use, as it does while Windows runs.
func registryValue(h *hive.Hive, key, name string) (hive.Value, error) {
	k, err := registryKey(h, key)
	if err != nil {
		return hive.Value{}, err
	}
	return k.Value(name)
}

func registryKey(h *hive.Hive, key string) (*hive.Key, error) {
	const current = `CurrentControlSet`
	first, rest, _ := strings.Cut(strings.TrimPrefix(key, `\`), `\`)
	if strings.EqualFold(first, current) {
		k, err := h.Key("Select")
		if err == nil {
			v, valueErr := k.Value("Current")
			n, ok := v.Uint()
			if err = valueErr; err == nil && !ok {
				err = fmt.Errorf("the set in use: %w", fsys.ErrCorrupt)
			}
			key = fmt.Sprintf(`ControlSet%03d\%s`, n, rest)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", current, err)
		}
	}
	return h.Key(key)
}

// fileVolume is a file's content.
type fileVolume struct {
	s    *System
	node Node
	size int64
}

// Size implements fsys.Volume.
func (f fileVolume) Size() int64 { return f.size }

// ReadAt implements fsys.Volume.
func (f fileVolume) ReadAt(p []byte, off int64) error {
	if err := fsys.CheckRange(off, int64(len(p)), f.size); err != nil {
		return err
	}
	n, err := f.s.ReadAt(f.node, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// volumeOf returns the content of a regular file.
func (s *System) volumeOf(n Node) (fsys.Volume, error) {
	a, err := s.Stat(n)
	if err != nil {
		return nil, err
	}
	if !a.Mode.IsRegular() {
		return nil, fmt.Errorf("no regular file: %w", fs.ErrInvalid)
	}
	return fileVolume{s, n, a.Size}, nil
}

// hiveAt opens the hive at a path of the guest's tree, with its logs.
func (s *System) hiveAt(p string) (*hive.Hive, error) {
	n, err := s.below(s.root, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	dir, err := s.below(s.root, path.Dir(p))
	if err != nil {
		return nil, err
	}
	h, err := s.openHive(n, dir, path.Base(p))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	for _, note := range h.Notes() {
		s.note("Its registry, %s: %s", p, note)
	}
	return h, nil
}

// openHive opens a hive by name in a folder. Those that were opened last stay open.
func (s *System) openHive(n, dir Node, name string) (*hive.Hive, error) {
	s.mu.Lock()
	for _, o := range s.hives {
		if o.node == n {
			s.mu.Unlock()
			return o.hive, nil
		}
	}
	s.mu.Unlock()
	file, err := s.volumeOf(n)
	if err != nil {
		return nil, err
	}
	var logs []fsys.Volume
	for _, suffix := range []string{".LOG1", ".LOG2", ".LOG"} {
		l, err := s.Lookup(dir, name+suffix)
		if err != nil {
			continue
		}
		if v, err := s.volumeOf(l); err == nil {
			logs = append(logs, v)
		}
	}
	h, err := hive.Open(file, logs...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hives = append(s.hives, openHive{n, h}); len(s.hives) > maxHives {
		s.hives = s.hives[1:]
	}
	return h, nil
}

// maxHives is how many hives are kept open, each with its cache.
const maxHives = 4

// openHive is a hive that is open.
type openHive struct {
	node Node
	hive *hive.Hive
}

// Registry returns a value of the hive in a file, which is found as Resolve finds it:
// of the key at a path with backslashes, by name. In a hive SYSTEM,
// CurrentControlSet stands for the set in use.
func (s *System) Registry(file, key, name string) (hive.Value, error) {
	h, err := s.registryAt(file)
	if err != nil {
		return hive.Value{}, err
	}
	return registryValue(h, key, name)
}

func (s *System) registryAt(file string) (*hive.Hive, error) {
	n, where, err := s.Resolve(file, true)
	if err != nil {
		return nil, err
	}
	dir, _, err := s.Resolve(path.Dir(where), true)
	if err != nil {
		return nil, err
	}
	return s.openHive(n, dir, path.Base(where))
}
