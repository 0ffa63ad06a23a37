package nbdserver

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/sendense/sendense/block"
)

// Export is a device under a name.
type Export struct {
	Name        string // up to 4096 bytes of UTF-8; "" is the default export
	Description string // shown to people by clients that list exports
	Device      block.Device
	// ReadOnly refuses changes. Implied by a device that is not block.Writable.
	ReadOnly bool
	// Since lists the names that the device's Changed understands. Each is
	// offered as the metadata context qemu:dirty-bitmap:since-{name}.
	Since []string

	// MinBlock is the alignment that requests must have: a power of two up to
	// 65,536. Default 1.
	MinBlock uint32
	// PreferredBlock is the alignment at which requests are efficient: a power of
	// two, at least 512 and MinBlock. Default 4096, or MinBlock if that is larger.
	PreferredBlock uint32
	// MaxBlock is the longest payload in bytes; at least PreferredBlock, at most
	// Options.MaxRequest. Default Options.MaxRequest.
	MaxBlock uint32
}

// export is an Export with what the server knows of it.
type export struct {
	Export
	size  int64
	files sync.Map // *os.File to *file, for the files that the device located

	stopping chan struct{} // closed when the export is removed
	killed   chan struct{} // closed when its connections are to be cut
	unused   chan struct{} // closed when it is removed and has no users
	users    int           // guarded by Server.mu
}

func newExport(e Export, maxRequest int64) (*export, error) {
	if e.Device == nil {
		return nil, errors.New("no device")
	}
	if err := checkString(e.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	if err := checkString(e.Description); err != nil {
		return nil, fmt.Errorf("description: %w", err)
	}
	for _, name := range e.Since {
		if err := checkString(sincePrefix + name); err != nil || name == "" {
			return nil, fmt.Errorf("since %q: not usable as a context name", name)
		}
	}
	e.MinBlock = cmp.Or(e.MinBlock, 1)
	e.PreferredBlock = cmp.Or(e.PreferredBlock, max(4096, e.MinBlock))
	e.MaxBlock = cmp.Or(e.MaxBlock, uint32(maxRequest))
	switch {
	case bits.OnesCount32(e.MinBlock) != 1 || e.MinBlock > 1<<16:
		return nil, fmt.Errorf("minimum block size %d is not a power of two up to 65536", e.MinBlock)
	case bits.OnesCount32(e.PreferredBlock) != 1 || e.PreferredBlock < max(512, e.MinBlock):
		return nil, fmt.Errorf("preferred block size %d is not a power of two from %d", e.PreferredBlock, max(512, e.MinBlock))
	case e.MaxBlock < e.PreferredBlock || int64(e.MaxBlock) > maxRequest:
		return nil, fmt.Errorf("maximum block size %d is not from %d to %d", e.MaxBlock, e.PreferredBlock, maxRequest)
	}
	size := e.Device.Size()
	if size < 0 {
		return nil, fmt.Errorf("size is %d", size)
	}
	e.ReadOnly = e.ReadOnly || !block.Writable(e.Device)
	return &export{
		Export:   e,
		size:     size,
		stopping: make(chan struct{}),
		killed:   make(chan struct{}),
		unused:   make(chan struct{}),
	}, nil
}

func checkString(s string) error {
	switch {
	case len(s) > maxString:
		return fmt.Errorf("%d bytes are more than %d", len(s), maxString)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return errors.New("not UTF-8 without NUL")
	}
	return nil
}

// flags returns the transmission flags for a client that negotiated sess.
//
// Multi-conn is always safe to promise: all connections share the device, and
// its Flush covers every write that returned, whoever asked for it.
func (x *export) flags(sess *session) uint16 {
	f := uint16(sendHasFlags | sendFlush | sendFUA | sendMultiConn | sendCache)
	if x.ReadOnly {
		f |= sendReadOnly
	} else {
		f |= sendTrim | sendWriteZeroes | sendFastZero
	}
	if sess.structured || sess.extended {
		f |= sendDF
	}
	if sess.extended && len(sess.contextsOf(x)) > 0 {
		f |= sendStatusPayload
	}
	return f
}

// file returns what is known of a located file.
func (x *export) file(f *os.File) (*file, error) {
	if known, ok := x.files.Load(f); ok {
		return known.(*file), nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	known, _ := x.files.LoadOrStore(f, &file{raw: raw})
	return known.(*file), nil
}
