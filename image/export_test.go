package image

import "context"

// Storage is what a Writer works on.
type Storage = storage

// NewWriterOn opens a Writer on any storage.
func NewWriterOn(st Storage, o WriterOptions) (*Writer, error) { return newWriter("test", st, o) }

// FormatOn makes an empty image on any storage.
func FormatOn(st Storage, o CreateOptions) error {
	h, err := o.header()
	if err != nil {
		return err
	}
	return format(st, h)
}

// CheckOn checks an image on any storage, window clusters at a time.
func CheckOn(ctx context.Context, st Storage, window int64) (*Report, error) {
	return check(ctx, st, window)
}
