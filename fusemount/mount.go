package fusemount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"
	"golang.org/x/sys/unix"
)

// Errors that say why something cannot be mounted or unmounted. They are wrapped
// with where, and with what to do.
var (
	// ErrNotEmpty says that a folder has content, which the mount would hide.
	ErrNotEmpty = errors.New("the folder is not empty")
	// ErrMounted says that something is mounted already.
	ErrMounted = errors.New("something is mounted there")
	// ErrNoFUSE says that this machine, or this user, cannot use FUSE.
	ErrNoFUSE = errors.New("FUSE cannot be used")
	// ErrBusy says that somebody uses the mount.
	ErrBusy = errors.New("the mount is in use")
)

// subtype is what our mounts are known by: their type is fuse.sendense.
const subtype = "sendense"

// maxRead is the longest read or write, in bytes. With 1 MiB the pages and the head
// of an answer would not fit a pipe, which holds 256 pages.
const maxRead = 512 << 10

// readAhead is how far the kernel reads ahead, in bytes: some requests, so that one
// can be answered while another is used up.
const readAhead = 2 << 20

// maxBackground is how many reads ahead the kernel has under way.
const maxBackground = 64

// Options say how a tree is shown. The zero value shows it read-only, to the user
// who mounts it.
type Options struct {
	Source     string // what the mount is said to be of, in df for example; default sendense
	Writable   bool   // contents that can be written may be
	AllowOther bool   // other users may enter; implies CheckModes
	CheckModes bool   // owners and permissions of the tree are enforced
	NoXattrs   bool   // the kernel need not ask for extended attributes

	Linger time.Duration // for which content stays open without users; default 10 s, negative: none
	Fresh  time.Duration // for which the kernel believes what changes; default 1 s
	Lazy   bool          // a busy mount is detached when Serve is told to end

	Log *slog.Logger     // default: discard
	Now func() time.Time // default time.Now
}

func (o *Options) defaults() {
	if o.Source == "" {
		o.Source = subtype
	}
	if o.Linger == 0 {
		o.Linger = 10 * time.Second
	}
	if o.Fresh == 0 {
		o.Fresh = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now //permit:time.Now: the default of an injected clock
	}
}

// Server shows a tree at a folder.
type Server struct {
	dir  string
	opts Options
	show *shower
	fuse *fuse.Server

	serving sync.Once
	gone    chan struct{} // closed when the kernel has taken the mount away
}

