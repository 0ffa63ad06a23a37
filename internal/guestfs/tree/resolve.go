package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// maxLinks is how many symbolic links one path may lead through, as on Linux.
const maxLinks = 40

// PathError says how far a path could be followed.
type PathError struct {
	Path    string // as it was asked for
	Nearest string // the longest part that exists; "." is the top of the tree by position
	Err     error
}

func (e *PathError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

// Unwrap returns what happened behind Nearest.
func (e *PathError) Unwrap() error { return e.Err }

// ErrNoRoot says that no file system looks like the root of a guest.
var ErrNoRoot = errors.New("the machine's own tree cannot be told: no file system has an operating system on it")

// Resolve follows a path: from the root of the guest's own tree if it begins with
// a slash, else by position. Symbolic links are followed inside of the tree in
// which they stand, that of the last name only if follow is set; absolute ones
// begin at its root, and ".." at a root stays there. It returns where the path led.
func (s *System) Resolve(path string, follow bool) (Node, string, error) {
	w := &walker{s: s, asked: path, follow: follow}
	if strings.HasPrefix(path, "/") {
		if !s.hasRoot {
			return Node{}, "", &PathError{path, "", s.noRoot()}
		}
		w.base, w.prefix = s.root, "/"
	}
	w.stack = []step{{node: w.base}}
	if err := w.follows(path); err != nil {
		nearest := w.where()
		if nearest == "" {
			nearest = "."
		}
		return Node{}, "", &PathError{path, nearest, err}
	}
	return w.top().node, w.where(), nil
}

// walker follows one path.
type walker struct {
	s      *System
	asked  string
	follow bool
	links  int
	base   Node   // where absolute links begin
	prefix string // of paths from there
	stack  []step // from the base to where we are
}

type step struct {
	name string
	node Node
}

func (w *walker) top() step { return w.stack[len(w.stack)-1] }

// where returns the path of the top.
func (w *walker) where() string {
	parts := make([]string, 0, len(w.stack))
	for _, st := range w.stack[1:] {
		parts = append(parts, st.name)
	}
	return w.prefix + strings.Join(parts, "/")
}

// follows goes along the names of a path.
func (w *walker) follows(path string) error {
	pending := strings.Split(path, "/")
	linked := 0 // how many of them are of links
	for len(pending) > 0 {
		name, ofLink := pending[0], linked > 0
		pending, linked = pending[1:], max(linked-1, 0)
		switch name {
		case "", ".":
			continue
		case "..":
			w.up(ofLink)
			continue
		}
		if w.prefix == "" && w.top().node.FS == 0 {
			// By position, the root of each file system is one.
			if err := w.enter(name); err != nil {
				return err
			}
			continue
		}
		target, err := w.step(name, len(pending) == 0)
		if err != nil {
			return err
		}
		if target != "" {
			names := strings.Split(target, "/")
			pending, linked = append(names, pending...), linked+len(names)
		}
	}
	return nil
}

// up goes to the directory above. A link does not lead out of the file system that a
// path by position led to.
func (w *walker) up(ofLink bool) {
	if n := len(w.stack); n > 1 && !(ofLink && w.prefix == "" && w.stack[n-2].node.FS == 0) {
		w.stack = w.stack[:n-1]
	}
}

// enter goes down a name by position.
func (w *walker) enter(name string) error {
	n, err := w.s.lookupName(w.top().node.ID, name)
	if err != nil {
		return err
	}
	w.stack = append(w.stack, step{name, n})
	return nil
}

// step goes down a name. A symbolic link that is to be followed is returned
// instead.
func (w *walker) step(name string, last bool) (target string, err error) {
	n, err := w.s.Lookup(w.top().node, name)
	if err != nil {
		return "", w.notDir(err)
	}
	a, err := w.s.Stat(n)
	if err != nil {
		return "", err
	}
	if a.Mode.Type() != fs.ModeSymlink || last && !w.follow {
		w.stack = append(w.stack, step{name, n})
		return "", nil
	}
	if w.links++; w.links > maxLinks {
		return "", ErrLinks
	}
	if target, err = w.s.Readlink(n); err != nil || target == "" {
		return "", errors.Join(err, fs.ErrNotExist)
	}
	if strings.HasPrefix(target, "/") {
		w.toRoot()
	}
	return target, nil
}

// toRoot goes to where absolute links begin: the root of the guest's tree, or of
// the file system that a path by position led to.
func (w *walker) toRoot() {
	for len(w.stack) > 1 && (w.prefix != "" || w.stack[len(w.stack)-2].node.FS != 0) {
		w.stack = w.stack[:len(w.stack)-1]
	}
}

// notDir tells a name behind something that is no directory from one that is not
// there.
func (w *walker) notDir(err error) error {
	a, statErr := w.s.Stat(w.top().node)
	if statErr == nil && !a.Mode.IsDir() {
		return ErrNotDir
	}
	return err
}

// Errors of paths that lead nowhere.
var (
	ErrNotDir = errors.New("not a directory")
	ErrLinks  = errors.New("too many symbolic links")
)
