// Package nbdclient opens an export of a Network Block Device server as a
// [block.Device]. Calls from many goroutines are sent as asynchronous commands
// over several connections, each driven by one event loop; every completion is
// checked.
//
// It knows nothing of what is served, and nothing of points or machines.
package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/sendense/sendense/block"
	"libguestfs.org/libnbd"
)

// Errors of connections. A device with a lost connection stays unusable.
var (
	// ErrLost says that a connection ended while it was in use.
	ErrLost = errors.New("connection to the NBD server was lost")
	// ErrTimeout says that the server did not answer in time.
	ErrTimeout = errors.New("NBD server does not answer")
	// ErrClosed says that the device was closed.
	ErrClosed = errors.New("NBD device is closed")
	// ErrNoContext says that the server did not grant a metadata context.
	ErrNoContext = errors.New("NBD server offers no such metadata context")
)

// Options modify Open and GetInfo.
type Options struct {
	// Conns is how many connections to use, default 4. It is 1 whatever is asked
	// where the server does not promise that several act as one (multi-conn).
	Conns int
	// Depth is how many commands are in flight on a connection, default 16; more
	// wait for their turn.
	Depth int
	// Contexts are metadata contexts to ask for besides base:allocation, such as
	// "qemu:dirty-bitmap:backup-vda". The server may not grant them: HasContext.
	Contexts []string
	// MaxRequest limits the bytes of one read or write command, default 32 MiB.
	// A lower limit of the server's applies too; larger calls are split.
	MaxRequest int64
	// ConnectTimeout limits connecting and negotiating, default 30 s.
	ConnectTimeout time.Duration
	// Timeout is how long a connection with commands in flight may go without a
	// reply to any of them, default 2 minutes.
	Timeout time.Duration
	// CancelGrace is how long a call whose context has ended waits for its
	// command in flight, whose memory cannot be given back before, default 5 s.
	// Then the connection, and with it the device, is given up.
	CancelGrace time.Duration
	// TLS says how to encrypt, for nbds URIs.
	TLS TLS
}

// TLS holds the client's keys. Empty fields are left to the URI and the system.
type TLS struct {
	Certificates string // folder of ca-cert.pem, client-cert.pem, client-key.pem
	Username     string // that goes with the pre-shared key
	PSKFile      string // file of pre-shared keys
}

func (o Options) withDefaults() Options {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&o.Conns, 4)
	set(&o.Depth, 16)
	wait(&o.ConnectTimeout, 30*time.Second)
	wait(&o.Timeout, 2*time.Minute)
	wait(&o.CancelGrace, 5*time.Second)
	if o.MaxRequest <= 0 || o.MaxRequest > maxRequest {
		o.MaxRequest = maxRequest
	}
	return o
}

// maxRequest is the payload that every server has to take (proto.md, "Block size
// constraints"), where it does not say less.
const maxRequest = 32 << 20

// maxRange is the length of one zero, trim or status command. The protocol has
// 32 bits for it; a power of two keeps pieces aligned.
const maxRange = 1 << 30

// Device is an export. It implements every capability of [block]; those that the
// server lacks fall back as package block says.
type Device struct {
	size     int64
	minBlock int64 // requests are multiples of it
	maxBlock int64 // payload of one command
	can      abilities
	contexts map[string]bool // granted
	conns    []*conn

	mu   sync.Mutex // guards the field below
	dead error      // why the device is unusable
}

type abilities struct {
	readOnly, flush, trim, zero, fastZero, multiConn bool
}

