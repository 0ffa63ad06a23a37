package libvirt

import (
	"context"
	"errors"
	"fmt"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/nbdclient"
)

// exported is a disk of a backup job. Its errors say so if the machine is the
// reason.
type exported struct {
	dev     *nbdclient.Device
	instant *running
}

var (
	_ block.Mapper  = exported{}
	_ block.Changer = tracked{}
)

// Size implements block.Device.
func (e exported) Size() int64 { return e.dev.Size() }

// ReadAt implements block.Device. It fails as soon as the instant is known to be
// none any more: there is no use in reading the rest.
func (e exported) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := e.instant.reason(); err != nil {
		return err
	}
	return e.explain(ctx, e.dev.ReadAt(ctx, p, off))
}

// Map implements block.Mapper.
func (e exported) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	exts, err := e.dev.Map(ctx, off, n)
	return exts, e.explain(ctx, err)
}

// explain adds what became of the machine to the error of a lost connection.
func (e exported) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, block.ErrOutOfRange) {
		return err
	}
	if why := e.instant.Err(); why != nil {
		return fmt.Errorf("%w: %w", why, err)
	}
	return err
}

// tracked is a disk that knows what changed since a checkpoint.
type tracked struct {
	exported
	since  string // the checkpoint
	bitmap string // the metadata context that tells
}

// Changed implements block.Changer.
func (t tracked) Changed(ctx context.Context, since string, off, n int64) ([]block.Range, error) {
	if since != t.since {
		return nil, fmt.Errorf("changes since %q: the instant knows those since %q", since, t.since)
	}
	ranges, err := t.dev.Changed(ctx, t.bitmap, off, n)
	return ranges, t.explain(ctx, err)
}
