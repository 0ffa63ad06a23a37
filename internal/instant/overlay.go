package instant

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

const (
	// maxRedo is how long a redo log may get before there is a flush, in bytes.
	maxRedo = 64 << 20
	// shortRedo is how long one may be, in bytes, for a flush to leave it as it is:
	// to do again what is durable does no harm as long as all that came later is
	// done again, too, and most flushes then have nothing to do with the log.
	shortRedo = 1 << 20
)

// Overlay is what a session writes over one disk of a point: a QCOW2 file, and a
// redo log of what was written to it since the last flush.
//
// What a write returned for outlives the process, be it killed: a guest that goes
// on over a new connection finds everything that it was told is written, as it
// must, for it knows nothing of the interruption. What a flush returned for also
// outlives the kernel. All methods may be called concurrently.
type Overlay struct {
	w    *image.Writer
	path string
	boot string
	room func(n int64) error

	mu   sync.RWMutex // shared by changes; guards the fields below
	log  *segment
	old  []*segment // of changes that may not be durable yet, oldest first
	free []*segment // for another use
	made int        // segments, for their names
	uses uint64     // numbers given
}

var (
	_ block.Mapper  = (*Overlay)(nil)
	_ block.Writer  = (*Overlay)(nil)
	_ block.Zeroer  = (*Overlay)(nil)
	_ block.Trimmer = (*Overlay)(nil)
	_ block.Flusher = (*Overlay)(nil)
	_ block.Locator = (*Overlay)(nil)
)

// CreateOverlay makes an overlay's file over a backing file, durable with its name.
// backing is told to tools that read the file by itself; it may be "".
func CreateOverlay(path string, size, clusterSize int64, backing string) error {
	o := image.CreateOptions{Size: size, ClusterSize: clusterSize}
	if backing != "" {
		rel, err := filepath.Rel(filepath.Dir(path), backing)
		if err != nil {
			return fmt.Errorf("create overlay: %w", err)
		}
		o.BackingFile, o.BackingFormat = rel, "qcow2"
	}
	if err := image.Create(path, o); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// OpenOverlay opens an overlay over the disk that backs it, which is not closed
// with it, and brings back what a process that was killed had been told is
// written. room, which may be nil, is asked before anything that may take n more
// bytes.
func OpenOverlay(ctx context.Context, path string, backing block.Device, room func(n int64) error) (*Overlay, error) {
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	w, err := image.OpenWriter(path, image.WriterOptions{Backing: backing})
	if err != nil {
		return nil, err
	}
	o := &Overlay{w: w, path: path, boot: boot, room: room}
	if err := o.recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open overlay %s: %w", path, err), w.Close())
	}
	return o, nil
}

// recover does what the log says, and begins a new one.
func (o *Overlay) recover(ctx context.Context) error {
	all, used, err := redoFiles(o.path, o.boot)
	if err != nil {
		return err
	}
	for _, file := range used {
		if err := readSegment(file, o.boot, func(r record) error { return o.redo(ctx, r.anyway()) }); err != nil {
			return fmt.Errorf("do again what %s says: %w", filepath.Base(file), err)
		}
	}
	if len(used) > 0 {
		if err := o.w.Flush(ctx); err != nil {
			return err
		}
	}
	for _, file := range all {
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	o.log, err = o.segment()
	return err
}

// segment returns a segment that is in use from now on. The caller holds o.mu.
func (o *Overlay) segment() (*segment, error) {
	o.uses++
	if k := len(o.free) - 1; k >= 0 {
		s := o.free[k]
		if err := s.use(o.uses); err != nil {
			return nil, err
		}
		o.free = o.free[:k]
		return s, nil
	}
	o.made++
	return newSegment(fmt.Sprintf("%s.redo-%d", o.path, o.made), o.boot, o.uses)
}

func (o *Overlay) redo(ctx context.Context, r record) error {
	switch r.op {
	case opWrite:
		return o.w.WriteAt(ctx, r.data, r.off)
	case opZero:
		return o.w.WriteZeroes(ctx, r.off, r.n, block.ZeroFlags(r.flags))
	default:
		return o.w.Trim(ctx, r.off, r.n)
	}
}

// anyway returns the record as it is done again: over what came later it may not be
// as fast as it was.
func (r record) anyway() record {
	if r.op == opZero {
		r.flags &^= byte(block.FastOnly)
	}
	return r
}

// Size returns the virtual size in bytes.
func (o *Overlay) Size() int64 { return o.w.Size() }

// Err returns why the overlay takes nothing until it is opened again: it could not
// make something durable. nil: it does.
func (o *Overlay) Err() error { return o.w.Err() }

// FileBytes returns how long the file is.
func (o *Overlay) FileBytes() (int64, error) {
	s, err := o.w.Stats()
	return s.FileBytes, err
}

// ReadAt implements block.Device.
func (o *Overlay) ReadAt(ctx context.Context, p []byte, off int64) error {
	return o.w.ReadAt(ctx, p, off)
}

// Map implements block.Mapper.
func (o *Overlay) Map(ctx context.Context, off, n int64) ([]block.Extent, error) {
	return o.w.Map(ctx, off, n)
}

// Locate implements block.Locator.
func (o *Overlay) Locate(ctx context.Context, dst []block.Location, off, n int64) ([]block.Location, error) {
	return o.w.Locate(ctx, dst, off, n)
}

// WriteAt implements block.Writer.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64) error {
	return o.change(ctx, record{op: opWrite, off: off, n: int64(len(p)), data: p}, int64(len(p)))
}

