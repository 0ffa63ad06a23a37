package tree

import (
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Match chooses entries of a walk. The zero Match chooses all.
type Match struct {
	Name     string `cbor:"1,keyasint,omitempty"` // pattern as in path.Match, of the last name
	FoldCase bool   `cbor:"2,keyasint,omitempty"`
	Type     string `cbor:"3,keyasint,omitempty"` // f, d, l: file, directory, link
	MinSize  int64  `cbor:"4,keyasint,omitempty"` // bytes, of files
	MaxSize  *int64 `cbor:"5,keyasint,omitempty"` // nil: none
	// After and Before bound the modification time, in seconds since 1970; 0: none.
	After  int64 `cbor:"6,keyasint,omitempty"`
	Before int64 `cbor:"7,keyasint,omitempty"`
	// Shallow leaves out what is more than so many directories down; 0: nothing.
	Shallow int `cbor:"8,keyasint,omitempty"`
}

// Check returns an error if the pattern is malformed.
func (m *Match) Check() error {
	_, err := path.Match(m.Name, "")
	return err
}

// matches reports whether an entry is chosen.
func (m *Match) matches(name string, a fsys.Attr) bool {
	if m.Name != "" {
		pattern, last := m.Name, path.Base(name)
		if m.FoldCase {
			pattern, last = strings.ToLower(pattern), strings.ToLower(last)
		}
		if ok, err := path.Match(pattern, last); !ok || err != nil {
			return false
		}
	}
	switch m.Type {
	case "f":
		if !a.Mode.IsRegular() {
			return false
		}
	case "d":
		if !a.Mode.IsDir() {
			return false
		}
	case "l":
		if a.Mode.Type() != fs.ModeSymlink {
			return false
		}
	}
	if (m.MinSize > 0 || m.MaxSize != nil) && !a.Mode.IsRegular() || a.Size < m.MinSize || m.MaxSize != nil && a.Size > *m.MaxSize {
		return false
	}
	return (m.After == 0 || a.Modified.After(time.Unix(m.After, 0))) && (m.Before == 0 || a.Modified.Before(time.Unix(m.Before, 0)))
}

// Find visits what is chosen at n and below. goOn is asked at each entry, chosen or not,
// and ends it with an error.
func (s *System) Find(n Node, m Match, goOn func() error, visit func(name string, n Node, a fsys.Attr, err error) error) error {
	return s.Walk(n, func(name string, n Node, a fsys.Attr, err error) (bool, error) {
		if stop := goOn(); stop != nil {
			return true, stop
		}
		deep := m.Shallow > 0 && name != "." && strings.Count(name, "/")+1 >= m.Shallow
		if err == nil && !m.matches(name, a) {
			return deep, nil
		}
		return deep, visit(name, n, a, err)
	})
}
