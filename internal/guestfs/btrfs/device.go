package btrfs

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Device says which part of a file system a volume is.
type Device struct {
	Filesystem string // UUID
	UUID       string // of the device
	Number     uint64 // from 1
	Devices    int    // of the file system, this one included
}

// Probe tells what a volume is a device of. It returns fsys.ErrNotFound if it is
// none.
func Probe(v fsys.Volume) (Device, error) {
	s, _, err := readSuper(v)
	if err != nil {
		return Device{}, err
	}
	return Device{s.fsid.String(), s.device.uuid.String(), s.device.id, int(min(s.numDevices, 1<<16))}, nil
}

// MissingError says that devices of a file system are not among the volumes it was
// to be opened from. It is an fsys.ErrUnsupported.
type MissingError struct {
	Filesystem string   // UUID
	Devices    []Device // those that are missing
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s of btrfs %s is missing: open it together with the others", e.names(), e.Filesystem)
}

// names are those of the devices.
func (e *MissingError) names() string {
	names := make([]string, len(e.Devices))
	for i, d := range e.Devices {
		names[i] = deviceName(d.Number, d.UUID)
	}
	return strings.Join(names, ", ")
}

func deviceName(number uint64, uuid string) string {
	return fmt.Sprintf("device %d (UUID %s)", number, uuid)
}

func (e *MissingError) Unwrap() error { return fsys.ErrUnsupported }

// device is one that a chunk lies on.
type device struct {
	id    uint64
	uuid  uuid
	vol   fsys.Volume // nil: missing
	meta  fsys.Volume // vol with a cache
	base  int64       // where it begins in the row of all devices
	index int         // in that row
	stale bool        // it was absent when the others were written
}

// device returns the device with a UUID, which is noted as missing if it is new.
func (s *space) device(u uuid, id uint64) *device {
	for _, d := range s.devices {
		if d.uuid == u {
			return d
		}
	}
	d := &device{id: id, uuid: u}
	// A chunk cannot name more devices than fit into its item, but chunks can.
	if len(s.devices) < 1<<12 {
		s.devices = append(s.devices, d)
	}
	return d
}

// missing returns an error that names the devices that are not at hand, or nil.
func (s *space) missing(fsid uuid) *MissingError {
	e := &MissingError{Filesystem: fsid.String()}
	for _, d := range s.devices {
		if d.vol == nil {
			e.Devices = append(e.Devices, Device{e.Filesystem, d.uuid.String(), d.id, len(s.devices)})
		}
	}
	if e.Devices == nil {
		return nil
	}
	return e
}

// place is a byte of a device.
type place struct {
	dev *device
	at  int64
}

// places returns where a logical address lies, the best copy first, and for how
// many bytes this holds. Copies on missing devices are left out.
func (s *space) places(logical uint64) ([]place, int64, error) {
	c, err := s.chunk(logical)
	if err != nil {
		return nil, 0, err
	}
	from, in, run := c.at(logical - c.start)
	found := make([]place, 0, len(from))
	for _, st := range from {
		if st.dev.vol != nil {
			found = append(found, place{st.dev, int64(st.offset + in)})
		}
	}
	if len(found) == 0 {
		d := from[0].dev
		return nil, 0, fmt.Errorf("it lies on %s, which is missing (profile %s): %w", deviceName(d.id, d.uuid.String()), profileName(c.profile), fsys.ErrUnsupported)
	}
	if len(found) > 1 {
		slices.SortStableFunc(found, func(a, b place) int { return better(a.dev, b.dev) })
	}
	return found, int64(run), nil
}

// better orders devices by how much they are to be preferred, the best first.
func better(a, b *device) int {
	if a.stale != b.stale {
		if a.stale {
			return 1
		}
		return -1
	}
	return a.index - b.index
}

// read fills p with what lies at a logical address. It tries one copy after the
// other until accept, which may be nil, has no objection. Structures are to be
// kept in the caches of their devices.
func (s *space) read(p []byte, logical uint64, structures bool, accept func([]byte) error) error {
	var first error
	for try := 0; ; try++ {
		more, err := s.readCopy(p, logical, structures, try)
		if err == nil && accept != nil {
			err = accept(p)
		}
		if err == nil {
			return nil
		}
		if first == nil || errors.Is(err, fsys.ErrCorrupt) && !errors.Is(first, fsys.ErrCorrupt) {
			first = err
		}
		if !more {
			return first
		}
	}
}

// readCopy fills p from the copies with a number, or from the last that there
// are, and says whether there are more.
func (s *space) readCopy(p []byte, logical uint64, structures bool, number int) (more bool, err error) {
	for len(p) > 0 {
		from, run, e := s.places(logical)
		if e != nil {
			return false, e
		}
		more = more || number+1 < len(from)
		n := int(min(run, int64(len(p))))
		at := from[min(number, len(from)-1)]
		if e := at.read(p[:n], structures); e != nil && err == nil {
			err = e
		}
		p, logical = p[n:], logical+uint64(n)
	}
	return more, err
}

func (at place) read(p []byte, structures bool) error {
	if at.at > at.dev.vol.Size()-int64(len(p)) {
		return fmt.Errorf("read %d bytes at %d of device %d, which has %d: %w: %w",
			len(p), at.at, at.dev.id, at.dev.vol.Size(), io.ErrUnexpectedEOF, fsys.ErrCorrupt)
	}
	if structures {
		return at.dev.meta.ReadAt(p, at.at)
	}
	return at.dev.vol.ReadAt(p, at.at)
}
