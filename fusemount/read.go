package fusemount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"
	"github.com/sendense/sendense/block"
	"golang.org/x/sys/unix"
)

// spliceFrom is the length from which on a read is spliced; below, copying costs
// less than the system calls.
const spliceFrom = 64 << 10

var pageSize = int64(os.Getpagesize())

// Read implements fuse.RawFileSystem.
func (s *shower) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, c := s.content(in.NodeId)
	if c == nil {
		return nil, fuse.Status(syscall.EBADF)
	}
	off := int64(in.Offset)
	if off < 0 || off >= c.size {
		return answer(nil), fuse.OK
	}
	length := min(int64(len(buf)), c.size-off)
	ctx := newCall(cancel)
	defer ctx.end()
	if length >= spliceFrom && !c.writable && !c.copied.Load() {
		if r := s.splice(ctx, c, off, length); r != nil {
			return r, fuse.OK
		}
	}
	if err := c.ReadAt(ctx, buf[:length], off); err != nil {
		return nil, s.failData("read", n, err)
	}
	return answer(buf[:length]), fuse.OK
}

// answer returns b as an answer that is written as it is; go-fuse's own tries a pipe
// first.
func answer(b []byte) fuse.ReadResult { return fuse.ReadResultVector([][]byte{b}) }

// splice answers a read from the files in which c says that its bytes lie, without
// copying them. All of them are in a pipe before the answer begins, so that what
// cannot be read is an error and never zeroes. It returns nil where the range has
// to be read through the device, which will tell of errors as well.
func (s *shower) splice(ctx context.Context, c *content, off, n int64) fuse.ReadResult {
	locator, ok := c.Content.(block.Locator)
	if !ok {
		return nil
	}
	locs, err := locator.Locate(ctx, make([]block.Location, 0, 4), off, n)
	if err != nil || !s.spliceable(locs, n) {
		return nil
	}
	pair, err := splice.Get()
	if err != nil {
		return nil
	}
	if err = pair.Grow(int(n + 2*pageSize)); err == nil {
		err = s.load(pair, locs)
	}
	if err != nil {
		splice.Done(pair)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			c.copied.Store(true)
		}
		return nil
	}
	return fuse.ReadResultPipe(pair, int(n))
}

// spliceable reports whether n bytes that lie at locs can go through pipes. go-fuse
// moves them from one that holds them to another, which has room for as many pages
// as they take in one run, and one more: runs that begin or end within pages may
// need more than there are. It would then send less, and the kernel show zeroes.
func (s *shower) spliceable(locs []block.Location, n int64) bool {
	pages, sum := int64(0), int64(0)
	for _, l := range locs {
		switch l.Kind {
		case block.InFile:
			if l.File == nil || l.Off < 0 {
				return false
			}
			pages += (l.Off%pageSize + l.Len + pageSize - 1) / pageSize
		case block.InNothing:
			if s.zeroes == nil || l.Len > maxRead {
				return false
			}
			pages += (l.Len + pageSize - 1) / pageSize
		default:
			return false
		}
		if l.Len <= 0 {
			return false
		}
		sum += l.Len
	}
	return sum == n && pages <= n/pageSize+1
}

// load fills a pipe with what lies at locs.
func (s *shower) load(pair *splice.Pair, locs []block.Location) error {
	for _, l := range locs {
		if l.Kind == block.InNothing {
			l.File, l.Off = s.zeroes, 0
		}
		raw, err := l.File.SyscallConn()
		if err != nil {
			return err
		}
		// Within Control the descriptor stays what it is, whoever closes the file.
		if ctlErr := raw.Control(func(fd uintptr) { err = fill(pair, fd, l.Off, l.Len) }); ctlErr != nil {
			err = ctlErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func fill(pair *splice.Pair, fd uintptr, off, n int64) error {
	for n > 0 {
		m, err := pair.LoadFromAt(fd, int(n), off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case m <= 0:
			return io.ErrUnexpectedEOF
		default:
			off, n = off+int64(m), n-int64(m)
		}
	}
	return nil
}

// newZeroes returns a file of n bytes of zeroes that takes no room.
func newZeroes(n int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("fuse-zeroes", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "fuse-zeroes")
	if err := f.Truncate(n); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Lseek implements fuse.RawFileSystem: it finds data and holes.
func (s *shower) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, c := s.content(in.NodeId)
	if c == nil {
		return fuse.Status(syscall.EBADF)
	}
	off := int64(in.Offset)
	if off < 0 || off >= c.size {
		return fuse.Status(syscall.ENXIO)
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	ctx := newCall(cancel)
	defer ctx.end()
	at, err := seek(ctx, c, off, in.Whence == unix.SEEK_DATA)
	if err != nil {
		return s.failData("seek", n, err)
	}
	if at >= c.size && in.Whence == unix.SEEK_DATA {
		return fuse.Status(syscall.ENXIO)
	}
	out.Offset = uint64(at)
	return fuse.OK
}

// seek returns where the first data, or the first hole, begins from off on; the
// size if there is none.
func seek(ctx context.Context, c *content, off int64, data bool) (int64, error) {
	for off < c.size {
		exts, err := block.Map(ctx, c.Content, off, c.size-off)
		if err != nil {
			return 0, err
		}
		if len(exts) == 0 {
			return 0, fmt.Errorf("map of %T at %d made no progress", c.Content, off)
		}
		for _, e := range exts {
			if e.Off != off || e.Len <= 0 {
				return 0, fmt.Errorf("map of %T gave %d+%d where %d was next", c.Content, e.Off, e.Len, off)
			}
			if (e.Kind == block.Data) == data {
				return off, nil
			}
			off = e.End()
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return c.size, nil
}
