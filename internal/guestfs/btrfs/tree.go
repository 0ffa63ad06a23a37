package btrfs

import (
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// tree is a B-tree of items, with changes in memory on top.
type tree struct {
	store *store
	id    uint64
	root  blockRef
	delta *delta // nil: none
}

// get returns the item with a key, or fs.ErrNotExist. Nobody changes it.
func (t *tree) get(k key) ([]byte, error) {
	if t.delta != nil {
		if data, ok := t.delta.get(k); ok {
			if data == nil {
				return nil, t.absent(k)
			}
			return data, nil
		}
	}
	c := cursor{t: t}
	if ok, err := c.seek(k); err != nil || !ok || c.key() != k {
		if err == nil {
			err = t.absent(k)
		}
		return nil, err
	}
	return c.item(), nil
}

func (t *tree) absent(k key) error {
	return fmt.Errorf("item %s of tree %d: %w", k, int64(t.id), fs.ErrNotExist)
}

// floor returns the last item that is not behind k, or fs.ErrNotExist.
func (t *tree) floor(k key) (key, []byte, error) {
	c := cursor{t: t}
	ok, err := c.floor(k)
	if t.delta == nil {
		if err != nil || !ok {
			return key{}, nil, orAbsent(err, t, k)
		}
		return c.key(), c.item(), nil
	}
	changed := t.delta.floor(k)
	for err == nil {
		switch {
		case ok && (!changed.valid() || changed.key().compare(c.key()) < 0):
			return c.key(), c.item(), nil
		case !changed.valid():
			return key{}, nil, t.absent(k)
		case changed.data() != nil:
			return changed.key(), changed.data(), nil
		}
		// The item was deleted: so is the one below it, if it has the same key.
		if ok && c.key() == changed.key() {
			ok, err = c.prev()
		}
		changed = changed.prev()
	}
	return key{}, nil, err
}

func orAbsent(err error, t *tree, k key) error {
	if err == nil {
		err = t.absent(k)
	}
	return err
}

// scan calls yield for each item from one key to another, this included, until it
// returns false. The tree must not be changed meanwhile.
func (t *tree) scan(from, to key, yield func(key, []byte) bool) error {
	c := cursor{t: t}
	ok, err := c.seek(from)
	if err != nil {
		return err
	}
	var changed deltaPos
	if t.delta != nil {
		changed = t.delta.seek(from)
	}
	for {
		below := ok && c.key().compare(to) <= 0
		above := changed.valid() && changed.key().compare(to) <= 0
		if !below && !above {
			return nil
		}
		order := -1 // of the cursor's key and the changed one
		if below && above {
			order = c.key().compare(changed.key())
		} else if above {
			order = 1
		}
		if order < 0 {
			if !yield(c.key(), c.item()) {
				return nil
			}
		} else if data := changed.data(); data != nil && !yield(changed.key(), data) {
			return nil
		}
		if order >= 0 {
			changed = changed.next()
		}
		if order <= 0 {
			if ok, err = c.next(); err != nil {
				return err
			}
		}
	}
}

// cursor is a place in a tree as it is on disk. No block is visited twice in one
// direction, for keys have to ascend from block to block.
type cursor struct {
	t     *tree
	nodes [maxLevel]*node
	slots [maxLevel]int
	top   uint8
}

func (c *cursor) key() key     { return c.nodes[0].key(c.slots[0]) }
func (c *cursor) item() []byte { return c.nodes[0].item(c.slots[0]) }

// seek goes to the first item that is not before k, and says whether there is one.
func (c *cursor) seek(k key) (bool, error) {
	if err := c.descend(k); err != nil {
		return false, err
	}
	if c.slots[0] < c.nodes[0].n {
		return true, nil
	}
	return c.move(1)
}

// floor goes to the last item that is not behind k, and says whether there is one.
func (c *cursor) floor(k key) (bool, error) {
	if err := c.descend(k); err != nil {
		return false, err
	}
	if c.slots[0] < c.nodes[0].n && c.key() == k {
		return true, nil
	}
	return c.prev()
}

// descend goes to where k is in the leaf that would hold it, which may be its end.
func (c *cursor) descend(k key) error {
	n, err := c.t.store.node(c.t.root)
	if err != nil {
		return err
	}
	c.top = n.level
	for {
		c.nodes[n.level] = n
		i := n.search(k)
		if n.level == 0 {
			c.slots[0] = i
			return nil
		}
		if i == n.n || n.key(i) != k {
			i = max(i-1, 0)
		}
		c.slots[n.level] = i
		if n, err = c.child(n.level); err != nil {
			return err
		}
	}
}

// child reads the block that the cursor points to on a level, and checks that its
// keys are those that its parents announce.
func (c *cursor) child(level uint8) (*node, error) {
	parent := c.nodes[level]
	n, err := c.t.store.node(parent.child(c.slots[level]))
	if err != nil {
		return nil, err
	}
	if n.n == 0 || n.key(0) != parent.key(c.slots[level]) {
		return nil, fmt.Errorf("tree block at %d: its first key is not the one in its parent: %w", n.logical, fsys.ErrCorrupt)
	}
	for l := level; l <= c.top; l++ {
		if next := c.slots[l] + 1; next < c.nodes[l].n {
			if n.key(n.n-1).compare(c.nodes[l].key(next)) >= 0 {
				return nil, fmt.Errorf("tree block at %d: its last key is behind that of the next block: %w", n.logical, fsys.ErrCorrupt)
			}
			break
		}
	}
	return n, nil
}

func (c *cursor) next() (bool, error) { return c.move(1) }
func (c *cursor) prev() (bool, error) { return c.move(-1) }

// move goes to a neighbour, and says whether there is one. If not, the cursor is
// not to be used any more.
func (c *cursor) move(by int) (bool, error) {
	level := uint8(0)
	for {
		c.slots[level] += by
		if i := c.slots[level]; i >= 0 && i < c.nodes[level].n {
			break
		}
		if level++; level > c.top {
			return false, nil
		}
	}
	for ; level > 0; level-- {
		n, err := c.child(level)
		if err != nil {
			return false, err
		}
		c.nodes[level-1] = n
		c.slots[level-1] = 0
		if by < 0 {
			c.slots[level-1] = n.n - 1
		}
	}
	return true, nil
}
