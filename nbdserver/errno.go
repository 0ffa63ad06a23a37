package nbdserver

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"syscall"

	"github.com/sendense/sendense/block"
)

// Errno is an error value of the NBD protocol; 0 is success. The values are
// fixed by the protocol, whatever the platform.
type Errno uint32

// The errors that the protocol defines.
const (
	ErrnoPerm     Errno = 1
	ErrnoIO       Errno = 5
	ErrnoNoMem    Errno = 12
	ErrnoInvalid  Errno = 22
	ErrnoNoSpace  Errno = 28
	ErrnoOverflow Errno = 75
	ErrnoNotSup   Errno = 95
	ErrnoShutdown Errno = 108
)

// errnos says which protocol error stands for which error of a device. The
// first match counts.
var errnos = []struct {
	err error
	no  Errno
}{
	{block.ErrReadOnly, ErrnoPerm},
	{block.ErrNotFast, ErrnoNotSup},
	{context.Canceled, ErrnoShutdown},
	{net.ErrClosed, ErrnoShutdown},
	{fs.ErrClosed, ErrnoShutdown},
	{syscall.ESHUTDOWN, ErrnoShutdown},
	{syscall.ENOSPC, ErrnoNoSpace},
	{syscall.EDQUOT, ErrnoNoSpace},
	{syscall.EFBIG, ErrnoNoSpace},
	{syscall.EROFS, ErrnoPerm},
	{fs.ErrPermission, ErrnoPerm},
	{syscall.EINVAL, ErrnoInvalid},
	{syscall.ENOMEM, ErrnoNoMem},
	{syscall.EOVERFLOW, ErrnoOverflow},
}

// errnoFor translates what a device said about a request. The protocol keeps
// ENOTSUP for zeroes that were to be fast, and reports a write beyond the end
// as lack of space.
func errnoFor(cmd Command, err error) Errno {
	if err == nil {
		return 0
	}
	if errors.Is(err, block.ErrOutOfRange) {
		return outOfRange(cmd)
	}
	for _, e := range errnos {
		if !errors.Is(err, e.err) {
			continue
		}
		if e.no == ErrnoNotSup && cmd != CmdWriteZeroes {
			return ErrnoIO
		}
		return e.no
	}
	return ErrnoIO
}

func outOfRange(cmd Command) Errno {
	if cmd == CmdWrite || cmd == CmdWriteZeroes {
		return ErrnoNoSpace
	}
	return ErrnoInvalid
}
