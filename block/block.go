// Package block is the appliance's word for a disk: bytes at offsets.
//
// A [Device] has a size and can be read. Everything else a disk may be able to
// do is an optional one-method interface ([Mapper], [Writer], [Zeroer],
// [Trimmer], [Flusher], [Locator], [Changer]) that is used through the function
// of the same purpose ([Map], [Write], …), which supplies a safe default where
// a device lacks the capability. Behaviour is added by wrapping a device, never
// by flags; a wrapper forwards capabilities one by one through these functions,
// so that forgetting one makes it slower and never wrong.
//
// The package knows nothing of formats, networks or virtual machines.
// [github.com/sendense/sendense/block/blocktest] holds the conformance suite
// that every implementation passes.
package block

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Errors that every implementation uses for these conditions, possibly wrapped.
var (
	// ErrOutOfRange says that a request reaches beyond the device.
	ErrOutOfRange = errors.New("request reaches beyond the end of the device")
	// ErrReadOnly says that the device cannot be changed.
	ErrReadOnly = errors.New("device is read-only")
	// ErrNotFast says that zeroes asked for with [FastOnly] would need to be
	// written out like data.
	ErrNotFast = errors.New("zeroing would be no faster than writing")
)

// Device is a disk that can be read. Its methods may be called concurrently.
// Whoever opened a device closes it; Device itself has no Close.
type Device interface {
	// Size returns the length in bytes. It is constant while the device is open.
	Size() int64
	// ReadAt fills p with the bytes at off. It fills all of p or returns an
	// error, in which case the content of p is unspecified. A range that is not
	// inside the device gives ErrOutOfRange.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Kind says what stands behind a range of a device.
type Kind uint8

// The kinds of extent. Zero and Hole both read as zeroes; Hole also says that
// nothing is allocated for the range.
const (
	Data Kind = iota
	Zero
	Hole
)

// String returns the kind's name in lower case.
func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Zero:
		return "zero"
	case Hole:
		return "hole"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Extent is a range of one kind.
type Extent struct {
	Off  int64 // bytes from the start of the device
	Len  int64 // bytes, > 0
	Kind Kind
}

// End returns the offset of the first byte behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Range is a run of bytes.
type Range struct {
	Off int64 // bytes from the start of the device
	Len int64 // bytes, > 0
}

// End returns the offset of the first byte behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Mapper is implemented by devices that know where their data is. A device
// without it is treated as fully allocated.
type Mapper interface {
	// Map describes the device from off on: extents that begin at off and follow
	// one another without a gap. They cover at least one byte and at most n; a
	// device may stop short of n to bound its work, and the caller asks again.
	Map(ctx context.Context, off, n int64) ([]Extent, error)
}

// Writer is implemented by devices whose content can be changed.
type Writer interface {
	// WriteAt stores p at off. The data is visible to reads when it returns and
	// durable after the next successful Flush.
	WriteAt(ctx context.Context, p []byte, off int64) error
}

// ZeroFlags modify a request for zeroes.
type ZeroFlags uint8

const (
	// MayTrim allows the device to give up the space behind the range.
	MayTrim ZeroFlags = 1 << iota
	// FastOnly asks for ErrNotFast instead of zeroes written out as data.
	FastOnly
)

// Zeroer is implemented by devices that can zero a range without being sent the
// zeroes.
type Zeroer interface {
	WriteZeroes(ctx context.Context, off, n int64, flags ZeroFlags) error
}

// Trimmer is implemented by devices that can give up space.
type Trimmer interface {
	// Trim says that the content of the range is not needed any more. What it
	// reads as afterwards is up to the device; a device over a backing one must
	// not uncover what lies there.
	Trim(ctx context.Context, off, n int64) error
}

// Flusher is implemented by devices that hold data volatile until told.
type Flusher interface {
	// Flush makes every write that returned before it durable.
	Flush(ctx context.Context) error
}

// Location says where a run of a device's bytes can be fetched from without
// asking the device: from a file, or from nowhere because it is zeroes.
type Location struct {
	Len  int64    // bytes, > 0
	Kind Place    // what the other fields mean
	File *os.File // the file, for InFile
	Off  int64    // offset in File, for InFile
}

// Place is the kind of a [Location].
type Place uint8

// The places where bytes are found. Opaque bytes (compressed, remote, …) have to
// be read through the device.
const (
	Opaque Place = iota
	InFile
	InNothing
)

// Locator is implemented by devices whose bytes lie in files as they are, so
// that a server can move them by sendfile or splice.
type Locator interface {
	// Locate appends to dst the locations that together cover exactly n bytes
	// from off, and returns the extended slice. A location holds until its range
	// is written, zeroed or trimmed, or the device is closed.
	Locate(ctx context.Context, dst []Location, off, n int64) ([]Location, error)
}

// Changer is implemented by devices that know what differs from an older state
// of the same disk.
type Changer interface {
	// Changed returns, in ascending order, ranges inside [off, off+n) that cover
	// everything that differs from the state named since. They may cover more
	// than what differs, never less. A name that the device does not know is an
	// error.
	Changed(ctx context.Context, since string, off, n int64) ([]Range, error)
}

// CheckRange returns an error that wraps ErrOutOfRange unless [off, off+n) lies
// inside a device of the given size. Its arithmetic cannot overflow.
func CheckRange(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, ErrOutOfRange)
	}
	return nil
}
