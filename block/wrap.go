package block

import (
	"context"
	"sync/atomic"
	"time"
)

// Wrapped forwards every capability of the device inside it. A wrapper embeds it
// and overrides the methods whose behaviour it adds to; a wrapper that moves
// offsets or changes content has to override all of them.
type Wrapped struct{ Inner Device }

var _ interface {
	Device
	Mapper
	Writer
	Zeroer
	Trimmer
	Flusher
	Locator
	Changer
} = Wrapped{}

// Size implements [Device].
func (w Wrapped) Size() int64 { return w.Inner.Size() }

// ReadAt implements [Device].
func (w Wrapped) ReadAt(ctx context.Context, p []byte, off int64) error {
	return w.Inner.ReadAt(ctx, p, off)
}

// Writable reports whether the device inside can be changed.
func (w Wrapped) Writable() bool { return Writable(w.Inner) }

// Map implements [Mapper].
func (w Wrapped) Map(ctx context.Context, off, n int64) ([]Extent, error) {
	return Map(ctx, w.Inner, off, n)
}

// WriteAt implements [Writer].
func (w Wrapped) WriteAt(ctx context.Context, p []byte, off int64) error {
	return Write(ctx, w.Inner, p, off)
}

// WriteZeroes implements [Zeroer].
func (w Wrapped) WriteZeroes(ctx context.Context, off, n int64, flags ZeroFlags) error {
	return WriteZeroes(ctx, w.Inner, off, n, flags)
}

// Trim implements [Trimmer].
func (w Wrapped) Trim(ctx context.Context, off, n int64) error {
	return Trim(ctx, w.Inner, off, n)
}

// Flush implements [Flusher].
func (w Wrapped) Flush(ctx context.Context) error { return Flush(ctx, w.Inner) }

// Locate implements [Locator].
func (w Wrapped) Locate(ctx context.Context, dst []Location, off, n int64) ([]Location, error) {
	return Locate(ctx, w.Inner, dst, off, n)
}

// Changed implements [Changer].
func (w Wrapped) Changed(ctx context.Context, since string, off, n int64) ([]Range, error) {
	return Changed(ctx, w.Inner, since, off, n)
}

// ReadOnly returns d without its ability to be changed.
func ReadOnly(d Device) Device { return readOnly{d} }

type readOnly struct{ inner Device }

func (r readOnly) Size() int64 { return r.inner.Size() }

func (r readOnly) ReadAt(ctx context.Context, p []byte, off int64) error {
	return r.inner.ReadAt(ctx, p, off)
}

func (r readOnly) Map(ctx context.Context, off, n int64) ([]Extent, error) {
	return Map(ctx, r.inner, off, n)
}

func (r readOnly) Locate(ctx context.Context, dst []Location, off, n int64) ([]Location, error) {
	return Locate(ctx, r.inner, dst, off, n)
}

func (r readOnly) Changed(ctx context.Context, since string, off, n int64) ([]Range, error) {
	return Changed(ctx, r.inner, since, off, n)
}

// Counts is what a device wrapped by [Counted] was asked to do.
type Counts struct {
	ReadBytes    atomic.Int64
	WrittenBytes atomic.Int64 // data, without zeroes
	ZeroedBytes  atomic.Int64 // by WriteZeroes and Trim
}

// Counted adds to c what succeeds on d. Bytes that a server moves from a file by
// itself after Locate are counted as read when they are located.
func Counted(d Device, c *Counts) Device { return counted{Wrapped{d}, c} }

type counted struct {
	Wrapped
	c *Counts
}

func (d counted) ReadAt(ctx context.Context, p []byte, off int64) error {
	return count(&d.c.ReadBytes, int64(len(p)), d.Wrapped.ReadAt(ctx, p, off))
}

func (d counted) Locate(ctx context.Context, dst []Location, off, n int64) ([]Location, error) {
	before := len(dst)
	dst, err := d.Wrapped.Locate(ctx, dst, off, n)
	if err == nil {
		for _, l := range dst[before:] {
			if l.Kind == InFile {
				d.c.ReadBytes.Add(l.Len)
			}
		}
	}
	return dst, err
}

func (d counted) WriteAt(ctx context.Context, p []byte, off int64) error {
	return count(&d.c.WrittenBytes, int64(len(p)), d.Wrapped.WriteAt(ctx, p, off))
}

func (d counted) WriteZeroes(ctx context.Context, off, n int64, flags ZeroFlags) error {
	return count(&d.c.ZeroedBytes, n, d.Wrapped.WriteZeroes(ctx, off, n, flags))
}

func (d counted) Trim(ctx context.Context, off, n int64) error {
	return count(&d.c.ZeroedBytes, n, d.Wrapped.Trim(ctx, off, n))
}

func count(c *atomic.Int64, n int64, err error) error {
	if err == nil {
		c.Add(n)
	}
	return err
}

// Limit is a rate shared by the devices it is given to.
type Limit struct {
	perSecond int64
	now       func() time.Time
	free      atomic.Int64 // nanoseconds of now() when the next byte may pass
}

// NewLimit returns a limit of bytesPerSecond, > 0, that may run ahead by a tenth
// of a second. The clock is time.Now unless given.
func NewLimit(bytesPerSecond int64, now func() time.Time) *Limit {
	if now == nil {
		now = time.Now //permit:time.Now: the default of an injected clock
	}
	return &Limit{perSecond: bytesPerSecond, now: now}
}

// Wait blocks until n bytes may pass or ctx ends.
func (l *Limit) Wait(ctx context.Context, n int64) error {
	const burst = 100 * time.Millisecond
	cost := int64(float64(n) / float64(l.perSecond) * float64(time.Second))
	var wait time.Duration
	for {
		now, free := l.now().UnixNano(), l.free.Load()
		start := max(free, now-int64(burst))
		if l.free.CompareAndSwap(free, start+cost) {
			wait = time.Duration(start - now)
			break
		}
	}
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Throttle keeps reads and writes of d within the limit. It hides where the
// bytes lie, since a server that fetches them itself would pass it by.
func Throttle(d Device, l *Limit) Device { return throttled{Wrapped{d}, l} }

type throttled struct {
	Wrapped
	limit *Limit
}

func (d throttled) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.limit.Wait(ctx, int64(len(p))); err != nil {
		return err
	}
	return d.Wrapped.ReadAt(ctx, p, off)
}

func (d throttled) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.limit.Wait(ctx, int64(len(p))); err != nil {
		return err
	}
	return d.Wrapped.WriteAt(ctx, p, off)
}

func (d throttled) Locate(_ context.Context, dst []Location, off, n int64) ([]Location, error) {
	if err := CheckRange(d.Size(), off, n); err != nil || n == 0 {
		return dst, err
	}
	return append(dst, Location{Len: n, Kind: Opaque}), nil
}