// Open connects to the export that uri names (doc/uri.md of the NBD project:
// nbd://host/export, nbd+unix:///export?socket=path, nbds://…). The caller closes
// the device.
func Open(ctx context.Context, uri string, o Options) (*Device, error) {
	o = o.withDefaults()
	first, err := dial(ctx, uri, o, false)
	if err != nil {
		return nil, err
	}
	d := &Device{contexts: map[string]bool{}}
	if err := d.negotiated(first, o); err != nil {
		_ = first.Close()
		return nil, fmt.Errorf("open %s: %w", uri, err)
	}
	handles := []*libnbd.Libnbd{first}
	if d.can.multiConn {
		handles = append(handles, dialMore(ctx, uri, o)...)
	}
	if err := d.start(handles, o); err != nil {
		return nil, fmt.Errorf("open %s: %w", uri, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// start takes over the handles and begins to drive them.
func (d *Device) start(handles []*libnbd.Libnbd, o Options) error {
	for i, h := range handles {
		c, err := newConn(h, o, d.fail)
		if err != nil {
			for _, c := range d.conns {
				c.discard()
			}
			for _, h := range handles[i:] {
				_ = h.Close()
			}
			return err
		}
		d.conns = append(d.conns, c)
	}
	for _, c := range d.conns { // not before all are there: one may fail them all
		go c.run()
	}
	return nil
}

// dialMore opens the other connections. A server may take fewer than it lets
// expect; those that fail are done without.
func dialMore(ctx context.Context, uri string, o Options) []*libnbd.Libnbd {
	more := make([]*libnbd.Libnbd, o.Conns-1)
	var wg sync.WaitGroup
	for i := range more {
		wg.Go(func() { more[i], _ = dial(ctx, uri, o, false) })
	}
	wg.Wait()
	var open []*libnbd.Libnbd
	for _, h := range more {
		if h != nil {
			open = append(open, h)
		}
	}
	return open
}

// negotiated takes over what the server said of the export.
func (d *Device) negotiated(h *libnbd.Libnbd, o Options) error {
	size, err := h.GetSize()
	if err != nil {
		return err
	}
	if size > 1<<63-1 {
		return fmt.Errorf("size %d is beyond 2^63", size)
	}
	d.size = int64(size)
	if d.can, err = ask(h); err != nil {
		return err
	}
	minimum, err := h.GetBlockSize(libnbd.SIZE_MINIMUM)
	if err != nil {
		return err
	}
	maximum, err := h.GetBlockSize(libnbd.SIZE_MAXIMUM)
	if err != nil {
		return err
	}
	d.minBlock = max(1, int64(minimum))
	d.maxBlock = o.MaxRequest
	if maximum > 0 && maximum < uint64(d.maxBlock) {
		d.maxBlock = int64(maximum)
	}
	d.maxBlock = max(d.maxBlock/d.minBlock*d.minBlock, d.minBlock)
	for _, name := range append([]string{baseAllocation}, o.Contexts...) {
		if d.contexts[name], err = h.CanMetaContext(name); err != nil {
			return err
		}
	}
	return nil
}

func ask(h *libnbd.Libnbd) (a abilities, err error) {
	for _, q := range []struct {
		to  *bool
		ask func() (bool, error)
	}{
		{&a.readOnly, h.IsReadOnly}, {&a.flush, h.CanFlush}, {&a.trim, h.CanTrim},
		{&a.zero, h.CanZero}, {&a.fastZero, h.CanFastZero}, {&a.multiConn, h.CanMultiConn},
	} {
		if *q.to, err = q.ask(); err != nil {
			return a, err
		}
	}
	return a, nil
}

// Close ends the connections and waits for their event loops. Calls under way
// get ErrClosed.
func (d *Device) Close() error {
	d.fail(ErrClosed)
	for _, c := range d.conns {
		<-c.done
	}
	return nil
}

// fail makes the device unusable for the reason given, unless it is already.
func (d *Device) fail(why error) {
	d.mu.Lock()
	if d.dead == nil {
		d.dead = why
	}
	why = d.dead
	d.mu.Unlock()
	for _, c := range d.conns {
		c.stop(why)
	}
}

// Size returns the export's length in bytes.
func (d *Device) Size() int64 { return d.size }

// Writable reports whether the server lets the export be changed.
func (d *Device) Writable() bool { return !d.can.readOnly }

// Conns returns how many connections are in use.
func (d *Device) Conns() int { return len(d.conns) }

// MinBlock returns the unit in bytes that writes and zeroes have to be aligned
// to, 1 if the server has none. Reads need no alignment.
func (d *Device) MinBlock() int64 { return d.minBlock }

// HasContext reports whether the server granted a metadata context.
func (d *Device) HasContext(name string) bool { return d.contexts[name] }

// ReadAt fills p with the bytes at off.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := block.CheckRange(d.size, off, n); err != nil {
		return err
	}
	if start, end := d.align(off, n); start != off || end != off+n {
		wide := make([]byte, end-start)
		if err := d.transfer(ctx, opRead, wide, start); err != nil {
			return err
		}
		copy(p, wide[off-start:])
		return nil
	}
	return d.transfer(ctx, opRead, p, off)
}

// align widens a range to the server's minimum block.
func (d *Device) align(off, n int64) (start, end int64) {
	if n == 0 {
		return off, off
	}
	end = off + n
	if rest := end % d.minBlock; rest != 0 {
		end += min(d.minBlock-rest, d.size-end)
	}
	return off - off%d.minBlock, end
}

// WriteAt stores p at off. It has to be aligned to MinBlock.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.checkWrite(opWrite, off, int64(len(p))); err != nil {
		return err
	}
	return d.transfer(ctx, opWrite, p, off)
}

