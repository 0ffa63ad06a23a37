package block

import (
	"context"
	"fmt"
)

// Writable reports whether d can be changed. A device whose ability depends on
// what it wraps says so with a method Writable() bool.
func Writable(d Device) bool {
	if _, ok := d.(Writer); !ok {
		return false
	}
	if w, ok := d.(interface{ Writable() bool }); ok {
		return w.Writable()
	}
	return true
}

// Map describes d from off on, as [Mapper] says; one extent of data where d is
// no Mapper.
func Map(ctx context.Context, d Device, off, n int64) ([]Extent, error) {
	if err := CheckRange(d.Size(), off, n); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	if m, ok := d.(Mapper); ok {
		return m.Map(ctx, off, n)
	}
	return []Extent{{Off: off, Len: n, Kind: Data}}, nil
}

// MapAll calls fn for each extent of [off, off+n) in order, with neighbours of
// one kind joined. It holds only a bounded number of extents at a time.
func MapAll(ctx context.Context, d Device, off, n int64, fn func(Extent) error) error {
	if err := CheckRange(d.Size(), off, n); err != nil {
		return err
	}
	var pending Extent
	for end := off + n; off < end; {
		exts, err := Map(ctx, d, off, end-off)
		if err != nil {
			return err
		}
		if len(exts) == 0 {
			return fmt.Errorf("map of %T at %d made no progress", d, off)
		}
		for _, e := range exts {
			if e.Off != off || e.Len <= 0 || e.Len > end-off {
				return fmt.Errorf("map of %T gave extent %d+%d where %d was next", d, e.Off, e.Len, off)
			}
			off = e.End()
			switch {
			case pending.Len == 0:
				pending = e
			case pending.Kind == e.Kind:
				pending.Len += e.Len
			default:
				if err := fn(pending); err != nil {
					return err
				}
				pending = e
			}
		}
	}
	if pending.Len > 0 {
		return fn(pending)
	}
	return nil
}

// Write stores p at off; ErrReadOnly where d is no Writer.
func Write(ctx context.Context, d Device, p []byte, off int64) error {
	w, ok := d.(Writer)
	if !ok {
		return ErrReadOnly
	}
	return w.WriteAt(ctx, p, off)
}

// zeroes is what WriteZeroes writes out for devices that are no Zeroer.
var zeroes [256 << 10]byte

// WriteZeroes zeroes [off, off+n). Where d is no Zeroer the zeroes are written
// out, or refused with ErrNotFast if flags has FastOnly.
func WriteZeroes(ctx context.Context, d Device, off, n int64, flags ZeroFlags) error {
	if z, ok := d.(Zeroer); ok {
		return z.WriteZeroes(ctx, off, n, flags)
	}
	if !Writable(d) {
		return ErrReadOnly
	}
	if flags&FastOnly != 0 {
		return ErrNotFast
	}
	if err := CheckRange(d.Size(), off, n); err != nil {
		return err
	}
	for n > 0 {
		l := min(n, int64(len(zeroes)))
		if err := Write(ctx, d, zeroes[:l], off); err != nil {
			return err
		}
		off, n = off+l, n-l
	}
	return nil
}

// Trim tells d that [off, off+n) is not needed; it does nothing where d is no
// Trimmer, since trimming is advice.
func Trim(ctx context.Context, d Device, off, n int64) error {
	if t, ok := d.(Trimmer); ok {
		return t.Trim(ctx, off, n)
	}
	if !Writable(d) {
		return ErrReadOnly
	}
	return CheckRange(d.Size(), off, n)
}

// Flush makes earlier writes durable; where d is no Flusher they already are.
func Flush(ctx context.Context, d Device) error {
	if f, ok := d.(Flusher); ok {
		return f.Flush(ctx)
	}
	return nil
}

// Locate appends to dst where [off, off+n) of d lies, as [Locator] says; one
// Opaque location where d is no Locator.
func Locate(ctx context.Context, d Device, dst []Location, off, n int64) ([]Location, error) {
	if l, ok := d.(Locator); ok {
		return l.Locate(ctx, dst, off, n)
	}
	if err := CheckRange(d.Size(), off, n); err != nil {
		return dst, err
	}
	if n == 0 {
		return dst, nil
	}
	return append(dst, Location{Len: n, Kind: Opaque}), nil
}

// Changed returns what of [off, off+n) may differ from the state named since;
// all of it where d is no Changer.
func Changed(ctx context.Context, d Device, since string, off, n int64) ([]Range, error) {
	if err := CheckRange(d.Size(), off, n); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	if c, ok := d.(Changer); ok {
		return c.Changed(ctx, since, off, n)
	}
	return []Range{{Off: off, Len: n}}, nil
}
