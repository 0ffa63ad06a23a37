package nbdserver

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// file is a file in which a device located bytes. Its descriptor is only used
// while raw holds it, so that a file closed beneath a transfer gives an error
// and never another file's content.
type file struct {
	raw         syscall.RawConn
	resident    bool        // it is in memory, whatever the page cache says
	noNowait    atomic.Bool // the file system cannot read without waiting
	noCachestat atomic.Bool // the kernel does not tell what is in page cache
}

// nowait reads from page cache, without ever waiting for a disk. The zero value
// is ready; it must not be used concurrently.
type nowait struct {
	p     []byte
	off   int64
	iov   unix.Iovec
	n     int
	errno syscall.Errno
	call  func(fd uintptr)

	want   int64
	within unix.CachestatRange
	cached unix.Cachestat_t
	stat   func(fd uintptr)
}

// read fills p from f if all of it is in page cache, and reports whether it did.
func (w *nowait) read(f *file, p []byte, off int64) bool {
	if f.noNowait.Load() {
		return false
	}
	if w.call == nil {
		w.call = w.preadv2
	}
	w.p, w.off = p, off
	err := f.raw.Control(w.call)
	w.p, w.iov.Base = nil, nil
	if err != nil {
		return false
	}
	if w.errno == unix.EOPNOTSUPP || w.errno == unix.ENOSYS || w.errno == unix.EINVAL {
		f.noNowait.Store(true)
	}
	return w.errno == 0 && w.n == len(p)
}

func (w *nowait) preadv2(fd uintptr) {
	w.iov.Base = &w.p[0]
	w.iov.SetLen(len(w.p))
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_PREADV2, fd, uintptr(unsafe.Pointer(&w.iov)), 1,
			uintptr(w.off), uintptr(w.off>>32), unix.RWF_NOWAIT)
		if errno == unix.EINTR {
			continue
		}
		w.n, w.errno = int(n), errno
		return
	}
}

// probeStep is how far apart the bytes are by which a range is judged where the
// kernel cannot be asked. Page cache fills and empties in runs; a miss in between
// costs time, not truth.
const probeStep = 64 << 10

// hot reports whether a range of f seems to be in page cache.
func (w *nowait) hot(f *file, off, n int64) bool {
	if f.resident {
		return true
	}
	if !f.noCachestat.Load() {
		w.off, w.want = off, n
		if w.stat == nil {
			w.stat = w.cachestat
		}
		if err := f.raw.Control(w.stat); err != nil {
			return false
		}
		if w.errno == 0 {
			return w.cached.Cache >= uint64(pages(off, n))
		}
		f.noCachestat.Store(true)
	}
	var b [1]byte
	for at := off; at < off+n-1; at += probeStep {
		if !w.read(f, b[:], at) {
			return false
		}
	}
	return w.read(f, b[:], off+n-1)
}

// cachestat counts the pages of a range that are in page cache, without touching
// what is in them. Linux has it since 6.5, for files that the process owns or may
// write.
func (w *nowait) cachestat(fd uintptr) {
	w.within = unix.CachestatRange{Off: uint64(w.off), Len: uint64(w.want)}
	_, _, w.errno = syscall.RawSyscall6(unix.SYS_CACHESTAT, fd, uintptr(unsafe.Pointer(&w.within)),
		uintptr(unsafe.Pointer(&w.cached)), 0, 0, 0)
}

// prefetch has the kernel begin to read a range into page cache.
func (f *file) prefetch(off, n int64) error {
	return f.raw.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), off, n, unix.FADV_WILLNEED) }) // advice
}

// newZeroFile returns a file of n bytes of zeroes that takes no space, so that
// zeroes can be sent like any other content.
func newZeroFile(n int64) (*file, error) {
	fd, err := unix.MemfdCreate("nbd-zeroes", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "nbd-zeroes")
	if err := f.Truncate(n); err != nil {
		f.Close()
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{raw: raw, resident: true}, nil
}

// pipe carries replies to a socket: headers are copied into it, file content is
// spliced, so that it goes from page cache to the socket by reference. All of a
// reply is in the pipe before any of it is sent; what cannot be read becomes an
// error reply and never a torn one.
type pipe struct {
	r, w  int
	slots int // buffers it can hold: one for each page or part of a page
	used  int // of slots
	n     int // bytes it holds
	dirty bool
}

const pageSize = 4096

// wantedPipe is the size asked for: the most that a process without privileges
// gets by default.
const wantedPipe = 1 << 20

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	// A refusal leaves a smaller pipe, whose size is what counts.
	unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, wantedPipe)
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	if err == nil && size < 64<<10 {
		err = unix.ENOBUFS
	}
	if err != nil {
		p.close()
		return nil, err
	}
	p.slots = size / os.Getpagesize()
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// pages returns how many slots n bytes from off of a file can take.
func pages(off, n int64) int {
	return int((off+n+pageSize-1)/pageSize - off/pageSize)
}

// fits reports whether more slots can be filled.
func (p *pipe) fits(slots int) bool { return p.used+slots <= p.slots }

// write copies b, which is at most a page and fits, into the pipe.
func (p *pipe) write(b []byte) error {
	n, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(p.w), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return errno
	}
	if int(n) != len(b) {
		return io.ErrShortWrite
	}
	p.used++
	p.n += len(b)
	return nil
}

// load splices n bytes of f, which fit, into the pipe. It waits for the disk
// where they are not in page cache. After an error the pipe holds more than n
// says and is dirty.
func (p *pipe) load(f *file, off, n int64) error {
	p.used += pages(off, n)
	var err error
	end := off + n
	ctlErr := f.raw.Control(func(fd uintptr) {
		for off < end && err == nil {
			var m int64
			m, err = splice(int(fd), &off, p.w, int(end-off))
			switch {
			case err == unix.EINTR:
				err = nil
			case err == nil && m == 0:
				err = io.ErrUnexpectedEOF
			}
		}
	})
	if ctlErr != nil {
		err = os.ErrClosed
	}
	if err != nil {
		p.dirty = true
		return err
	}
	p.n += int(n)
	return nil
}

// splice moves bytes from a file to a pipe with room and advances off.
func splice(from int, off *int64, to, n int) (int64, error) {
	return unix.Splice(from, off, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
}

// pipePool keeps pipes for reuse, and bounds how many there are.
type pipePool struct {
	mu   sync.Mutex // guards the fields below
	free []*pipe
	left int // pipes that may still be made
}

func newPipePool(limit int) *pipePool { return &pipePool{left: limit} }

// get returns an empty pipe, or nil where there are too many already.
func (pp *pipePool) get() *pipe {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if l := len(pp.free); l > 0 {
		p := pp.free[l-1]
		pp.free = pp.free[:l-1]
		return p
	}
	if pp.left == 0 {
		return nil
	}
	p, err := newPipe()
	if err != nil {
		return nil
	}
	pp.left--
	return p
}

// drain closes the pipes that are kept.
func (pp *pipePool) drain() {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	for _, p := range pp.free {
		p.close()
		pp.left++
	}
	pp.free = nil
}

// put takes a pipe back. One that is not known to be empty is closed.
func (pp *pipePool) put(p *pipe) {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if p.dirty || p.n != 0 || len(pp.free) >= 8 {
		p.close()
		pp.left++
		return
	}
	p.used = 0
	pp.free = append(pp.free, p)
}
