package hive

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Types of values that have a meaning here ("Data types").
const (
	TypeString       = 1
	TypeExpandString = 2 // with names of variables in it
	TypeBinary       = 3
	TypeUint32       = 4
	TypeUint32Big    = 5
	TypeLink         = 6
	TypeStrings      = 7
	TypeUint64       = 11
)

// Value is a value of a key.
type Value struct {
	Name string
	Type uint32
	Data []byte
}

// MaxValue is how long a value may be that is read, in bytes.
const MaxValue = 1 << 20

// String returns what a string says, up to its end; other types as far as they are
// one.
func (v Value) String() string {
	switch v.Type {
	case TypeString, TypeExpandString, TypeLink, TypeStrings:
		s, _, _ := strings.Cut(text16(v.Data), "\x00")
		return s
	}
	return ""
}

// Uint returns a number.
func (v Value) Uint() (n uint64, ok bool) {
	switch {
	case v.Type == TypeUint32 && len(v.Data) == 4:
		return uint64(le.Uint32(v.Data)), true
	case v.Type == TypeUint32Big && len(v.Data) == 4:
		return uint64(binary.BigEndian.Uint32(v.Data)), true
	case v.Type == TypeUint64 && len(v.Data) == 8:
		return le.Uint64(v.Data), true
	}
	return 0, false
}

// Value returns a value by name.
func (k *Key) Value(name string) (Value, error) {
	var found *valueRecord
	err := k.each(func(r *valueRecord) bool {
		if strings.EqualFold(r.name, name) {
			found = r
		}
		return found == nil
	})
	if found != nil {
		return k.h.value(found)
	}
	if err == nil {
		err = fmt.Errorf("value %q: %w", name, errMissing)
	}
	return Value{}, err
}

// Values calls yield for each value until it returns false. Damaged ones are left out,
// and are an error at the end.
func (k *Key) Values(yield func(Value) bool) error {
	var bad error
	err := k.each(func(r *valueRecord) bool {
		v, err := k.h.value(r)
		if err != nil {
			bad = err
			return true
		}
		return yield(v)
	})
	if err != nil {
		return err
	}
	return bad
}

// valueRecord is a value whose data is not read yet ("Key value").
type valueRecord struct {
	name   string
	kind   uint32
	size   uint32
	offset uint32 // or the data itself
}

// valueBytes is the length of a record in front of its name, in bytes.
const valueBytes = 20

// each calls yield for the records of a key's values.
func (k *Key) each(yield func(*valueRecord) bool) error {
	if k.values == 0 {
		return nil
	}
	if k.values > maxValues {
		return fmt.Errorf("%d values of %s: %w", k.values, k.name, fsys.ErrCorrupt)
	}
	list, size, err := k.h.cell(k.valueList, int(k.values)*4)
	if err != nil {
		return err
	}
	if size < int(k.values)*4 {
		return fmt.Errorf("list of %d values in %d bytes: %w", k.values, size, fsys.ErrCorrupt)
	}
	var bad error
	for ; len(list) >= 4; list = list[4:] {
		r, err := k.h.valueRecord(le.Uint32(list))
		if err != nil {
			bad = err
			continue
		}
		if !yield(r) {
			return nil
		}
	}
	return bad
}

// maxValueName is how long the name of a value may be: 16,383 characters.
const maxValueName = 32 << 10

func (h *Hive) valueRecord(offset uint32) (*valueRecord, error) {
	const narrow = 0x0001
	b, err := h.record(offset, "vk", valueBytes, valueBytes+maxValueName)
	if err != nil {
		return nil, err
	}
	n := int(le.Uint16(b[2:]))
	if n > len(b)-valueBytes {
		return nil, fmt.Errorf("value at %#x with a name of %d bytes: %w", offset, n, fsys.ErrCorrupt)
	}
	return &valueRecord{
		name: text(b[valueBytes:valueBytes+n], le.Uint16(b[16:])&narrow != 0), kind: le.Uint32(b[12:]), size: le.Uint32(b[4:]), offset: le.Uint32(b[8:]),
	}, nil
}

// segment is how many bytes each part of a long value has, but for the last ("Big
// data").
const segment = 16344

// value reads the data of a record.
func (h *Hive) value(r *valueRecord) (Value, error) {
	const inline = 1 << 31
	v := Value{Name: r.name, Type: r.kind}
	n := int(r.size &^ inline)
	switch {
	case r.size&inline != 0:
		if n > 4 {
			return v, fmt.Errorf("value %s of %d bytes in place of an offset: %w", r.name, n, fsys.ErrCorrupt)
		}
		v.Data = le.AppendUint32(nil, r.offset)[:n]
		return v, nil
	case n == 0:
		return v, nil
	case n > MaxValue:
		return v, fmt.Errorf("value %s of %d bytes: %w", r.name, n, fsys.ErrUnsupported)
	}
	b, size, err := h.cell(r.offset, n)
	if err != nil {
		return v, err
	}
	if n > segment && size >= 8 && string(b[:2]) == "db" {
		v.Data, err = h.long(b, n)
		return v, err
	}
	if size < n {
		return v, fmt.Errorf("value %s of %d bytes in %d: %w", r.name, n, size, fsys.ErrCorrupt)
	}
	v.Data = b
	return v, nil
}

// long reads a value of n bytes that is in several cells.
func (h *Hive) long(head []byte, n int) ([]byte, error) {
	parts := int(le.Uint16(head[2:]))
	if parts != (n+segment-1)/segment {
		return nil, fmt.Errorf("%d bytes in %d parts: %w", n, parts, fsys.ErrCorrupt)
	}
	list, size, err := h.cell(le.Uint32(head[4:]), parts*4)
	if err != nil {
		return nil, err
	}
	if size < parts*4 {
		return nil, fmt.Errorf("list of %d parts in %d bytes: %w", parts, size, fsys.ErrCorrupt)
	}
	data := make([]byte, 0, n)
	for ; len(data) < n; list = list[4:] {
		want := min(segment, n-len(data))
		b, _, err := h.cell(le.Uint32(list), want)
		if err != nil {
			return nil, err
		}
		if len(b) < want {
			return nil, fmt.Errorf("part of %d bytes that has %d: %w", want, len(b), fsys.ErrCorrupt)
		}
		data = append(data, b...)
	}
	return data, nil
}
