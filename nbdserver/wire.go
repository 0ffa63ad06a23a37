package nbdserver

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// wire moves the bytes of the transmission phase. One goroutine reads, one at a
// time writes; wake and cut may be called by anyone until close.
type wire interface {
	// read returns at least one byte, or io.EOF, errIdle, or errWoken if wake was
	// called since it last returned that and nothing is there to be read.
	read(p []byte) (int, error)
	// readFull fills p, or returns an error.
	readFull(p []byte) error
	// writev sends from bufs and returns how much it sent. errSlow says that the
	// peer does not take more at the moment.
	writev(bufs [][]byte) (int, error)
	// splice sends up to n bytes from p, likewise.
	splice(p *pipe, n int) (int, error)
	// zeroCopy reports whether splice works, and whether writev and splice
	// return errSlow instead of waiting for a slow peer.
	zeroCopy() bool
	// wake makes read return errWoken once it has nothing else to return.
	wake()
	// cut makes everything under way fail.
	cut()
	close() error
}

var (
	errWoken = errors.New("woken")
	errSlow  = errors.New("peer is slow")
	errIdle  = errors.New("idle for too long")
)

// newWire returns the best wire for a connection that it takes over.
func newWire(nc net.Conn, idle time.Duration) wire {
	switch nc.(type) {
	case *net.UnixConn, *net.TCPConn:
		if w, err := newFDWire(nc, idle); err == nil {
			return w
		}
	}
	return &connWire{nc: nc, idle: idle}
}

// connWire is a wire over any net.Conn, such as a TLS connection.
type connWire struct {
	nc    net.Conn
	idle  time.Duration
	mu    sync.Mutex // orders deadlines with wake
	woken bool
}

func (w *connWire) read(p []byte) (int, error) {
	w.arm()
	n, err := w.nc.Read(p)
	if n > 0 {
		return n, nil
	}
	return 0, w.readError(err)
}

func (w *connWire) readFull(p []byte) error {
	for len(p) > 0 {
		n, err := w.read(p)
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// arm sets the deadline of the next read, unless it is to be woken.
func (w *connWire) arm() {
	if w.idle <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.woken {
		w.nc.SetReadDeadline(time.Now().Add(w.idle)) //permit:time.Now: deadlines are real time
	}
}

func (w *connWire) readError(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.woken {
		return errIdle
	}
	w.woken = false
	w.nc.SetReadDeadline(time.Time{})
	return errWoken
}

func (w *connWire) writev(bufs [][]byte) (int, error) {
	total := 0
	for _, b := range bufs {
		n, err := w.nc.Write(b)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (w *connWire) splice(*pipe, int) (int, error) { return 0, errors.ErrUnsupported }
func (w *connWire) zeroCopy() bool                 { return false }
func (w *connWire) close() error                   { return w.nc.Close() }

func (w *connWire) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.woken = true
	w.nc.SetReadDeadline(time.Unix(1, 0))
}

func (w *connWire) cut() {
	w.nc.SetDeadline(time.Unix(1, 0))
	// Closing a TLS connection would wait for a write under way.
	if t, ok := w.nc.(interface{ NetConn() net.Conn }); ok {
		t.NetConn().Close()
	}
}
