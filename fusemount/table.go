package fusemount

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is a node of the tree that the kernel knows of.
type node struct {
	id       uint64 // by which the kernel calls it; never given to another
	number   uint64 // of the inode, as programs see it
	kind     uint32 // type bits
	changing bool
	key      ID
	parent   *node // where it was found first; nil for the root
	name     string

	lookups uint64 // answers that named it, guarded by the table
	tree    Node   // guarded by the table
	file    atomic.Pointer[file]
	written atomic.Int64 // when it was last written, in nanoseconds since 1970
}

// path returns where the node was found, for people.
func (n *node) path() string {
	var names []string
	for ; n.parent != nil; n = n.parent {
		names = append(names, n.name)
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// below returns the path of a name in the directory n.
func (n *node) below(name string) string { return strings.TrimSuffix(n.path(), "/") + "/" + name }

// nameKey and idKey are by which the node is found again: a file stays the same
// node for as long as the kernel knows it. What changes its type is another node.
type (
	nameKey struct {
		folder uint64
		name   string
		kind   uint32
	}
	idKey struct {
		id   ID
		kind uint32
	}
)

// table holds the nodes that the kernel knows of.
type table struct {
	mu     sync.RWMutex // guards the fields below
	nodes  map[uint64]*node
	byName map[nameKey]*node
	byID   map[idKey]*node
	last   uint64 // number given last
}

func newTable(root Node, a *Attr) *table {
	n := &node{id: fuse.FUSE_ROOT_ID, number: a.ID.number(), kind: typeBits(a.Mode), changing: a.Changing, key: a.ID, lookups: 1, tree: root}
	if a.ID == (ID{}) {
		n.number = fuse.FUSE_ROOT_ID
	}
	t := &table{nodes: map[uint64]*node{n.id: n}, byName: map[nameKey]*node{}, byID: map[idKey]*node{}, last: n.id}
	if n.key != (ID{}) {
		t.byID[idKey{n.key, n.kind}] = n
	}
	return t
}

// get returns the node that the kernel calls id, and what it stands for; nil for
// one that it has forgotten, of which it does not ask.
func (t *table) get(id uint64) (*node, Node) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[id]
	if n == nil {
		return nil, nil
	}
	return n, n.tree
}

// add returns the node of what name stands for in a directory, for the kernel to
// know. Once for each time it has to be forgotten.
func (t *table) add(parent *node, name string, tree Node, a *Attr) *node {
	kind := typeBits(a.Mode)
	t.mu.Lock()
	defer t.mu.Unlock()
	var n *node
	if a.ID != (ID{}) {
		n = t.byID[idKey{a.ID, kind}]
	} else {
		n = t.byName[nameKey{parent.id, name, kind}]
	}
	if n != nil {
		n.lookups++
		n.tree = tree
		return n
	}
	t.last++
	n = &node{id: t.last, number: a.ID.number(), kind: kind, changing: a.Changing, key: a.ID, parent: parent, name: name, lookups: 1, tree: tree}
	t.nodes[n.id] = n
	if a.ID != (ID{}) {
		t.byID[idKey{a.ID, kind}] = n
	} else {
		n.number = derived(parent.number, name)
		t.byName[nameKey{parent.id, name, kind}] = n
	}
	return n
}

// forget takes back lookups of a node.
func (t *table) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || n.parent == nil {
		return
	}
	if n.lookups -= min(n.lookups, lookups); n.lookups > 0 {
		return
	}
	delete(t.nodes, id)
	if n.key != (ID{}) {
		delete(t.byID, idKey{n.key, n.kind})
	} else {
		delete(t.byName, nameKey{n.parent.id, n.name, n.kind})
	}
}
