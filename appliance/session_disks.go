package appliance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/nbdserver"
)

// Boot begins a session: it lays an overlay over each disk of a point, serves them
// writable, and starts a machine on them if asked to.
func (a *Appliance) Boot(ctx context.Context, spec SessionSpec) (Session, error) {
	s, point, err := a.open(ctx, spec, false)
	if err != nil {
		return Session{}, err
	}
	defer s.busy.Unlock()
	if spec.Machine != nil {
		if err := a.startMachine(ctx, s, *spec.Machine, point); err != nil {
			return Session{}, errors.Join(err, a.abandon(ctx, s))
		}
	}
	a.beginWatch(s)
	return s.view(), nil
}

// open begins a session without a machine, and returns it with its lock, which the
// caller gives up. passing says that it ends with the request it is for.
func (a *Appliance) open(ctx context.Context, spec SessionSpec, passing bool) (*session, Point, error) {
	began := a.opts.Now()
	if err := a.sessionOwner(); err != nil {
		return nil, Point{}, err
	}
	if spec.QuotaBytes < 0 {
		return nil, Point{}, &Error{Code: CodeInvalid, Msg: "The quota is negative.", Hint: "Give a number of bytes, or 0 for none."}
	}
	vm, point, err := a.Point(ctx, spec.VM, spec.Point)
	if err != nil {
		return nil, Point{}, err
	}
	id := newSessionID()
	s := &session{pin: pin{string(vm.ID), string(point.ID)}, failed: failures{now: a.opts.Now}, doc: Session{ID: id, VM: string(vm.ID), Name: vm.Name,
		Point: string(point.ID), Created: began.UTC(), QuotaBytes: spec.QuotaBytes, Passing: passing,
		Socket: filepath.Join(a.opts.RunDir, "sessions", id+".sock")}}
	s.busy.Lock()
	if err := a.admit(s); err != nil {
		s.busy.Unlock()
		return nil, Point{}, err
	}
	if err = a.begin(ctx, s, point); err == nil {
		s.mu.Lock()
		s.doc.ReadySeconds = a.opts.Now().Sub(began).Seconds()
		s.mu.Unlock()
		err = a.opts.Journal.PutSession(s.doc)
	}
	if err != nil {
		defer s.busy.Unlock()
		a.forget(s)
		return nil, Point{}, errors.Join(err, s.close(), os.RemoveAll(a.sessionDir(id)))
	}
	a.log.Info("session began", "session", id, "vm", vm.Name, "point", point.ID, "took", s.doc.ReadySeconds)
	return s, point, nil
}

func newSessionID() string {
	var b [4]byte
	rand.Read(b[:])
	return "session-" + hex.EncodeToString(b[:])
}

// begin makes the overlays and serves them.
func (a *Appliance) begin(ctx context.Context, s *session, point Point) error {
	folder := a.sessionDir(s.doc.ID)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return fmt.Errorf("make folder of session: %w", err)
	}
	var disks []SessionDisk
	for i := range point.Disks {
		d := &point.Disks[i]
		disks = append(disks, SessionDisk{Index: d.Index, Key: d.Key, Size: d.Size,
			File: filepath.Join(folder, diskExport(d.Index)+".qcow2")})
	}
	s.mu.Lock()
	s.doc.Disks = disks
	s.mu.Unlock()
	if err := a.openBacking(ctx, s); err != nil {
		return err
	}
	for i, d := range s.doc.Disks {
		backing := ""
		if c, ok := s.disks[i].(interface{ Layers() []image.Layer }); ok && len(c.Layers()) > 0 {
			backing = c.Layers()[0].Path
		}
		if err := instant.CreateOverlay(d.File, d.Size, point.Disks[i].ClusterSize, backing); err != nil {
			return err
		}
	}
	if err := instant.SyncDir(a.opts.SessionDir); err != nil {
		return err
	}
	return a.serve(ctx, s)
}

