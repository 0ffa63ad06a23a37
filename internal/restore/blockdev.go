package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// Devices are block devices, or image files of the right size, that are
// overwritten: one for each disk, in the order of the disks. What is in use is
// refused. All are held before the first is written to.
type Devices struct {
	Paths []string

	disks []Disk // as planned
	held  []*held
}

// held is a device that is being written.
type held struct {
	lock io.Closer // keeps others from mounting it, or QEMU from opening it
	w    *image.RawWriter
}

var _ Target = (*Devices)(nil)

// Plan implements Target.
func (t *Devices) Plan(_ context.Context, m Machine) (Plan, error) {
	if len(t.Paths) != len(m.Disks) {
		return Plan{}, fmt.Errorf("%w: the machine has %d disks and %d devices are given; give one for each, separated by commas, or choose a disk",
			ErrRefused, len(m.Disks), len(t.Paths))
	}
	t.disks = m.Disks
	if err := t.holdAll(); err != nil {
		return Plan{}, err
	}
	var p Plan
	for i, d := range m.Disks {
		size := t.held[i].w.Size()
		p.Disks = append(p.Disks, PlannedDisk{Index: d.Index, Key: d.Key, Size: d.Device.Size(), To: t.Paths[i], Overwrites: true})
		if size > d.Device.Size() {
			p.Notes = append(p.Notes, fmt.Sprintf("%s is %d bytes longer than disk %s; what is behind stays as it is, and a GPT has its backup there: repair it with: sgdisk -e %s",
				t.Paths[i], size-d.Device.Size(), d.Key, t.Paths[i]))
		}
	}
	return p, t.Abort()
}

// Claim keeps a block device for somebody else to write a disk of size bytes to:
// until release is called it can neither be mounted nor become part of another. It
// returns how many bytes longer the device is, and ErrRefused if it is in use, too
// short or no block device.
func Claim(path string, size int64) (longer int64, release func() error, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, nil, err
	}
	if !isBlock(st.Mode()) {
		return 0, nil, fmt.Errorf("%w: %s is no block device", ErrRefused, path)
	}
	h, err := hold(path)
	if err != nil {
		return 0, nil, err
	}
	if longer = h.w.Size() - size; longer < 0 {
		err := fmt.Errorf("%w: %s has %d bytes, the disk has %d", ErrRefused, path, h.w.Size(), size)
		return 0, nil, errors.Join(err, h.close())
	}
	return longer, h.close, nil
}

// holdAll opens all devices, or none.
func (t *Devices) holdAll() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Abort())
		}
	}()
	var found []os.FileInfo
	for i, path := range t.Paths {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if j := slices.IndexFunc(found, func(other os.FileInfo) bool { return overlaps(st, other) }); j >= 0 {
			return fmt.Errorf("%w: what is written to %s would overwrite disk %s on %s; give each disk a device of its own", ErrRefused, path, t.disks[j].Key, t.Paths[j])
		}
		found = append(found, st)
		h, err := hold(path)
		if err != nil {
			return err
		}
		t.held = append(t.held, h)
		if d := t.disks[i]; h.w.Size() < d.Device.Size() {
			return fmt.Errorf("%w: %s has %d bytes, disk %s has %d", ErrRefused, path, h.w.Size(), d.Key, d.Device.Size())
		}
	}
	return nil
}

// hold opens a device or an image for writing, and keeps others away.
func hold(path string) (*held, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	lock, err := keep(path, st)
	if err != nil {
		return nil, err
	}
	h := &held{lock: lock}
	if h.w, err = image.OpenRawWriter(path); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// keep keeps others away from a device or an image until what it returns is closed.
func keep(path string, st fs.FileInfo) (io.Closer, error) {
	if number, ok := deviceNumber(st); ok {
		return claim(path, number)
	}
	if at := loopOf(st); at != "" {
		return nil, fmt.Errorf("%w: %s is in use: %s shows it; unmount that, and end it with: losetup -d %s", ErrRefused, path, at, at)
	}
	lock, err := image.Lock(path)
	if errors.Is(err, image.ErrLocked) {
		err = fmt.Errorf("%w: %s is open in another program: shut its machine down, or end what uses it (who it is: fuser -v %s)", ErrRefused, path, path)
	}
	return lock, err
}

// claim opens a block device as a mount would, which is refused while it is mounted,
// part of another, or claimed.
func claim(path string, number uint64) (io.Closer, error) {
	if who := writerOf(number); who != "" {
		return nil, fmt.Errorf("%w: %s is in use: %s has it, or a part of it, open for writing; shut the machine down, or end what uses it", ErrRefused, path, who)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: %s is in use: unmount it, or stop what uses it", ErrRefused, path)
	}
	return f, err
}

// close closes what is open. What was written is durable if there is no error.
func (h *held) close() error {
	var err error
	if h.w != nil {
		err = h.w.Close()
		h.w = nil
	}
	if h.lock != nil {
		h.lock.Close()
		h.lock = nil
	}
	return err
}

// Open implements Target.
func (t *Devices) Open(_ context.Context, d Disk) (block.Device, bool, error) {
	if len(t.held) == 0 {
		if err := t.holdAll(); err != nil {
			return nil, false, err
		}
	}
	i := slices.IndexFunc(t.disks, func(x Disk) bool { return x.Index == d.Index })
	if i < 0 {
		return nil, false, fmt.Errorf("disk %d was not planned", d.Index)
	}
	return t.held[i].w, false, nil
}

// Commit implements Target.
func (t *Devices) Commit(ctx context.Context) (Made, error) {
	if err := ctx.Err(); err != nil {
		return Made{}, err
	}
	return Made{}, t.Abort()
}

// Abort implements Target. What was overwritten stays so.
func (t *Devices) Abort() error {
	var errs []error
	for _, h := range t.held {
		errs = append(errs, h.close())
	}
	t.held = nil
	return errors.Join(errs...)
}
