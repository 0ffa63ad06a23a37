package restore

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// Devices are block devices, or image files of the right size, that are
// overwritten: one for each disk, in the order of the disks. A device that is in
// use is refused.
type Devices struct {
	Paths []string

	held []*held
}

// held is a device that is being written.
type held struct {
	lock *os.File // keeps others from mounting it
	w    *image.RawWriter
}

var _ Target = (*Devices)(nil)

// Plan implements Target.
func (t *Devices) Plan(_ context.Context, m Machine) (Plan, error) {
	if len(t.Paths) != len(m.Disks) {
		return Plan{}, fmt.Errorf("%w: the machine has %d disks and %d devices are given; give one for each, separated by commas, or choose a disk",
			ErrRefused, len(m.Disks), len(t.Paths))
	}
	var p Plan
	for i, d := range m.Disks {
		size, err := checkDevice(t.Paths[i], d)
		if err != nil {
			return Plan{}, err
		}
		p.Disks = append(p.Disks, PlannedDisk{Index: d.Index, Key: d.Key, Size: d.Device.Size(), To: t.Paths[i], Overwrites: true})
		if size > d.Device.Size() {
			p.Notes = append(p.Notes, fmt.Sprintf("%s is %d bytes longer than disk %s; what is behind stays as it is, and a GPT has its backup there: repair it with: sgdisk -e %s",
				t.Paths[i], size-d.Device.Size(), d.Key, t.Paths[i]))
		}
	}
	return p, nil
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
	if st.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
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

// checkDevice returns the size of a device that can take a disk.
func checkDevice(path string, d Disk) (int64, error) {
	h, err := hold(path)
	if err != nil {
		return 0, err
	}
	size := h.w.Size()
	if err := h.close(); err != nil {
		return 0, err
	}
	if size < d.Device.Size() {
		return 0, fmt.Errorf("%w: %s has %d bytes, disk %s has %d", ErrRefused, path, size, d.Key, d.Device.Size())
	}
	return size, nil
}

// hold opens a device for writing, exclusively.
func hold(path string) (*held, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	h := &held{}
	if st.Mode()&os.ModeDevice != 0 {
		// For block devices this is refused while they are mounted or part of others.
		if h.lock, err = os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0); err != nil {
			if errors.Is(err, unix.EBUSY) {
				err = fmt.Errorf("%w: %s is in use: unmount it, or stop what uses it", ErrRefused, path)
			}
			return nil, err
		}
	}
	if h.w, err = image.OpenRawWriter(path); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
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
	h, err := hold(t.Paths[len(t.held)])
	if err != nil {
		return nil, false, err
	}
	t.held = append(t.held, h)
	return h.w, false, nil
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