// openBacking opens the disks of the point.
func (a *Appliance) openBacking(ctx context.Context, s *session) error {
	for _, d := range s.doc.Disks {
		dev, err := a.repo.OpenDisk(ctx, repository.VMID(s.doc.VM), repository.PointID(s.doc.Point), d.Index, repository.OpenOptions{})
		if err != nil {
			return userError(err)
		}
		s.disks = append(s.disks, dev)
	}
	return nil
}

// serve opens the overlays and serves them, until close.
func (a *Appliance) serve(ctx context.Context, s *session) error {
	for i, d := range s.doc.Disks {
		o, err := instant.OpenOverlay(ctx, d.File, s.disks[i], s.room)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.over = append(s.over, o)
		s.mu.Unlock()
	}
	if err := os.MkdirAll(filepath.Dir(s.doc.Socket), 0o711); err != nil {
		return fmt.Errorf("make folder of sockets: %w", err)
	}
	l, err := ListenUnix(s.doc.Socket, 0o660, "")
	if err != nil {
		return err
	}
	server := nbdserver.New(nbdserver.Options{Log: a.log, Observer: a.opts.Metrics.observer("session")})
	uris := make([]string, len(s.doc.Disks))
	for i, d := range s.doc.Disks {
		err := server.Add(nbdserver.Export{Name: diskExport(d.Index), Device: told{s.over[i], &s.failed},
			Description: fmt.Sprintf("%s %s %s, %s", s.doc.Name, s.doc.Point, d.Key, s.doc.ID), PreferredBlock: 4096})
		if err != nil {
			return errors.Join(err, l.Close())
		}
		uris[i] = l.URI(diskExport(d.Index))
	}
	serveCtx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.server, s.stop, s.done = server, cancel, make(chan struct{})
	for i := range uris {
		s.doc.Disks[i].URI = uris[i]
	}
	s.mu.Unlock()
	a.wg.Go(func() {
		defer close(s.done)
		if err := server.Serve(serveCtx, l); err != nil {
			a.log.Error("session is not served any more", "session", s.doc.ID, "err", err)
		}
	})
	return nil
}

// told is an overlay whose failures are remembered.
type told struct {
	*instant.Overlay
	f *failures
}

// ReadAt implements block.Device.
func (d told) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.f.tell(d.Overlay.ReadAt(ctx, p, off))
}

// Locate implements block.Locator.
func (d told) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	found, err := d.Overlay.Locate(ctx, dst, off, n)
	return found, d.f.tell(err)
}

// Trim implements block.Trimmer.
func (d told) Trim(ctx context.Context, off, n int64) error {
	return d.f.tell(d.Overlay.Trim(ctx, off, n))
}

// WriteAt implements block.Writer.
func (d told) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.f.tell(d.Overlay.WriteAt(ctx, p, off))
}

// WriteZeroes implements block.Zeroer.
func (d told) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	return d.f.tell(d.Overlay.WriteZeroes(ctx, off, n, flags))
}

// Flush implements block.Flusher.
func (d told) Flush(ctx context.Context) error { return d.f.tell(d.Overlay.Flush(ctx)) }

// failureCounts is how long a failure tells how a session is. A machine that waits
// tries again more often.
const failureCounts = 3 * lookAtMost

// failures remembers the last failure. Its methods may be called concurrently.
type failures struct {
	now  func() time.Time
	last atomic.Pointer[failure]
}

type failure struct {
	err error
	at  time.Time
}

func (f *failures) tell(err error) error {
	// What a client asks for beyond the disk, or as fast as it cannot be, is no failure
	// of it; nor is that a client is gone.
	if err != nil && !errors.Is(err, block.ErrOutOfRange) && !errors.Is(err, block.ErrNotFast) && !errors.Is(err, context.Canceled) {
		f.last.Store(&failure{err, f.now()})
	}
	return err
}

// recent returns the last failure unless it is long ago.
func (f *failures) recent() error {
	if x := f.last.Load(); x != nil && f.now().Sub(x.at) < failureCounts {
		return x.err
	}
	return nil
}

// any returns the last failure, however long ago.
func (f *failures) any() error {
	if x := f.last.Load(); x != nil {
		return x.err
	}
	return nil
}

