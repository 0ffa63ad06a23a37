package fusemount_test

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/requires"
	"golang.org/x/sys/unix"
)

// thing is a node of a test's tree: whatever its attributes say.
type thing struct {
	attr     fusemount.Attr
	xattrs   []fusemount.Xattr
	err      error // of Attr
	capacity int64
}

func (n *thing) Attr(context.Context) (fusemount.Attr, error) { return n.attr, n.err }

func (n *thing) Xattrs(context.Context) ([]fusemount.Xattr, error) { return n.xattrs, nil }

// folder is a directory in memory that counts how often it is asked.
type folder struct {
	thing
	bare bool // its entries say nothing but their names

	mu            sync.Mutex // guards the fields below
	names         []string
	nodes         map[string]fusemount.Node
	lists, looked int
	err           error // of Lookup and List
	after         int   // entries that List gives before its error
}

func newFolder() *folder {
	return &folder{thing: thing{attr: fusemount.Attr{Mode: fs.ModeDir | 0o755}}, nodes: map[string]fusemount.Node{}}
}

func (d *folder) add(name string, n fusemount.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes[name] == nil {
		d.names = append(d.names, name)
	}
	d.nodes[name] = n
}

func (d *folder) Lookup(_ context.Context, name string) (fusemount.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked++
	if d.err != nil {
		return nil, d.err
	}
	n := d.nodes[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return n, nil
}

func (d *folder) List(ctx context.Context, yield func(fusemount.Entry) bool) error {
	d.mu.Lock()
	d.lists++
	names, err, after := d.names, d.err, d.after
	d.mu.Unlock()
	for i, name := range names {
		if err != nil && i == after {
			return err
		}
		d.mu.Lock()
		e := fusemount.Entry{Name: name, Node: d.nodes[name], Type: fs.ModeIrregular}
		d.mu.Unlock()
		a, err := e.Node.Attr(ctx)
		if err != nil {
			return err
		}
		e.ID, e.Attr = a.ID, &a
		if d.bare {
			e.Node, e.Attr = nil, nil
		}
		if !yield(e) {
			return nil
		}
	}
	return err
}

func (d *folder) Capacity(context.Context) (total, free int64, err error) {
	return d.capacity, d.capacity / 4, nil
}

// counts returns how often the folder was listed, and looked into.
func (d *folder) counts() (lists, looked int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lists, d.looked
}

// document is a file over a device that counts how often it was opened.
type document struct {
	thing
	dev            block.Device
	err            error // of Open
	opened, closed atomic.Int32
}

func newDocument(dev block.Device) *document {
	return &document{thing: thing{attr: fusemount.Attr{Mode: 0o644, Size: dev.Size()}}, dev: dev}
}

func (f *document) Open(context.Context) (fusemount.Content, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.opened.Add(1)
	return &opened{block.Wrapped{Inner: f.dev}, f}, nil
}

type opened struct {
	block.Wrapped
	f *document
}

func (o *opened) Close() error {
	o.f.closed.Add(1)
	return nil
}

// link is a symbolic link.
type link struct {
	thing
	target string
}

func newLink(target string) *link {
	return &link{thing{attr: fusemount.Attr{Mode: fs.ModeSymlink | 0o777, Size: int64(len(target))}}, target}
}

func (l *link) Target(context.Context) (string, error) { return l.target, nil }

// journal collects what is logged.
type journal struct {
	mu sync.Mutex // guards the field below
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) log() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// mounted is a tree that is shown for the time of a test.
type mounted struct {
	*fusemount.Server
	dir   string
	done  chan struct{} // closed when Serve has returned err
	err   error
	leave context.CancelFunc // ends Serve's context
}

func requiresFUSE(t testing.TB) {
	t.Helper()
	requires.Root(t)
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		requires.Missing(t, "/dev/fuse: "+err.Error())
	} else {
		f.Close()
	}
}

// show mounts root until the test has ended.
func show(t testing.TB, root fusemount.Dir, opts fusemount.Options) *mounted {
	t.Helper()
	requiresFUSE(t)
	m := &mounted{dir: t.TempDir(), done: make(chan struct{})}
	var err error
	if m.Server, err = fusemount.Mount(m.dir, root, opts); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.leave = cancel
	go func() {
		defer close(m.done)
		m.err = m.Serve(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		m.gone(t)
	})
	// The test uses the mount that it serves, which only tests do. The runtime polls
	// the files that it opens, and takes that to be quick: here the process would
	// answer itself. Once another process was told that there is no polling the
	// kernel asks no more.
	if out, err := role(t, "poll", m.dir+"/.go-fuse-epoll-hack").CombinedOutput(); err != nil {
		t.Fatalf("poll: %v\n%s", err, out)
	}
	return m
}

// patience bounds what should happen at once.
const patience = 20 * time.Second

// gone waits for Serve to return.
func (m *mounted) gone(t testing.TB) {
	t.Helper()
	select {
	case <-m.done:
		if m.err != nil {
			t.Errorf("serve: %v", m.err)
		}
	case <-time.After(patience):
		t.Errorf("the mount is not left; in use: %v", m.Unmount())
		if err := m.Detach(); err != nil {
			t.Error(err)
		}
	}
}

// mountLine returns the line of mountinfo for a folder.
func mountLine(t testing.TB, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+dir+" ") {
			return line
		}
	}
	return ""
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

// role has the test program be another program: see TestMain.
func role(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), "FUSEMOUNT_ROLE="+name)
	return cmd
}
