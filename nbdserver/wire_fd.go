package nbdserver

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a write to a socket may wait for the peer before the
// writer is told, who may have better things to do.
const patience = 50 * time.Millisecond

// unixSendBuffer is the size asked for the send buffer of a unix socket: room for
// some replies, so that the writer sleeps once where it would sleep a dozen
// times. TCP sizes its buffers by itself.
const unixSendBuffer = 2 << 20

// fdWire is a wire over a socket, by system calls of its own.
//
// The socket is in blocking mode and outside the runtime's poller: the one
// goroutine that reads sits in ppoll(2) and the one that writes in sendmsg(2) or
// splice(2). A large reply then costs one system call, however often the socket
// buffer fills, and a small one costs no trip through the scheduler. Calls that
// cannot block (MSG_DONTWAIT) are made raw, without telling the scheduler.
type fdWire struct {
	fd    int
	event int // eventfd that wake writes to
	idle  time.Duration
	woken atomic.Bool

	iov []unix.Iovec // of the writer
	msg unix.Msghdr

	mu     sync.Mutex // guards closed: no wake or cut on a descriptor used anew
	closed bool
}

func newFDWire(nc net.Conn, idle time.Duration) (*fdWire, error) {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &fdWire{idle: idle, fd: -1}
	if w.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		w.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(ctlErr, err); err == nil {
		err = w.configure()
	}
	if _, ok := nc.(*net.UnixConn); ok && err == nil {
		w.growSendBuffer()
	}
	if err != nil {
		unix.Close(w.event)
		if w.fd >= 0 {
			unix.SetNonblock(w.fd, true)
			unix.Close(w.fd)
		}
		return nil, err
	}
	// The duplicate is the connection now; this only leaves the poller.
	nc.Close()
	return w, nil
}

func (w *fdWire) configure() error {
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return err
	}
	if w.idle > 0 {
		tv := unix.NsecToTimeval(int64(w.idle))
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
	}
	return unix.SetNonblock(w.fd, false)
}

// growSendBuffer goes beyond net.core.wmem_max where the process may, and up to
// it otherwise.
func (w *fdWire) growSendBuffer() {
	if unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, unixSendBuffer) != nil {
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, unixSendBuffer)
	}
}

func (w *fdWire) zeroCopy() bool { return true }

func (w *fdWire) read(p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(w.fd), uintptr(unsafe.Pointer(&p[0])),
			uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0 && n == 0:
			return 0, io.EOF
		case errno == 0:
			return int(n), nil
		case errno == unix.EINTR:
			continue
		case errno != unix.EAGAIN:
			return 0, errno
		}
		if w.woken.Swap(false) {
			return 0, errWoken
		}
		if err := w.waitReadable(); err != nil {
			return 0, err
		}
	}
}

func (w *fdWire) waitReadable() error {
	fds := [2]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.event), Events: unix.POLLIN}}
	var timeout *unix.Timespec
	if w.idle > 0 {
		ts := unix.NsecToTimespec(int64(w.idle))
		timeout = &ts
	}
	n, err := unix.Ppoll(fds[:], timeout, nil)
	switch {
	case err == unix.EINTR:
		return nil
	case err != nil:
		return err
	case n == 0:
		return errIdle
	}
	if fds[1].Revents != 0 {
		// It stays readable otherwise. What it tells of is in woken already.
		var b [8]byte
		_, _ = unix.Read(w.event, b[:]) // nothing to read is as good
	}
	return nil
}

func (w *fdWire) readFull(p []byte) error {
	for len(p) > 0 {
		n, _, errno := syscall.Syscall6(unix.SYS_RECVFROM, uintptr(w.fd), uintptr(unsafe.Pointer(&p[0])),
			uintptr(len(p)), unix.MSG_WAITALL, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return errIdle
		case errno != 0:
			return errno
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		p = p[n:]
	}
	return nil
}

func (w *fdWire) writev(bufs [][]byte) (int, error) {
	w.iov = w.iov[:0]
	total := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		w.iov = append(w.iov, unix.Iovec{Base: &b[0]})
		w.iov[len(w.iov)-1].SetLen(len(b))
		total += len(b)
	}
	if total == 0 {
		return 0, nil
	}
	w.msg.Iov = &w.iov[0]
	w.msg.SetIovlen(len(w.iov))
	defer func() {
		clear(w.iov)
		w.msg.Iov = nil
	}()
	n, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(w.fd), uintptr(unsafe.Pointer(&w.msg)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	for errno == unix.EINTR || errno == unix.EAGAIN {
		n, _, errno = syscall.Syscall(unix.SYS_SENDMSG, uintptr(w.fd), uintptr(unsafe.Pointer(&w.msg)), unix.MSG_NOSIGNAL)
		if errno == unix.EAGAIN {
			return 0, errSlow
		}
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func (w *fdWire) splice(p *pipe, n int) (int, error) {
	for {
		m, err := unix.Splice(p.r, nil, w.fd, nil, n, unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, errSlow
		case err != nil:
			return 0, err
		case m == 0:
			return 0, io.ErrUnexpectedEOF
		}
		return int(m), nil
	}
}

func (w *fdWire) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.woken.Store(true)
	if !w.closed {
		one := [8]byte{0: 1}
		_, _ = unix.Write(w.event, one[:]) // full means that it is signalled
	}
}

func (w *fdWire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		unix.Shutdown(w.fd, unix.SHUT_RDWR)
	}
}

func (w *fdWire) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return errors.Join(unix.Close(w.event), unix.Close(w.fd))
}

// isTemporary reports whether accepting may work again soon.
func isTemporary(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
