package ext4

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// lookupFolded looks for a name in a directory that folds case: for the very name,
// and for one that differs in case or composition only.
func (f *fileSystem) lookupFolded(in *inode, name string, missing error) (fsys.ID, error) {
	var same, alike fsys.ID
	folded := fold(name)
	err := f.eachDirent(in, func(d dirent) bool {
		switch n := string(d.name); {
		case n == name:
			same = fsys.ID(d.inode)
		case alike == 0 && fold(n) == folded:
			alike = fsys.ID(d.inode)
		}
		return same == 0
	})
	switch {
	case same != 0:
		return same, nil
	case err != nil:
		return 0, err
	case alike != 0:
		return alike, nil
	}
	return 0, missing
}

// fold returns what is equal of names that Unicode takes for the same but for case:
// case folded, decomposed, without what is not seen. What is not UTF-8 is equal to
// itself only.
func fold(name string) string {
	if !utf8.ValidString(name) {
		return name
	}
	shown := strings.Map(func(r rune) rune {
		if ignorable(r) {
			return -1
		}
		return r
	}, norm.NFD.String(name))
	return norm.NFD.String(cases.Fold().String(shown))
}

// ignorable is Unicode's property Default_Ignorable_Code_Point.
func ignorable(r rune) bool {
	switch {
	case unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector):
		return true
	case unicode.In(r, unicode.White_Space, unicode.Prepended_Concatenation_Mark) || r >= 0xfff9 && r <= 0xfffb || r >= 0x13430 && r <= 0x13440:
		return false
	}
	return unicode.Is(unicode.Cf, r)
}
