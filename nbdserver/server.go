package nbdserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// TLSMode says what a server does about encryption.
type TLSMode uint8

// The modes of TLS. With TLSOffered a client chooses; with TLSForced it can do
// nothing but start TLS or leave.
const (
	TLSOff TLSMode = iota
	TLSOffered
	TLSForced
)

// Observer is told what a server does. Its methods are called on the path of
// every request: they must be quick and must not block.
type Observer interface {
	// ConnOpened says that a client entered the transmission phase.
	ConnOpened(export string)
	// ConnClosed says that such a client is gone.
	ConnClosed(export string)
	// RequestDone says that a request was answered. bytes is the length that the
	// request named; errno is 0 for success.
	RequestDone(export string, cmd Command, bytes int64, errno Errno)
}

// Options configure a [Server].
type Options struct {
	// TLS holds the server's certificate and, for clients that have to show one,
	// ClientAuth and ClientCAs. Required unless TLSMode is TLSOff.
	TLS     *tls.Config
	TLSMode TLSMode // default TLSOff

	// MaxConns limits the clients in the transmission phase; as many again may be
	// in the handshake at a time. Default 64.
	MaxConns int
	// HandshakeTimeout bounds the time from accepting a connection to its
	// transmission phase. Default 30 s.
	HandshakeTimeout time.Duration
	// IdleTimeout ends connections that have nothing in flight and ask for
	// nothing. 0: never.
	IdleTimeout time.Duration
	// Grace bounds how long requests in flight may take once a connection is
	// asked to end. Default 10 s.
	Grace time.Duration
	// MaxRequest is the longest payload of one request in bytes, from 1 MiB to
	// 1 GiB. It is also what one connection may hold in memory. Default 32 MiB.
	MaxRequest int64

	// Authorize decides whether the client may see and use an export. conn is a
	// *tls.Conn once TLS was started. Default: everyone may.
	Authorize func(ctx context.Context, conn net.Conn, export string) error
	Observer  Observer     // default: none
	Log       *slog.Logger // default: discard
}

func (o Options) withDefaults() Options {
	o.MaxConns = cmp.Or(o.MaxConns, 64)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 30*time.Second)
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.MaxRequest = min(max(cmp.Or(o.MaxRequest, 32<<20), 1<<20), 1<<30)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.MinVersion = max(o.TLS.MinVersion, tls.VersionTLS12)
	}
	return o
}

// Server serves exports to NBD clients. Its methods may be called concurrently.
type Server struct {
	opt     Options
	now     func() time.Time
	pipes   *pipePool
	buffers bufferPool
	zeroes  func() (*file, error)

	mu          sync.Mutex // guards the fields below and the users of every export
	exports     map[string]*export
	handshaking int
	serving     int
}

// New returns a server without exports.
func New(o Options) *Server {
	o = o.withDefaults()
	return &Server{
		opt:     o,
		now:     time.Now, //permit:time.Now: the server's clock
		pipes:   newPipePool(32),
		zeroes:  sync.OnceValues(func() (*file, error) { return newZeroFile(o.MaxRequest) }),
		exports: make(map[string]*export),
	}
}

// Add offers an export. The device stays the caller's, who closes it after
// [Server.Remove] or after every Serve has returned.
func (s *Server) Add(e Export) error {
	x, err := newExport(e, s.opt.MaxRequest)
	if err != nil {
		return fmt.Errorf("add export %q: %w", e.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.exports[e.Name]; ok {
		return fmt.Errorf("add export %q: %w", e.Name, os.ErrExist)
	}
	s.exports[e.Name] = x
	return nil
}

// Remove withdraws an export. New clients do not find it any more; those that
// use it are disconnected when their requests in flight have been answered.
// Remove returns nil when no connection uses the device any more. If ctx ends
// before, the connections are cut and the error says that the device may still
// be in use. An export that does not exist gives an error wrapping
// os.ErrNotExist.
func (s *Server) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	x, ok := s.exports[name]
	if ok {
		delete(s.exports, name)
		close(x.stopping)
		if x.users == 0 {
			close(x.unused)
		}
	}
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("remove export %q: %w", name, os.ErrNotExist)
	}
	select {
	case <-x.unused:
		return nil
	case <-ctx.Done():
		close(x.killed)
		return fmt.Errorf("remove export %q: device may still be in use: %w", name, context.Cause(ctx))
	}
}