// WriteZeroes implements block.Zeroer.
func (o *Overlay) WriteZeroes(ctx context.Context, off, n int64, flags block.ZeroFlags) error {
	need := n
	if flags&block.MayTrim != 0 && (off|n)&(o.w.ClusterSize()-1) == 0 { // else parts of clusters may be copied
		need = 0
	}
	return o.change(ctx, record{op: opZero, flags: byte(flags), off: off, n: n}, need)
}

// Trim implements block.Trimmer: what is trimmed reads as zeroes.
func (o *Overlay) Trim(ctx context.Context, off, n int64) error {
	return o.change(ctx, record{op: opTrim, off: off, n: n}, 0)
}

// change makes a change and logs it.
func (o *Overlay) change(ctx context.Context, r record, need int64) error {
	if err := block.CheckRange(o.Size(), r.off, r.n); err != nil {
		return err
	}
	if o.room != nil && need > 0 {
		if err := o.room(need); err != nil {
			return err
		}
	}
	long, err := o.logged(ctx, r)
	if err == nil && long {
		err = o.Flush(ctx)
	}
	return err
}

func (o *Overlay) logged(ctx context.Context, r record) (long bool, err error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.log == nil {
		return false, fmt.Errorf("%s: %w", o.path, os.ErrClosed)
	}
	// Only what succeeded is logged: it will succeed again.
	if err := o.redo(ctx, r); err != nil {
		return false, err
	}
	r = r.anyway()
	err = o.log.add(r.op, r.flags, r.off, r.n, r.data)
	return o.log.length() > maxRedo, err
}

// Flush implements block.Flusher. What was written before it needs no log any
// more, unless that is short.
func (o *Overlay) Flush(ctx context.Context) error {
	done, err := o.rotate()
	if err != nil {
		return err
	}
	if err := o.w.Flush(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.retire(done)
}

// retire ends the use of segments, oldest first: what is left after a kill at any
// moment is what came last, and can be done again. Those that others retired
// meanwhile, or that are closed, are not looked at. The caller holds o.mu.
func (o *Overlay) retire(done []*segment) error {
	for _, s := range done {
		i := slices.Index(o.old, s)
		if i < 0 {
			continue
		}
		long := s.length() > keptRedo
		if err := s.use(0); err != nil {
			return err
		}
		o.old = slices.Delete(o.old, i, i+1)
		if !long {
			o.free = append(o.free, s)
		} else if err := s.remove(); err != nil {
			return err
		}
	}
	return nil
}

// rotate begins a new segment and returns those that the next flush makes
// superfluous.
func (o *Overlay) rotate() ([]*segment, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log == nil {
		return nil, fmt.Errorf("%s: %w", o.path, os.ErrClosed)
	}
	if o.log.length() > shortRedo {
		s, err := o.segment()
		// Where nothing is free for a new segment the old one goes on: the flush
		// leaves it, and it is done again for nothing at worst.
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			return nil, err
		}
		if err == nil {
			o.old = append(o.old, o.log)
			o.log = s
		}
	}
	return slices.Clone(o.old), nil
}

// Close makes everything durable and closes the files.
func (o *Overlay) Close() error {
	o.mu.Lock()
	if o.log == nil {
		o.mu.Unlock()
		return nil
	}
	segments := slices.Concat(o.old, []*segment{o.log}, o.free)
	o.log, o.old, o.free = nil, nil, nil
	o.mu.Unlock()
	if err := o.w.Close(); err != nil {
		for _, s := range segments { // which stay: they may be needed
			err = errors.Join(err, s.f.Close())
		}
		return err
	}
	var errs []error
	for _, s := range segments {
		errs = append(errs, s.remove())
	}
	return errors.Join(errs...)
}
