package archive

import (
	"hash/maphash"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// aliases sees to it that an archive is a tree also where file systems take names
// for one that differ in case, or in how a letter is composed. There a directory is
// not made if a link has its name, and what is in it would go to where the link
// leads. What is no directory is taken as it is: Linux has a link HEAD and a file
// head, and who extracts them replaces one by the other.
type aliases struct {
	seed   maphash.Seed
	levels []seen // the topmost names, and those in each directory that leads to the last entry
	n      int    // in all of them
}

// seen are the directories and links of one directory.
type seen struct {
	isLink map[uint64]bool // by a hash of what names are taken for
	all    bool            // and not just the first of them
}

// maxSeen is how many names are remembered.
const maxSeen = 1 << 20

// check reports whether something else may be taken for an entry.
func (a *aliases) check(e *Entry) error {
	level, name := at(e)
	if !isLink(e) && !e.Mode.IsDir() || level >= len(a.levels) {
		return nil
	}
	other, there := a.levels[level].isLink[a.hash(name)]
	switch {
	case there && other != isLink(e):
		return ErrAlias
	case isLink(e) && (!a.levels[level].all || a.n >= maxSeen):
		return ErrAliases
	}
	return nil
}

// took notes an entry that is in the archive.
func (a *aliases) took(e *Entry) {
	level, name := at(e)
	if len(a.levels) == 0 {
		a.seed, a.levels = maphash.MakeSeed(), []seen{{map[uint64]bool{}, true}}
	}
	if level > 0 || e.Mode.IsDir() { // else it may stand between others
		for _, s := range a.levels[level+1:] {
			a.n -= len(s.isLink)
		}
		a.levels = a.levels[:level+1]
	}
	if isLink(e) || e.Mode.IsDir() {
		s := &a.levels[level]
		if s.all = s.all && a.n < maxSeen; s.all {
			before := len(s.isLink)
			s.isLink[a.hash(name)] = isLink(e)
			a.n += len(s.isLink) - before
		}
	}
	if e.Mode.IsDir() {
		a.levels = append(a.levels, seen{map[uint64]bool{}, true})
	}
}

func (a *aliases) hash(name string) uint64 { return maphash.String(a.seed, taken(name)) }

// at returns how deep an entry is, and its last name.
func at(e *Entry) (level int, name string) {
	return strings.Count(e.Name, "/"), e.Name[strings.LastIndexByte(e.Name, '/')+1:]
}

func isLink(e *Entry) bool { return e.Mode.Type() == fs.ModeSymlink }

// taken returns what a name is taken for where case, composition, and characters
// that do not show make no difference.
func taken(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return strings.ToLower(name)
	}
	if utf8.ValidString(name) {
		name = strings.Map(func(r rune) rune {
			if unicode.Is(unicode.Cf, r) {
				return -1
			}
			return r
		}, name)
	}
	return norm.NFC.String(cases.Fold().String(norm.NFC.String(name)))
}