// room refuses what does not fit into the quota any more.
func (s *session) room(int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doc.QuotaBytes == 0 {
		return nil
	}
	var sum int64
	for _, o := range s.over {
		n, err := o.FileBytes()
		if err != nil {
			return err
		}
		sum += n
	}
	if sum < s.doc.QuotaBytes {
		return nil
	}
	s.full.Store(true)
	return fmt.Errorf("quota of session %s is reached: %w", s.doc.ID, syscall.ENOSPC)
}

// close ends serving, makes everything durable and closes the files. The session
// can be served again. The caller holds s.busy.
func (s *session) close() error {
	var errs []error
	if s.stop != nil {
		s.stop()
		<-s.done
	}
	s.mu.Lock()
	over := s.over
	s.over, s.server, s.stop = nil, nil, nil
	s.mu.Unlock()
	for _, o := range over {
		errs = append(errs, o.Close())
	}
	errs = append(errs, closeAll(s.disks))
	s.disks = nil
	return errors.Join(errs...)
}

// restoreSessions serves the sessions of an earlier process again, and clears away
// what was left of one that had not begun or was discarded. What takes a hypervisor
// is left to the sessions' watchers: none is to wait for one that does not answer.
func (a *Appliance) restoreSessions(ctx context.Context) {
	if a.opts.SessionDir == "" {
		return
	}
	docs, err := a.opts.Journal.Sessions()
	if err != nil {
		a.log.Error("sessions could not all be read; their files stay", "err", err)
		a.adoptUnread(docs, err)
	} else {
		a.sweepSessions(docs)
	}
	for _, doc := range docs {
		s := &session{pin: pin{doc.VM, doc.Point}, doc: doc, ending: doc.Passing, failed: failures{now: a.opts.Now}}
		a.mu.Lock()
		a.sessions[doc.ID] = s
		a.mu.Unlock()
		s.busy.Lock()
		if err := a.reopen(ctx, s); err != nil {
			s.setProblem(err)
			a.log.Error("session cannot be served", "session", doc.ID, "vm", doc.Name, "point", doc.Point, "err", err)
		}
		a.beginWatch(s)
		s.busy.Unlock()
	}
}

// adoptUnread takes sessions in whose records cannot be read: as long as there are
// any nobody knows which points are needed.
func (a *Appliance) adoptUnread(read []Session, why error) {
	entries, err := os.ReadDir(a.opts.SessionDir)
	if err != nil {
		a.log.Warn("folder of sessions cannot be read", "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range entries {
		id := e.Name()
		if !e.IsDir() || slices.ContainsFunc(read, func(s Session) bool { return s.ID == id }) {
			continue
		}
		a.sessions[id] = &session{doc: Session{ID: id, Disks: []SessionDisk{}}, problem: fmt.Errorf("its record cannot be read: %w", why), failed: failures{now: a.opts.Now}}
	}
}

// reopen serves a session that has begun. The caller holds s.busy.
func (a *Appliance) reopen(ctx context.Context, s *session) error {
	err := a.openBacking(ctx, s)
	if err == nil {
		err = a.serve(ctx, s)
	}
	if err != nil {
		return errors.Join(err, s.close())
	}
	return nil
}

// sweepSessions removes folders of sessions that there are no records of.
func (a *Appliance) sweepSessions(docs []Session) {
	known := map[string]bool{}
	for _, s := range docs {
		known[s.ID] = true
	}
	entries, err := os.ReadDir(a.opts.SessionDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("folder of sessions cannot be read", "err", err)
	}
	for _, e := range entries {
		// Records in the making stay, too, where a process was killed over one. Nobody
		// else has sessions.
		unfinished := !e.IsDir() && strings.HasPrefix(e.Name(), ".new-")
		if unfinished || e.IsDir() && !known[e.Name()] {
			if err := os.RemoveAll(a.sessionDir(e.Name())); err != nil {
				a.log.Warn("what is left of a session cannot be removed", "session", e.Name(), "err", err)
			}
		}
	}
}