func (d *Device) checkWrite(op opcode, off, n int64) error {
	if d.can.readOnly {
		return block.ErrReadOnly
	}
	if err := block.CheckRange(d.size, off, n); err != nil {
		return err
	}
	if start, end := d.align(off, n); start != off || end != off+n {
		return fmt.Errorf("%s %d bytes at %d: the server takes multiples of %d: %w", op, n, off, d.minBlock, syscall.EINVAL)
	}
	return nil
}

// WriteZeroes zeroes [off, off+n), which has to be aligned to MinBlock. FastOnly
// gives block.ErrNotFast where the server cannot promise it.
func (d *Device) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	if err := d.checkWrite(opZero, off, n); err != nil {
		return err
	}
	fast := flags&block.FastOnly != 0
	if fast && !d.can.fastZero {
		return block.ErrNotFast
	}
	if !d.can.zero {
		return d.writeOutZeroes(ctx, off, n)
	}
	var f libnbd.CmdFlag
	if flags&block.MayTrim == 0 {
		f |= libnbd.CMD_FLAG_NO_HOLE
	}
	if fast {
		f |= libnbd.CMD_FLAG_FAST_ZERO
	}
	return d.ranges(ctx, opZero, off, n, f)
}

func (d *Device) writeOutZeroes(ctx context.Context, off, n int64) error {
	zeroes := make([]byte, min(n, max(d.minBlock, min(d.maxBlock, 256<<10))))
	for n > 0 {
		l := min(n, int64(len(zeroes)))
		if err := d.transfer(ctx, opWrite, zeroes[:l], off); err != nil {
			return err
		}
		off, n = off+l, n-l
	}
	return nil
}

// Trim says that [off, off+n) is not needed; what of it does not fill a block of
// the server is left alone.
func (d *Device) Trim(ctx context.Context, off, n int64) error {
	if d.can.readOnly {
		return block.ErrReadOnly
	}
	if err := block.CheckRange(d.size, off, n); err != nil {
		return err
	}
	start := (off + d.minBlock - 1) / d.minBlock * d.minBlock
	end := off + n
	if end != d.size {
		end -= end % d.minBlock
	}
	if !d.can.trim || start >= end {
		return nil
	}
	return d.ranges(ctx, opTrim, start, end-start, 0)
}

// Flush makes completed writes durable, those of every connection: there are
// several only where the server promises that one flush covers them.
func (d *Device) Flush(ctx context.Context) error {
	if !d.can.flush || d.can.readOnly {
		return nil
	}
	return d.do(ctx, []*request{{op: opFlush}})
}