// Connections returns how many clients are using the export.
func (s *Server) Connections(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, ok := s.exports[name]; ok {
		return x.users
	}
	return 0
}

// Serve accepts connections on l until ctx ends or accepting fails, closes l,
// and returns when every connection it started is done. When ctx ends, what is
// in flight is finished first, for at most Options.Grace. Serve may be called
// for several listeners. It returns nil when it ended because ctx did.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.opt.TLSMode != TLSOff && s.opt.TLS == nil {
		return errors.Join(errors.New("serve NBD: TLS is wanted but not configured"), l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { l.Close() })
	defer unhook()

	var conns sync.WaitGroup
	err := s.accept(ctx, l, &conns)
	if ctx.Err() != nil {
		err = nil
	}
	cancel()
	l.Close()
	if waitErr := s.wait(&conns); waitErr != nil {
		err = errors.Join(err, waitErr)
	}
	if err != nil {
		return fmt.Errorf("serve NBD on %s: %w", l.Addr(), err)
	}
	return nil
}

func (s *Server) accept(ctx context.Context, l net.Listener, conns *sync.WaitGroup) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() || isTemporary(err) {
				s.opt.Log.Warn("accept failed, trying again", "err", err)
				select {
				case <-time.After(100 * time.Millisecond):
					continue
				case <-ctx.Done():
				}
			}
			return err
		}
		if !s.beginHandshake() {
			s.opt.Log.Warn("connection refused: too many handshakes", "peer", nc.RemoteAddr())
			nc.Close()
			continue
		}
		conns.Go(func() { s.serveConn(ctx, nc) })
	}
}

// wait returns when all connections are done. They end themselves within the
// grace period; one whose device does not return even then is reported.
func (s *Server) wait(conns *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		conns.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(2*s.opt.Grace + time.Second):
		return errors.New("a device did not finish its requests in time")
	}
}

// serveConn takes one connection from handshake to end.
func (s *Server) serveConn(ctx context.Context, nc net.Conn) {
	log := s.opt.Log.With("peer", peerName(nc))
	sess, err := s.handshake(ctx, nc)
	s.endHandshake()
	if err != nil {
		if !errors.Is(err, errClientLeft) {
			log.Info("handshake ended", "err", err)
		}
		nc.Close()
		return
	}
	defer s.release(sess.export)
	log = log.With("export", sess.export.Name)
	log.Debug("client connected", "tls", sess.tls, "structured", sess.structured, "extended", sess.extended)
	if o := s.opt.Observer; o != nil {
		o.ConnOpened(sess.export.Name)
		defer o.ConnClosed(sess.export.Name)
	}
	if err := serveSession(ctx, s, sess, log); err != nil {
		log.Info("connection broke", "err", err)
		return
	}
	log.Debug("client disconnected")
}

func (s *Server) beginHandshake() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handshaking >= s.opt.MaxConns {
		return false
	}
	s.handshaking++
	return true
}

func (s *Server) endHandshake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handshaking--
}

// find returns the export, or nil.
func (s *Server) find(name string) *export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exports[name]
}

// list returns the exports by name.
func (s *Server) list() []*export {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*export, 0, len(s.exports))
	for _, x := range s.exports {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *export) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

var errTooManyConns = errors.New("too many connections")

// acquire counts a client that is about to use x.
func (s *Server) acquire(x *export) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[x.Name] != x {
		return os.ErrNotExist
	}
	if s.serving >= s.opt.MaxConns {
		return errTooManyConns
	}
	s.serving++
	x.users++
	return nil
}

func (s *Server) release(x *export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving--
	x.users--
	if s.serving == 0 {
		s.pipes.drain()
	}
	if x.users == 0 && s.exports[x.Name] != x {
		close(x.unused)
	}
}

func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "local"
}
