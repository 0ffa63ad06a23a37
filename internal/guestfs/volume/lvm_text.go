package volume

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Limits of a text of metadata.
const (
	maxTextDepth  = 16
	maxTextValues = 512 << 10 // and sections
)

// section is a part of a text of metadata: values and sections by name.
type section struct {
	name     string
	values   map[string]value
	sections []*section // in the order of the text
}

// value is a list of strings and numbers; a single one is a list of one.
type value []scalar

// scalar is a string, or a number.
type scalar struct {
	text   string
	number int64
	isText bool
}

func (s *section) section(name string) *section {
	for _, c := range s.sections {
		if c.name == name {
			return c
		}
	}
	return nil
}

// text returns a string, empty if there is none.
func (s *section) text(name string) string {
	if v := s.values[name]; len(v) == 1 && v[0].isText {
		return v[0].text
	}
	return ""
}

// number returns a number, and whether there is one that is not negative.
func (s *section) number(name string) (int64, bool) {
	v := s.values[name]
	if len(v) != 1 || v[0].isText || v[0].number < 0 {
		return 0, false
	}
	return v[0].number, true
}

// strings returns a list of strings.
func (s *section) strings(name string) []string {
	var list []string
	for _, v := range s.values[name] {
		if v.isText {
			list = append(list, v.text)
		}
	}
	return list
}

// textParser parses LVM's configuration format: name = value, name { … }, and
// comments from # to the end of a line (lvm.conf(5), lvm2's metadata format).
type textParser struct {
	rest   string
	values int
	depth  int
}

// parseText parses a text of metadata.
func parseText(s string) (*section, error) {
	p := &textParser{rest: s}
	root := &section{}
	if err := p.body(root); err != nil {
		return nil, fmt.Errorf("metadata, %d bytes before the end: %w", len(p.rest), err)
	}
	return root, nil
}

// skip skips spaces and comments.
func (p *textParser) skip() {
	for {
		p.rest = strings.TrimLeft(p.rest, " \t\r\n")
		if !strings.HasPrefix(p.rest, "#") {
			return
		}
		if _, after, ok := strings.Cut(p.rest, "\n"); ok {
			p.rest = after
		} else {
			p.rest = ""
		}
	}
}

// accept skips c if it is next.
func (p *textParser) accept(c byte) bool {
	p.skip()
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// body parses what is in a section, up to its brace or the end of the text.
func (p *textParser) body(s *section) error {
	for {
		p.skip()
		if p.rest == "" {
			if p.depth > 0 {
				return errors.New("a section does not end")
			}
			return nil
		}
		if p.depth > 0 && p.accept('}') {
			return nil
		}
		if err := p.item(s); err != nil {
			return err
		}
	}
}

func (p *textParser) item(s *section) error {
	name, err := p.name()
	if err != nil {
		return err
	}
	if p.values++; p.values > maxTextValues {
		return errors.New("too many values")
	}
	if p.accept('{') {
		if p.depth++; p.depth > maxTextDepth {
			return errors.New("too many sections within one another")
		}
		c := &section{name: name}
		s.sections = append(s.sections, c)
		err := p.body(c)
		p.depth--
		return err
	}
	if !p.accept('=') {
		return fmt.Errorf("no value for %q", name)
	}
	v, err := p.value()
	if s.values == nil {
		s.values = map[string]value{}
	}
	s.values[name] = v
	return err
}

// name parses a name, quoted or not.
func (p *textParser) name() (string, error) {
	if strings.HasPrefix(p.rest, `"`) {
		return p.quoted()
	}
	n := 0
	for n < len(p.rest) && (nameRune(rune(p.rest[n])) || p.rest[n] == '/') {
		n++
	}
	if n == 0 {
		return "", fmt.Errorf("unexpected %q", p.rest[:1])
	}
	name := p.rest[:n]
	p.rest = p.rest[n:]
	return name, nil
}

// nameRune says whether names of groups and volumes may have it (lvm(8)).
func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '+' || r == '.' || r == '-'
}

func (p *textParser) value() (value, error) {
	if !p.accept('[') {
		s, err := p.scalar()
		return value{s}, err
	}
	var list value
	for {
		if p.accept(']') {
			return list, nil
		}
		s, err := p.scalar()
		if err != nil {
			return nil, err
		}
		list = append(list, s)
		if p.values++; p.values > maxTextValues {
			return nil, errors.New("too many values")
		}
		if !p.accept(',') && !strings.HasPrefix(p.rest, "]") {
			return nil, errors.New("a list does not end")
		}
	}
}

func (p *textParser) scalar() (scalar, error) {
	p.skip()
	if strings.HasPrefix(p.rest, `"`) {
		s, err := p.quoted()
		return scalar{text: s, isText: true}, err
	}
	n := 0
	for n < len(p.rest) && (p.rest[n] >= '0' && p.rest[n] <= '9' || n == 0 && p.rest[n] == '-' || p.rest[n] == '.') {
		n++
	}
	digits := p.rest[:n]
	p.rest = p.rest[n:]
	if strings.Contains(digits, ".") { // none of those that matter has a fraction
		return scalar{text: digits}, nil
	}
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return scalar{}, fmt.Errorf("no value but %q", digits)
	}
	return scalar{number: number}, nil
}

// quoted parses a string in quotes, in which \ keeps its next character.
func (p *textParser) quoted() (string, error) {
	for i := 1; i < len(p.rest); i++ {
		switch p.rest[i] {
		case '\\':
			i++
		case '"':
			s := p.rest[1:i]
			p.rest = p.rest[i+1:]
			if strings.Contains(s, `\`) {
				s = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(s)
			}
			return s, nil
		}
	}
	return "", errors.New("a string does not end")
}
