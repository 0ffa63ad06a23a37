package fusemount

import (
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sendense/sendense/block"
)

// shown are the errors of the system that are handed on as they are. Others would
// mean something else to the kernel: it never again asks for what answers ENOSYS.
var shown = []syscall.Errno{
	syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG,
	syscall.ENOTDIR, syscall.EISDIR, syscall.ENAMETOOLONG, syscall.ENODATA, syscall.ERANGE, syscall.E2BIG,
	syscall.EINVAL, syscall.ENXIO, syscall.EOPNOTSUPP, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE,
	syscall.EBUSY, syscall.ETIMEDOUT,
}

// errno returns what a program is told of err, and whether an operator should be
// told, too.
func errno(err error) (status fuse.Status, log bool) {
	switch {
	case err == nil:
		return fuse.OK, false
	case errors.Is(err, context.Canceled):
		return fuse.EINTR, false
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT, false
	case errors.Is(err, block.ErrReadOnly):
		return fuse.EROFS, false
	case errors.Is(err, context.DeadlineExceeded):
		return fuse.Status(syscall.ETIMEDOUT), true
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		for _, e := range shown {
			if no == e {
				return fuse.Status(e), e != syscall.ENODATA
			}
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return fuse.EACCES, true
	}
	return fuse.EIO, true
}

// maxLogged bounds the errors that are remembered.
const maxLogged = 1024

// once logs each error once: who reads a damaged file asks for it again and again.
type once struct {
	log  *slog.Logger
	seed maphash.Seed

	mu   sync.Mutex // guards the field below
	seen map[uint64]struct{}
}

func newOnce(log *slog.Logger) *once {
	return &once{log: log, seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}}
}

// report logs that op failed for what lies at path, in the tree.
func (o *once) report(op, path string, err error) {
	var h maphash.Hash
	h.SetSeed(o.seed)
	for _, s := range []string{op, path, err.Error()} {
		_, _ = h.WriteString(s) // cannot fail
		_ = h.WriteByte(0)
	}
	key := h.Sum64()
	o.mu.Lock()
	_, known := o.seen[key]
	if known || len(o.seen) > maxLogged {
		o.mu.Unlock()
		return
	}
	o.seen[key] = struct{}{}
	count := len(o.seen)
	o.mu.Unlock()
	if count > maxLogged {
		o.log.Warn("the mount gave many errors: further ones are not logged")
		return
	}
	o.log.Warn("a program was given an error for what the mount shows", "op", op, "path", path, "err", err)
}