// Mount shows a tree at an empty folder. What a server that was killed left there
// is cleared away first. The kernel's requests are answered once Serve is called,
// which has to be done, or Unmount.
func Mount(dir string, root Dir, opts Options) (*Server, error) {
	opts.defaults()
	dir, err := Resolve(dir)
	if err != nil {
		return nil, err
	}
	if err := Clear(dir); err != nil {
		return nil, err
	}
	if err := errors.Join(checkFolder(dir), checkFUSE(&opts)); err != nil {
		return nil, err
	}
	show, err := newShower(root, &opts)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	s := &Server{dir: dir, opts: opts, show: show, gone: make(chan struct{})}
	if s.fuse, err = fuse.NewServer(show, dir, s.options()); err != nil {
		show.close()
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	s.readAhead()
	return s, nil
}

func newShower(root Dir, opts *Options) (*shower, error) {
	a, err := root.Attr(context.Background())
	if err == nil {
		err = check(root, &a)
	}
	if err == nil && !a.Mode.IsDir() {
		err = fmt.Errorf("the root has mode %v", a.Mode)
	}
	if err != nil {
		return nil, err
	}
	once := newOnce(opts.Log)
	show := &shower{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		nodes:         newTable(root, &a), root: root, fresh: opts.Fresh, now: opts.Now, once: once,
		files: &files{linger: opts.Linger, writable: opts.Writable, once: once, open: map[*file]struct{}{}},
	}
	show.zeroes, _ = newZeroes(maxRead) // without it zeroes are copied
	return show, nil
}

// close gives up everything that is open, when there are no requests any more.
func (s *shower) close() {
	s.readers.close()
	s.files.close()
	if s.zeroes != nil {
		s.zeroes.Close()
	}
	splice.ClearSplicePool()
}

func (s *Server) options() *fuse.MountOptions {
	o := &fuse.MountOptions{
		FsName: s.opts.Source, Name: subtype, AllowOther: s.opts.AllowOther,
		MaxWrite: maxRead, MaxBackground: maxBackground,
		ExplicitDataCacheControl: true, DisableXAttrs: s.opts.NoXattrs,
		ExtraCapabilities: fuse.CAP_ASYNC_DIO,
		DirectMountStrict: os.Geteuid() == 0, DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV,
		Logger:       slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
		PanicHandler: s.panicked,
	}
	if !s.opts.Writable {
		o.DirectMountFlags |= unix.MS_RDONLY
		if !o.DirectMountStrict {
			o.Options = append(o.Options, "ro")
		}
	}
	if s.opts.CheckModes || s.opts.AllowOther {
		o.Options = append(o.Options, "default_permissions")
	}
	return o
}

// panicked has a request fail that met a mistake in the tree.
func (s *Server) panicked(v any) fuse.Status {
	s.opts.Log.Error("a request of the mount panicked", "err", fmt.Sprint(v), "stack", stack())
	return fuse.EIO
}

// Dir returns the folder, as an absolute path without links.
func (s *Server) Dir() string { return s.dir }

// Serve answers requests until the mount is gone, which may be by umount(8), and
// has then closed everything. When ctx ends it unmounts; where somebody uses the
// mount it tells in the log who, tries again each second, and goes on serving
// meanwhile. With Options.Lazy it detaches such a mount instead: nobody can enter
// it any more, and it is gone when the last user is.
//
// The process itself must not use the mount. It would wait for itself: for good if
// the runtime has no thread left to answer with, and beyond its end if it is killed
// before the answer.
func (s *Server) Serve(ctx context.Context) error {
	s.start()
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
	}
	told := false
	for {
		err := s.Unmount()
		if errors.Is(err, ErrBusy) && s.opts.Lazy {
			err = s.Detach()
		}
		switch {
		case err == nil:
			<-s.gone
			return nil
		case !errors.Is(err, ErrBusy):
			return err
		case !told:
			s.opts.Log.Warn("waiting for the mount to be left", "dir", s.dir, "err", err)
			told = true
		}
		t := time.NewTimer(time.Second)
		select {
		case <-s.gone:
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// start begins to answer requests.
func (s *Server) start() {
	s.serving.Do(func() {
		go func() {
			defer close(s.gone)
			s.fuse.Serve()
			s.show.close()
		}()
	})
}

// Unmount takes the mount away, if nobody uses it; ErrBusy says who does. It does
// not wait for Serve. That it is gone already is no error.
func (s *Server) Unmount() error { return s.end(false) }

// Detach takes the mount away at once. Who uses it goes on, served by Serve.
func (s *Server) Detach() error { return s.end(true) }

func (s *Server) end(lazy bool) error {
	select {
	case <-s.gone:
		return nil
	default:
	}
	err := unmount(s.dir, lazy)
	if err == nil {
		s.start() // learns that it is gone
		return nil
	}
	if m, _ := mountAt(s.dir); m == nil || !m.ours() {
		s.start()
		return nil
	}
	return unmountError(s.dir, err)
}

// Unmount takes away the mount that any process of this program, or none any more,
// serves at a folder. The error is fs.ErrNotExist if there is none, and ErrBusy if
// it is used.
func Unmount(dir string) error {
	dir, err := Resolve(dir)
	if err != nil {
		return err
	}
	m, err := mountAt(dir)
	if err != nil {
		return err
	}
	if m == nil || !m.ours() {
		return fmt.Errorf("unmount %s: no mount of ours: %w", dir, fs.ErrNotExist)
	}
	if err := unmount(dir, false); err != nil {
		return unmountError(dir, err)
	}
	return nil
}

func unmountError(dir string, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w%s: leave it, or detach it with: umount -l %s", dir, ErrBusy, by(users(dir)), dir)
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}

func by(users []string) string {
	if len(users) == 0 {
		return ""
	}
	return " by " + strings.Join(users, ", ")
}

// checkFolder refuses what would be hidden, or cannot be mounted on.
func checkFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("mount %s: %w: make it with: mkdir -p %s", dir, fs.ErrNotExist, dir)
		}
		return fmt.Errorf("mount: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("mount %s: not a folder: choose an empty one", dir)
	}
	if names, _ := f.Readdirnames(1); len(names) > 0 {
		return fmt.Errorf("mount %s: %w: choose an empty one", dir, ErrNotEmpty)
	}
	return nil
}

// Resolve returns an absolute path without links, as mounts are known by. It does
// not look at what is mounted there, where nobody might answer.
func Resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for range 40 {
		parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return "", fmt.Errorf("mount %s: %w", dir, err)
		}
		abs = filepath.Join(parent, filepath.Base(abs))
		target, err := os.Readlink(abs)
		if err != nil {
			return abs, nil // no link: a folder, or nothing that can be looked at
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		abs = filepath.Clean(target)
	}
	return "", fmt.Errorf("mount %s: %w", dir, unix.ELOOP)
}
