package archive

import "strings"

// Names sees to it that what is written is a tree: names that lead nowhere but
// down, each once, and below directories that are there. Entries come in the order
// that [Writer.Add] asks for.
type Names struct {
	tops  map[string]bool
	stack []level // the directories that lead to the last entry, the topmost first
	skip  string  // prefix of what is below a directory that is left out
}

// level is a directory that entries can still be added to.
type level struct {
	name string // its last name
	last string // that of the last entry in it
}

// Check reports what is wrong with the name of an entry.
func (n *Names) Check(e *Entry) error {
	parts := strings.Split(e.Name, "/")
	if !valid(parts) {
		return ErrName
	}
	if e.Link != "" && (e.Link == e.Name || !valid(strings.Split(e.Link, "/"))) {
		return ErrTarget
	}
	up, last := parts[:len(parts)-1], parts[len(parts)-1]
	switch {
	case n.skip != "" && strings.HasPrefix(e.Name, n.skip), len(up) > len(n.stack):
		return ErrParent
	case len(up) == 0 && n.tops[last]:
		return ErrOrder
	case len(up) == 0:
		return nil
	}
	for i, p := range up {
		if n.stack[i].name != p {
			return ErrParent
		}
	}
	if last <= n.stack[len(up)-1].last {
		return ErrOrder
	}
	return nil
}

// valid reports whether the parts of a path lead down and nowhere else.
func valid(parts []string) bool {
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || strings.Contains(p, "\x00") {
			return false
		}
	}
	return true
}

// Took notes an entry that was written.
func (n *Names) Took(e *Entry) {
	depth := strings.Count(e.Name, "/")
	last := e.Name[strings.LastIndexByte(e.Name, '/')+1:]
	if depth > 0 {
		n.stack[depth-1].last = last
	} else {
		if n.tops == nil {
			n.tops = map[string]bool{}
		}
		n.tops[last] = true
		if !e.Mode.IsDir() {
			return // it may stand between others
		}
	}
	n.stack, n.skip = n.stack[:depth], ""
	if e.Mode.IsDir() {
		n.stack = append(n.stack, level{name: last})
	}
}

// Refused notes an entry that was not, so that nothing below it is.
func (n *Names) Refused(e *Entry) {
	if e.Mode.IsDir() && (n.skip == "" || !strings.HasPrefix(e.Name, n.skip)) {
		n.skip = e.Name + "/"
	}
}
