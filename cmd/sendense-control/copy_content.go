package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
)

// Content comes to a copy in two ways. Where this process may open the files in
// which it lies, it takes it from there: the kernel copies, or on file systems that
// share blocks does not even do that. All else is sent.

const (
	// fetchedFrom is the size of files from which on it is asked where they lie.
	fetchedFrom = 1 << 20
	// pieceBytes is how much is written at a time. Of more, file systems take memory
	// in larger blocks, which may be slow to come by.
	pieceBytes = 128 << 10
	// stretchBytes is how much the kernel copies before it is seen that nobody waits
	// for it any more.
	stretchBytes = 64 << 20
)

// errNotHere says that content has to be sent.
var errNotHere = errors.New("the content lies nowhere that it could be taken from")

func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// notCopied says that a copy could not be made, which is no fault of the point.
func notCopied(path string, err error) error {
	if noRoom(err) {
		return &appliance.Error{Code: appliance.CodeNoSpace, Err: err, Msg: fmt.Sprintf("There is not enough room for a copy of %s.", appliance.Visible(path)),
			Hint: "Free space where it goes to, and copy again."}
	}
	return fmt.Errorf("copy %s: %w", appliance.Visible(path), err)
}

// writing tells an error of writing content from one of reading it, which is for
// users as it is.
func writing(ctx context.Context, path string, err error) error {
	var e *appliance.Error
	if err == nil || ctx.Err() != nil || errors.As(err, &e) {
		return err
	}
	return notCopied(path, err)
}

// fetch copies content of size bytes from where it lies to a new file. Where it fails
// for want of anything but room the file is empty again, and the content may be sent:
// if that cannot be done either, it is known whose fault it is.
func (x *copier) fetch(r appliance.FilesRequest, out *os.File, size int64) error {
	h := holders{}
	defer h.close()
	var failed error // of the copy
	at := int64(0)
	err := x.conn.Places(x.ctx, r, func(p api.FilePlace) error {
		if p.Offset != at || p.Length <= 0 || p.Length > size-at {
			return errNotHere
		}
		at += p.Length
		if p.Path == "" {
			return nil
		}
		in, err := h.open(p)
		if err != nil {
			return err
		}
		failed = x.stretch(in, p.At, out, p.Offset, p.Length)
		return failed
	})
	switch {
	case x.ctx.Err() != nil:
		return x.ctx.Err()
	case noRoom(failed):
		return notCopied(r.Path, failed)
	case err == nil && at == size:
		return out.Truncate(size) // a hole at the end
	}
	return errors.Join(errNotHere, out.Truncate(0))
}

// holders are open files that hold content, by where they were found.
type holders map[api.FilePlace]*os.File

func (h holders) close() {
	for _, f := range h {
		f.Close()
	}
}

// open opens the file of a place, if it is still that.
func (h holders) open(p api.FilePlace) (*os.File, error) {
	key := api.FilePlace{Path: p.Path, ID: p.ID}
	if f := h[key]; f != nil {
		return f, nil
	}
	f, err := os.OpenFile(p.Path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0) // whatever else may be there
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || api.FileID(&st) != p.ID {
		return nil, errors.Join(errNotHere, err, f.Close())
	}
	h[key] = f
	return f, nil
}

// stretch copies n bytes from one file to another.
func (x *copier) stretch(in *os.File, from int64, out *os.File, to, n int64) error {
	for n > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		m, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(min(n, stretchBytes)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			return x.pieces(in, from, out, to, n)
		case err != nil:
			return err
		case m == 0:
			return io.ErrUnexpectedEOF
		}
		n -= int64(max(m, 0))
	}
	return nil
}

// pieces is stretch between files of which the kernel does not copy one to the
// other.
func (x *copier) pieces(in *os.File, from int64, out *os.File, to, n int64) error {
	buf := make([]byte, min(n, pieceBytes))
	for n > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(n, pieceBytes)]
		if m, err := in.ReadAt(p, from); m < len(p) {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if _, err := out.WriteAt(p, to); err != nil {
			return err
		}
		from, to, n = from+int64(len(p)), to+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// sparseBlock is the unit in which zeroes are left out, in bytes.
const sparseBlock = 4 << 10

var zeroBlock [sparseBlock]byte

// copySparse writes what r holds to a new file and leaves out blocks of zeroes. It
// returns how much r held, the file may end before that, and what went wrong with
// either.
func copySparse(out *os.File, r io.Reader) (n int64, readErr, writeErr error) {
	buf := make([]byte, pieceBytes)
	for {
		m, err := io.ReadFull(r, buf)
		if writeErr := writeSparse(out, buf[:m], n); writeErr != nil {
			return n, nil, writeErr
		}
		n += int64(m)
		if err == io.EOF || err == io.ErrUnexpectedEOF { // r has ended, as opposed to broken off
			return n, nil, nil
		}
		if err != nil {
			return n, err, nil
		}
	}
}

func writeSparse(out *os.File, p []byte, at int64) error {
	for len(p) > 0 {
		n := 0
		for n < len(p) && !isZeroBlock(p[n:]) {
			n = min(n+sparseBlock, len(p))
		}
		if n > 0 {
			if _, err := out.WriteAt(p[:n], at); err != nil {
				return err
			}
		}
		for n < len(p) && isZeroBlock(p[n:]) {
			n = min(n+sparseBlock, len(p))
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// isZeroBlock reports whether the first block of p is zeroes.
func isZeroBlock(p []byte) bool {
	n := min(len(p), sparseBlock)
	return bytes.Equal(p[:n], zeroBlock[:n])
}
