package machine

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// node is an element of a libvirt description. Prefixes stay as they are written.
type node struct {
	name     string
	attrs    []xml.Attr
	children []*node
	text     string
}

// maxDepth bounds how deep elements may lie in one another.
const maxDepth = 100

func parseXML(s string) (*node, error) {
	d := xml.NewDecoder(strings.NewReader(s))
	root := &node{}
	open := []*node{root}
	for {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("parse domain XML: %w", err)
		}
		top := open[len(open)-1]
		switch t := t.(type) {
		case xml.StartElement:
			n := &node{name: qualified(t.Name), attrs: slices.Clone(t.Attr)}
			top.children = append(top.children, n)
			if open = append(open, n); len(open) > maxDepth {
				return nil, errors.New("parse domain XML: elements lie too deep")
			}
		case xml.EndElement:
			if len(open) == 1 || qualified(t.Name) != top.name {
				return nil, fmt.Errorf("parse domain XML: unexpected end of %s", qualified(t.Name))
			}
			open = open[:len(open)-1]
		case xml.CharData:
			top.text += string(t)
		}
	}
	if len(open) != 1 || len(root.children) != 1 || root.children[0].name != "domain" {
		return nil, errors.New("parse domain XML: want one domain")
	}
	return root.children[0], nil
}

func qualified(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

func (n *node) String() string {
	var b bytes.Buffer
	n.write(&b)
	return b.String()
}

func (n *node) write(b *bytes.Buffer) {
	b.WriteString("<" + n.name)
	for _, a := range n.attrs {
		b.WriteString(" " + qualified(a.Name) + "='")
		_ = xml.EscapeText(b, []byte(a.Value)) // a buffer takes everything
		b.WriteString("'")
	}
	text := strings.TrimSpace(n.text)
	if text == "" && len(n.children) == 0 {
		b.WriteString("/>")
		return
	}
	b.WriteString(">")
	_ = xml.EscapeText(b, []byte(text))
	for _, c := range n.children {
		c.write(b)
	}
	b.WriteString("</" + n.name + ">")
}

// child returns the first child with a name, nil if there is none.
func (n *node) child(name string) *node {
	if n == nil {
		return nil
	}
	for _, c := range n.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

// at follows names down; nil if one is not there.
func (n *node) at(names ...string) *node {
	for _, name := range names {
		n = n.child(name)
	}
	return n
}

func (n *node) attr(name string) string {
	if n == nil {
		return ""
	}
	for _, a := range n.attrs {
		if qualified(a.Name) == name {
			return a.Value
		}
	}
	return ""
}

// content returns the text of an element; empty if there is none.
func (n *node) content() string {
	if n == nil {
		return ""
	}
	return n.text
}

func (n *node) set(name, value string) {
	for i, a := range n.attrs {
		if qualified(a.Name) == name {
			n.attrs[i].Value = value
			return
		}
	}
	n.attrs = append(n.attrs, xml.Attr{Name: xml.Name{Local: name}, Value: value})
}

func (n *node) unset(names ...string) {
	if n == nil {
		return
	}
	n.attrs = slices.DeleteFunc(n.attrs, func(a xml.Attr) bool { return slices.Contains(names, qualified(a.Name)) })
}

// keep removes all attributes but those named.
func (n *node) keep(names ...string) {
	n.attrs = slices.DeleteFunc(n.attrs, func(a xml.Attr) bool { return !slices.Contains(names, qualified(a.Name)) })
}

// drop removes children by name and reports whether there were any.
func (n *node) drop(names ...string) bool {
	before := len(n.children)
	n.children = slices.DeleteFunc(n.children, func(c *node) bool { return slices.Contains(names, c.name) })
	return len(n.children) != before
}

// put makes text the content of a child, which is made if it is missing.
func (n *node) put(name, text string) *node {
	c := n.child(name)
	if c == nil {
		c = &node{name: name}
		n.children = append(n.children, c)
	}
	c.text, c.children = text, nil
	return c
}

// element makes an element; attrs are names and values by turns.
func element(name string, attrs ...string) *node {
	n := &node{name: name}
	for i := 0; i+1 < len(attrs); i += 2 {
		n.set(attrs[i], attrs[i+1])
	}
	return n
}
