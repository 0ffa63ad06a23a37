package tree

import (
	"errors"
	"path"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Visit is called for each entry of a walk with its path below where the walk
// began, in the order of names, a directory before what is in it. An error is
// what kept the entry, or what is in it, from being read. skip leaves out what is
// in a directory.
type Visit func(name string, n Node, a fsys.Attr, err error) (skip bool, stop error)

// maxDepth bounds how deep a walk goes: no path of Linux reaches so far.
const maxDepth = 2048

// Walk visits n and everything below. A directory within itself, which only a damaged
// file system has, is told as an error and not entered again.
func (s *System) Walk(n Node, visit Visit) error {
	w := &walk{s: s, visit: visit, inside: map[Node]bool{}}
	return w.one(".", n, 0)
}

type walk struct {
	s      *System
	visit  Visit
	inside map[Node]bool // directories that lead to where we are
}

var errLoop = errors.New("directory contains itself: the file system is damaged")

func (w *walk) one(name string, n Node, depth int) error {
	a, err := w.s.Stat(n)
	skip, stop := w.visit(name, n, a, err)
	if stop != nil || skip || err != nil || !a.Mode.IsDir() {
		return stop
	}
	if w.inside[n] || depth >= maxDepth {
		_, stop = w.visit(name, n, a, errLoop)
		return stop
	}
	w.inside[n] = true
	defer delete(w.inside, n)
	entries, err := w.s.ReadDir(n)
	if err != nil {
		if _, stop := w.visit(name, n, a, err); stop != nil {
			return stop
		}
	}
	sortEntries(entries)
	for _, e := range entries {
		if err := w.one(path.Join(name, e.Name), e.Node, depth+1); err != nil {
			return err
		}
	}
	return nil
}
