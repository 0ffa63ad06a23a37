package dir

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// inode is a file, or a folder, as a power loss leaves it.
type inode struct {
	synced bool
	data   []byte // of what the repository wrote itself
}

// change is a change of names in one folder.
type change struct {
	op   string // "add", "rename", "link", "remove"
	a, b string
	node *inode
}

func (c change) settle(names map[string]*inode) {
	switch c.op {
	case "add":
		names[c.a] = c.node
	case "rename":
		names[c.b] = c.node
		delete(names, c.a)
	case "link":
		names[c.b] = c.node
	case "remove":
		delete(names, c.a)
	}
}

// lossy does what it is told on the disk, and keeps a model of what a power loss
// would leave: of the names changed since their folder was synced, any may have
// made it, and of a file that was not synced nothing can be said.
type lossy struct {
	disk
	names   map[string]*inode // as the program sees them
	durable map[string]*inode
	pending []change
	loss    func(names map[string]*inode) // told of each state that a loss may leave
}

func newLossy(t *testing.T, root string) *lossy {
	t.Helper()
	l := &lossy{names: map[string]*inode{}, durable: map[string]*inode{}}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n := &inode{synced: true}
		if filepath.Base(path) == metadataName {
			n.data, err = os.ReadFile(path)
		}
		l.names[path], l.durable[path] = n, n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// consider goes through what a power loss now may leave.
func (l *lossy) consider() {
	some := func(keep func(i int) bool) {
		names := maps.Clone(l.durable)
		for i, c := range l.pending {
			if keep(i) {
				c.settle(names)
			}
		}
		l.loss(names)
	}
	some(func(int) bool { return true })
	some(func(int) bool { return false })
	for k := range l.pending {
		some(func(i int) bool { return i == k })
		some(func(i int) bool { return i != k })
		some(func(i int) bool { return i <= k })
	}
}

func (l *lossy) change(c change) {
	c.settle(l.names)
	l.pending = append(l.pending, c)
	l.consider()
}

func (l *lossy) synced(path string, data []byte) {
	n := l.names[path]
	if n == nil { // made by package image
		n = &inode{}
		l.change(change{op: "add", a: path, node: n})
	}
	n.synced = true
	if data != nil {
		n.data = data
	}
	l.consider()
}

func (l *lossy) Mkdir(p string) error {
	err := l.disk.Mkdir(p)
	if err == nil {
		l.change(change{op: "add", a: p, node: &inode{synced: true}})
	}
	return err
}

func (l *lossy) Sync(p string) error {
	err := l.disk.Sync(p)
	l.synced(p, nil)
	return err
}

func (l *lossy) SyncDir(dir string) error {
	l.pending = slices.DeleteFunc(l.pending, func(c change) bool {
		if filepath.Dir(c.a) != dir {
			return false
		}
		c.settle(l.durable)
		return true
	})
	l.consider()
	return l.disk.SyncDir(dir)
}

func (l *lossy) Rename(a, b string) error {
	l.change(change{op: "rename", a: a, b: b, node: l.names[a]})
	return l.disk.Rename(a, b)
}

func (l *lossy) Link(a, b string) error {
	l.change(change{op: "link", a: a, b: b, node: l.names[a]})
	return l.disk.Link(a, b)
}

func (l *lossy) Remove(p string) error {
	err := l.disk.Remove(p)
	if err == nil {
		l.change(change{op: "remove", a: p})
	}
	return err
}

func (l *lossy) Create(p string) (file, error) {
	l.change(change{op: "add", a: p, node: &inode{}})
	w, err := l.disk.Create(p)
	return &lossyFile{w, l, p, nil}, err
}

type lossyFile struct {
	file
	l    *lossy
	path string
	data []byte
}

func (w *lossyFile) Write(b []byte) (int, error) {
	w.data = append(w.data, b...)
	return w.file.Write(b)
}

func (w *lossyFile) Sync() error {
	err := w.file.Sync()
	w.l.synced(w.path, w.data)
	return err
}

// committed returns what is wrong with a state: its record and all that it names
// have to be there, and durable.
func committed(root string, names map[string]*inode, must []repository.PointID) error {
	folder := filepath.Join(root, string(repositorytest.Web))
	n := names[filepath.Join(folder, metadataName)]
	if n == nil {
		if len(must) > 0 {
			return fmt.Errorf("the record is gone")
		}
		return nil
	}
	if !n.synced {
		return fmt.Errorf("the record is not durable")
	}
	r, err := parseRecord(n.data, repositorytest.Web)
	if err != nil {
		return err
	}
	for _, id := range must {
		if r.point(id) == nil {
			return fmt.Errorf("point %s is gone", id)
		}
	}
	for _, p := range r.Points {
		for _, d := range p.Disks {
			for _, name := range []string{d.File, d.Digests} {
				path := filepath.Join(folder, filepath.FromSlash(name))
				if n := names[path]; n == nil || !n.synced || names[filepath.Dir(path)] == nil {
					return fmt.Errorf("file %s is not durable", name)
				}
			}
		}
	}
	return nil
}

// TestRepositorySurvivesPowerLoss looks at everything that a loss of power at any
// moment may leave of names and records.
func TestRepositorySurvivesPowerLoss(t *testing.T) {
	base, points := baseline(t)
	for _, w := range works() {
		if w.first {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(root, os.DirFS(base)); err != nil {
				t.Fatal(err)
			}
			var must []repository.PointID
			for i, p := range points[repositorytest.Web] {
				if !slices.Contains(w.removes, i) {
					must = append(must, p.ID)
				}
			}
			l := newLossy(t, root)
			states := 0
			l.loss = func(names map[string]*inode) {
				states++
				if err := committed(root, names, must); err != nil && !t.Failed() {
					t.Errorf("state %d: %v", states, err)
				}
			}
			r, err := open(root, Options{}, l)
			if err != nil {
				t.Fatal(err)
			}
			m := repositorytest.NewModel(t, repositorytest.Subject{Repository: r})
			m.VMs = models(points)
			if err := w.do(m); err != nil {
				t.Fatal(err)
			}
			m.Check()
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			// What was reported as done is durable.
			for _, p := range m.VMs[repositorytest.Web] {
				if !slices.Contains(must, p.ID) {
					must = append(must, p.ID)
				}
			}
			l.consider()
			if states < 20 {
				t.Errorf("states: got %d, want more", states)
			}
		})
	}
}
